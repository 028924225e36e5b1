//! Pings of clients. h2 answers them and tells nobody, so they are seen on their way in, and what
//! goes out is looked at too: a client may ping anew after it was sent something. Who sees them sees
//! also what has come in part only, of which h2 tells nobody either.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;

use super::{
    frames::{ACK, DATA, Frames, GOAWAY, HEAD_LEN, HEADERS, PING, WINDOW_UPDATE},
    keep_alive::KeepAlive,
};
use crate::{inference::Timestamp, runtime::Watch};

/// How far pings must be apart on a connection without calls, where those are not permitted; from
/// gRPC's own servers.
const IDLE_INTERVAL: Duration = Duration::from_secs(2 * 3600);
/// What clients look for in the last frame: they then ping half as often.
const REASON: &[u8] = b"too_many_pings";
/// Of a frame that ends a connection: its head, the last stream and a code.
const GOAWAY_LEN: usize = HEAD_LEN + 8;

/// Counts the pings of a client that come too soon, as gRPC's own servers do.
pub struct ClientPings {
    strikes_max: u32,
    interval_min: Duration,
    without_calls: bool,
    incoming: RefCell<Frames>,
    outgoing: RefCell<Frames>,
    /// Those that nobody has judged.
    came: Cell<u32>,
    tensor_bytes: Arc<AtomicU64>,
    /// When the last one came since the client was sent something.
    last: Cell<Option<Timestamp>>,
    strikes: Cell<u32>,
    is_over: Cell<bool>,
}

impl ClientPings {
    /// By an operator's settings.
    pub fn new(settings: &KeepAlive) -> Rc<Self> {
        Rc::new(Self {
            strikes_max: settings.ping_strikes_max,
            interval_min: settings.ping_interval_min,
            without_calls: settings.without_calls,
            incoming: RefCell::new(Frames::of_client()),
            outgoing: RefCell::default(),
            came: Cell::new(0),
            tensor_bytes: Arc::default(),
            last: Cell::new(None),
            strikes: Cell::new(0),
            is_over: Cell::new(false),
        })
    }

    /// Judges what has come, now, at `now`, on a connection that is `idle` or not. Says once that
    /// there were too many.
    pub fn are_too_many(
        &self,
        idle: impl FnOnce() -> bool,
        now: impl FnOnce() -> Timestamp,
    ) -> bool {
        let came = self.came.take();
        if came == 0 || self.is_over.get() {
            return false;
        }
        let now = now();
        let interval =
            if idle() && !self.without_calls { IDLE_INTERVAL } else { self.interval_min };
        for _ in 0..came {
            if self.last.replace(Some(now)).is_some_and(|last| now - last < interval) {
                self.strikes.set(self.strikes.get() + 1);
            }
        }
        self.is_over.set(self.strikes.get() > self.strikes_max);
        self.is_over.get()
    }

    /// What has come in part only, if anything has: the same numbers as long as it is the same, and no more of
    /// a tensor.
    pub fn in_part(&self) -> Option<(u64, u64)> {
        self.incoming.borrow().in_part()
    }

    /// Bytes of tensors that have come, whole frames or not.
    pub fn tensor_bytes(&self) -> Arc<AtomicU64> {
        self.tensor_bytes.clone()
    }
}

impl Watch for ClientPings {
    fn read(&self, bytes: &[u8]) {
        let mut incoming = self.incoming.borrow_mut();
        incoming.pass(bytes, |frame| {
            // Without a limit nobody counts.
            if frame.kind == PING && frame.flags & ACK == 0 && self.strikes_max > 0 {
                self.came.set(self.came.get().saturating_add(1));
            }
        });
        self.tensor_bytes.store(incoming.data(), Ordering::Relaxed);
    }

    fn wrote(&self, bytes: &[u8]) {
        if self.strikes_max > 0 {
            self.outgoing.borrow_mut().pass(bytes, |frame| {
                if matches!(frame.kind, DATA | HEADERS)
                    || frame.kind == WINDOW_UPDATE && frame.has_stream
                {
                    self.strikes.set(0);
                    self.last.set(None);
                }
            });
        }
    }

    /// The frame that ends the connection says why.
    fn in_place_of(&self, next: &[u8]) -> Option<(Bytes, usize)> {
        let is_next = self.is_over.get() && self.outgoing.borrow().is_between();
        let plain: &[u8; GOAWAY_LEN] = next.first_chunk().filter(|_| is_next)?;
        if plain[..4] != [0, 0, 8, GOAWAY] {
            return None;
        }
        let mut head = *plain;
        head[2] += REASON.len() as u8;
        Some(([&head, REASON].concat().into(), GOAWAY_LEN))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::frames::tests::frame, *};

    const PREFACE: [u8; 24] = [0; 24];

    fn pings(strikes_max: u32, without_calls: bool) -> Rc<ClientPings> {
        let interval = Duration::from_secs(10);
        let settings = KeepAlive {
            ping_strikes_max: strikes_max,
            ping_interval_min: interval,
            without_calls,
            ..KeepAlive::default()
        };
        let pings = ClientPings::new(&settings);
        pings.read(&PREFACE);
        pings
    }

    fn at(seconds: u64) -> impl FnOnce() -> Timestamp {
        move || Timestamp::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn who_pings_too_often_is_told_once() {
        let ping = frame(PING, 0, 0, 8);
        let one = |pings: &ClientPings, idle, seconds| {
            pings.read(&ping);
            pings.are_too_many(|| idle, at(seconds))
        };
        let counted = pings(2, false);
        assert_eq!(
            [0, 1, 2, 3, 4].map(|now| one(&counted, false, now)),
            [false, false, false, true, false]
        );
        // Far enough apart, but not for a connection without calls.
        let counted = pings(2, false);
        assert_eq!([0, 10, 20, 30].map(|now| one(&counted, false, now)), [false; 4]);
        assert_eq!([40, 50, 60].map(|now| one(&counted, true, now)), [false, false, true]);
        let counted = pings(2, true);
        assert_eq!([0, 10, 20, 30].map(|now| one(&counted, true, now)), [false; 4]);
        let counted = pings(0, false);
        assert_eq!([0; 9].map(|now| one(&counted, true, now)), [false; 9]);
    }

    #[test]
    fn what_a_client_is_sent_lets_it_ping_anew() {
        let counted = pings(1, false);
        let three = || {
            counted.read(&frame(PING, 0, 0, 8).repeat(2));
            counted.are_too_many(|| false, at(0))
        };
        for sent in [frame(DATA, 0, 1, 5), frame(HEADERS, 4, 1, 3), frame(WINDOW_UPDATE, 0, 1, 4)] {
            assert!(!three());
            counted.wrote(&sent);
        }
        assert!(!three());
        counted.wrote(&frame(WINDOW_UPDATE, 0, 0, 4));
        counted.wrote(&frame(PING, ACK, 0, 8));
        assert!(three());
        assert_eq!(counted.in_place_of(&frame(PING, ACK, 0, 8)), None);
        let (told, len) = counted.in_place_of(&frame(GOAWAY, 0, 0, 8)).unwrap();
        assert_eq!((told[2], &told[len..]), (8 + REASON.len() as u8, REASON));
        // In the midst of another frame it would be something else.
        counted.wrote(&[0, 0, 9]);
        assert_eq!(counted.in_place_of(&frame(GOAWAY, 0, 0, 8)), None);
    }
}
