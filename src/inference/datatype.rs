use std::{fmt, str::FromStr};

use nereid_ring::DataType as Numbered;

use super::Error;

/// The element type of a tensor, by the names of the v2 protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum DataType {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Fp32,
    Fp64,
    /// Strings of any bytes; on the wire each is preceded by its length as a little-endian `u32`.
    Bytes,
    Bf16,
}

impl DataType {
    /// Every type that a tensor can have.
    pub const ALL: [DataType; 14] = [
        Self::Bool,
        Self::Uint8,
        Self::Uint16,
        Self::Uint32,
        Self::Uint64,
        Self::Int8,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::Fp16,
        Self::Fp32,
        Self::Fp64,
        Self::Bytes,
        Self::Bf16,
    ];

    /// The size of one element in bytes; `None` for [`DataType::Bytes`], whose elements vary.
    pub const fn size(self) -> Option<usize> {
        self.numbered().size()
    }

    /// Whether elements are floating-point numbers, which any bits are.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::Fp16 | Self::Bf16 | Self::Fp32 | Self::Fp64)
    }

    /// The name in the v2 protocol, such as `FP32`.
    pub const fn protocol_name(self) -> &'static str {
        self.numbered().name()
    }

    /// The same type as the records of the ring tell it: both lists have the same order.
    pub const fn numbered(self) -> Numbered {
        Numbered::ALL[self as usize]
    }

    /// The name in a model configuration, such as `TYPE_FP32`; [`DataType::Bytes`] is `TYPE_STRING`.
    pub const fn config_name(self) -> &'static str {
        match self {
            Self::Bool => "TYPE_BOOL",
            Self::Uint8 => "TYPE_UINT8",
            Self::Uint16 => "TYPE_UINT16",
            Self::Uint32 => "TYPE_UINT32",
            Self::Uint64 => "TYPE_UINT64",
            Self::Int8 => "TYPE_INT8",
            Self::Int16 => "TYPE_INT16",
            Self::Int32 => "TYPE_INT32",
            Self::Int64 => "TYPE_INT64",
            Self::Fp16 => "TYPE_FP16",
            Self::Fp32 => "TYPE_FP32",
            Self::Fp64 => "TYPE_FP64",
            Self::Bytes => "TYPE_STRING",
            Self::Bf16 => "TYPE_BF16",
        }
    }

    /// The type that a model configuration's enum value names; `None` for `TYPE_INVALID`.
    pub fn from_config(value: crate::proto::DataType) -> Option<Self> {
        use crate::proto::DataType as Config;
        Some(match value {
            Config::TypeInvalid => return None,
            Config::TypeBool => Self::Bool,
            Config::TypeUint8 => Self::Uint8,
            Config::TypeUint16 => Self::Uint16,
            Config::TypeUint32 => Self::Uint32,
            Config::TypeUint64 => Self::Uint64,
            Config::TypeInt8 => Self::Int8,
            Config::TypeInt16 => Self::Int16,
            Config::TypeInt32 => Self::Int32,
            Config::TypeInt64 => Self::Int64,
            Config::TypeFp16 => Self::Fp16,
            Config::TypeFp32 => Self::Fp32,
            Config::TypeFp64 => Self::Fp64,
            Config::TypeString => Self::Bytes,
            Config::TypeBf16 => Self::Bf16,
        })
    }

    /// The model configuration's enum value for this type.
    pub const fn to_config(self) -> crate::proto::DataType {
        use crate::proto::DataType as Config;
        match self {
            Self::Bool => Config::TypeBool,
            Self::Uint8 => Config::TypeUint8,
            Self::Uint16 => Config::TypeUint16,
            Self::Uint32 => Config::TypeUint32,
            Self::Uint64 => Config::TypeUint64,
            Self::Int8 => Config::TypeInt8,
            Self::Int16 => Config::TypeInt16,
            Self::Int32 => Config::TypeInt32,
            Self::Int64 => Config::TypeInt64,
            Self::Fp16 => Config::TypeFp16,
            Self::Fp32 => Config::TypeFp32,
            Self::Fp64 => Config::TypeFp64,
            Self::Bytes => Config::TypeString,
            Self::Bf16 => Config::TypeBf16,
        }
    }
}

impl From<Numbered> for DataType {
    fn from(numbered: Numbered) -> Self {
        // Theirs count from 1.
        Self::ALL[numbered as usize - 1]
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.protocol_name())
    }
}

impl FromStr for DataType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|datatype| datatype.protocol_name() == name)
            .ok_or_else(|| Error::UnknownDataType { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_back_to_its_type() {
        for datatype in DataType::ALL {
            assert_eq!(datatype.protocol_name().parse::<DataType>().unwrap(), datatype);
            assert_eq!(DataType::from_config(datatype.to_config()), Some(datatype));
            assert_eq!(DataType::from(datatype.numbered()), datatype);
            assert_eq!(datatype.to_config().as_str_name(), datatype.config_name());
        }
        assert!("fp32".parse::<DataType>().is_err());
    }
}
