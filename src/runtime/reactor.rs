use std::{
    cell::OnceCell,
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{
    drain,
    driver::{self, Driver, DriverChoice},
    mailbox::{Closed, Full, Mailbox},
    stall::{self, Activity, Label, Watched},
    topology::{Topology, pin_to},
};

/// What travels to a reactor: something to do there.
pub type Message = Box<dyn FnOnce() + Send>;

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

/// What a reactor shares with the threads that hold its handle.
pub(super) struct Shared {
    pub(super) index: usize,
    pub(super) driver: Driver,
    mailbox: Mailbox<Message>,
    connections: AtomicUsize,
    stopping: AtomicBool,
    pub(super) activity: Activity,
}

/// The way to a reactor from any thread.
#[derive(Clone)]
pub struct ReactorHandle(Arc<Shared>);

impl ReactorHandle {
    /// The reactor's number, from 0.
    pub fn index(&self) -> usize {
        self.0.index
    }

    /// The event loop that drives it.
    pub fn driver(&self) -> Driver {
        self.0.driver
    }

    /// Whether the calling thread is this reactor.
    pub fn is_current(&self) -> bool {
        with_current(|handle| Arc::ptr_eq(&handle.0, &self.0)) == Some(true)
    }

    /// Runs `message` on the reactor: for completions, cancellations and shutdown, which are never
    /// refused. The bound on what they answer bounds them.
    ///
    /// # Errors
    /// When the reactor has ended; the message comes back undropped.
    pub fn send(&self, message: Message) -> Result<(), Closed<Message>> {
        self.0.mailbox.send(message)
    }

    /// Runs `message` on the reactor: for new work.
    ///
    /// # Errors
    /// When too much work waits there already, or the reactor has ended.
    pub fn try_send(&self, message: Message) -> Result<(), Full<Message>> {
        self.0.mailbox.try_send(message)
    }

    /// Open connections on this reactor.
    pub fn connections(&self) -> usize {
        self.0.connections.load(Ordering::Relaxed)
    }

    pub(super) fn count_connection(&self) {
        self.0.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn uncount_connection(&self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.0.activity.is_stalled()
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.0
    }
}

thread_local! {
    static CURRENT: OnceCell<ReactorHandle> = const { OnceCell::new() };
}

/// The reactor that the calling thread is, if it is one.
pub fn try_current() -> Option<ReactorHandle> {
    with_current(ReactorHandle::clone)
}

/// What `look` tells of the reactor that the calling thread is, if it is one.
pub(super) fn with_current<T>(look: impl FnOnce(&ReactorHandle) -> T) -> Option<T> {
    CURRENT.with(|current| current.get().map(look))
}

/// The number of the reactor that the calling thread is, if it is one.
pub(super) fn current_index() -> Option<usize> {
    with_current(ReactorHandle::index)
}

/// The reactor that the calling thread is.
///
/// # Panics
/// On a thread that is not a reactor.
pub fn current() -> ReactorHandle {
    try_current().expect("this code runs on reactors only")
}

/// Starts a task on the current reactor. It is first polled in the next round, so that what arrived
/// in one tick is answered in one write.
///
/// # Panics
/// On a thread that is not a reactor.
pub fn spawn(label: Label, task: impl Future<Output = ()> + 'static) {
    let reactor = current();
    let driver = reactor.driver();
    driver::spawn(driver, Watched::new(reactor, label, task));
}

/// All reactors of the process.
pub struct Reactors {
    handles: Vec<ReactorHandle>,
    /// Those that are no part of what the others share.
    aside: Vec<ReactorHandle>,
    threads: Vec<JoinHandle<()>>,
}

impl Reactors {
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
        let watched = reactors.handles.iter().map(|handle| Arc::downgrade(&handle.0)).collect();
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
        for handle in self.all() {
            let stopping = handle.clone();
            let message = Box::new(move || stopping.0.stopping.store(true, Ordering::Relaxed));
            if handle.send(message).is_err() {
                log::debug!("reactor {} had ended before it was stopped", handle.index());
            }
        }
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
    let handle = ReactorHandle(Arc::new(Shared {
        index,
        driver,
        mailbox: Mailbox::new(settings.mailbox_capacity),
        connections: AtomicUsize::new(0),
        stopping: AtomicBool::new(false),
        activity: Activity::default(),
    }));
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
    CURRENT.with(|current| {
        let _ = current.set(handle.clone());
    });
    let (reactor, ready) = (handle.clone(), report.clone());
    let main = Watched::new(handle.clone(), &"a message from another thread", async move {
        let _ = ready.send(Ok(()));
        read_mailbox(&reactor).await;
    });
    if let Err(detail) = driver::run(handle.driver(), idle_spin, main) {
        let failed = StartError::Driver { index, driver: handle.driver(), detail };
        // Nobody waits for the report of a reactor that had started.
        if let Err(mpsc::SendError(Err(failed))) = report.send(Err(failed)) {
            log::error!("{failed}");
        }
    }
}

/// Runs messages until one asks the reactor to end, then what still waits. This is the one task that
/// other threads wake.
async fn read_mailbox(reactor: &ReactorHandle) {
    while !reactor.0.stopping.load(Ordering::Relaxed) {
        for message in reactor.0.mailbox.receive().await {
            message();
        }
    }
    if let Some(messages) = reactor.0.mailbox.close() {
        messages.for_each(|message| message());
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{rc::Rc, sync::mpsc::channel, time::Instant};

    use super::*;
    use crate::runtime::{PerReactor, reply_channel, sleep, yield_now};

    fn start(driver: Driver, count: usize) -> Reactors {
        start_spinning(driver, count, Duration::ZERO)
    }

    fn start_spinning(driver: Driver, count: usize, idle_spin: Duration) -> Reactors {
        let driver = DriverChoice::Only(driver);
        let settings = ReactorSettings { count, driver, idle_spin, mailbox_capacity: 64 };
        Reactors::start(&settings, &Topology::read().unwrap()).unwrap()
    }

    fn on_both_drivers(test: impl Fn(&Reactors)) {
        for driver in [Driver::Epoll, Driver::IoUring] {
            let reactors = start(driver, 2);
            test(&reactors);
            reactors.stop();
        }
    }

    #[test]
    fn a_message_runs_on_its_reactor() {
        on_both_drivers(|reactors| {
            for handle in reactors.handles() {
                let (report, reported) = channel();
                let there = handle.clone();
                handle.send(Box::new(move || report.send(there.is_current()).unwrap())).unwrap();
                assert!(reported.recv().unwrap());
                assert!(!handle.is_current());
            }
        });
    }

    #[test]
    fn one_aside_goes_on_while_the_others_stall() {
        let settings = ReactorSettings {
            count: 2,
            driver: DriverChoice::Auto,
            idle_spin: Duration::ZERO,
            mailbox_capacity: 64,
        };
        let topology = Topology::read().unwrap();
        let mut reactors = Reactors::start(&settings, &topology).unwrap();
        let shared = Arc::new(PerReactor::new(reactors.handles()));
        let aside = reactors.start_aside(&settings, &topology.reactor_cores(2)).unwrap();
        let (go_on, stalled) = channel::<()>();
        let stalled = Arc::new(std::sync::Mutex::new(stalled));
        for handle in reactors.handles() {
            let (stalled, shared) = (stalled.clone(), shared.clone());
            let stall = move || {
                shared.set(handle_number());
                let _ = stalled.lock().unwrap().recv();
            };
            handle.send(Box::new(stall)).unwrap();
        }
        let (report, reported) = channel();
        let ask = move || {
            spawn(&"aside", async move {
                sleep(Duration::from_millis(1)).await;
                report.send((handle_number(), shared.get().copied())).unwrap();
            });
        };
        aside.send(Box::new(ask)).unwrap();
        let heard = reported.recv_timeout(Duration::from_secs(10));
        drop(go_on);
        assert_eq!(heard, Ok((Some(2), None)));
        reactors.stop();
    }

    fn handle_number() -> Option<usize> {
        try_current().map(|reactor| reactor.index())
    }

    #[test]
    fn a_spawned_task_starts_after_the_one_that_spawned_it_pauses() {
        on_both_drivers(|reactors| {
            let (report, reported) = channel();
            let spawning = move || {
                spawn(&"outer", async move {
                    let inner = report.clone();
                    spawn(&"inner", async move { inner.send("inner").unwrap() });
                    report.send("outer").unwrap();
                    yield_now().await;
                });
            };
            reactors.handles()[0].send(Box::new(spawning)).unwrap();
            assert_eq!(reported.recv().unwrap(), "outer");
            assert_eq!(reported.recv().unwrap(), "inner");
        });
    }

    #[test]
    fn a_busy_reactor_still_hears_other_threads_and_its_timers() {
        on_both_drivers(|reactors| {
            let (report, reported) = channel();
            let busy = move || {
                let done = Rc::new(std::cell::Cell::new(false));
                let spinning = done.clone();
                spawn(&"never idle", async move {
                    while !spinning.get() {
                        yield_now().await;
                    }
                });
                spawn(&"timer", async move {
                    sleep(Duration::from_millis(20)).await;
                    done.set(true);
                    report.send(()).unwrap();
                });
            };
            reactors.handles()[0].send(Box::new(busy)).unwrap();
            let (heard, hearing) = channel();
            reactors.handles()[0].send(Box::new(move || heard.send(()).unwrap())).unwrap();
            let patience = Duration::from_secs(10);
            hearing.recv_timeout(patience).unwrap();
            reported.recv_timeout(patience).unwrap();
        });
    }

    #[test]
    fn a_loop_that_spins_hears_of_work_before_during_and_after_its_spin_and_then_sleeps() {
        fn processor_time() -> Duration {
            let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_THREAD);
            let usage = usage.unwrap();
            let micros = |time: nix::sys::time::TimeVal| {
                Duration::from_micros((time.tv_sec() * 1_000_000 + time.tv_usec()) as u64)
            };
            micros(usage.user_time()) + micros(usage.system_time())
        }
        let spin = Duration::from_millis(2);
        for driver in [Driver::Epoll, Driver::IoUring] {
            let reactors = start_spinning(driver, 1, spin);
            let mut used = Vec::new();
            for pause in [Duration::ZERO, spin / 2, spin * 5, Duration::from_millis(500)] {
                thread::sleep(pause);
                let (report, reported) = channel();
                let asking = move || {
                    spawn(&"asking", async move {
                        sleep(Duration::from_micros(100)).await;
                        report.send(processor_time()).unwrap();
                    });
                };
                reactors.handles()[0].send(Box::new(asking)).unwrap();
                used.push(reported.recv_timeout(Duration::from_secs(10)).unwrap());
            }
            // Had it never slept, the last pause alone would have taken all of its 500 ms.
            assert!(used[3] - used[2] < Duration::from_millis(250), "{driver}: {used:?}");
            reactors.stop();
        }
    }

    #[test]
    fn replies_come_home_from_any_thread_and_their_end_is_seen() {
        on_both_drivers(|reactors| {
            let (report, reported) = channel();
            let other = reactors.handles()[1].clone();
            let asking = move || {
                let (sender, mut receiver) = reply_channel();
                other
                    .send(Box::new(move || {
                        sender.send(1).unwrap();
                        thread::spawn(move || sender.finish(2)).join().unwrap();
                    }))
                    .unwrap();
                spawn(&"asking", async move {
                    let mut got = Vec::new();
                    while let Some(reply) = receiver.receive().await {
                        got.push(reply);
                    }
                    report.send(got).unwrap();
                });
            };
            reactors.handles()[0].send(Box::new(asking)).unwrap();
            assert_eq!(reported.recv_timeout(Duration::from_secs(10)).unwrap(), [1, 2]);
        });
    }

    #[test]
    fn a_sender_learns_that_its_request_was_abandoned() {
        on_both_drivers(|reactors| {
            let (report, reported) = channel();
            let abandoning = move || {
                let (sender, receiver) = reply_channel::<()>();
                drop(receiver);
                thread::spawn(move || report.send(sender.is_abandoned()).unwrap());
            };
            reactors.handles()[0].send(Box::new(abandoning)).unwrap();
            assert!(reported.recv().unwrap());
        });
    }

    #[test]
    fn values_of_reactors_are_dropped_where_they_lived() {
        struct Tattle(mpsc::Sender<Option<usize>>);
        impl Drop for Tattle {
            fn drop(&mut self) {
                self.0.send(current_index()).unwrap();
            }
        }
        on_both_drivers(|reactors| {
            let values = Arc::new(PerReactor::new(reactors.handles()));
            let (report, reported) = channel();
            for handle in reactors.handles() {
                let (values, report, (set, is_set)) = (values.clone(), report.clone(), channel());
                handle
                    .send(Box::new(move || {
                        values.set(Tattle(report));
                        assert!(values.get().is_some());
                        drop(values);
                        set.send(()).unwrap();
                    }))
                    .unwrap();
                is_set.recv().unwrap();
            }
            assert!(values.get().is_none());
            drop(values);
            let mut dropped_on = [reported.recv().unwrap(), reported.recv().unwrap()];
            dropped_on.sort_unstable();
            assert_eq!(dropped_on, [Some(0), Some(1)]);
        });
    }

    /// glommio fell asleep over runnable tasks about once in 100,000 messages on a busy machine.
    #[test]
    fn no_wake_from_another_thread_is_lost() {
        const MESSAGES: usize = 20_000;
        on_both_drivers(|reactors| {
            let handle = reactors.handles()[0].clone();
            let senders: Vec<_> = (0..2)
                .map(|_| {
                    let handle = handle.clone();
                    thread::spawn(move || {
                        let (answer, answers) = channel();
                        for message in 0..MESSAGES {
                            let answer = answer.clone();
                            handle.send(Box::new(move || answer.send(message).unwrap())).unwrap();
                            let patience = Duration::from_secs(20);
                            assert_eq!(answers.recv_timeout(patience), Ok(message));
                        }
                    })
                })
                .collect();
            senders.into_iter().for_each(|sender| sender.join().unwrap());
        });
    }

    #[test]
    fn a_stalled_reactor_is_found_and_recovers() {
        on_both_drivers(|reactors| {
            let handle = reactors.handles()[0].clone();
            let (go, release) = channel::<()>();
            handle.send(Box::new(move || release.recv().unwrap_or_default())).unwrap();
            let patience = Instant::now() + Duration::from_secs(10);
            while !handle.is_stalled() {
                assert!(Instant::now() < patience, "the stall was not found");
                thread::sleep(Duration::from_millis(10));
            }
            drop(go);
            while handle.is_stalled() {
                assert!(Instant::now() < patience, "the end of the stall was not seen");
                thread::sleep(Duration::from_millis(10));
            }
        });
    }
}
