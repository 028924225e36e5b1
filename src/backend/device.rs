//! Instances on a device whose batches the server brings there and back: it copies one batch while
//! another runs. All that the model does is to lay a batch out and to put its launches on a stream.

use std::{any::Any, borrow::BorrowMut, ops::Range, sync::Arc};

use bytes::Bytes;
use smallvec::SmallVec;

use super::{BackendError, Batch, BatchOutputs, BatchTensor, Instance, ResponseError};
use crate::{
    device::{
        Device,
        streams::{Alone, BatchParts, OutputPart, Runner},
    },
    inference::{Code, Shape},
    memory::{BufferPool, Exhausted},
};

/// One place on a device where a model runs whole batches.
pub struct DeviceInstance {
    /// The device.
    pub device: Arc<dyn Device>,
    /// How batches of the model look there, the same at all its places.
    pub model: Arc<dyn DeviceModel>,
    /// What puts its work on a stream, and that stream.
    pub runner: Runner,
}

/// What a model whose batches run on devices says of a batch before it is copied.
pub trait DeviceModel: Send + Sync {
    /// Lays a batch out: what goes to the device, and what comes back.
    ///
    /// # Errors
    /// All requests of the batch fail with it.
    fn lay_out(&self, batch: &Batch<'_>) -> Result<DeviceBatch, ResponseError>;

    /// Whether inputs may come without their bytes, which are brought to their places on the device
    /// meanwhile, and outputs may go from there to others. Then what goes to the device begins with the
    /// inputs given, in their order, as they are.
    fn takes_resident(&self) -> bool {
        true
    }

    /// Whether a run may write into its inputs.
    fn writes_inputs(&self) -> bool {
        false
    }

    /// The inputs, by their numbers in the signature, that are made ready request by request before a batch
    /// is laid out: what takes its time, or what a request's own content can be at fault for.
    fn prepared(&self) -> &[usize] {
        &[]
    }

    /// Makes an input of a request of `rows` rows ready, on a thread that may take its time. What it gives
    /// takes the place of the bytes that came.
    ///
    /// # Errors
    /// The request fails with it, and no other of its batch.
    fn prepare(
        &self,
        _input: usize,
        _rows: u32,
        data: Bytes,
        _pool: &BufferPool,
    ) -> Result<Prepared, ResponseError> {
        Ok(Prepared { data, becomes: Shape::default() })
    }

    /// What the run has found to be the matter with the request of these rows of a batch, which then fails,
    /// and no other; `returned` is what came back, with the [notes](DeviceBatch::notes) behind the outputs.
    fn fault(
        &self,
        _batch: &Expected,
        _rows: Range<u32>,
        _returned: &[Option<Bytes>],
    ) -> Option<ResponseError> {
        None
    }

    /// The outputs of a batch that has come back, as [`Instance::execute`] would give them; `returned`
    /// are those that came, and behind them the notes.
    ///
    /// # Errors
    /// The whole batch fails with the message.
    fn outputs(
        &self,
        batch: Expected,
        returned: Vec<Option<Bytes>>,
    ) -> Result<BatchOutputs, BackendError> {
        let tensors = batch.shapes.into_iter().zip(returned);
        Ok(tensors.map(|(shape, data)| Some(BatchTensor { shape, data: data? })).collect())
    }
}

/// An input of a request that was made ready.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// Its bytes.
    pub data: Bytes,
    /// What becomes of each of its rows, where that differs from request to request. Those that become the
    /// same go together.
    pub becomes: Shape,
}

/// A batch as a device has it.
#[derive(Clone, Default)]
pub struct DeviceBatch {
    /// What is copied to the device.
    pub inputs: Vec<Bytes>,
    /// What is copied back: one for each output of the signature.
    pub outputs: Vec<DeviceOutput>,
    /// Bytes of what the run notes down for the model itself, which is copied back too.
    pub notes: Vec<usize>,
    /// Bytes of what lies between.
    pub scratch: Vec<usize>,
    /// What the launches depend on beside the sizes of these.
    pub numbers: Vec<u64>,
    /// What the model itself wants to know of the batch when it runs, and when it is back.
    pub own: Option<Arc<dyn Any + Send + Sync>>,
}

/// What is known of a batch's outputs before they are back.
#[derive(Default)]
pub struct Expected {
    /// The shape of each.
    pub shapes: Vec<Shape>,
    /// [`DeviceBatch::own`].
    pub own: Option<Arc<dyn Any + Send + Sync>>,
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
    /// The batch as lanes take it, with memory for those of its outputs that `comes` says are to come
    /// back, and what is expected of them.
    ///
    /// # Errors
    /// When the pool is used up.
    pub fn parts(
        self,
        rows: u32,
        comes: impl Fn(usize) -> bool,
        pool: &BufferPool,
    ) -> Result<(BatchParts, Expected), Exhausted> {
        let Self { inputs, outputs, notes, scratch, numbers, own } = self;
        let part = |(index, output): (usize, &DeviceOutput)| match comes(index) {
            true => pool.allocate(output.bytes).map(OutputPart::Comes),
            false => Ok(OutputPart::Stays(output.bytes)),
        };
        let parts = outputs.iter().enumerate().map(part);
        let notes = notes.into_iter().map(|bytes| pool.allocate(bytes).map(OutputPart::Comes));
        let parts = parts.chain(notes).collect::<Result<_, _>>()?;
        let shapes = outputs.into_iter().map(|output| output.shape).collect();
        let expected = Expected { shapes, own: own.clone() };
        let (outputs, resident) = (parts, None);
        Ok((BatchParts { rows, inputs, outputs, scratch, numbers, own, resident }, expected))
    }
}

/// An instance on a device for who runs one batch at a time and waits for it.
pub struct Direct<R> {
    alone: Alone<R>,
    model: Arc<dyn DeviceModel>,
}

impl Direct<Runner> {
    /// Of the whole instance.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn of(instance: DeviceInstance) -> Result<Self, BackendError> {
        let DeviceInstance { device, model, runner } = instance;
        Self::open(device, model, runner)
    }
}

impl<'a> Direct<&'a mut Runner> {
    /// For as long as the instance is lent.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn with(instance: &'a mut DeviceInstance) -> Result<Self, BackendError> {
        let DeviceInstance { device, model, runner } = instance;
        Self::open(device.clone(), model.clone(), runner)
    }
}

impl<R: BorrowMut<Runner>> Direct<R> {
    fn open(
        device: Arc<dyn Device>,
        model: Arc<dyn DeviceModel>,
        runner: R,
    ) -> Result<Self, BackendError> {
        let alone = Alone::open(device, runner);
        Ok(Self { alone: alone.map_err(|error| BackendError(error.to_string()))?, model })
    }
}

impl<R: BorrowMut<Runner>> Direct<R> {
    /// What the model makes of a batch, which is one request as far as faults go.
    ///
    /// # Errors
    /// All of it fails.
    pub fn answer(&mut self, batch: &Batch<'_>) -> Result<BatchOutputs, ResponseError> {
        let mut inputs: SmallVec<[Option<BatchTensor>; 2]> = batch.inputs.into();
        for &index in self.model.prepared() {
            let Some(Some(input)) = inputs.get_mut(index) else { continue };
            let data = std::mem::take(&mut input.data);
            input.data = self.model.prepare(index, batch.rows, data, batch.pool)?.data;
        }
        let Batch { rows, wanted, pool, places, .. } = *batch;
        let laid = self.model.lay_out(&Batch { rows, inputs: &inputs, wanted, pool, places })?;
        let parts = laid.parts(rows, |index| wanted.get(index) == Some(&true), pool);
        let (parts, expected) = parts.map_err(|exhausted| ResponseError {
            code: Code::Unavailable,
            message: exhausted.to_string(),
        })?;
        let returned = self.alone.run(parts).map_err(|error| ResponseError {
            code: if error.is_lost() { Code::Unavailable } else { Code::Internal },
            message: error.to_string(),
        })?;
        match self.model.fault(&expected, 0..rows, &returned) {
            Some(error) => Err(error),
            None => Ok(self.model.outputs(expected, returned)?),
        }
    }
}

impl<R: BorrowMut<Runner> + Send> Instance for Direct<R> {
    fn execute(&mut self, batch: &Batch<'_>) -> Result<BatchOutputs, BackendError> {
        self.answer(batch).map_err(|error| BackendError(error.message))
    }

    fn device(&self) -> Option<&Arc<dyn Device>> {
        Some(self.alone.device())
    }
}
