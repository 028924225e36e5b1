//! Element types by torch's own numbers (`c10::ScalarType`).

use crate::inference::DataType;

/// Torch's number for a type; `None` for strings, which are no tensors there.
pub(super) const fn element_of(datatype: DataType) -> Option<i32> {
    Some(match datatype {
        DataType::Uint8 => 0,
        DataType::Int8 => 1,
        DataType::Int16 => 2,
        DataType::Int32 => 3,
        DataType::Int64 => 4,
        DataType::Fp16 => 5,
        DataType::Fp32 => 6,
        DataType::Fp64 => 7,
        DataType::Bool => 11,
        DataType::Bf16 => 15,
        DataType::Uint16 => 27,
        DataType::Uint32 => 28,
        DataType::Uint64 => 29,
        DataType::Bytes => return None,
    })
}

/// The type behind torch's number, if tensors here can have it.
pub(super) fn datatype_of(element: i32) -> Option<DataType> {
    DataType::ALL.into_iter().find(|&datatype| element_of(datatype) == Some(element))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_leads_back_to_its_type() {
        for datatype in DataType::ALL {
            let element = element_of(datatype);
            assert_eq!(element.and_then(datatype_of).is_none(), datatype == DataType::Bytes);
            assert!(element.is_none_or(|element| datatype_of(element) == Some(datatype)));
        }
        // A complex number.
        assert_eq!(datatype_of(9), None);
    }
}
