//! What lanes are given: models, their batches, and who is told what became of them.

use std::{any::Any, sync::Arc};

use bytes::Bytes;

use super::{
    resident::Resident,
    work::{Completion, Outcome, Place},
    worker::Runner,
};
use crate::{
    device::{DeviceError, DeviceSlice, Stream},
    inference::Timestamp,
    memory::Buffer,
};

/// What a model does with a batch that is on its device.
pub trait Compute: Send {
    /// Puts the work for one batch onto a stream, without waiting for it.
    ///
    /// # Errors
    /// The batch fails with it.
    fn enqueue(
        &mut self,
        stream: &mut dyn Stream,
        batch: &PlacedBatch<'_>,
    ) -> Result<(), DeviceError>;

    /// Whether its work is a library's, a [`Visit`](crate::device::Visit): it takes its time to be
    /// given, so a thread of the instance's own gives it, and it is not captured.
    fn is_library(&self) -> bool {
        false
    }
}

/// A batch on a device.
pub struct PlacedBatch<'a> {
    /// Its size.
    pub rows: u32,
    /// One for each input.
    pub inputs: &'a [DeviceSlice],
    /// One for each output; what they hold is no number yet.
    pub outputs: &'a [DeviceSlice],
    /// What [`BatchParts::scratch`] asked for.
    pub scratch: &'a [DeviceSlice],
    /// [`BatchParts::numbers`].
    pub numbers: &'a [u64],
    /// [`BatchParts::own`].
    pub own: Option<&'a Arc<dyn Any + Send + Sync>>,
}

/// What a batch is made of.
#[derive(Default)]
pub struct BatchParts {
    /// Its size.
    pub rows: u32,
    /// Its inputs, each contiguous; copies of pinned memory are faster.
    pub inputs: Vec<Bytes>,
    /// What becomes of its outputs.
    pub outputs: Vec<OutputPart>,
    /// The sizes of what the model puts down between inputs and outputs.
    pub scratch: Vec<usize>,
    /// What the model has to know of the batch beside sizes. A graph serves batches with the same.
    pub numbers: Vec<u64>,
    /// What the model itself keeps of the batch; no graph may depend on it.
    pub own: Option<Arc<dyn Any + Send + Sync>>,
    /// What of it lies on the device already. Of such inputs there are no bytes above, and such outputs
    /// stay.
    pub resident: Option<Resident>,
}

/// What becomes of an output.
pub enum OutputPart {
    /// It is copied to the host.
    Comes(Buffer),
    /// It has so many bytes, which are not copied to the host.
    Stays(usize),
}

impl OutputPart {
    /// How many bytes it has.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Comes(buffer) => buffer.len(),
            Self::Stays(bytes) => *bytes,
        }
    }
}

/// A model that is to run in lanes.
pub struct ModelPlan {
    /// Its name.
    pub name: Arc<str>,
    /// Its share of the devices' time, in proportion to those of other models.
    pub share: f64,
    /// Whether its launches can be captured in graphs.
    pub graphs: bool,
    /// Its instances, and where they are.
    pub instances: Vec<(Place, Runner)>,
}

/// A batch that is to run.
pub struct Job {
    /// The number of its model.
    pub model: usize,
    /// What it is made of.
    pub parts: BatchParts,
    /// Smaller numbers go first.
    pub priority: u32,
    /// When nobody wants it any more.
    pub deadline: Option<Timestamp>,
    /// Whether nobody wants it any more, asked when its turn has come.
    pub is_moot: Box<dyn Fn() -> bool>,
    /// Called when it is done, on the thread that drives the lanes and from within them.
    pub done: Box<dyn FnOnce(Finished)>,
}

/// A batch that is done.
pub struct Finished {
    /// How.
    pub outcome: Outcome,
    /// The outputs that came, if it ran.
    pub outputs: Vec<Option<Bytes>>,
    /// The outputs that are kept on the device, by their numbers.
    pub kept: Vec<(usize, DeviceSlice)>,
}

impl Finished {
    pub(super) fn without_outputs(outcome: Outcome) -> Self {
        Self { outcome, outputs: Vec::new(), kept: Vec::new() }
    }
}

/// Told of the end of every operation, on a thread of the device, to bring the news to whoever drives
/// the [`Lanes`].
pub type Notify = Arc<dyn Fn(Completion) + Send + Sync>;
