//! Batches on devices: inputs and outputs are bound where a lane has them. An output whose shape only
//! the run tells is ONNX Runtime's own, and comes back apart from the lane.
//!
//! On a GPU the run puts its work onto the session's stream and does not wait for it. On a device of
//! the host all is the same but the memory's description and the execution provider.

use std::{ffi::c_void, ptr::NonNull, sync::Arc};

use bytes::Bytes;
use ort_sys::{OrtIoBinding, OrtMemoryInfo, OrtValue};

use super::{
    execution::{Execution, RunError, described, is_shape_mismatch, value_over, value_shape},
    handle::Handle,
    plan::{OutputPlan, Plan},
};
use crate::{
    backend::{
        BackendError, Batch, BatchOutputs, DeviceBatch, DeviceModel, Expected, ResponseError,
        voyage::{Aboard, Awaited, Voyage},
    },
    device::{
        DeviceError, DeviceSlice, LibraryMemory, Stream, VisitError, Visited,
        streams::{Compute, PlacedBatch},
    },
    inference::Shape,
};

/// Graphs that a session keeps; it gives none back.
const GRAPHS_MAX: usize = 64;

/// How a model's batches look on devices.
pub(super) struct Batches(pub Arc<Plan>);

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
type Capture = Vec<(u64, Option<Shape>)>;

impl DeviceModel for Batches {
    fn takes_resident(&self) -> bool {
        // An output that is an input is sent from where that came to the host.
        self.0.outputs.iter().all(|output| output.echo.is_none())
    }

    fn lay_out(&self, batch: &Batch<'_>) -> Result<DeviceBatch, ResponseError> {
        let plan = &self.0;
        let mut voyage = Voyage::new(batch.pool);
        let mut inputs = Vec::with_capacity(plan.inputs.len());
        for (index, (input, tensor)) in plan.inputs.iter().zip(batch.inputs).enumerate() {
            let Some(tensor) = tensor else { continue };
            voyage.inputs.push((index, value_shape(input, tensor).into()));
            inputs.push(tensor.data.clone());
        }
        let outputs = plan.outputs.iter().enumerate();
        voyage.outputs.extend(outputs.map(|(index, output)| self.awaited(index, output, batch)));
        let mut laid = voyage.embark(inputs);
        for (output, plan) in laid.outputs.iter_mut().zip(&plan.outputs) {
            plan.scalar.iter().for_each(|shape| output.shape = shape.clone());
        }
        Ok(laid)
    }

    fn outputs(
        &self,
        batch: Expected,
        returned: Vec<Option<Bytes>>,
    ) -> Result<BatchOutputs, BackendError> {
        Voyage::disembark(batch, returned)
    }
}

impl Batches {
    /// An output before the run.
    fn awaited(&self, index: usize, output: &OutputPlan, batch: &Batch<'_>) -> Awaited {
        if batch.wanted.get(index) != Some(&true) {
            return Awaited::Unwanted;
        }
        if let Some(input) = output.echo {
            return Awaited::Echo(batch.inputs.get(input).cloned().flatten());
        }
        let known = match output.is_guess() && !self.0.guesses() {
            true => None,
            false => output.shape(batch.rows, batch.inputs),
        };
        let sized = known.and_then(|shape| Some((output.bytes(&shape)?, shape)));
        sized.map_or(Awaited::Unknown, |(bytes, shape)| Awaited::Placed(shape, bytes))
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
        let placed = |awaited: &Awaited| matches!(awaited, Awaited::Placed(..) | Awaited::Unwanted);
        if !voyage.outputs.iter().all(placed) {
            return None;
        }
        let inputs = voyage.inputs.iter().map(|(_, shape)| Some(shape.clone()));
        let outputs = voyage.outputs.iter().map(|awaited| match awaited {
            Awaited::Placed(shape, _) => Some(shape.clone()),
            _ => None,
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
        let aboard = Aboard::of(batch, &self.model)?;
        let run = Run {
            graph: self.graph(batch, &aboard.voyage),
            execution: self.execution.clone(),
            memory: self.memory.clone(),
        };
        aboard.visit(stream, false, move |aboard, visited| run.go(aboard, visited))
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
}

impl Run {
    fn go(&self, aboard: &Aboard, visited: &mut dyn Visited) -> Result<(), VisitError> {
        let plan = self.execution.plan();
        let ran = match self.attempt(plan.guesses(), aboard, visited) {
            Err(RunError::Ort(error)) if is_shape_mismatch(&error) && plan.guesses() => {
                self.attempt(false, aboard, visited).inspect(|()| plan.guess_no_more())
            }
            ran => ran,
        };
        ran.map_err(|error| match error {
            RunError::Ort(error) if error.is_out_of_memory() => {
                VisitError::OutOfMemory(error.to_string())
            }
            RunError::NotBrought(error) => error.into(),
            error => VisitError::Failed(error.to_string()),
        })
    }

    fn attempt(
        &self,
        guess: bool,
        aboard: &Aboard,
        visited: &mut dyn Visited,
    ) -> Result<(), RunError> {
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
        for ((index, shape), slice) in aboard.voyage.inputs.iter().zip(&aboard.inputs) {
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
        let outputs = plan.outputs.iter().zip(&aboard.voyage.outputs).zip(&aboard.outputs);
        for (index, ((output, awaited), slice)) in outputs.enumerate() {
            let name = output.tensor.name.as_ptr();
            let placed = match awaited {
                Awaited::Unwanted | Awaited::Echo(_) => continue,
                Awaited::Placed(shape, _) if guess || !output.is_guess() => Some(shape),
                Awaited::Placed(..) | Awaited::Unknown => None,
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
            true => self.bring(&binding, &bound, &aboard.voyage, visited),
            false => Ok(()),
        }
    }

    /// Brings the outputs to the host that have no place in the lane.
    fn bring(
        &self,
        binding: &Handle<OrtIoBinding>,
        bound: &[(usize, bool)],
        voyage: &Voyage,
        visited: &mut dyn Visited,
    ) -> Result<(), RunError> {
        let session = self.execution.session();
        let runtime = session.runtime;
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
            let keeper = Box::new((value, session.clone()));
            let address = first.expose_provenance() as u64;
            // SAFETY: the value has this much memory on the session's device, written by work on the
            // session's stream, and the keeper holds it and the session, whose arena it is of.
            let memory = unsafe { LibraryMemory::new(address, len, keeper) };
            let shape = plan.scalar.clone().unwrap_or(shape);
            voyage.bring(visited, *index, shape, memory)?;
        }
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
