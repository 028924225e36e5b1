use std::{
    cell::RefCell,
    collections::VecDeque,
    future::poll_fn,
    rc::Rc,
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use super::{Schedule, Shard};
use crate::{
    cli::bench::client::Slot,
    runtime::{self, Driver},
};

/// The epoll driver's timers are this coarse, at worst.
const COARSE_TIMER: Duration = Duration::from_millis(2);

/// How often a load that sends seldom looks whether it is to stop.
const NAP: Duration = Duration::from_millis(50);

/// Sends requests when they are due, whether earlier ones are answered or not.
pub(super) fn start(slots: Vec<Slot>, shard: Rc<Shard>, schedule: Schedule) {
    runtime::spawn(&"a schedule of requests", follow(slots, shard, schedule));
}

async fn follow(slots: Vec<Slot>, shard: Rc<Shard>, schedule: Schedule) {
    let idle = Rc::new(Idle::new(slots));
    let start = Instant::now();
    for after in schedule {
        let Some(due) = start.checked_add(after) else { return };
        wait_until(due, &shard).await;
        let slot = idle.take().await;
        if shard.stopping.get() {
            return;
        }
        shard.recorder.borrow_mut().window().sent(due.elapsed());
        shard.begin();
        runtime::spawn(&"a request that was due", send(slot, due, shard.clone(), idle.clone()));
    }
}

/// A request's time runs from when it was due: what it waited for a slot counts.
async fn send(mut slot: Slot, due: Instant, shard: Rc<Shard>, idle: Rc<Idle>) {
    let outcome = slot.infer().await;
    if shard.end(due, outcome) {
        idle.give(slot);
    }
}

async fn wait_until(due: Instant, shard: &Shard) {
    let coarse = runtime::current().driver() == Driver::Epoll;
    let margin = if coarse { COARSE_TIMER } else { Duration::ZERO };
    while !shard.stopping.get() {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        if left > margin {
            runtime::sleep((left - margin).min(NAP)).await;
        } else {
            runtime::yield_now().await;
        }
    }
}

/// Slots without a request, the one that waited longest first, so that all connections are used.
struct Idle {
    slots: RefCell<VecDeque<Slot>>,
    waiting: RefCell<Option<Waker>>,
}

impl Idle {
    fn new(slots: Vec<Slot>) -> Self {
        Self { slots: RefCell::new(slots.into()), waiting: RefCell::new(None) }
    }

    async fn take(&self) -> Slot {
        poll_fn(|cx| match self.slots.borrow_mut().pop_front() {
            Some(slot) => Poll::Ready(slot),
            None => {
                *self.waiting.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
        })
        .await
    }

    fn give(&self, slot: Slot) {
        self.slots.borrow_mut().push_back(slot);
        if let Some(waker) = self.waiting.borrow_mut().take() {
            waker.wake();
        }
    }
}
