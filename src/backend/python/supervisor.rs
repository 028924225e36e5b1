//! Keeps the process of one instance running: starts it, reads what it says, notices its end, starts
//! it again.

mod back_off;
mod run;

use std::{
    sync::{
        Arc, Condvar, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use self::{
    back_off::BackOff,
    run::{Failed, Run},
};
use super::{
    Outline, near,
    services::Services,
    session::Session,
    wire::{self, Said, Writer},
};
use crate::{backend::BackendError, runtime::ReactorHandle};

/// How long a process that has completed a configuration is kept for the instance that will want it.
const KEPT_FOR: Duration = Duration::from_secs(30);

/// Where an instance's processes come and go.
pub struct Seat {
    outline: Arc<Outline>,
    services: Services,
    session: Mutex<Option<Arc<Session>>>,
    /// The reactor that is to hear the processes, if one is.
    home: OnceLock<ReactorHandle>,
    stopping: AtomicBool,
    /// Rung when it is to stop, and when it has.
    stopped: Condvar,
    /// Whether the thread that keeps the process has nothing more to do.
    is_over: Mutex<bool>,
}

/// What a process is to do.
enum Purpose {
    /// Run the model.
    Serve,
    /// Complete this configuration.
    Complete(String),
}

/// A process that has completed a model's configuration, and can go on as its first instance. Without one
/// that wants it it ends by itself, or with this.
pub struct Spare {
    thread: thread::JoinHandle<()>,
    wanted: mpsc::Sender<Wanted>,
}

impl Spare {
    /// Whether it is there no more.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Has the process run the model of `seat`; `None` when it has ended meanwhile.
    fn go_on_as(self, seat: &Arc<Seat>) -> Option<Result<thread::JoinHandle<()>, BackendError>> {
        let (report, started) = mpsc::channel();
        self.wanted.send((seat.clone(), report)).ok()?;
        Some(started.recv().ok()?.map(|()| self.thread))
    }
}

/// The seat that a process is wanted for, and who waits for it.
type Wanted = (Arc<Seat>, mpsc::Sender<Result<(), BackendError>>);

impl Seat {
    /// Starts the process, or takes the spare one, and waits until the model is loaded. The thread that
    /// keeps it running comes with it; it ends after [`Seat::stop`].
    ///
    /// # Errors
    /// When the process does not start, or the model fails.
    pub fn take(
        outline: Arc<Outline>,
        services: Services,
        spare: Option<Spare>,
    ) -> Result<(Arc<Self>, thread::JoinHandle<()>), BackendError> {
        let seat = Arc::new(Self::new(outline, services));
        if let Some(taken) = spare.and_then(|spare| spare.go_on_as(&seat)) {
            return taken.map(|supervisor| (seat, supervisor));
        }
        let (report, started) = mpsc::channel();
        let kept = seat.clone();
        let supervisor = spawn(&seat.outline, move || kept.keep(None, &report))?;
        match started.recv() {
            Ok(Ok(())) => Ok((seat, supervisor)),
            Ok(Err(error)) => Err(error),
            Err(mpsc::RecvError) => Err(BackendError("the thread of a process has ended".into())),
        }
    }

    /// Has the model complete `config`, in a process that can be its first instance's.
    ///
    /// # Errors
    /// When the process does not start, or the model fails.
    pub fn complete(
        outline: &Arc<Outline>,
        config: String,
    ) -> Result<(String, Spare), BackendError> {
        let completing = Self::new(outline.clone(), Services::default());
        let ((tell, told), (wanted, wants)) = (mpsc::channel(), mpsc::channel::<Wanted>());
        // A process ends with the thread that started it.
        let thread = spawn(outline, move || {
            let started = completing.start(&Purpose::Complete(config));
            let mut run = match started {
                Ok(run) => run,
                Err(error) => {
                    // The loader waits for this.
                    let _ = tell.send(Err(error));
                    return;
                }
            };
            let _ = tell.send(Ok(std::mem::take(&mut run.answer)));
            if let Ok((seat, report)) = wants.recv_timeout(KEPT_FOR) {
                seat.keep(Some(run), &report);
            }
        })?;
        match told.recv() {
            Ok(answer) => answer.map(|answer| (answer, Spare { thread, wanted })),
            Err(mpsc::RecvError) => Err(BackendError("the thread of a process panicked".into())),
        }
    }

    /// Keeps a process running until it is to stop, beginning with `run`.
    fn keep(self: &Arc<Self>, run: Option<Run>, report: &mpsc::Sender<Result<(), BackendError>>) {
        self.supervise(run, report);
        *self.is_over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stopped.notify_all();
    }

    fn new(outline: Arc<Outline>, services: Services) -> Self {
        Self {
            outline,
            services,
            session: Mutex::default(),
            home: OnceLock::new(),
            stopping: AtomicBool::new(false),
            stopped: Condvar::new(),
            is_over: Mutex::default(),
        }
    }

    /// The process that serves now, if one does.
    pub fn session(&self) -> Option<Arc<Session>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether requests would be answered; none come to one that is to stop.
    pub fn is_ready(&self) -> bool {
        self.is_stopping() || self.session().is_some_and(|session| session.serves())
    }

    /// Ends the process, after the model's `finalize`, and the thread that keeps it.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        drop(self.is_over.lock().unwrap_or_else(PoisonError::into_inner));
        self.stopped.notify_all();
        if let Some(session) = self.session() {
            session.line.ring();
        }
    }

    /// Waits until the process and its thread have ended, or for `limit`.
    pub fn wait(&self, limit: Duration) {
        let is_over = self.is_over.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.stopped.wait_timeout_while(is_over, limit, |is_over| !*is_over);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Has a process serve.
    fn open(self: &Arc<Self>, session: &Arc<Session>) {
        let opened = Some(session.clone());
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = opened;
        if let Some(home) = self.home.get() {
            near::attach(self, session, home);
        }
    }

    /// Has a reactor hear the process that serves now, and those that come after it.
    pub fn attach(self: &Arc<Self>, home: &ReactorHandle) {
        let home = self.home.get_or_init(|| home.clone());
        if let Some(session) = self.session() {
            near::attach(self, &session, home);
        }
    }

    fn supervise(
        self: &Arc<Self>,
        run: Option<Run>,
        report: &mpsc::Sender<Result<(), BackendError>>,
    ) {
        let begun = run.map(|mut run| self.begin(&mut run, &Purpose::Serve).map(|()| run));
        let started = match begun {
            Some(Ok(run)) => Ok(run),
            Some(Err(Failed::Model(message))) => Err(BackendError(message)),
            // What was wrong with that process another need not have.
            Some(Err(Failed::Process(_))) | None => self.start(&Purpose::Serve),
        };
        let mut run = match started {
            Ok(run) => run,
            Err(error) => {
                // The loader waits for this.
                let _ = report.send(Err(error));
                return;
            }
        };
        self.open(&run.session);
        let _ = report.send(Ok(()));
        let mut back_off = BackOff::new();
        loop {
            let began = Instant::now();
            let ended = run.serve(self);
            *self.session.lock().unwrap_or_else(PoisonError::into_inner) = None;
            run.process.kill();
            run.session.die(&self.outline.is_unhealthy());
            self.services.forget();
            let Err(reason) = ended else { return };
            let has_executed = run.session.has_executed.load(Ordering::Relaxed);
            back_off.ended(began.elapsed(), has_executed);
            log::error!("{}: {reason}; it is started again", self.outline.process());
            run = loop {
                if self.rest(back_off.rest()) {
                    return;
                }
                match self.start(&Purpose::Serve) {
                    Ok(run) => break run,
                    Err(error) => log::error!("{} did not start: {error}", self.outline.process()),
                }
            };
            self.open(&run.session);
            log::info!("{} is ready again", self.outline.process());
        }
    }

    /// Rests before the next start. Tells whether it is to stop.
    fn rest(&self, limit: Duration) -> bool {
        let is_over = self.is_over.lock().unwrap_or_else(PoisonError::into_inner);
        let rested = self.stopped.wait_timeout_while(is_over, limit, |_| !self.is_stopping());
        drop(rested.unwrap_or_else(PoisonError::into_inner));
        self.is_stopping()
    }

    /// Starts a process and waits until it has begun with what it is for.
    fn start(&self, purpose: &Purpose) -> Result<Run, BackendError> {
        let outline = &*self.outline;
        let refuse = |reason: String| BackendError(format!("{} {reason}", outline.process()));
        let mut run =
            Run::start(outline).map_err(|error| refuse(format!("cannot be started: {error}")))?;
        self.begin(&mut run, purpose).map_err(|reason| match reason {
            Failed::Model(message) => BackendError(message),
            Failed::Process(reason) => refuse(reason),
        })?;
        Ok(run)
    }

    /// Has a process begin with what it is for.
    fn begin(&self, run: &mut Run, purpose: &Purpose) -> Result<(), Failed> {
        let mut writer = Writer::default();
        writer.start(&match purpose {
            Purpose::Serve => self.outline.start_message(None),
            Purpose::Complete(config) => self.outline.start_message(Some(config)),
        });
        run.session.line.send(writer);
        run.answer = run.wait_until_started(self)?;
        Ok(())
    }
}

/// Starts the thread of an instance's processes.
fn spawn(
    outline: &Outline,
    work: impl FnOnce() + Send + 'static,
) -> Result<thread::JoinHandle<()>, BackendError> {
    let thread = thread::Builder::new().name(outline.instance.clone()).spawn(work);
    thread.map_err(|error| BackendError(format!("cannot start a thread: {error}")))
}

impl Seat {
    /// Does what the process wants.
    ///
    /// # Errors
    /// When the process says what makes no sense; it cannot be trusted any more.
    pub fn hear(&self, session: &Arc<Session>, said: Said) -> Result<(), String> {
        let outline = &self.outline;
        match said {
            Said::Responses(responses) => {
                for response in responses {
                    session.respond(outline, response).map_err(|error| error.to_string())?;
                }
            }
            Said::Executed(outcome) => session.executed(outline, outcome),
            Said::Call(call) => self.services.call(session, *call),
            Said::CancelCall(number) => session.cancel_call(number),
            Said::Ask(question) => self.services.answer(session, question),
            Said::Log(line) => super::output::log_line(outline, &line),
            Said::IsReady { is_ready, .. } => session.is_ready.store(is_ready, Ordering::Relaxed),
            Said::Gone(wire::Gone::Memory, offsets) => {
                session.take_back(&offsets).map_err(|error| error.to_string())?;
            }
            Said::Gone(wire::Gone::Requests, numbers) => session.let_go(outline, &numbers),
            Said::Gone(what, numbers) => self.services.gone(what, &numbers),
            Said::Finalized if self.is_stopping() => {
                session.has_finalized.store(true, Ordering::Release);
                session.line.ring();
            }
            Said::Started { .. } | Said::Finalized => {
                return Err("said that it had started, or ended, when nobody had asked".to_owned());
            }
        }
        Ok(())
    }
}
