use std::{
    future::{Future, poll_fn},
    io, net,
    os::unix,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use futures_util::task::AtomicWaker;
use tokio::{
    runtime,
    task::{self, LocalSet},
};

use super::super::stall;

pub type EpollStream = tokio::net::TcpStream;
pub type EpollUnixStream = tokio::net::UnixStream;
pub type EpollSleep = Pin<Box<tokio::time::Sleep>>;

pub fn run(idle_spin: Duration, main: impl Future<Output = ()> + 'static) -> Result<(), String> {
    let rest = (!idle_spin.is_zero()).then(Arc::<Rest>::default);
    let mut builder = runtime::Builder::new_current_thread();
    if let Some(rest) = rest.clone() {
        builder.on_thread_park(move || rest.end_after_work());
    }
    let runtime = builder.enable_io().enable_time().build().map_err(|error| error.to_string())?;
    let tasks = LocalSet::new();
    if let Some(rest) = rest {
        tasks.spawn_local(spin(idle_spin, rest));
    }
    // What is blocked on is polled in every round, whether it was woken or not; a task is not.
    let main = tasks.spawn_local(main);
    tasks.block_on(&runtime, main).map_err(|error| error.to_string())
}

/// Keeps the event loop from sleeping until nothing has run for `idle_spin`; then rests until
/// something has.
async fn spin(idle_spin: Duration, rest: Arc<Rest>) {
    loop {
        let mut seen = stall::polls();
        let mut idle_since = Instant::now();
        while idle_since.elapsed() < idle_spin {
            // Sockets and other threads are looked at before this goes on.
            task::yield_now().await;
            let polls = stall::polls();
            if polls != seen {
                (seen, idle_since) = (polls, Instant::now());
            }
        }
        rest.begin(seen).await;
    }
}

/// Where the spinning task waits while the loop sleeps.
#[derive(Default)]
struct Rest {
    /// The count of polls when it began.
    polls: AtomicU64,
    waker: AtomicWaker,
}

impl Rest {
    async fn begin(&self, polls: u64) {
        self.polls.store(polls, Ordering::Relaxed);
        let mut begun = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut begun, true) {
                return Poll::Ready(());
            }
            self.waker.register(cx.waker());
            Poll::Pending
        })
        .await;
    }

    /// To be called when the loop is about to sleep.
    fn end_after_work(&self) {
        if stall::polls() != self.polls.load(Ordering::Relaxed) {
            self.waker.wake();
        }
    }
}

pub fn spawn(task: impl Future<Output = ()> + 'static) {
    task::spawn_local(task);
}

pub fn sleep(duration: Duration) -> EpollSleep {
    Box::pin(tokio::time::sleep(duration))
}

pub fn stream(socket: net::TcpStream) -> io::Result<EpollStream> {
    socket.set_nonblocking(true)?;
    EpollStream::from_std(socket)
}

pub fn unix_stream(socket: unix::net::UnixStream) -> io::Result<EpollUnixStream> {
    socket.set_nonblocking(true)?;
    EpollUnixStream::from_std(socket)
}
