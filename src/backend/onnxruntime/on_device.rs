//! Batches on devices: inputs and outputs are bound where a lane has them. An output whose shape only
//! the run tells is ONNX Runtime's own, and comes back apart from the lane.
//!
//! On a GPU the run puts its work onto the session's stream and does not wait for it. On a device of
//! the host all is the same but the memory's description and the execution provider.

use std::{
    any::Any,
    ffi::c_void,
    ptr::NonNull,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use ort_sys::{OrtIoBinding, OrtMemoryInfo, OrtValue};

use super::{
    execution::{Execution, RunError, described, is_shape_mismatch, value_over, value_shape},
    handle::Handle,
    plan::OutputPlan,
};
use crate::{
    backend::{
        BackendError, Batch, BatchOutputs, BatchTensor, DeviceBatch, DeviceModel, DeviceOutput,
        Expected,
    },
    device::{
        Destination, DeviceError, DeviceSlice, Landing, LibraryMemory, Stream, Visit, VisitError,
        Visited,
        streams::{Compute, PlacedBatch},
    },
    inference::Shape,
    memory::BufferPool,
};

/// Graphs that a session keeps; it gives none back.
const GRAPHS_MAX: usize = 64;

/// How a model's batches look on devices.
pub(super) struct Batches {
    pub execution: Arc<Execution>,
}

/// A session as the compute step of lanes.
pub(super) struct OnDevice {
    model: Arc<str>,
    execution: Arc<Execution>,
    /// Describes the device's memory; that of the host where there is none.
    memory: Option<Arc<Handle<OrtMemoryInfo>>>,
    /// What has been captured: the tensors' places and shapes. None where graphs are not wanted.
    graphs: Option<Vec<Capture>>,
}

/// What one graph serves.
type Capture = Vec<(u64, Shape)>;

/// What is to know of a batch on its way, and what its run finds out.
struct Voyage {
    /// The inputs that are there: which of the plan, and their shapes for ONNX Runtime.
    inputs: Vec<(usize, Shape)>,
    /// One for each output of the plan.
    outputs: Vec<Awaited>,
    /// Where to take memory for outputs from whose size only the run tells.
    pool: BufferPool,
    /// The outputs that came apart from the lane.
    late: Mutex<Vec<(usize, Shape, Landing)>>,
}

/// An output before the run.
enum Awaited {
    /// Nobody wants it.
    Unwanted,
    /// It is an input.
    Echo(Option<BatchTensor>),
    /// It has a place in the lane, for this shape.
    Placed(Shape),
    /// Only the run tells its shape.
    Unknown,
}

impl DeviceModel for Batches {
    fn lay_out(&self, batch: &Batch<'_>) -> Result<DeviceBatch, BackendError> {
        let plan = self.execution.plan();
        let mut laid = DeviceBatch::default();
        let mut inputs = Vec::with_capacity(plan.inputs.len());
        for (index, (input, tensor)) in plan.inputs.iter().zip(batch.inputs).enumerate() {
            let Some(tensor) = tensor else { continue };
            inputs.push((index, value_shape(input, tensor).into()));
            laid.inputs.push(tensor.data.clone());
        }
        let mut outputs = Vec::with_capacity(plan.outputs.len());
        for (index, output) in plan.outputs.iter().enumerate() {
            let (awaited, bytes) = self.awaited(index, output, batch);
            let shape = match &awaited {
                Awaited::Placed(shape) => shape.clone(),
                _ => Shape::default(),
            };
            laid.outputs.push(DeviceOutput { shape, bytes });
            outputs.push(awaited);
        }
        let (pool, late) = (batch.pool.clone(), Mutex::default());
        laid.own = Some(Arc::new(Voyage { inputs, outputs, pool, late }));
        Ok(laid)
    }

    fn outputs(&self, batch: Expected, returned: Vec<Bytes>) -> Result<BatchOutputs, BackendError> {
        let voyage = batch.own.and_then(|own| own.downcast::<Voyage>().ok());
        let voyage = voyage.ok_or_else(|| BackendError("a batch has lost its plan".to_owned()))?;
        let plans = self.execution.plan().outputs.iter();
        let tensor = |shape: &Shape, plan: &OutputPlan, data| {
            let shape = plan.scalar.as_ref().unwrap_or(shape).clone();
            Some(BatchTensor { shape, data })
        };
        let mut outputs: BatchOutputs = plans
            .clone()
            .zip(&voyage.outputs)
            .zip(returned)
            .map(|((plan, awaited), data)| match awaited {
                Awaited::Echo(input) => input.clone(),
                Awaited::Placed(shape) => tensor(shape, plan, data),
                Awaited::Unwanted | Awaited::Unknown => None,
            })
            .collect();
        for (index, shape, landing) in voyage.take_late() {
            let plan = plans.clone().nth(index);
            if let (Some(plan), Some(place)) = (plan, outputs.get_mut(index)) {
                let unread = || BackendError(format!("output '{}' is missing", plan.tensor.label));
                *place = tensor(&shape, plan, landing.finish().ok_or_else(unread)?);
            }
        }
        Ok(outputs)
    }
}

impl Batches {
    /// An output before the run, and the bytes of its place in the lane.
    fn awaited(&self, index: usize, output: &OutputPlan, batch: &Batch<'_>) -> (Awaited, usize) {
        if batch.wanted.get(index) != Some(&true) {
            return (Awaited::Unwanted, 0);
        }
        if let Some(input) = output.echo {
            return (Awaited::Echo(batch.inputs.get(input).cloned().flatten()), 0);
        }
        let known = match output.is_guess() && !self.execution.guesses() {
            true => None,
            false => output.shape(batch.rows, batch.inputs),
        };
        let sized = known.and_then(|shape| Some((output.bytes(&shape)?, shape)));
        sized.map_or((Awaited::Unknown, 0), |(bytes, shape)| (Awaited::Placed(shape), bytes))
    }
}

impl Voyage {
    fn take_late(&self) -> Vec<(usize, Shape, Landing)> {
        std::mem::take(&mut *self.late.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl OnDevice {
    /// Of a session, whose device's memory is `memory`, unless it is the host's.
    pub fn new(
        model: Arc<str>,
        execution: Arc<Execution>,
        memory: Option<Handle<OrtMemoryInfo>>,
        graphs: bool,
    ) -> Self {
        let graphs = graphs.then(Vec::new);
        Self { model, execution, memory: memory.map(Arc::new), graphs }
    }

    /// The number of the graph for a batch, which ONNX Runtime captures when it meets the number for
    /// the first time; none for a batch that is to run without.
    fn graph(&mut self, batch: &PlacedBatch<'_>, voyage: &Voyage) -> Option<usize> {
        let graphs = self.graphs.as_mut()?;
        let placed = |awaited: &Awaited| matches!(awaited, Awaited::Placed(_) | Awaited::Unwanted);
        if !voyage.outputs.iter().all(placed) {
            return None;
        }
        let inputs = voyage.inputs.iter().map(|(_, shape)| shape.clone());
        let outputs = voyage.outputs.iter().map(|awaited| match awaited {
            Awaited::Placed(shape) => shape.clone(),
            _ => Shape::default(),
        });
        let places = batch.inputs.iter().chain(batch.outputs).map(DeviceSlice::address);
        let capture: Capture = places.zip(inputs.chain(outputs)).collect();
        let known = graphs.iter().position(|known| *known == capture);
        known.or_else(|| {
            (graphs.len() < GRAPHS_MAX).then(|| {
                graphs.push(capture);
                graphs.len() - 1
            })
        })
    }
}

impl Compute for OnDevice {
    fn enqueue(
        &mut self,
        stream: &mut dyn Stream,
        batch: &PlacedBatch<'_>,
    ) -> Result<(), DeviceError> {
        let own: Option<Arc<dyn Any + Send + Sync>> = batch.own.cloned();
        let who: Arc<str> = format!("model '{}'", self.model).into();
        let voyage = own.and_then(|own| own.downcast::<Voyage>().ok());
        let voyage = voyage.ok_or_else(|| DeviceError::Visit {
            device: 0,
            who: who.to_string(),
            reason: "a batch has lost its plan".to_owned(),
            out_of_memory: false,
        })?;
        let (reads, writes) = (batch.inputs.to_vec(), batch.outputs.to_vec());
        let run = Run {
            graph: self.graph(batch, &voyage),
            execution: self.execution.clone(),
            memory: self.memory.clone(),
            inputs: reads.clone(),
            outputs: writes.clone(),
            voyage,
        };
        stream.visit(Visit { who, reads, writes, work: Box::new(move |visited| run.go(visited)) })
    }

    fn is_library(&self) -> bool {
        true
    }
}

/// One run in a lane's memory.
struct Run {
    execution: Arc<Execution>,
    memory: Option<Arc<Handle<OrtMemoryInfo>>>,
    graph: Option<usize>,
    inputs: Vec<DeviceSlice>,
    outputs: Vec<DeviceSlice>,
    voyage: Arc<Voyage>,
}

impl Run {
    fn go(self, visited: &mut dyn Visited) -> Result<(), VisitError> {
        let execution = &self.execution;
        let ran = match self.attempt(execution.guesses(), visited) {
            Err(RunError::Ort(error)) if is_shape_mismatch(&error) && execution.guesses() => {
                self.attempt(false, visited).inspect(|()| execution.guess_no_more())
            }
            ran => ran,
        };
        ran.map_err(|error| match error {
            RunError::Ort(error) if error.is_out_of_memory() => {
                VisitError::OutOfMemory(error.to_string())
            }
            RunError::Brought(error) => error,
            error => VisitError::Failed(error.to_string()),
        })
    }

    fn attempt(&self, guess: bool, visited: &mut dyn Visited) -> Result<(), RunError> {
        let session = self.execution.session();
        let (runtime, plan) = (session.runtime, self.execution.plan());
        let api = runtime.api;
        let memory = self.memory.as_deref().unwrap_or(&runtime.host);
        // SAFETY: creating function and release belong together; the session is alive.
        let binding: Handle<OrtIoBinding> = unsafe {
            Handle::create(api, api.ReleaseIoBinding, |out| {
                (api.CreateIoBinding)(session.as_ptr(), out)
            })
        }?;
        for ((index, shape), slice) in self.voyage.inputs.iter().zip(&self.inputs) {
            let Some(input) = plan.inputs.get(*index) else { continue };
            // SAFETY: the lane's memory stays until the run's work has passed.
            let value = unsafe {
                value_over(runtime, memory, &input.tensor, shape, data(slice), slice.len())
            }?;
            // SAFETY: all are alive; the binding shares the value.
            unsafe {
                let name = input.tensor.name.as_ptr();
                runtime.check((api.BindInput)(binding.as_ptr(), name, value.as_ptr()))
            }?;
        }
        // In the order in which they are bound.
        let mut bound = Vec::with_capacity(plan.outputs.len());
        let outputs = plan.outputs.iter().zip(&self.voyage.outputs).zip(&self.outputs);
        for (index, ((output, awaited), slice)) in outputs.enumerate() {
            let name = output.tensor.name.as_ptr();
            let placed = match awaited {
                Awaited::Unwanted | Awaited::Echo(_) => continue,
                Awaited::Placed(shape) if guess || !output.is_guess() => Some(shape),
                Awaited::Placed(_) | Awaited::Unknown => None,
            };
            let status = match placed {
                Some(shape) => {
                    let (at, len) = (data(slice), slice.len());
                    // SAFETY: as for inputs; nobody else touches the place meanwhile.
                    unsafe {
                        let value = value_over(runtime, memory, &output.tensor, shape, at, len)?;
                        (api.BindOutput)(binding.as_ptr(), name, value.as_ptr())
                    }
                }
                // SAFETY: all are alive.
                None => unsafe {
                    (api.BindOutputToDevice)(binding.as_ptr(), name, memory.as_ptr())
                },
            };
            // SAFETY: the status is that of the call above.
            unsafe { runtime.check(status) }?;
            bound.push((index, placed.is_none()));
        }
        // ONNX Runtime refuses a run without outputs.
        if bound.is_empty() {
            return Ok(());
        }
        let options = session.options_on_device(self.graph)?;
        // SAFETY: session, options and binding are alive, and what is bound as said above.
        unsafe {
            let options = options.as_ref().map_or(session.run_options(), |own| own.as_ptr());
            runtime.check((api.RunWithBinding)(session.as_ptr(), options, binding.as_ptr()))
        }?;
        match bound.iter().any(|(_, is_late)| *is_late) {
            true => self.bring(&binding, &bound, visited),
            false => Ok(()),
        }
    }

    /// Brings the outputs to the host that have no place in the lane.
    fn bring(
        &self,
        binding: &Handle<OrtIoBinding>,
        bound: &[(usize, bool)],
        visited: &mut dyn Visited,
    ) -> Result<(), RunError> {
        let session = self.execution.session();
        let runtime = session.runtime;
        let mut late = Vec::new();
        for (value, (index, is_late)) in bound_values(session, binding)?.into_iter().zip(bound) {
            let Some(plan) = self.execution.plan().outputs.get(*index).filter(|_| *is_late) else {
                continue;
            };
            let (shape, count) = described(runtime, plan, &value)?;
            let size = plan.tensor.datatype.size().and_then(|size| count.checked_mul(size));
            let len = size.ok_or_else(|| RunError::OutputShape {
                output: plan.tensor.label.clone(),
                shape: shape.clone(),
            })?;
            let mut first: *mut c_void = std::ptr::null_mut();
            // SAFETY: the value is alive; the place is written.
            unsafe {
                runtime.check((runtime.api.GetTensorMutableData)(value.as_ptr(), &mut first))
            }?;
            let (landing, target) = Landing::new(self.voyage.pool.allocate(len)?);
            let keeper = Box::new((value, session.clone()));
            let address = first.expose_provenance() as u64;
            // SAFETY: the value has this much memory on the session's device, written by work on the
            // session's stream, and the keeper holds it and the session, whose arena it is of.
            let memory = unsafe { LibraryMemory::new(address, len, keeper) };
            visited.bring(memory, Destination::Host(target)).map_err(RunError::Brought)?;
            late.push((*index, shape, landing));
        }
        *self.voyage.late.lock().unwrap_or_else(PoisonError::into_inner) = late;
        Ok(())
    }
}

/// The values of all bound outputs after a run.
fn bound_values(
    session: &super::session::Session,
    binding: &Handle<OrtIoBinding>,
) -> Result<Vec<Handle<OrtValue>>, RunError> {
    let (runtime, api) = (session.runtime, session.runtime.api);
    let allocator = runtime.allocator.as_ptr();
    let (mut list, mut count) = (std::ptr::null_mut(), 0);
    // SAFETY: the binding is alive; both places are written.
    unsafe {
        let (list, count) = (&mut list, &mut count);
        runtime.check((api.GetBoundOutputValues)(binding.as_ptr(), allocator, list, count))
    }?;
    let values = (0..count).filter_map(|index| {
        // SAFETY: the list has `count` values, each of which is ours.
        let value = NonNull::new(unsafe { *list.add(index) })?;
        // SAFETY: as above.
        Some(unsafe { Handle::adopt(value, api.ReleaseValue) })
    });
    let values = values.collect();
    if !list.is_null() {
        // SAFETY: the list comes from this allocator and is not used again.
        unsafe { runtime.check((api.AllocatorFree)(allocator, list.cast())) }?;
    }
    Ok(values)
}

/// Where a slice lies, for the C API.
fn data(slice: &DeviceSlice) -> *mut c_void {
    std::ptr::with_exposed_provenance_mut(slice.address() as usize)
}
