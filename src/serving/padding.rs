//! Rows that belong to nobody, where a model is to see batches of some sizes only.

use smallvec::SmallVec;

use super::job::Job;
use crate::inference::{Admitted, AdmittedInput, Rope, Signature, TensorSpec};

/// What is put behind the requests of a batch to make it as large as the next of the `allowed` sizes,
/// which ascend; `None` where any size is allowed, or it has one that is. It is zeros, and empty strings;
/// nothing is asked for it, so it never leaves the server.
pub fn padding(allowed: &[u32], signature: &Signature, jobs: &[Job]) -> Option<Admitted> {
    let first = &jobs.first()?.admitted;
    let rows: u32 = jobs.iter().map(|job| job.admitted.batch_size).sum();
    let missing = missing_rows(allowed, rows)?;
    let inputs = signature.inputs.iter().zip(&first.inputs);
    let inputs = inputs.map(|(spec, given)| given.as_ref().and_then(|_| zeros(spec, missing)));
    Some(Admitted {
        batch_size: missing,
        inputs: inputs.collect(),
        outputs: SmallVec::new(),
        classes: SmallVec::new(),
    })
}

fn missing_rows(allowed: &[u32], rows: u32) -> Option<u32> {
    let next = allowed.iter().find(|size| **size >= rows)?;
    Some(next - rows).filter(|missing| *missing > 0)
}

/// So many rows of an input of fixed shape.
fn zeros(spec: &TensorSpec, rows: u32) -> Option<AdmittedInput> {
    let shape = spec.dims.with_batch(i64::from(rows));
    // Of a string there is at least its length.
    let size = spec.datatype.size().unwrap_or(size_of::<u32>());
    let bytes = usize::try_from(shape.element_count()?).ok()?.checked_mul(size)?;
    Some(AdmittedInput { shape, data: Rope::zeros(bytes) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::{DataType, Shape};

    #[test]
    fn a_batch_grows_to_the_next_size_and_no_further() {
        for (allowed, rows, expected) in [
            (&[1, 4, 8][..], 1, None),
            (&[1, 4, 8], 2, Some(2)),
            (&[1, 4, 8], 4, None),
            (&[1, 4, 8], 5, Some(3)),
            (&[8], 1, Some(7)),
            (&[], 3, None),
        ] {
            assert_eq!(missing_rows(allowed, rows), expected, "{rows} rows of {allowed:?}");
        }
    }

    #[test]
    fn rows_that_are_added_are_zeros_and_empty_strings() {
        let spec = |datatype| TensorSpec::new("x", datatype, Shape::from([2, 3]));
        for (datatype, bytes) in
            [(DataType::Fp32, 3 * 24), (DataType::Bytes, 3 * 24), (DataType::Bool, 3 * 6)]
        {
            let AdmittedInput { shape, data } = zeros(&spec(datatype), 3).unwrap();
            assert_eq!((shape, data.len()), (Shape::from([3, 2, 3]), bytes));
            assert!(data.pieces().iter().all(|piece| piece.iter().all(|byte| *byte == 0)));
        }
        assert!(zeros(&TensorSpec::new("x", DataType::Fp32, Shape::from([-1])), 3).is_none());
    }
}
