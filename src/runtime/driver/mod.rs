//! The two event loops behind a reactor: `uring` (glommio) and `epoll` (tokio).

mod epoll;
mod uring;

use std::{fmt, future::Future, str::FromStr, task::Poll, time::Duration};

use futures_util::future::Either;

pub(super) use self::{
    epoll::{
        EpollSleep, EpollStream, EpollUnixStream, stream as epoll_stream,
        unix_stream as epoll_unix_stream,
    },
    uring::{
        UringSleep, UringStream, UringUnixStream, stream as uring_stream,
        unix_stream as uring_unix_stream,
    },
};

/// The event loop of a reactor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// io_uring, through glommio.
    IoUring,
    /// epoll, through tokio's current-thread runtime.
    Epoll,
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
        })
    }
}

/// Which event loop is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DriverChoice {
    /// The better one today: epoll, which mostly costs less CPU time in the peer bench.
    #[default]
    Auto,
    /// This one, or the server does not start.
    Only(Driver),
}

impl FromStr for DriverChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Self::Auto),
            "io_uring" => Ok(Self::Only(Driver::IoUring)),
            "epoll" => Ok(Self::Only(Driver::Epoll)),
            _ => Err(format!("expected auto, io_uring or epoll, got '{name}'")),
        }
    }
}

pub(super) fn choose(choice: DriverChoice) -> Driver {
    match choice {
        DriverChoice::Only(driver) => driver,
        DriverChoice::Auto => Driver::Epoll,
    }
}

/// Runs `main` to its end on the calling thread, with an event loop of its own.
pub(super) fn run(
    driver: Driver,
    idle_spin: Duration,
    main: impl Future<Output = ()> + 'static,
) -> Result<(), String> {
    match driver {
        Driver::IoUring => uring::run(idle_spin, main),
        Driver::Epoll => epoll::run(idle_spin, main),
    }
}

pub(super) fn spawn(driver: Driver, task: impl Future<Output = ()> + 'static) {
    match driver {
        Driver::IoUring => uring::spawn(task),
        Driver::Epoll => epoll::spawn(task),
    }
}

pub(super) type DriverSleep = Either<UringSleep, EpollSleep>;

pub(super) fn sleep(driver: Driver, duration: Duration) -> DriverSleep {
    match driver {
        Driver::IoUring => Either::Left(uring::sleep(duration)),
        Driver::Epoll => Either::Right(epoll::sleep(duration)),
    }
}

/// Lets the other tasks of this reactor run once.
pub fn yield_now() -> impl Future<Output = ()> {
    let mut yielded = false;
    std::future::poll_fn(move |cx| {
        if std::mem::replace(&mut yielded, true) {
            Poll::Ready(())
        } else {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
}
