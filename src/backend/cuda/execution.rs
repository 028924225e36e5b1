//! One batch through a kernel: inputs to the device, launch, outputs back, on one stream.

use std::sync::Arc;

use bytes::Bytes;
use crossbeam_channel::bounded;

use super::launch::{Grid, LaunchPlan, Source, Tensor};
use crate::{
    backend::{BackendError, Batch, BatchOutputs, BatchTensor, Instance},
    device::{
        Argument, Device, DeviceError, DeviceMemory, DeviceSlice, Kernel, KernelSource, Landing,
        Scalar, Stream, Urgency,
    },
    inference::{Shape, Signature, TensorSpec},
};

/// A kernel on one device, with a stream of its own.
pub(super) struct OnDevice {
    device: Arc<dyn Device>,
    stream: Box<dyn Stream>,
    kernel: Kernel,
    plan: LaunchPlan,
    signature: Arc<Signature>,
    /// Memory for each input, then for each output, as large as it has had to be.
    memory: Vec<Option<DeviceMemory>>,
}

/// A tensor on the device.
struct Placed {
    shape: Shape,
    count: u64,
    slice: DeviceSlice,
}

/// A tensor's dimensions as the model sees them, without the batch's.
pub(super) fn dims(spec: &TensorSpec) -> &Shape {
    spec.reshape.as_ref().unwrap_or(&spec.dims)
}

impl OnDevice {
    pub fn new(
        device: Arc<dyn Device>,
        kernel: &KernelSource,
        plan: LaunchPlan,
        signature: Arc<Signature>,
    ) -> Result<Self, DeviceError> {
        let stream = device.stream(Urgency::Normal)?;
        let kernel = device.kernel(kernel)?;
        let memory = vec![None; signature.inputs.len() + signature.outputs.len()];
        Ok(Self { device, stream, kernel, plan, signature, memory })
    }

    /// Memory for a tensor; that of the batch before if it is large enough.
    fn place(&mut self, index: usize, bytes: usize) -> Result<DeviceSlice, DeviceError> {
        if let Some(Some(memory)) = self.memory.get(index)
            && memory.size() >= bytes
        {
            return memory.slice(0..bytes);
        }
        let memory = self.device.allocate(bytes.max(1))?;
        let slice = memory.slice(0..bytes)?;
        if let Some(place) = self.memory.get_mut(index) {
            *place = Some(memory);
        }
        Ok(slice)
    }

    fn run(&mut self, batch: &Batch<'_>) -> Result<BatchOutputs, BackendError> {
        let fault = |error: DeviceError| BackendError(error.to_string());
        let mut inputs = Vec::new();
        for (index, tensor) in batch.inputs.iter().enumerate() {
            let tensor = tensor
                .as_ref()
                .ok_or_else(|| BackendError("a kernel needs all of its inputs".to_owned()))?;
            let slice = self.place(index, tensor.data.len()).map_err(fault)?;
            self.stream.copy_in(tensor.data.clone(), &slice).map_err(fault)?;
            inputs.push(Placed { shape: tensor.shape.clone(), count: count(tensor), slice });
        }
        let mut outputs = Vec::new();
        for index in 0..self.signature.outputs.len() {
            let (shape, bytes, count) = self.output(index, &inputs, batch.rows)?;
            let slice = self.place(inputs.len() + index, bytes).map_err(fault)?;
            outputs.push(Placed { shape, count, slice });
        }
        self.launch(&inputs, &outputs, batch.rows).map_err(fault)?;

        let mut landings = Vec::new();
        for output in &outputs {
            let buffer = batch.pool.allocate(output.slice.len());
            let buffer = buffer.map_err(|error| BackendError(error.to_string()))?;
            let (landing, target) = Landing::new(buffer);
            self.stream.copy_out(&output.slice, target).map_err(fault)?;
            landings.push(landing);
        }
        let (report, reported) = bounded(1);
        let call = Box::new(move |done| {
            // Nobody waits any more when the instance has gone.
            let _ = report.send(done);
        });
        self.stream.call(call).map_err(fault)?;
        let done = reported
            .recv()
            .map_err(|_| BackendError("the device let go of the batch".to_owned()))?;
        done.outcome.map_err(fault)?;
        let tensors = outputs.into_iter().zip(landings).map(|(output, landing)| {
            let data: Option<Bytes> = landing.finish();
            let data = data.ok_or_else(|| {
                BackendError("an output was still under way when it should have arrived".to_owned())
            })?;
            Ok(Some(BatchTensor { shape: output.shape, data }))
        });
        tensors.collect()
    }

    /// Shape, bytes and number of elements of an output.
    fn output(
        &self,
        index: usize,
        inputs: &[Placed],
        rows: u32,
    ) -> Result<(Shape, usize, u64), BackendError> {
        let spec = &self.signature.outputs[index];
        let own = dims(spec);
        let shape = match self.signature.inputs.iter().position(|input| dims(input) == own) {
            _ if own.is_fixed() && self.signature.max_batch_size > 0 => own.with_batch(rows.into()),
            _ if own.is_fixed() => own.clone(),
            Some(input) => inputs[input].shape.clone(),
            None => own.clone(),
        };
        let count = shape.element_count();
        let size = spec.datatype.size().and_then(|size| u64::try_from(size).ok());
        let bytes = count.zip(size).and_then(|(count, size)| count.checked_mul(size));
        match (count, bytes.and_then(|bytes| usize::try_from(bytes).ok())) {
            (Some(count), Some(bytes)) => Ok((shape, bytes, count)),
            _ => Err(BackendError(format!("output '{}' has the shape {shape}", spec.name))),
        }
    }

    fn launch(
        &mut self,
        inputs: &[Placed],
        outputs: &[Placed],
        rows: u32,
    ) -> Result<(), DeviceError> {
        let placed = |tensor: Tensor| match tensor {
            Tensor::Input(index) => &inputs[index],
            Tensor::Output(index) => &outputs[index],
        };
        let block = self.plan.block;
        let grid = match self.plan.grid {
            Grid::Fixed(grid) => grid,
            Grid::Over(tensor) => {
                let blocks = placed(tensor).count.div_ceil(u64::from(block[0]));
                [u32::try_from(blocks).unwrap_or(u32::MAX).max(1), 1, 1]
            }
        };
        let mut launch = self.kernel.launch(grid, block);
        launch.shared_bytes = self.plan.shared_bytes;
        for &source in &self.plan.arguments {
            launch = launch.with(match source {
                Source::Pointer(tensor @ Tensor::Input(_)) => {
                    Argument::Read(placed(tensor).slice.clone())
                }
                Source::Pointer(tensor @ Tensor::Output(_)) => {
                    Argument::Write(placed(tensor).slice.clone())
                }
                Source::Count(tensor) => Argument::Scalar(Scalar::U64(placed(tensor).count)),
                Source::Rows => Argument::Scalar(Scalar::U32(rows)),
                Source::Int(number) => Argument::Scalar(Scalar::I32(number)),
                Source::Float(number) => Argument::Scalar(Scalar::F32(number)),
            });
        }
        self.stream.launch(launch)
    }
}

fn count(tensor: &BatchTensor) -> u64 {
    tensor.shape.element_count().unwrap_or(0)
}

impl Instance for OnDevice {
    fn execute(&mut self, batch: &Batch<'_>) -> Result<BatchOutputs, BackendError> {
        self.run(batch)
    }
}
