//! Batches for a kernel: how one is laid out on a device, and its launch.

use std::sync::Arc;

use super::launch::{Grid, LaunchPlan, Source, Tensor};
use crate::{
    backend::{
        BackendError, Batch, BatchTensor, DeviceBatch, DeviceModel, DeviceOutput, ResponseError,
    },
    device::{
        Argument, Device, DeviceError, DeviceSlice, Kernel, KernelSource, Scalar, Stream,
        streams::{Compute, PlacedBatch},
    },
    inference::{Shape, Signature, TensorSpec},
};

/// The tensors of a kernel's batches.
pub(super) struct Batches(pub Arc<Signature>);

/// A kernel on one device.
pub(super) struct OnDevice {
    kernel: Kernel,
    plan: LaunchPlan,
    signature: Arc<Signature>,
}

/// A tensor's dimensions as the model sees them, without the batch's.
pub(super) fn dims(spec: &TensorSpec) -> &Shape {
    spec.reshape.as_ref().unwrap_or(&spec.dims)
}

impl DeviceModel for Batches {
    fn lay_out(&self, batch: &Batch<'_>) -> Result<DeviceBatch, ResponseError> {
        let given: Option<Vec<&BatchTensor>> = batch.inputs.iter().map(Option::as_ref).collect();
        let given =
            given.ok_or_else(|| BackendError("a kernel needs all of its inputs".to_owned()))?;
        let outputs = self.0.outputs.iter().map(|spec| self.output(spec, &given, batch.rows));
        Ok(DeviceBatch {
            outputs: outputs.collect::<Result<_, _>>()?,
            inputs: given.iter().map(|tensor| tensor.data.clone()).collect(),
            ..DeviceBatch::default()
        })
    }
}

impl Batches {
    fn output(
        &self,
        spec: &TensorSpec,
        inputs: &[&BatchTensor],
        rows: u32,
    ) -> Result<DeviceOutput, BackendError> {
        let own = dims(spec);
        let like = || self.0.inputs.iter().position(|input| dims(input) == own);
        let shape = match own.is_fixed() {
            true if self.0.max_batch_size > 0 => own.with_batch(rows.into()),
            true => own.clone(),
            false => {
                let input = like().and_then(|input| inputs.get(input));
                input.map_or_else(|| own.clone(), |input| input.shape.clone())
            }
        };
        let size = spec.datatype.size().and_then(|size| u64::try_from(size).ok());
        let bytes = shape.element_count().zip(size);
        let bytes = bytes.and_then(|(count, size)| count.checked_mul(size));
        match bytes.and_then(|bytes| usize::try_from(bytes).ok()) {
            Some(bytes) => Ok(DeviceOutput { shape, bytes }),
            None => Err(BackendError(format!("output '{}' has the shape {shape}", spec.name))),
        }
    }
}

impl OnDevice {
    pub fn load(
        device: &dyn Device,
        kernel: &KernelSource,
        plan: LaunchPlan,
        signature: Arc<Signature>,
    ) -> Result<Self, DeviceError> {
        Ok(Self { kernel: device.kernel(kernel)?, plan, signature })
    }

    /// The elements of a tensor, all rows together.
    fn count(&self, tensor: Tensor, batch: &PlacedBatch<'_>) -> u64 {
        let spec = match tensor {
            Tensor::Input(index) => self.signature.inputs.get(index),
            Tensor::Output(index) => self.signature.outputs.get(index),
        };
        let size = spec.and_then(|spec| spec.datatype.size()).unwrap_or(1);
        placed(tensor, batch).map_or(0, |slice| (slice.len() / size) as u64)
    }
}

fn placed<'a>(tensor: Tensor, batch: &PlacedBatch<'a>) -> Option<&'a DeviceSlice> {
    match tensor {
        Tensor::Input(index) => batch.inputs.get(index),
        Tensor::Output(index) => batch.outputs.get(index),
    }
}

impl Compute for OnDevice {
    fn enqueue(
        &mut self,
        stream: &mut dyn Stream,
        batch: &PlacedBatch<'_>,
    ) -> Result<(), DeviceError> {
        let block = self.plan.block;
        let grid = match self.plan.grid {
            Grid::Fixed(grid) => grid,
            Grid::Over(tensor) => {
                let blocks = self.count(tensor, batch).div_ceil(u64::from(block[0]));
                [u32::try_from(blocks).unwrap_or(u32::MAX).max(1), 1, 1]
            }
        };
        let mut launch = self.kernel.launch(grid, block);
        launch.shared_bytes = self.plan.shared_bytes;
        for &source in &self.plan.arguments {
            let argument = match source {
                Source::Pointer(tensor) => {
                    // The plan names tensors of the signature, and the batch has all of them.
                    let Some(slice) = placed(tensor, batch).cloned() else { continue };
                    match tensor {
                        Tensor::Input(_) => Argument::Read(slice),
                        Tensor::Output(_) => Argument::Write(slice),
                    }
                }
                Source::Count(tensor) => Argument::Scalar(Scalar::U64(self.count(tensor, batch))),
                Source::Rows => Argument::Scalar(Scalar::U32(batch.rows)),
                Source::Int(number) => Argument::Scalar(Scalar::I32(number)),
                Source::Float(number) => Argument::Scalar(Scalar::F32(number)),
            };
            launch = launch.with(argument);
        }
        stream.launch(launch)
    }
}
