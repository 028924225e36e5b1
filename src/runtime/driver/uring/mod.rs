//! io_uring. glommio runs the tasks of a reactor; the reactor sleeps in a ring of its own, in one call
//! that also hands over what is to be polled.
//!
//! glommio's own loop is not left to sleep. Each time round it sets and takes back two timers of its own
//! and joins two rings, and for each of that it enters the kernel: four times for a small request that
//! comes alone, where here one call does. So one task, the [`Resident`], always stays in glommio's queue:
//! its turn comes when everything else that could run has run, and when that was nothing it sleeps there
//! and then.

mod bell;
mod ring;
mod socket;
mod timers;

use std::{
    cell::{Cell, RefCell},
    future::Future,
    io, net,
    os::{fd::AsFd, unix},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use glommio::{LocalExecutorBuilder, Placement, TaskQueueHandle};
use nix::sys::eventfd::{EfdFlags, EventFd};
use pin_project_lite::pin_project;

use self::{
    bell::Bell,
    ring::{Direction, Readiness, Ring},
    socket::Socket,
};
use super::super::stall;

pub use self::timers::UringSleep;

pub type UringStream = Socket<net::TcpStream>;
pub type UringUnixStream = Socket<unix::net::UnixStream>;

/// Registered memory for file I/O, of which a reactor does none; the default pins 10 MiB a core.
const IO_MEMORY_BYTES: usize = 64 << 10;

/// How often glommio takes the processor away from its queue, which with one task in it always is not
/// needed.
const PREEMPT: Duration = Duration::from_secs(3600);

/// For how many turns what is to be handed to the kernel may wait: after a request that comes alone it is
/// handed over by the call that sleeps.
const BUSY_TURNS_MAX: u8 = 3;

thread_local! {
    static RING: RefCell<Option<Rc<Ring>>> = const { RefCell::new(None) };
    /// Whether what this reactor runs for is over: no task goes on.
    static OVER: Cell<bool> = const { Cell::new(false) };
}

pub fn run(idle_spin: Duration, main: impl Future<Output = ()>) -> Result<(), String> {
    let resident = Resident::new(idle_spin, main).map_err(|error| error.to_string())?;
    // The thread is bound already, where it is to be.
    let executor = LocalExecutorBuilder::new(Placement::Unbound)
        .io_memory(IO_MEMORY_BYTES)
        .preempt_timer(PREEMPT)
        .make()
        .map_err(|error| error.to_string())?;
    let ended = executor.run(resident);
    drop(executor);
    RING.take();
    ended.map_err(|error| error.to_string())
}

pub fn spawn(task: impl Future<Output = ()> + 'static) {
    // Into a queue by name: otherwise glommio polls a task where it is spawned, and answers to requests
    // that were read at once leave one by one.
    glommio::spawn_local_into(UntilOver { task }, TaskQueueHandle::default())
        .expect("an executor has its default queue")
        .detach();
}

pub fn sleep(duration: Duration) -> UringSleep {
    UringSleep::new(duration)
}

pub fn stream(socket: net::TcpStream) -> io::Result<UringStream> {
    on_ring(socket)
}

pub fn unix_stream(socket: unix::net::UnixStream) -> io::Result<UringUnixStream> {
    on_ring(socket)
}

fn on_ring<S: AsFd>(socket: S) -> io::Result<Socket<S>> {
    let ring = RING.with_borrow(Clone::clone);
    let ring = ring.ok_or_else(|| io::Error::other("this thread has no ring"))?;
    Ok(Socket::new(socket, &ring))
}

pin_project! {
    /// A task, as long as its reactor runs.
    struct UntilOver<F> {
        #[pin]
        task: F,
    }
}

impl<F: Future<Output = ()>> Future for UntilOver<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if OVER.get() { Poll::Ready(()) } else { self.project().task.poll(cx) }
    }
}

/// The way to wake a reactor's main task, from any thread: glommio's own wakers would not wake the ring.
struct Doorbell {
    bell: Bell,
    wire: EventFd,
}

impl Wake for Doorbell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.bell.ring() {
            // A full counter has rung.
            let _ = self.wire.write(1);
        }
    }
}

pin_project! {
    /// The task that looks what has happened, runs the main task, and sleeps when nothing else can run.
    struct Resident<F> {
        ring: Rc<Ring>,
        doorbell: Arc<Doorbell>,
        waker: Waker,
        // How the ring hears of the bell.
        wire: Readiness,
        idle_spin: Duration,
        idle_since: Option<Instant>,
        // The count of polls at the last turn.
        polls: u64,
        // Since the kernel was last entered.
        busy_turns: u8,
        #[pin]
        main: F,
    }
}

impl<F: Future<Output = ()>> Resident<F> {
    fn new(idle_spin: Duration, main: F) -> io::Result<Self> {
        let ring = Rc::new(Ring::new()?);
        RING.set(Some(ring.clone()));
        OVER.set(false);
        let wire = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let doorbell = Arc::new(Doorbell { bell: Bell::new(), wire });
        Ok(Self {
            wire: ring.watch(doorbell.wire.as_fd()),
            waker: doorbell.clone().into(),
            ring,
            doorbell,
            idle_spin,
            idle_since: None,
            polls: 0,
            busy_turns: 0,
            main,
        })
    }
}

impl<F: Future<Output = ()>> Future for Resident<F> {
    type Output = io::Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut this = self.project();
        let bell = &this.doorbell.bell;
        loop {
            let mut woken = this.ring.look(*this.busy_turns >= BUSY_TURNS_MAX)?;
            if *this.busy_turns >= BUSY_TURNS_MAX {
                *this.busy_turns = 0;
            }
            if bell.get_up() {
                if this.main.as_mut().poll(&mut Context::from_waker(this.waker)).is_ready() {
                    OVER.set(true);
                    this.ring.wake_all();
                    timers::fire_all();
                    return Poll::Ready(Ok(()));
                }
                woken = true;
            }
            let (fired, next) = timers::fire();
            let polls = stall::polls();
            if woken || fired || std::mem::replace(this.polls, polls) != polls {
                *this.polls = polls;
                *this.idle_since = None;
                *this.busy_turns += 1;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let spins = !this.idle_spin.is_zero()
                && this.idle_since.get_or_insert_with(Instant::now).elapsed() < *this.idle_spin;
            if spins {
                // Nobody else runs: what is to be handed over waits for nothing.
                *this.busy_turns = BUSY_TURNS_MAX;
                std::hint::spin_loop();
            } else if this
                .wire
                .poll(Direction::Read, &Context::from_waker(Waker::noop()))
                .is_ready()
            {
                // Emptied, so that the ring tells when it is next rung.
                let _ = this.doorbell.wire.read();
                this.wire.exhaust(Direction::Read);
            } else if bell.lie_down() {
                *this.busy_turns = 0;
                this.ring.sleep(next)?;
            }
        }
    }
}
