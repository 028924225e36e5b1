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
            Either::Left(timer) => Pin::new(timer).poll(cx),
            Either::Right(timer) => timer.as_mut().poll(cx),
        }
    }
}
