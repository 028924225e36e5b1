use std::{
    cell::OnceCell,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use super::{
    driver::{self, Driver},
    mailbox::{Closed, Full, Mailbox},
    stall::{Activity, Label, LabelledTask},
};

/// What travels to a reactor: something to do there.
pub type Message = Box<dyn FnOnce() + Send>;

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
    pub(super) fn new(index: usize, driver: Driver, mailbox_capacity: usize) -> Self {
        Self(Arc::new(Shared {
            index,
            driver,
            mailbox: Mailbox::new(mailbox_capacity),
            connections: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            activity: Activity::default(),
        }))
    }

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

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    /// Makes the calling thread this reactor.
    pub(super) fn become_current(&self) {
        CURRENT.with(|current| {
            // A thread becomes one reactor only.
            let _ = current.set(self.clone());
        });
    }

    /// Ends the reactor once it has run the messages that wait.
    pub(super) fn stop(&self) {
        let stopping = self.clone();
        let message = Box::new(move || stopping.0.stopping.store(true, Ordering::Relaxed));
        if self.send(message).is_err() {
            log::debug!("reactor {} had ended before it was stopped", self.index());
        }
    }

    /// Runs messages until one asks the reactor to end, then what still waits. This is the one task
    /// that other threads wake.
    pub(super) async fn read_mailbox(&self) {
        while !self.0.stopping.load(Ordering::Relaxed) {
            for message in self.0.mailbox.receive().await {
                message();
            }
        }
        if let Some(messages) = self.0.mailbox.close() {
            messages.for_each(|message| message());
        }
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
    driver::spawn(driver, LabelledTask::new(reactor, label, task));
}
