use std::{
    cell::RefCell,
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

/// When a sleep ends, and its number.
type Place = (Instant, u64);

struct Timers {
    waiting: BTreeMap<Place, Waker>,
    number: u64,
}

thread_local! {
    static TIMERS: RefCell<Timers> =
        const { RefCell::new(Timers { waiting: BTreeMap::new(), number: 0 }) };
}

/// Wakes all whose time has come. Tells whether there were any, and how long the next one has to wait.
pub fn fire() -> (bool, Option<Duration>) {
    let Some(first) = first() else { return (false, None) };
    let now = Instant::now();
    if first > now {
        return (false, Some(first - now));
    }
    let due = TIMERS.with_borrow_mut(|timers| {
        let later = timers.waiting.split_off(&(now, u64::MAX));
        std::mem::replace(&mut timers.waiting, later)
    });
    due.into_values().for_each(Waker::wake);
    (true, None)
}

/// Wakes all, for the end of their tasks.
pub fn fire_all() {
    let all = TIMERS.with_borrow_mut(|timers| std::mem::take(&mut timers.waiting));
    all.into_values().for_each(Waker::wake);
}

fn first() -> Option<Instant> {
    TIMERS.with_borrow(|timers| timers.waiting.keys().next().map(|(when, _)| *when))
}

/// A wait that ends at a time. It is among the timers once it was polled.
pub struct UringSleep {
    when: Instant,
    place: Option<Place>,
}

impl UringSleep {
    pub fn new(duration: Duration) -> Self {
        let now = Instant::now();
        // What nobody lives to see may as well be a century.
        let when =
            now.checked_add(duration).unwrap_or(now + Duration::from_secs(100 * 365 * 86_400));
        Self { when, place: None }
    }
}

impl Future for UringSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let when = self.when;
        let (poll, place, _replaced) = TIMERS.with_borrow_mut(|timers| match self.place {
            Some(place) => match timers.waiting.get_mut(&place) {
                Some(waker) if waker.will_wake(cx.waker()) => (Poll::Pending, Some(place), None),
                Some(waker) => {
                    let replaced = std::mem::replace(waker, cx.waker().clone());
                    (Poll::Pending, Some(place), Some(replaced))
                }
                None => (Poll::Ready(()), None, None),
            },
            None if when <= Instant::now() => (Poll::Ready(()), None, None),
            None => {
                let place = (when, timers.number);
                timers.number += 1;
                timers.waiting.insert(place, cx.waker().clone());
                (Poll::Pending, Some(place), None)
            }
        });
        self.place = place;
        poll
    }
}

impl Drop for UringSleep {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            // At the end of the thread they may be gone already. A waker is dropped outside: with it
            // its task may go, and other sleeps.
            let removed = TIMERS.try_with(|timers| timers.borrow_mut().waiting.remove(&place));
            drop(removed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::Wake,
        thread,
    };

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn sleeps_end_in_the_order_of_their_times() {
        let wakes = Arc::new(Count::default());
        let waker = Waker::from(wakes.clone());
        let cx = &mut Context::from_waker(&waker);
        assert_eq!(fire(), (false, None));
        let mut late = pin!(UringSleep::new(Duration::from_secs(3600)));
        let mut endless = pin!(UringSleep::new(Duration::MAX));
        let mut soon = Box::pin(UringSleep::new(Duration::from_millis(1)));
        let abandoned = &mut Box::pin(UringSleep::new(Duration::ZERO));
        assert!(abandoned.as_mut().poll(cx).is_ready());
        for sleep in [late.as_mut(), endless.as_mut(), soon.as_mut()] {
            assert!(sleep.poll(cx).is_pending());
        }
        let (fired, next) = fire();
        assert!(!fired && next.is_some_and(|next| next <= Duration::from_millis(1)));
        thread::sleep(Duration::from_millis(2));
        assert_eq!(fire(), (true, None));
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert!(soon.as_mut().poll(cx).is_ready());
        assert!(late.as_mut().poll(cx).is_pending());
        let (fired, next) = fire();
        assert!(!fired && next.is_some_and(|next| next > Duration::from_secs(3000)));
        fire_all();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 3);
    }
}
