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

/// How often [`unchanged`] looks in its time.
const LOOKS: u32 = 4;
const INTERVAL_MIN: Duration = Duration::from_millis(10);
/// For ever; every timer can hold it.
const INTERVAL_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

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

/// Ready when `look` has shown the same for `duration`, or up to half of it longer; what is `None` is no such
/// thing. It looks only now and then, so that whoever changes it need not tell.
///
/// # Panics
/// On a thread that is not a reactor.
pub async fn unchanged<T: PartialEq>(duration: Duration, look: impl Fn() -> Option<T>) {
    let interval = (duration / LOOKS).clamp(INTERVAL_MIN, INTERVAL_MAX);
    let (mut looks, mut seen) = (0, None);
    while looks < LOOKS {
        sleep(interval).await;
        let found = look();
        looks = if found.is_some() && found == seen { looks + 1 } else { 0 };
        seen = found;
    }
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
