//! A framework's batch on its way through a lane: which outputs have a place there, and what a run
//! brings back apart from it because only the run told its shape.

use std::{
    any::Any,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;

use super::{BackendError, BatchOutputs, BatchTensor, DeviceBatch, DeviceOutput, Expected};
use crate::{
    device::{
        Destination, DeviceError, DeviceSlice, Landing, LibraryMemory, Stream, Visit, VisitError,
        Visited, streams::PlacedBatch,
    },
    inference::Shape,
    memory::{BufferPool, Exhausted},
};

/// What is to know of a batch on its way, and what its run finds out.
pub(super) struct Voyage {
    /// The inputs that are there: which of those planned, and their shapes for the framework.
    pub inputs: Vec<(usize, Shape)>,
    /// One for each output of the signature.
    pub outputs: Vec<Awaited>,
    /// Where to take memory for outputs from whose size only the run tells.
    pool: BufferPool,
    /// The outputs that came apart from the lane.
    late: Mutex<Vec<(usize, Shape, Landing)>>,
}

/// An output before the run.
pub(super) enum Awaited {
    /// Nobody wants it.
    Unwanted,
    /// It is an input.
    Echo(Option<BatchTensor>),
    /// It has a place in the lane of so many bytes, for this shape as the framework has it.
    Placed(Shape, usize),
    /// Only the run tells its shape.
    Unknown,
}

/// An output could not be brought to the host.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotBrought {
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    #[error("{0}")]
    Device(VisitError),
}

impl From<NotBrought> for VisitError {
    fn from(error: NotBrought) -> Self {
        match error {
            NotBrought::Device(error) => error,
            NotBrought::Exhausted(error) => Self::Failed(error.to_string()),
        }
    }
}

/// A batch at its places in a lane.
pub(super) struct Aboard {
    /// What is to know of it.
    pub voyage: Arc<Voyage>,
    /// Where its inputs lie, in the order of [`Voyage::inputs`].
    pub inputs: Vec<DeviceSlice>,
    /// Where its outputs go.
    pub outputs: Vec<DeviceSlice>,
    who: Arc<str>,
}

impl Aboard {
    /// That which `model` is to run.
    ///
    /// # Errors
    /// When the batch is none of a framework's.
    pub fn of(batch: &PlacedBatch<'_>, model: &str) -> Result<Self, DeviceError> {
        let who: Arc<str> = format!("model '{model}'").into();
        let voyage = Voyage::of(batch.own, &who)?;
        Ok(Self { voyage, inputs: batch.inputs.to_vec(), outputs: batch.outputs.to_vec(), who })
    }

    /// Has `run` visit a stream. Of the lane's memory it writes the outputs, and the inputs if it
    /// `writes_inputs`.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn visit(
        self,
        stream: &mut dyn Stream,
        writes_inputs: bool,
        run: impl FnOnce(&Self, &mut dyn Visited) -> Result<(), VisitError> + Send + 'static,
    ) -> Result<(), DeviceError> {
        let (reads, writes) = match writes_inputs {
            true => (Vec::new(), [&self.inputs[..], &self.outputs].concat()),
            false => (self.inputs.clone(), self.outputs.clone()),
        };
        let who = self.who.clone();
        stream.visit(Visit {
            who,
            reads,
            writes,
            work: Box::new(move |visited| run(&self, visited)),
        })
    }
}

impl Voyage {
    /// Of a batch whose run takes memory of `pool`.
    pub fn new(pool: &BufferPool) -> Self {
        let (pool, late) = (pool.clone(), Mutex::default());
        Self { inputs: Vec::new(), outputs: Vec::new(), pool, late }
    }

    /// That of a batch that a device has.
    ///
    /// # Errors
    /// When it has none, for which `who` is at fault.
    fn of(own: Option<&Arc<dyn Any + Send + Sync>>, who: &str) -> Result<Arc<Self>, DeviceError> {
        let voyage = own.and_then(|own| own.clone().downcast::<Self>().ok());
        voyage.ok_or_else(|| DeviceError::Visit {
            device: 0,
            who: who.to_owned(),
            reason: "the batch has lost its plan".to_owned(),
            out_of_memory: false,
        })
    }

    /// The batch for a device, of inputs in the order of [`inputs`](Self::inputs).
    pub fn embark(self, inputs: Vec<Bytes>) -> DeviceBatch {
        let outputs = self.outputs.iter().map(|awaited| match awaited {
            Awaited::Placed(shape, bytes) => DeviceOutput { shape: shape.clone(), bytes: *bytes },
            _ => DeviceOutput { shape: Shape::default(), bytes: 0 },
        });
        let outputs = outputs.collect();
        DeviceBatch { inputs, outputs, own: Some(Arc::new(self)), ..DeviceBatch::default() }
    }

    /// Brings output `index` to the host, apart from the lane.
    pub fn bring(
        &self,
        visited: &mut dyn Visited,
        index: usize,
        shape: Shape,
        memory: LibraryMemory,
    ) -> Result<(), NotBrought> {
        let (landing, target) = Landing::new(self.pool.allocate(memory.len())?);
        let brought = visited.bring(memory, Destination::Host(target));
        brought.map_err(NotBrought::Device)?;
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        // A second attempt takes the place of the first.
        late.retain(|(known, ..)| *known != index);
        late.push((index, shape, landing));
        Ok(())
    }

    /// The outputs of a batch that is back.
    pub fn disembark(
        batch: Expected,
        returned: Vec<Option<Bytes>>,
    ) -> Result<BatchOutputs, BackendError> {
        let voyage = Self::of(batch.own.as_ref(), "a model");
        let voyage = voyage.map_err(|error| BackendError(error.to_string()))?;
        let placed = voyage.outputs.iter().zip(batch.shapes).zip(returned);
        let mut outputs: BatchOutputs = placed
            .map(|((awaited, shape), data)| match awaited {
                Awaited::Echo(input) => input.clone(),
                Awaited::Placed(..) => Some(BatchTensor { shape, data: data? }),
                Awaited::Unwanted | Awaited::Unknown => None,
            })
            .collect();
        let mut late = voyage.late.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, shape, landing) in late.drain(..) {
            let unread = || BackendError(format!("output {index} is still on its way"));
            let data = landing.finish().ok_or_else(unread)?;
            if let Some(place) = outputs.get_mut(index) {
                *place = Some(BatchTensor { shape, data });
            }
        }
        Ok(outputs)
    }
}
