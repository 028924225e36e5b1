//! What runs models: the [`Backend`] → [`Model`] → [`Instance`] traits and their implementations.
//!
//! A back end is found at run time, never linked. It knows tensors, files, memory, and what the
//! repository tells it of a model, which is plain data; it does not know who asked, how requests were
//! batched, or which thread it is on.

pub mod cuda;
mod device;
pub mod directory;
mod host;
mod identity;
mod libraries;
pub mod onnxruntime;
mod ops;
mod parameters;
pub mod python;
pub mod pytorch;
mod repeat;
mod request;
mod voyage;

use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::{
    device::Device,
    inference::{DataType, Shape},
    memory::{BufferPool, Exhausted, OutputMemory, OutputPlaces},
    observe::gpu::GpuStock,
    proto::ModelConfig,
};

pub use self::{
    device::{DeviceBatch, DeviceInstance, DeviceModel, DeviceOutput, Direct, Expected, Prepared},
    host::{Answer, AnswerTo, AskModels, Asked, ControlModels, Done, Host},
    identity::Identity,
    ops::Ops,
    repeat::Repeat,
    request::{
        ModelRequest, ModelResponse, NearBatch, NearInstance, RequestInstance, Respond, Responder,
        ResponseError, ResponseTensor,
    },
};
pub use crate::repository::{ModelIo, ModelIoTensor, ModelSource, Placement, PlacementDevice};

/// Why a back end could not load or run something. The message names the thing at fault.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct BackendError(pub String);

/// A kind of model, such as ONNX.
pub trait Backend: Send + Sync {
    /// The name that `backend:` in a model configuration gives it.
    fn name(&self) -> &'static str;

    /// The version of the runtime library behind it, for the start-up table; the server's own where
    /// there is no library.
    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").to_owned()
    }

    /// The name of the model file when the configuration gives none, such as `model.onnx`; `None` for
    /// models without a file.
    fn default_model_filename(&self) -> Option<&'static str> {
        None
    }

    /// Whether it is a script of the operator's, and no code of ours.
    fn is_script(&self) -> bool {
        false
    }

    /// The file that runs when this model does: its own, unless the back end has another for it.
    fn model_file(&self, source: &ModelSource) -> std::path::PathBuf {
        source.model_path.clone()
    }

    /// Reads what a model's own file says of its tensors, to complete a partial configuration;
    /// `None` where the files of this back end say nothing.
    fn inspect(&self, _: &ModelSource) -> Result<Option<ModelIo>, BackendError> {
        Ok(None)
    }

    /// Has the model itself complete a partial configuration; `None` where models of this back end
    /// have no say in it.
    fn complete(&self, _: &ModelSource) -> Result<Option<ModelConfig>, BackendError> {
        Ok(None)
    }

    /// What its library keeps in stock of GPUs' memory, for each GPU; nothing where it keeps none.
    fn gpu_stocks(&self) -> Vec<GpuStock> {
        Vec::new()
    }

    /// Ends what runs outside of the server, because the server is about to end; for at most `patience`
    /// it waits for what must not be cut off. No request comes any more.
    fn stop(&self, _patience: std::time::Duration) {}

    /// Loads one version of a model; what all its instances share is loaded here, once.
    fn load(&self, source: &ModelSource) -> Result<Arc<dyn Model>, BackendError>;
}

/// One version of a model, ready to give instances.
pub trait Model: Send + Sync {
    /// Makes an instance. Instances run in parallel; one runs one batch at a time.
    fn instance(
        &self,
        placement: &Placement,
        host: &Arc<Host>,
    ) -> Result<ModelInstance, BackendError>;

    /// Makes an instance whose batches the server itself brings to a device and back, several at a
    /// time; `None` where [`instance`](Self::instance) gives what is to run.
    fn on_device(&self, _: &Placement) -> Result<Option<DeviceInstance>, BackendError> {
        Ok(None)
    }

    /// Whether instances can run on a reactor between two polls.
    fn inline_fitness(&self) -> InlineFitness {
        InlineFitness::Never
    }

    /// Whether all its instances would answer now.
    fn is_ready(&self) -> bool {
        true
    }

    /// Bytes of the host's memory that it takes, where it knows.
    fn memory_bytes(&self) -> Option<u64> {
        None
    }
}

/// One place where a model runs, by what it takes.
pub enum ModelInstance {
    /// Whole batches: the server puts the tensors together and takes the outputs apart.
    Batches(Box<dyn Instance>),
    /// The requests themselves, which it answers one by one.
    Requests(Box<dyn RequestInstance>),
}

impl ModelInstance {
    /// The instance, if it takes whole batches.
    pub fn into_batches(self) -> Option<Box<dyn Instance>> {
        match self {
            Self::Batches(instance) => Some(instance),
            Self::Requests(_) => None,
        }
    }

    /// [`Instance::device`].
    pub fn device(&self) -> Option<&Arc<dyn Device>> {
        match self {
            Self::Batches(instance) => instance.device(),
            Self::Requests(instance) => instance.device(),
        }
    }
}

/// Whether a model's instances can run on a reactor between two polls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InlineFitness {
    /// They use threads of their own, or wait for something.
    Never,
    /// They use the calling thread alone: it depends on how long they take. Only for those that take
    /// whole batches.
    IfFast,
    /// They take next to no time, whatever the size of the tensors.
    Always,
}

/// One place where a model runs that takes whole batches.
pub trait Instance: Send {
    /// Runs one batch and returns one entry per output of the signature, in its order; an output
    /// that is not [`wanted`](Batch::wanted) may be `None`.
    ///
    /// # Errors
    /// The whole batch fails with the message.
    fn execute(&mut self, batch: &Batch<'_>) -> Result<BatchOutputs, BackendError>;

    /// The device that it cannot run without, where the server knows of it.
    fn device(&self) -> Option<&Arc<dyn Device>> {
        None
    }
}

/// The outputs of a batch, one entry per output of the signature.
pub type BatchOutputs = SmallVec<[Option<BatchTensor>; 2]>;

/// The inputs of one run.
pub struct Batch<'a> {
    /// The number of rows; meaningless for a model without a batch dimension.
    pub rows: u32,
    /// One entry per input of the signature, in its order, `None` for an optional one left out; then
    /// one per batch input of the configuration ([`Ragged`](crate::repository::Ragged)).
    pub inputs: &'a [Option<BatchTensor>],
    /// For each output of the signature, whether any request of the batch asked for it.
    pub wanted: &'a [bool],
    /// Where to take memory from.
    pub pool: &'a BufferPool,
    /// Where outputs are to go, if the batch is one request and its client has said so.
    pub places: Option<&'a Arc<OutputPlaces>>,
}

impl Batch<'_> {
    /// Memory for the `len` bytes of an output: where its client wants it, if they fit there.
    ///
    /// Only floating-point numbers are put where a client can change them. A graph may use its own
    /// output further on: an index would lead it out of its memory.
    ///
    /// # Errors
    /// When the pool is used up.
    pub fn output_memory(
        &self,
        output: &str,
        datatype: DataType,
        len: usize,
    ) -> Result<OutputMemory, Exhausted> {
        let alignment = datatype.size().filter(|_| datatype.is_float());
        let lent = alignment.zip(self.places);
        match lent.and_then(|(alignment, places)| places.lend(output, len, alignment)) {
            Some(lent) => Ok(lent),
            None => self.pool.allocate(len).map(OutputMemory::from),
        }
    }
}

/// A tensor of a whole batch, contiguous.
#[derive(Clone, Debug)]
pub struct BatchTensor {
    /// The shape that the model sees, the batch dimension included.
    pub shape: Shape,
    /// The elements, little-endian and row-major; for [`DataType::Bytes`](crate::inference::DataType::Bytes) length-prefixed strings.
    /// Inputs of other types are aligned for their element type.
    pub data: Bytes,
}
