//! Who gives a device the executions of an instance.

use std::{io, thread, time::Duration};

use crossbeam_channel::{Sender, unbounded};

use super::{
    job::{Compute, Notify},
    lane::{Placed, enqueue},
    work::{Completion, Ticket},
};
use crate::{
    device::{Device, DeviceError, Event, Report, Stream, Urgency},
    inference::Timestamp,
};

/// What runs a model at a place: what puts its work onto a stream, and that stream.
pub struct Runner {
    /// What puts work on the stream. Declared first, so that a library lets go of the stream before
    /// that goes.
    pub model: Box<dyn Compute>,
    /// The stream.
    pub stream: Box<dyn Stream>,
}

impl Runner {
    /// On a stream of its own on `device`.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn open(device: &dyn Device, model: Box<dyn Compute>) -> Result<Self, DeviceError> {
        Ok(Self { stream: device.stream(Urgency::Normal)?, model })
    }
}

/// See the module.
pub(super) enum Worker {
    /// Whoever drives the lanes.
    Here(Runner),
    /// A thread of the instance's own. It ends when this is dropped and what was sent has been given.
    Thread(Sender<Errand>),
}

/// An execution that a thread is to give its device.
pub(super) struct Errand {
    /// The inputs are there.
    pub there: Event,
    /// The model has run.
    pub computed: Event,
    pub batch: Placed,
    pub ticket: Ticket,
    pub notify: Notify,
}

impl Worker {
    /// For a runner: a thread where giving work takes its time.
    pub fn of(runner: Runner, device: usize) -> Result<Self, DeviceError> {
        if !runner.model.is_library() {
            return Ok(Self::Here(runner));
        }
        let (errands, receive) = unbounded::<Errand>();
        let mut runner = runner;
        let run = move || receive.into_iter().for_each(|errand| errand.run(&mut runner));
        let started = thread::Builder::new().name(format!("device{device}-work")).spawn(run);
        started.map_err(|error: io::Error| DeviceError::Driver {
            device,
            call: "starting the thread of an instance",
            reason: error.to_string(),
        })?;
        Ok(Self::Thread(errands))
    }
}

impl Errand {
    fn run(self, runner: &mut Runner) {
        let Self { there, computed, batch, ticket, notify } = self;
        let stream = &mut *runner.stream;
        let given = stream
            .wait(&there)
            .and_then(|()| batch.run(stream, |stream| enqueue(stream, &mut *runner.model, &batch)));
        let given = given.and(stream.record(&computed));
        // Whoever hears of the end finds that nobody here holds its memory any more.
        drop(batch);
        if let Some(stillborn) = report_end(stream, given.err(), ticket, &notify) {
            notify(stillborn);
        }
    }
}

/// Has the end of what a stream was given told; gives the news themselves where the stream cannot
/// bring them. `error` is what went wrong already.
pub(super) fn report_end(
    stream: &mut dyn Stream,
    error: Option<DeviceError>,
    ticket: Ticket,
    notify: &Notify,
) -> Option<Completion> {
    let (notify, first) = (notify.clone(), error.clone());
    // Also after an error: what was given before it has to end before the lane is used again.
    let called = stream.call(Box::new(move |mut report| {
        if let Some(error) = first {
            report.outcome = Err(error);
        }
        notify(Completion { ticket, report });
    }));
    called.err().map(|refused| stillborn(error.unwrap_or(refused), ticket))
}

/// The news of what could not even be given.
pub(super) fn stillborn(error: DeviceError, ticket: Ticket) -> Completion {
    let now = Timestamp::default();
    let report = Report { outcome: Err(error), began: now, ended: now, busy: Duration::ZERO };
    Completion { ticket, report }
}
