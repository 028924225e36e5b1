//! Pings, the ages of connections, and clients that do not end what they began to say. A task beside
//! each connection waits, and tells the connection when the time has come; the connection itself only
//! looks whether it was told something.

use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::future::{AbortHandle, abortable, join3};
use h2::{Ping, PingPong};

use super::{client_pings::ClientPings, connection::Connection};
use crate::runtime::{sleep, spawn, unchanged};

/// No connection is pinged more often, whatever the flag says.
const TIME_MIN: Duration = Duration::from_millis(10);
/// Longer waits than this are for ever; every timer can hold it.
const TIME_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// When connections are pinged, and how old they get.
#[derive(Clone, Debug)]
pub struct KeepAlive {
    /// The time between pings.
    pub time: Duration,
    /// How long a ping may stay unanswered.
    pub timeout: Duration,
    /// Whether connections without calls are pinged.
    pub without_calls: bool,
    /// Pings in succession between which no call begins; 0 for any number.
    pub pings_without_data_max: u32,
    /// Pings of a client that may come too soon before its connection ends; 0 for any number.
    pub ping_strikes_max: u32,
    /// The time between two pings of a client that is not too short.
    pub ping_interval_min: Duration,
    /// When a connection takes no more calls.
    pub age_max: Option<Duration>,
    /// How long its calls then have.
    pub age_grace: Option<Duration>,
}

impl Default for KeepAlive {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(2 * 3600),
            timeout: Duration::from_secs(20),
            without_calls: false,
            pings_without_data_max: 2,
            ping_strikes_max: 2,
            ping_interval_min: Duration::from_secs(5 * 60),
            age_max: None,
            age_grace: None,
        }
    }
}

/// What a connection is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Ping the client.
    Ping = 1,
    /// Take no more calls, and end after those that run.
    Drain = 2,
    /// End now.
    Close = 4,
}

/// Orders that a connection has not looked at, and what it has seen of its client.
#[derive(Default)]
pub struct Orders {
    given: Cell<u8>,
    waiting: RefCell<Option<Waker>>,
    /// Calls that have begun.
    pub calls: Cell<u64>,
    /// Pings that were answered.
    pub pongs: Cell<u64>,
}

impl Orders {
    fn give(&self, order: Order) {
        self.given.set(self.given.get() | order as u8);
        if let Some(waker) = self.waiting.borrow_mut().take() {
            waker.wake();
        }
    }

    /// What was given since the last look; the task is woken when more comes.
    pub fn take(&self, cx: &Context<'_>) -> Given {
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waiting = Some(cx.waker().clone());
        }
        Given(self.given.take())
    }
}

/// A set of orders.
#[derive(Clone, Copy)]
pub struct Given(u8);

impl Given {
    /// Whether there is one at all.
    pub fn any(self) -> bool {
        self.0 != 0
    }

    /// Whether this order is among them.
    pub fn has(self, order: Order) -> bool {
        self.0 & order as u8 != 0
    }
}

/// The connection's end of its pings. It is had of h2 only when the first is due: from then on h2 looks
/// for more with every frame.
#[derive(Default)]
pub struct Pings {
    channel: Option<PingPong>,
    unanswered: bool,
}

impl Pings {
    /// Pings the client.
    pub fn send(&mut self, channel: impl FnOnce() -> Option<PingPong>) {
        self.channel = self.channel.take().or_else(channel);
        if let Some(channel) = &mut self.channel {
            // A ping that is refused is one that has not been answered yet.
            self.unanswered |= channel.send_ping(Ping::opaque()).is_ok();
        }
    }

    /// Counts an answer, if there is one.
    pub fn look(&mut self, orders: &Orders, cx: &mut Context<'_>) {
        if self.unanswered
            && let Some(channel) = &mut self.channel
            && let Poll::Ready(answer) = channel.poll_pong(cx)
        {
            self.unanswered = false;
            orders.pongs.set(orders.pongs.get() + u64::from(answer.is_ok()));
        }
    }
}

/// Ends the waiting with the connection.
pub struct Watch(AbortHandle);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Watches over a connection as long as the result is kept.
pub fn watch(connection: &Rc<Connection>, incoming: Rc<ClientPings>) -> Watch {
    let weak = Rc::downgrade(connection);
    let settings = connection.settings.keep_alive.clone();
    let part_max = connection.settings.pause_max;
    let watching = async move {
        let of_age = grow_old(weak.clone(), &settings);
        let of_parts = give_up(weak.clone(), &incoming, part_max);
        join3(keep_alive(weak, &settings), of_age, of_parts).await;
    };
    let (watching, handle) = abortable(watching);
    spawn(&"a gRPC connection's keep-alive", async move {
        // That it was aborted is its usual end.
        let _ = watching.await;
    });
    Watch(handle)
}

async fn keep_alive(connection: Weak<Connection>, settings: &KeepAlive) {
    let time = settings.time.clamp(TIME_MIN, TIME_MAX);
    let (mut pings, mut calls_seen) = (0, 0);
    loop {
        sleep(time).await;
        let Some(orders) = orders_of(&connection) else { return };
        let calls = orders.calls.get();
        if calls != calls_seen {
            (pings, calls_seen) = (0, calls);
        }
        // One reference is the connection's own; each call has one.
        let idle = connection.strong_count() <= 1;
        let enough = settings.pings_without_data_max;
        if idle && !settings.without_calls || enough != 0 && pings >= enough {
            continue;
        }
        pings += 1;
        let pongs = orders.pongs.get();
        orders.give(Order::Ping);
        sleep(settings.timeout.min(TIME_MAX)).await;
        if orders.pongs.get() == pongs {
            log::debug!("closed a gRPC connection: a ping had no answer in {:?}", settings.timeout);
            return orders.give(Order::Close);
        }
    }
}

async fn grow_old(connection: Weak<Connection>, settings: &KeepAlive) {
    let Some(age) = settings.age_max else { return };
    // A tenth more or less, so that clients that came together do not come back together.
    sleep(age.min(TIME_MAX).mul_f64(0.9 + 0.2 * fastrand::f64())).await;
    let Some(orders) = orders_of(&connection) else { return };
    orders.give(Order::Drain);
    if let Some(grace) = settings.age_grace {
        sleep(grace.min(TIME_MAX)).await;
        orders.give(Order::Close);
    }
}

/// Closes the connection of a client that has begun a frame, or the header fields of a call, and has not
/// ended it `part_max` later, or up to half of that more. A tensor's frame may take as long as it goes on.
async fn give_up(connection: Weak<Connection>, incoming: &ClientPings, part_max: Duration) {
    unchanged(part_max, || incoming.in_part()).await;
    if let Some(orders) = orders_of(&connection) {
        log::debug!(
            "closed a gRPC connection: a frame or header fields did not end in {part_max:?}"
        );
        orders.give(Order::Close);
    }
}

/// Not the connection itself, so that its calls can be counted by its references.
fn orders_of(connection: &Weak<Connection>) -> Option<Rc<Orders>> {
    connection.upgrade().map(|connection| connection.orders.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_add_up_and_are_taken_once() {
        let orders = Orders::default();
        let cx = &Context::from_waker(Waker::noop());
        assert!(!orders.take(cx).any());
        orders.give(Order::Ping);
        orders.give(Order::Close);
        let given = orders.take(cx);
        assert!(given.any() && given.has(Order::Ping) && given.has(Order::Close));
        assert!(!given.has(Order::Drain));
        assert!(!orders.take(cx).any());
    }
}
