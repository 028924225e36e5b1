use std::{ops::Range, sync::Arc, time::Duration};

use crate::{
    device::{DeviceError, Report},
    inference::Timestamp,
};

/// How the scheduler is to work.
#[derive(Clone, Debug)]
pub struct SchedulerSettings {
    /// Operations that an engine is given at a time at most: the one that runs and those behind it.
    pub depth: usize,
    /// An engine that has this much to do is given nothing more: what is given cannot be overtaken.
    pub ahead: Duration,
    /// Larger copies are cut into pieces of this size, between which others may go.
    pub chunk_bytes: usize,
    /// Batches that may wait.
    pub waiting_max: usize,
    /// What goes first.
    pub order: Order,
    /// Entries of the timeline that are kept; none are noted if it is 0.
    pub timeline_entries: usize,
}

impl Default for SchedulerSettings {
    fn default() -> Self {
        Self {
            depth: 3,
            ahead: Duration::from_micros(500),
            chunk_bytes: 4 << 20,
            waiting_max: 1024,
            order: Order::Urgency,
            timeline_entries: 0,
        }
    }
}

/// What goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// By priority; then what can keep its deadline, the earliest first; then the model that has had
    /// the least of the devices' time for its share.
    #[default]
    Urgency,
    /// What came first. For comparison.
    Arrival,
}

/// A model, as far as the scheduler knows it.
#[derive(Clone, Debug)]
pub struct ModelSpec {
    /// Its name.
    pub name: Arc<str>,
    /// Its share of the devices' time, in proportion to those of other models.
    pub share: f64,
    /// Where it can run.
    pub places: Vec<Place>,
    /// Whether its launches can be captured in graphs.
    pub graphs: bool,
    /// Whether a thread gives devices its executions: nothing may wait there for the end of one before
    /// that end has been told.
    pub threads: bool,
}

/// An instance of a model on a device: it runs one batch at a time, while those in its other lanes are
/// copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The number of the device, in the order in which devices were given.
    pub device: usize,
    /// Batches that may be on their way through it at a time.
    pub lanes: usize,
}

/// A batch, as far as the scheduler knows it.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// The number of its model.
    pub model: usize,
    /// Its size, for predictions.
    pub rows: u32,
    /// Bytes to copy to the device.
    pub bytes_in: usize,
    /// Bytes to copy from it.
    pub bytes_out: usize,
    /// Smaller numbers go first.
    pub priority: u32,
    /// When nobody wants it any more.
    pub deadline: Option<Timestamp>,
}

/// The name of a batch; none is used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(pub(super) u64);

/// What the scheduler wants done. Each operation's end is reported with its [`Ticket`].
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Take memory for the batch, and report to [`prepared`](super::Scheduler::prepared) at once.
    Prepare {
        /// The batch.
        batch: BatchId,
        /// The index of its place among those of its model.
        place: usize,
        /// The lane of that place that it is to take.
        lane: usize,
    },
    /// Give back the memory of lanes that are not in use.
    Reclaim {
        /// The device.
        device: usize,
    },
    /// Give back all that a model has at a place: it takes no batch there any more, and none is left.
    Close {
        /// The model.
        model: usize,
        /// The index of the place among those of the model.
        place: usize,
    },
    /// Copy a part of the batch's inputs to its lane.
    CopyIn {
        /// The batch.
        batch: BatchId,
        /// Which bytes of all its inputs, one behind the other.
        range: Range<usize>,
    },
    /// Run the model, once the inputs are there.
    Execute {
        /// The batch.
        batch: BatchId,
        /// Whether by a graph for this lane and number of rows, which is captured if there is none.
        graph: bool,
    },
    /// Copy a part of the batch's outputs from its lane, once they are there.
    CopyOut {
        /// The batch.
        batch: BatchId,
        /// Which bytes of all its outputs, one behind the other.
        range: Range<usize>,
    },
    /// The batch is done, one way or another.
    Finish {
        /// The batch.
        batch: BatchId,
        /// How.
        outcome: Outcome,
    },
}

/// What became of a batch.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It ran.
    Done(Times),
    /// An operation of it failed.
    Failed(DeviceError),
    /// All devices of its model are lost; the error is that of the last.
    Unavailable(DeviceError),
    /// Its deadline passed before it began.
    Expired,
    /// The device has not the memory even when nothing else runs; one of half the rows may fit.
    TooLarge(DeviceError),
    /// It was cancelled before it began.
    Cancelled,
}

/// What a batch took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Copying its inputs.
    pub copy_in: Duration,
    /// Running it.
    pub execute: Duration,
    /// Copying its outputs.
    pub copy_out: Duration,
}

impl Times {
    /// The time of the engine that it kept busy longest.
    pub fn longest(&self) -> Duration {
        self.copy_in.max(self.execute).max(self.copy_out)
    }
}

/// A stage of a batch's way, which an engine of its own serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Inputs are copied.
    CopyIn,
    /// The model runs.
    Execute,
    /// Outputs are copied.
    CopyOut,
}

/// The name of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Its batch.
    pub batch: BatchId,
    /// Its stage.
    pub stage: Stage,
    /// The bytes that it copies.
    pub bytes: usize,
}

/// An operation has ended.
#[derive(Clone, Debug)]
pub struct Completion {
    /// Which.
    pub ticket: Ticket,
    /// How it went.
    pub report: Report,
}

/// Why a batch is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// As many wait as may.
    #[error("{waiting_max} batches wait for devices already, which is the limit")]
    Full {
        /// The limit.
        waiting_max: usize,
    },
    /// All devices of its model are lost.
    #[error("model '{model}' is unavailable: {source}")]
    Unavailable {
        /// The model.
        model: Arc<str>,
        /// Why the last of them is lost.
        source: DeviceError,
    },
    /// There is no model of that number.
    #[error("no model has number {model}")]
    NoModel {
        /// The number.
        model: usize,
    },
}
