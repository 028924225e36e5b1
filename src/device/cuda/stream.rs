use std::{any::Any, os::raw::c_void, sync::Arc};

use bytes::Bytes;
use cudarc::driver::{
    result::{self, DriverError},
    sys,
};

use super::{
    calls::{Calls, Held, Span},
    device::Function,
    driver::Context,
};
use crate::device::{
    Argument, Destination, DeviceError, DeviceSlice, Event, Graph, HostTarget, Launch,
    LibraryMemory, Part, Report, Stream, TABLE_LEN, Urgency, Visit, VisitError, Visited, visit,
};

/// A kernel may take this much dynamic shared memory without being asked first.
const SHARED_BYTES_USUAL: u32 = 48 << 10;

/// A stream of a GPU.
pub(super) struct CudaStream {
    context: Arc<Context>,
    calls: Arc<Calls>,
    raw: sys::CUstream,
    /// What operations since the last call use.
    held: Held,
    /// Their time.
    span: Option<Span>,
    /// During a capture: how much was held when it began.
    captures: Option<usize>,
}

/// An event without timing.
pub(super) struct CudaEvent {
    context: Arc<Context>,
    raw: sys::CUevent,
}

/// A graph, and what its operations use.
struct CudaGraph {
    context: Arc<Context>,
    raw: sys::CUgraphExec,
    _held: std::sync::Mutex<Held>,
}

// SAFETY: streams may be used from any thread; the handle is a name, and this its one owner.
unsafe impl Send for CudaStream {}
// SAFETY: events may be used from any thread, by several at once.
unsafe impl Send for CudaEvent {}
// SAFETY: as above.
unsafe impl Sync for CudaEvent {}
// SAFETY: an executable graph may be used from any thread.
unsafe impl Send for CudaGraph {}
// SAFETY: it is only launched, by the stream of the one lane that keeps it, never by two at once.
unsafe impl Sync for CudaGraph {}

impl Part for CudaEvent {}
impl Part for CudaGraph {}

impl CudaEvent {
    pub fn open(context: &Arc<Context>) -> Result<Self, DeviceError> {
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let raw = context.call("cuEventCreate", || result::event::create(flags))?;
        Ok(Self { context: context.clone(), raw })
    }
}

impl Drop for CudaEvent {
    fn drop(&mut self) {
        // SAFETY: made in `open` and destroyed once; the driver keeps it as long as it is needed.
        self.context.release("cuEventDestroy", || unsafe { result::event::destroy(self.raw) });
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        // SAFETY: instantiated once and destroyed once; the driver waits for a launch under way.
        self.context
            .release("cuGraphExecDestroy", || unsafe { result::graph::exec_destroy(self.raw) });
    }
}

impl CudaStream {
    pub fn open(
        context: &Arc<Context>,
        calls: &Arc<Calls>,
        urgency: Urgency,
    ) -> Result<Self, DeviceError> {
        let raw = context.call("cuStreamCreateWithPriority", || {
            let (least, greatest) = result::stream::get_priority_range()?;
            let priority = match urgency {
                Urgency::Normal => least,
                Urgency::Urgent => greatest,
            };
            let kind = result::stream::StreamKind::NonBlocking;
            result::stream::create_with_priority(kind, priority)
        })?;
        let (context, calls) = (context.clone(), calls.clone());
        Ok(Self { context, calls, raw, held: Vec::new(), span: None, captures: None })
    }

    fn device(&self) -> usize {
        self.context.device
    }

    fn check_own(&self, slice: &DeviceSlice) -> Result<(), DeviceError> {
        let device = self.device();
        match slice.memory().device() == device {
            true => Ok(()),
            false => Err(DeviceError::Foreign { device, what: "memory" }),
        }
    }

    fn check_lengths(&self, from: usize, to: usize) -> Result<(), DeviceError> {
        match from == to {
            true => Ok(()),
            false => Err(DeviceError::Lengths { device: self.device(), from, to }),
        }
    }

    fn check_no_capture(&self) -> Result<(), DeviceError> {
        let reason = "only launches, fills and copies on the device can be captured";
        match self.captures {
            None => Ok(()),
            Some(_) => Err(DeviceError::Capture { device: self.device(), reason }),
        }
    }

    /// Gives the stream an operation and keeps alive what it uses.
    fn operate(
        &mut self,
        name: &'static str,
        held: impl Send + 'static,
        operation: impl FnOnce(sys::CUstream) -> Result<(), DriverError>,
    ) -> Result<(), DeviceError> {
        if self.span.is_none() && self.captures.is_none() {
            // SAFETY: the stream is alive.
            self.span = Some(unsafe { Span::begin(&self.context, self.raw) }?);
        }
        // Before it is given: should the call fail half way, the memory stays.
        self.held.push(Box::new(held));
        let raw = self.raw;
        self.context.call(name, || operation(raw))
    }
}

impl Stream for CudaStream {
    fn copy_in(&mut self, from: Bytes, to: &DeviceSlice) -> Result<(), DeviceError> {
        self.check_no_capture()?;
        self.check_lengths(from.len(), to.len())?;
        self.check_own(to)?;
        let held = (from.clone(), to.clone());
        // SAFETY: both ends are as long, and alive until the stream has passed this. Nobody writes
        // bytes that are shared.
        self.operate("cuMemcpyHtoDAsync", held, |stream| unsafe {
            result::memcpy_htod_async(to.address(), &from[..], stream)
        })
    }

    fn copy_out(&mut self, from: &DeviceSlice, to: HostTarget) -> Result<(), DeviceError> {
        self.check_no_capture()?;
        self.check_lengths(from.len(), to.len())?;
        self.check_own(from)?;
        let (target, address, len) = (to.pointer().cast::<c_void>(), from.address(), to.len());
        let held = (from.clone(), to);
        // SAFETY: both ends are as long, and alive until the stream has passed this. The target's
        // bytes are its alone.
        self.operate("cuMemcpyDtoHAsync", held, |stream| unsafe {
            sys::cuMemcpyDtoHAsync_v2(target, address, len, stream).result()
        })
    }

    fn copy_within(&mut self, from: &DeviceSlice, to: &DeviceSlice) -> Result<(), DeviceError> {
        self.check_lengths(from.len(), to.len())?;
        self.check_own(from)?;
        self.check_own(to)?;
        // SAFETY: both ends are as long, and alive until the stream has passed this.
        self.operate("cuMemcpyDtoDAsync", (from.clone(), to.clone()), |stream| unsafe {
            result::memcpy_dtod_async(to.address(), from.address(), from.len(), stream)
        })
    }

    fn fill(&mut self, to: &DeviceSlice, value: u8) -> Result<(), DeviceError> {
        self.check_own(to)?;
        // SAFETY: the bytes are alive until the stream has passed this.
        self.operate("cuMemsetD8Async", to.clone(), |stream| unsafe {
            result::memset_d8_async(to.address(), value, to.len(), stream)
        })
    }

    fn launch(&mut self, launch: Launch) -> Result<(), DeviceError> {
        let device = self.device();
        let kernel = launch.kernel.name().to_owned();
        let refused =
            |reason: String| DeviceError::Launch { device, kernel: kernel.clone(), reason };
        let code = launch.kernel.code.clone().downcast::<Function>().ok();
        let code = code.filter(|_| launch.kernel.device == device);
        let function = code.ok_or(DeviceError::Foreign { device, what: "a kernel" })?;
        let mut values = Vec::with_capacity(launch.arguments.len());
        for argument in &launch.arguments {
            values.push(self.value(argument, &refused)?);
        }
        let [grid_x, grid_y, grid_z] = launch.grid;
        let [block_x, block_y, block_z] = launch.block;
        let shared_bytes = launch.shared_bytes;
        let given = self.operate("cuLaunchKernel", launch, |stream| {
            let mut pointers: Vec<*mut c_void> =
                values.iter_mut().map(|value| value.as_mut_ptr().cast()).collect();
            // SAFETY: the function is loaded, and the launch holds it and all memory that is named.
            // The driver reads one value for each parameter before the call returns; that they are
            // what the kernel takes is the promise of whoever wrote the launch beside the kernel.
            unsafe {
                if shared_bytes > SHARED_BYTES_USUAL {
                    let attribute =
                        sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                    let bytes = i32::try_from(shared_bytes).unwrap_or(i32::MAX);
                    result::function::set_function_attribute(function.raw, attribute, bytes)?;
                }
                result::launch_kernel(
                    function.raw,
                    (grid_x, grid_y, grid_z),
                    (block_x, block_y, block_z),
                    shared_bytes,
                    stream,
                    &mut pointers,
                )
            }
        });
        given.map_err(|error| match error {
            DeviceError::Driver { reason, .. } => refused(reason),
            other => other,
        })
    }

    fn visit(&mut self, given: Visit) -> Result<(), DeviceError> {
        self.check_no_capture()?;
        let Visit { who, reads, writes, work } = given;
        reads.iter().chain(&writes).try_for_each(|slice| self.check_own(slice))?;
        // The library finds the context current, and what it puts on the stream is timed and held.
        self.operate("cuCtxSetCurrent", (reads, writes), |_| Ok(()))?;
        let Err(failed) = visit::work(work, self) else { return Ok(()) };
        // An error that has lost the context shows with any call.
        self.context.call("cuMemGetInfo", result::mem_get_info)?;
        Err(failed.on(self.device(), &who))
    }

    fn handle(&self) -> Option<u64> {
        Some(self.raw.expose_provenance() as u64)
    }

    fn record(&mut self, event: &Event) -> Result<(), DeviceError> {
        self.check_no_capture()?;
        let raw = self.own_event(event)?;
        // SAFETY: event and stream are alive; the driver keeps a recorded event as long as it must.
        self.context.call("cuEventRecord", || unsafe { result::event::record(raw, self.raw) })
    }

    fn wait(&mut self, event: &Event) -> Result<(), DeviceError> {
        self.check_no_capture()?;
        let raw = self.own_event(event)?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: as in `record`.
        self.context.call("cuStreamWaitEvent", || unsafe {
            result::stream::wait_event(self.raw, raw, flags)
        })
    }

    fn call(&mut self, call: Box<dyn FnOnce(Report) + Send>) -> Result<(), DeviceError> {
        self.check_no_capture()?;
        let (held, span) = (std::mem::take(&mut self.held), self.span.take());
        // SAFETY: the stream is alive, in this context.
        unsafe { self.calls.submit(&self.context, self.raw, call, held, span) }
    }

    fn begin_capture(&mut self) -> Result<(), DeviceError> {
        self.check_no_capture()?;
        // What other threads do meanwhile is none of this capture's business.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive.
        self.context.call("cuStreamBeginCapture", || unsafe {
            result::stream::begin_capture(self.raw, mode)
        })?;
        self.captures = Some(self.held.len());
        Ok(())
    }

    fn end_capture(&mut self) -> Result<Graph, DeviceError> {
        let device = self.device();
        let reason = "no capture is under way";
        let began = self.captures.take().ok_or(DeviceError::Capture { device, reason })?;
        // They have not run; what they use is the graph's, or nobody's if it fails.
        let held = self.held.split_off(began.min(self.held.len()));
        let raw = self.context.call("cuStreamEndCapture", || {
            // SAFETY: the stream is alive and captures; the graph is destroyed once it is instantiated.
            unsafe {
                let graph = result::stream::end_capture(self.raw)?;
                let instantiated =
                    result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
                result::graph::destroy(graph)?;
                instantiated
            }
        })?;
        Ok(Graph(Arc::new(CudaGraph {
            context: self.context.clone(),
            raw,
            _held: std::sync::Mutex::new(held),
        })))
    }

    fn replay(&mut self, graph: &Graph) -> Result<(), DeviceError> {
        self.check_no_capture()?;
        let device = self.device();
        let part: Arc<dyn Any + Send + Sync> = graph.0.clone();
        let own = part.downcast::<CudaGraph>().ok().filter(|it| it.context.device == device);
        let own = own.ok_or(DeviceError::Foreign { device, what: "a graph" })?;
        let raw = own.raw;
        // SAFETY: graph and stream are alive; the graph until the stream has passed this.
        self.operate("cuGraphLaunch", own, |stream| unsafe { result::graph::launch(raw, stream) })
    }
}

impl Visited for CudaStream {
    fn bring(&mut self, from: LibraryMemory, to: Destination<'_>) -> Result<(), VisitError> {
        self.check_lengths(from.len, to.len())?;
        if from.len == 0 {
            return Ok(());
        }
        let LibraryMemory { address, len, keeper } = from;
        match to {
            Destination::Host(target) => {
                let first = target.pointer().cast::<c_void>();
                // SAFETY: both ends are as long, and alive until the stream has passed this; the
                // target's bytes are its alone.
                self.operate("cuMemcpyDtoHAsync", (keeper, target), |stream| unsafe {
                    sys::cuMemcpyDtoHAsync_v2(first, address, len, stream).result()
                })
            }
            Destination::Device(slice) => {
                let held = (keeper, slice.clone());
                // SAFETY: as above; the slice is the visit's to write.
                self.operate("cuMemcpyDtoDAsync", held, |stream| unsafe {
                    result::memcpy_dtod_async(slice.address(), address, len, stream)
                })
            }
        }?;
        Ok(())
    }
}

impl CudaStream {
    fn own_event(&self, event: &Event) -> Result<sys::CUevent, DeviceError> {
        let device = self.device();
        let part: &dyn Any = &*event.0;
        part.downcast_ref::<CudaEvent>()
            .filter(|event| event.context.device == device)
            .map(|event| event.raw)
            .ok_or(DeviceError::Foreign { device, what: "an event" })
    }

    /// An argument in the kernel's own form.
    fn value(
        &self,
        argument: &Argument,
        refused: &impl Fn(String) -> DeviceError,
    ) -> Result<Vec<u64>, DeviceError> {
        Ok(match argument {
            Argument::Read(slice) | Argument::Write(slice) => {
                self.check_own(slice)?;
                vec![slice.address()]
            }
            Argument::ReadTable(slices) | Argument::WriteTable(slices) => {
                let len = slices.len();
                if len > TABLE_LEN {
                    let reason =
                        format!("a table of {len} pointers, at most {TABLE_LEN} are possible");
                    return Err(refused(reason));
                }
                slices.iter().try_for_each(|slice| self.check_own(slice))?;
                let mut table: Vec<u64> = slices.iter().map(DeviceSlice::address).collect();
                table.resize(TABLE_LEN, 0);
                table
            }
            Argument::Scalar(scalar) => vec![scalar.bits()],
        })
    }
}

impl Drop for CudaStream {
    fn drop(&mut self) {
        // SAFETY: made in `open` and destroyed once. What it was given still runs, and what that uses
        // is waited for here if no call was to give it back.
        self.context.release("cuStreamDestroy", || unsafe {
            let passed = match self.held.is_empty() {
                true => Ok(()),
                false => result::stream::synchronize(self.raw),
            };
            passed.and(result::stream::destroy(self.raw))
        });
    }
}
