use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::future::Either;

use super::{
    driver::{self, DriverSleep},
    reactor::current,
    thread_bound::ThreadBound,
};

/// A wait that ends after some time, on the reactor that began it.
pub struct Sleep(DriverSleep);

/// Waits for `duration`.
///
/// # Panics
/// On a thread that is not a reactor.
pub fn sleep(duration: Duration) -> Sleep {
    Sleep(driver::sleep(current().driver(), duration))
}

/// Waits until `deadline`.
///
/// # Panics
/// On a thread that is not a reactor.
pub fn sleep_until(deadline: Instant) -> Sleep {
    sleep(deadline.saturating_duration_since(Instant::now()))
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.0 {
            Either::Left(timer) => Pin::new(timer).poll(cx).map(|_| ()),
            Either::Right(timer) => timer.as_mut().poll(cx),
        }
    }
}

/// The reactor's timers as hyper wants them.
#[derive(Clone, Copy, Debug, Default)]
pub struct HyperTimer;

/// hyper wants `Send` sleeps, though it polls them where its connection lives: on one reactor.
struct HyperSleep(ThreadBound<Sleep>);

impl Future for HyperSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut *self.0).poll(cx)
    }
}

impl hyper::rt::Sleep for HyperSleep {}

impl hyper::rt::Timer for HyperTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(HyperSleep(ThreadBound::new(sleep(duration))))
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(HyperSleep(ThreadBound::new(sleep_until(deadline))))
    }
}
