use crate::{
    inference::{DataType, Rope, Shape},
    serving::lanes::ResidentInput,
};

/// A tensor between steps, shared and not copied.
#[derive(Clone)]
pub struct Tensor {
    pub datatype: DataType,
    pub shape: Shape,
    pub data: Rope,
    /// Whether its first dimension is the batch.
    pub batched: bool,
    /// Where it lies, if it has stayed on the device of the steps that take it; then `data` is absent.
    pub resides: Option<Box<ResidentInput>>,
}

/// A shape that has or has not a batch dimension, as a model wants it that has the other kind: a batch of
/// one loses the dimension, or gets it.
pub fn fitted(shape: Shape, was_batched: bool, dims: &Shape, batched: bool) -> Shape {
    match (was_batched, batched) {
        (false, true) if dims.admits(&shape) => shape.with_batch(1),
        (true, false) => match shape.split_first() {
            Some((1, own)) if dims.admits(own) => own.into(),
            _ => shape,
        },
        _ => shape,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_of_one_goes_between_models_with_and_without_batches() {
        for (shape, was_batched, dims, batched, expected) in [
            (&[3][..], false, &[-1][..], true, &[1, 3][..]),
            (&[2, 3], false, &[3], true, &[2, 3]),
            (&[1, 3], true, &[3], false, &[3]),
            (&[2, 3], true, &[3], false, &[2, 3]),
            (&[1, 3], true, &[1, 3], false, &[1, 3]),
            (&[1, 3], true, &[3], true, &[1, 3]),
            (&[3], false, &[3], false, &[3]),
            (&[], true, &[], false, &[]),
        ] {
            let got = fitted(shape.into(), was_batched, &dims.into(), batched);
            assert_eq!(&got[..], expected, "{shape:?} for {dims:?}");
        }
    }
}
