use std::{
    io,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{
    drain,
    driver::{self, Driver, DriverChoice},
    reactor::ReactorHandle,
    stall::{self, LabelledTask},
    topology::{Topology, pin_to},
};

/// How the reactors are to be run.
#[derive(Clone, Debug)]
pub struct ReactorSettings {
    /// How many.
    pub count: usize,
    /// Which event loop drives them.
    pub driver: DriverChoice,
    /// How long an idle reactor looks for work before it sleeps.
    pub idle_spin: Duration,
    /// Refusable messages that may wait at one reactor.
    pub mailbox_capacity: usize,
}

/// A reactor could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The system did not give a thread or the processors.
    #[error("cannot start reactor {index} on core {core}: {source}")]
    Thread {
        /// The reactor.
        index: usize,
        /// The processor it was to run on.
        core: usize,
        /// Why.
        source: io::Error,
    },
    /// The event loop could not be set up.
    #[error("cannot start reactor {index} with {driver}: {detail}")]
    Driver {
        /// The reactor.
        index: usize,
        /// Its event loop.
        driver: Driver,
        /// Why.
        detail: String,
    },
}

/// All reactors of the process.
pub struct Reactors {
    handles: Vec<ReactorHandle>,
    /// Those that are no part of what the others share.
    aside: Vec<ReactorHandle>,
    threads: Vec<JoinHandle<()>>,
}

impl Reactors {
    /// So many for a test, by the event loop that is the default.
    #[cfg(test)]
    pub(crate) fn of_test(count: usize) -> Self {
        let settings = ReactorSettings {
            count,
            driver: DriverChoice::default(),
            idle_spin: Duration::ZERO,
            mailbox_capacity: 1024,
        };
        Self::start(&settings, &Topology::read().unwrap()).unwrap()
    }

    /// Starts them, each on its own processor if threads are bound at all.
    ///
    /// # Errors
    /// When a thread or an event loop cannot be had.
    pub fn start(settings: &ReactorSettings, topology: &Topology) -> Result<Self, StartError> {
        let chosen = driver::choose(settings.driver);
        let mut reactors = Self { handles: Vec::new(), aside: Vec::new(), threads: Vec::new() };
        for (index, cores) in topology.places(settings.count).into_iter().enumerate() {
            let (handle, thread) = start(settings, chosen, index, &cores)?;
            reactors.handles.push(handle);
            reactors.threads.push(thread);
        }
        let watched =
            reactors.handles.iter().map(|handle| Arc::downgrade(handle.shared())).collect();
        let watchdog = thread::Builder::new().name("watchdog".into());
        if let Err(error) = watchdog.spawn(move || stall::watch(watched)) {
            log::warn!("cannot start the thread that watches for stalled reactors: {error}");
        }
        Ok(reactors)
    }

    /// Starts one more on any of `cores`, for what has to go on though the others are kept busy. It is
    /// none of [`handles`](Self::handles): what they share has no part for it.
    ///
    /// # Errors
    /// When the thread or its event loop cannot be had.
    pub fn start_aside(
        &mut self,
        settings: &ReactorSettings,
        cores: &[usize],
    ) -> Result<ReactorHandle, StartError> {
        // It sleeps most of the time, and a ring of its own would take locked memory.
        let settings = ReactorSettings { idle_spin: Duration::ZERO, ..settings.clone() };
        let index = self.handles.len() + self.aside.len();
        let (handle, thread) = start(&settings, Driver::Epoll, index, cores)?;
        self.aside.push(handle.clone());
        self.threads.push(thread);
        Ok(handle)
    }

    fn all(&self) -> impl Iterator<Item = &ReactorHandle> {
        self.handles.iter().chain(&self.aside)
    }

    /// The reactors in the order of their numbers.
    pub fn handles(&self) -> &[ReactorHandle] {
        &self.handles
    }

    /// Tells all connections to end once what they have in flight is answered; see [`draining`].
    ///
    /// [`draining`]: super::draining
    pub fn drain(&self) {
        for handle in self.all() {
            if handle.send(Box::new(drain::begin)).is_err() {
                log::debug!("reactor {} had ended before it was drained", handle.index());
            }
        }
    }

    /// Open connections on all reactors.
    pub fn connections(&self) -> usize {
        self.all().map(ReactorHandle::connections).sum()
    }

    /// Ends all reactors: tasks that still run are dropped, messages that still wait are run.
    pub fn stop(self) {
        self.all().for_each(ReactorHandle::stop);
        for (index, thread) in self.threads.into_iter().enumerate() {
            if thread.join().is_err() {
                log::error!("reactor {index} panicked");
            }
        }
    }
}

/// Starts the reactor `index` on a thread that is bound to `cores`.
fn start(
    settings: &ReactorSettings,
    driver: Driver,
    index: usize,
    cores: &[usize],
) -> Result<(ReactorHandle, JoinHandle<()>), StartError> {
    let handle = ReactorHandle::new(index, driver, settings.mailbox_capacity);
    let (report, started) = mpsc::sync_channel(1);
    let core = cores.first().copied().unwrap_or_default();
    let thread = thread::Builder::new()
        .name(format!("reactor-{index}"))
        .spawn({
            let (handle, cores, idle_spin) = (handle.clone(), cores.to_vec(), settings.idle_spin);
            move || run(handle, &cores, core, idle_spin, report)
        })
        .map_err(|source| StartError::Thread { index, core, source })?;
    match started.recv() {
        Ok(Ok(())) => Ok((handle, thread)),
        Ok(Err(error)) => Err(error),
        Err(mpsc::RecvError) => {
            let detail = "the thread ended before it was ready".to_owned();
            Err(StartError::Driver { index, driver, detail })
        }
    }
}

fn run(
    handle: ReactorHandle,
    cores: &[usize],
    core: usize,
    idle_spin: Duration,
    report: mpsc::SyncSender<Result<(), StartError>>,
) {
    let index = handle.index();
    if let Err(source) = pin_to(cores) {
        let _ = report.send(Err(StartError::Thread { index, core, source }));
        return;
    }
    handle.become_current();
    let (reactor, ready) = (handle.clone(), report.clone());
    let main = LabelledTask::new(handle.clone(), &"a message from another thread", async move {
        let _ = ready.send(Ok(()));
        reactor.read_mailbox().await;
    });
    if let Err(detail) = driver::run(handle.driver(), idle_spin, main) {
        let failed = StartError::Driver { index, driver: handle.driver(), detail };
        // Nobody waits for the report of a reactor that had started.
        if let Err(mpsc::SendError(Err(failed))) = report.send(Err(failed)) {
            log::error!("{failed}");
        }
    }
}
