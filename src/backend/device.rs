//! Instances on a device whose batches the server brings there and back: it copies one batch while
//! another runs. All that the model does is to lay a batch out and to put its launches on a stream.

use std::sync::Arc;

use bytes::Bytes;

use super::{BackendError, Batch, BatchOutputs, BatchTensor, Instance};
use crate::{
    device::{
        Device,
        streams::{Alone, BatchParts, Compute},
    },
    inference::Shape,
    memory::{BufferPool, Exhausted},
};

/// One place on a device where a model runs whole batches.
pub struct DeviceInstance {
    /// The device.
    pub device: Arc<dyn Device>,
    /// How batches of the model look there, the same at all its places.
    pub model: Arc<dyn DeviceModel>,
    /// What puts its launches on a stream.
    pub compute: Box<dyn Compute>,
}

/// What a model whose batches run on devices says of a batch before it is copied.
pub trait DeviceModel: Send + Sync {
    /// Lays a batch out: what goes to the device, and what comes back. The inputs are as in
    /// [`Batch::inputs`].
    ///
    /// # Errors
    /// The whole batch fails with the message.
    fn lay_out(
        &self,
        rows: u32,
        inputs: &[Option<BatchTensor>],
    ) -> Result<DeviceBatch, BackendError>;

    /// Whether inputs may come without their bytes, which are brought to their places on the device
    /// meanwhile. Then what goes to the device begins with the inputs given, in their order, as they are.
    fn takes_resident(&self) -> bool {
        false
    }
}

/// A batch as a device has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeviceBatch {
    /// What is copied to the device.
    pub inputs: Vec<Bytes>,
    /// What is copied back: one for each output of the signature.
    pub outputs: Vec<DeviceOutput>,
    /// Bytes of what lies between.
    pub scratch: Vec<usize>,
    /// What the launches depend on beside the sizes of these.
    pub numbers: Vec<u64>,
}

/// An output before it is there.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceOutput {
    /// Its shape, the batch dimension included.
    pub shape: Shape,
    /// Its size.
    pub bytes: usize,
}

impl DeviceBatch {
    /// The batch as lanes take it, with memory for its outputs, and the shapes of those.
    ///
    /// # Errors
    /// When the pool is used up.
    pub fn parts(
        self,
        rows: u32,
        pool: &BufferPool,
    ) -> Result<(BatchParts, Vec<Shape>), Exhausted> {
        let Self { inputs, outputs, scratch, numbers } = self;
        let buffers = outputs.iter().map(|output| pool.allocate(output.bytes));
        let buffers = buffers.collect::<Result<_, _>>()?;
        let shapes = outputs.into_iter().map(|output| output.shape).collect();
        let resident = None;
        Ok((BatchParts { rows, inputs, outputs: buffers, scratch, numbers, resident }, shapes))
    }
}

/// The outputs of a batch that has come back.
pub fn returned(shapes: Vec<Shape>, outputs: Vec<Bytes>) -> BatchOutputs {
    let tensors = shapes.into_iter().zip(outputs);
    tensors.map(|(shape, data)| Some(BatchTensor { shape, data })).collect()
}

/// An instance on a device for who runs one batch at a time and waits for it.
pub struct Direct<C> {
    alone: Alone<C>,
    model: Arc<dyn DeviceModel>,
}

impl Direct<Box<dyn Compute>> {
    /// Of the whole instance.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn of(instance: DeviceInstance) -> Result<Self, BackendError> {
        let DeviceInstance { device, model, compute } = instance;
        Self::open(device, model, compute)
    }
}

impl<'a> Direct<&'a mut dyn Compute> {
    /// For as long as the instance is lent.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn with(instance: &'a mut DeviceInstance) -> Result<Self, BackendError> {
        let DeviceInstance { device, model, compute } = instance;
        Self::open(device.clone(), model.clone(), &mut **compute)
    }
}

impl<C: Compute> Direct<C> {
    fn open(
        device: Arc<dyn Device>,
        model: Arc<dyn DeviceModel>,
        compute: C,
    ) -> Result<Self, BackendError> {
        let alone = Alone::open(device, compute);
        Ok(Self { alone: alone.map_err(|error| BackendError(error.to_string()))?, model })
    }
}

impl<C: Compute> Instance for Direct<C> {
    fn execute(&mut self, batch: &Batch<'_>) -> Result<BatchOutputs, BackendError> {
        let laid = self.model.lay_out(batch.rows, batch.inputs)?;
        let (parts, shapes) = laid
            .parts(batch.rows, batch.pool)
            .map_err(|exhausted| BackendError(exhausted.to_string()))?;
        let outputs = self.alone.run(parts).map_err(|error| BackendError(error.to_string()))?;
        Ok(returned(shapes, outputs))
    }

    fn device(&self) -> Option<&Arc<dyn Device>> {
        Some(self.alone.device())
    }
}
