//! Calls of the host, and what operations keep alive until then.
//!
//! A function that a stream calls on the host must not use CUDA, so it only sends its number to the
//! device's thread, which measures, frees and calls. After an error that loses the context, streams
//! call nobody any more; the thread asks the driver now and then, and tells all who wait.

use std::{
    ffi::c_void,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError, Weak},
    thread,
    time::Duration,
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use cudarc::driver::{result, sys};
use slab::Slab;

use super::driver::Context;
use crate::{
    device::{DeviceError, Report},
    inference::Timestamp,
};

/// How often the driver is asked whether the device is well while calls are awaited.
const LOOK: Duration = Duration::from_millis(50);

pub(super) type Call = Box<dyn FnOnce(Report) + Send>;
/// What operations use, whatever it is.
pub(super) type Held = Vec<Box<dyn Send>>;

/// Calls that a device's streams will make.
pub(super) struct Calls {
    awaited: Mutex<Slab<Awaited>>,
    arrived: Sender<Arrival>,
}

/// The number of a call whose time has come, and when it came. It brings the calls along, so that
/// what they keep alive is not freed before, nor in the function that must not use CUDA.
type Arrival = (usize, Timestamp, Arc<Calls>);

struct Awaited {
    call: Call,
    /// Freed before the call, on a thread that may use CUDA.
    held: Held,
    span: Option<Span>,
    /// What went wrong when operations were given.
    outcome: Result<(), DeviceError>,
}

/// A timed stretch of a stream's work.
pub(super) struct Span {
    context: Arc<Context>,
    begun: sys::CUevent,
    ended: sys::CUevent,
}

// SAFETY: events may be used from any thread; the handles are names.
unsafe impl Send for Span {}

impl Span {
    /// Begins a stretch of `stream`'s work.
    ///
    /// # Safety
    /// The stream is alive, in this context.
    pub unsafe fn begin(
        context: &Arc<Context>,
        stream: sys::CUstream,
    ) -> Result<Self, DeviceError> {
        context.call("cuEventRecord", || {
            let begun = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)?;
            let span = Self {
                context: context.clone(),
                begun,
                ended: result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)?,
            };
            // SAFETY: the event was made above, the stream is alive.
            unsafe { result::event::record(span.begun, stream) }?;
            Ok(span)
        })
    }

    /// Ends it.
    ///
    /// # Safety
    /// The stream is the one that it was begun on, and alive.
    pub unsafe fn end(&self, stream: sys::CUstream) -> Result<(), DeviceError> {
        // SAFETY: the event is this span's, the stream is alive.
        self.context.call("cuEventRecord", || unsafe { result::event::record(self.ended, stream) })
    }

    /// An error that has lost the context, if there was one.
    fn look(&self) -> Result<(), DeviceError> {
        // SAFETY: the event is this span's.
        self.context.call("cuEventQuery", || match unsafe { sys::cuEventQuery(self.begun) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(()),
            other => other.result(),
        })
    }

    /// How long it took, once the stream has passed its end.
    fn duration(&self) -> Result<Duration, DeviceError> {
        // SAFETY: both events are this span's, with timing, and have been recorded.
        let millis = self.context.call("cuEventElapsedTime", || unsafe {
            result::event::elapsed(self.begun, self.ended)
        });
        millis.map(|millis| Duration::from_secs_f32(millis.max(0.0) / 1000.0))
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        // SAFETY: both were made in `begin` and are destroyed once.
        self.context.release("cuEventDestroy", || unsafe {
            result::event::destroy(self.begun).and(result::event::destroy(self.ended))
        });
    }
}

/// What a stream hands to its function on the host.
struct Postcard {
    number: usize,
    calls: Arc<Calls>,
}

impl Calls {
    /// Starts the thread that makes a device's calls; it ends when this is dropped.
    pub fn start(context: &Arc<Context>) -> io::Result<Arc<Self>> {
        let (arrived, arrivals) = unbounded();
        let calls = Arc::new(Self { awaited: Mutex::default(), arrived });
        let (there, context) = (Arc::downgrade(&calls), context.clone());
        thread::Builder::new()
            .name(format!("cuda{}-calls", context.device))
            .spawn(move || run(&there, &context, &arrivals))?;
        Ok(calls)
    }

    /// Has `call` made when the stream has passed all that it was given.
    ///
    /// # Safety
    /// The stream is alive, in this context.
    pub unsafe fn submit(
        self: &Arc<Self>,
        context: &Context,
        stream: sys::CUstream,
        call: Call,
        held: Held,
        span: Option<Span>,
    ) -> Result<(), DeviceError> {
        // SAFETY: the caller says so.
        let outcome = span.as_ref().map_or(Ok(()), |span| unsafe { span.end(stream) });
        let number = self.awaited().insert(Awaited { call, held, span, outcome });
        let postcard = Box::new(Postcard { number, calls: self.clone() });
        let postcard = Box::into_raw(postcard).cast::<c_void>();
        // SAFETY: the stream is alive, and `arrive` takes the postcard, once.
        let given = context.call("cuLaunchHostFunc", || unsafe {
            result::stream::launch_host_function(stream, arrive, postcard)
        });
        if let Err(error) = given {
            // SAFETY: the function was not taken, so the postcard is still ours.
            drop(unsafe { Box::from_raw(postcard.cast::<Postcard>()) });
            let Some(awaited) = self.take(number) else { return Err(error) };
            if !error.is_lost() {
                // Operations may be under way that use it. It is never freed, which is rare enough.
                std::mem::forget(awaited.held);
            }
            return Err(error);
        }
        Ok(())
    }

    /// Asks the driver whether the device is well, if any call is awaited; the context notes the answer.
    fn look(&self, context: &Context) {
        let awaited = self.awaited();
        let asked = match awaited.iter().find_map(|(_, it)| it.span.as_ref()) {
            // What work that went wrong did to the context shows with its events.
            Some(span) => span.look(),
            None if awaited.is_empty() => return,
            None => context.call("cuMemGetInfo", result::mem_get_info).map(drop),
        };
        if let Err(error) = asked {
            log::debug!("while a device's work is awaited: {error}");
        }
    }

    fn take(&self, number: usize) -> Option<Awaited> {
        self.awaited().try_remove(number)
    }

    fn awaited(&self) -> std::sync::MutexGuard<'_, Slab<Awaited>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What streams call; it must not use CUDA.
unsafe extern "C" fn arrive(postcard: *mut c_void) {
    // SAFETY: `submit` gave the pointer away for this one call.
    let postcard = unsafe { Box::from_raw(postcard.cast::<Postcard>()) };
    let Postcard { number, calls } = *postcard;
    let arrived = calls.arrived.clone();
    // The thread is there as long as there are calls.
    let _ = arrived.send((number, Timestamp::now(), calls));
}

fn run(calls: &Weak<Calls>, context: &Arc<Context>, arrivals: &Receiver<Arrival>) {
    loop {
        match arrivals.recv_timeout(LOOK) {
            Ok((number, ended, calls)) => {
                let awaited = calls.take(number);
                drop(calls);
                if let Some(awaited) = awaited {
                    make(context.device, awaited, ended);
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                let Some(calls) = calls.upgrade() else { return };
                calls.look(context);
                if let Some(lost) = context.lost() {
                    let all: Vec<_> = calls.awaited().drain().collect();
                    drop(calls);
                    for mut awaited in all {
                        awaited.outcome = Err(lost.clone());
                        make(context.device, awaited, Timestamp::now());
                    }
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn make(device: usize, awaited: Awaited, ended: Timestamp) {
    let Awaited { call, held, span, outcome } = awaited;
    // A driver that lacks a function makes its caller panic; whoever waits is to hear of it.
    let measured = catch_unwind(AssertUnwindSafe(|| {
        drop(held);
        span.map_or(Ok(Duration::ZERO), |span| span.duration())
    }));
    let duration = measured.unwrap_or_else(|_| {
        let reason = "it panicked while an operation's end was noted".to_owned();
        Err(DeviceError::Driver { device, call: "cuEventElapsedTime", reason })
    });
    let nanos = duration.as_ref().map_or(0, |took| u64::try_from(took.as_nanos()).unwrap_or(0));
    let began = Timestamp::from_nanos(ended.as_nanos().saturating_sub(nanos));
    call(Report { outcome: outcome.and(duration.map(drop)), began, ended, busy: ended - began });
}
