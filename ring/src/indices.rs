//! How two processes hand entries of a ring over, and how who sleeps is woken. `tests/loom` tries
//! every order of these operations.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, Ordering, fence};

/// On a server's [`Bell`]: it sleeps until there are submissions.
pub const WAITS_FOR_WORK: u32 = 1;
/// On a server's [`Bell`]: it waits until completions have been taken.
pub const WAITS_FOR_ROOM: u32 = 2;
/// On a client's [`Bell`]: it sleeps until there are completions.
pub const CLIENT_WAITS: u32 = 1;

/// The other side's index is one that no honest side would write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an index of the ring is {got}: expected at most {entries} after {own}")]
pub struct Corrupt {
    /// The index of the side that looks.
    pub own: u32,
    /// The other side's.
    pub got: u32,
    /// How far apart they may be.
    pub entries: u32,
}

/// The two indices of a ring. Each counts entries for ever and wraps around; its remainder by the
/// number of entries, a power of two, is a place. Who calls keeps its own index to itself and only
/// tells it: what stands in shared memory may be anything.
#[derive(Clone, Copy)]
pub struct Indices<'a> {
    /// Up to where entries were taken.
    pub head: &'a AtomicU32,
    /// Up to where entries were put.
    pub tail: &'a AtomicU32,
    /// How many fit.
    pub entries: u32,
}

impl Indices<'_> {
    /// Entries that the taking side, which took `taken` so far, can take.
    ///
    /// # Errors
    /// When the other side's index makes no sense.
    pub fn ready(&self, taken: u32) -> Result<u32, Corrupt> {
        let tail = self.tail.load(Ordering::Acquire);
        self.apart(tail.wrapping_sub(taken), taken, tail)
    }

    /// Entries that wait to be taken, seen by the putting side, which put `put` so far.
    ///
    /// # Errors
    /// When the other side's index makes no sense.
    pub fn untaken(&self, put: u32) -> Result<u32, Corrupt> {
        let head = self.head.load(Ordering::Acquire);
        self.apart(put.wrapping_sub(head), put, head)
    }

    /// Tells that entries up to `put` are there.
    pub fn publish(&self, put: u32) {
        self.tail.store(put, Ordering::Release);
    }

    /// Tells that entries up to `taken` were read.
    pub fn release(&self, taken: u32) {
        self.head.store(taken, Ordering::Release);
    }

    /// The place of the entry that an index counts.
    pub fn place(&self, index: u32) -> usize {
        (index & (self.entries - 1)) as usize
    }

    fn apart(&self, distance: u32, own: u32, got: u32) -> Result<u32, Corrupt> {
        match distance <= self.entries {
            true => Ok(distance),
            false => Err(Corrupt { own, got, entries: self.entries }),
        }
    }
}

/// The mark that a side sets before it sleeps. Who has something for it takes the mark off and, if it
/// was there, rings: so one ring wakes for any number of entries.
#[derive(Clone, Copy)]
pub struct Bell<'a>(pub &'a AtomicU32);

impl Bell<'_> {
    /// Asks to be rung for. What was there before is to be looked for once more after this.
    pub fn arm(&self, reasons: u32) {
        self.0.store(reasons, Ordering::Relaxed);
        // The mark is seen, or what was put before is: never neither.
        fence(Ordering::SeqCst);
    }

    /// No longer asks.
    pub fn disarm(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Whether to ring, after something was put or taken that is one of `reasons` to.
    pub fn take(&self, reasons: u32) -> bool {
        fence(Ordering::SeqCst);
        if self.0.load(Ordering::Relaxed) & reasons == 0 {
            return false;
        }
        self.0.swap(0, Ordering::Relaxed) & reasons != 0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn indices_wrap_around_and_nonsense_is_seen() {
        let (head, tail) = (AtomicU32::new(u32::MAX), AtomicU32::new(u32::MAX));
        let ring = Indices { head: &head, tail: &tail, entries: 4 };
        ring.publish(2);
        assert_eq!(ring.ready(u32::MAX), Ok(3));
        assert_eq!(ring.untaken(2), Ok(3));
        assert_eq!([ring.place(u32::MAX), ring.place(0), ring.place(5)], [3, 0, 1]);
        ring.publish(4);
        assert_eq!(ring.ready(u32::MAX), Err(Corrupt { own: u32::MAX, got: 4, entries: 4 }));
        ring.release(9);
        assert!(ring.untaken(4).is_err());
    }

    #[test]
    fn a_mark_is_taken_once_and_only_for_its_reason() {
        let word = AtomicU32::new(0);
        let bell = Bell(&word);
        assert!(!bell.take(WAITS_FOR_WORK));
        bell.arm(WAITS_FOR_WORK);
        assert!(!bell.take(WAITS_FOR_ROOM));
        assert!(bell.take(WAITS_FOR_WORK));
        assert!(!bell.take(WAITS_FOR_WORK));
        bell.arm(WAITS_FOR_WORK | WAITS_FOR_ROOM);
        bell.disarm();
        assert!(!bell.take(WAITS_FOR_ROOM));
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::{
        cell::UnsafeCell,
        sync::{Arc, Mutex},
        thread,
    };

    use super::*;

    /// A ring of two places, a bell, and a socket that counts the rings.
    struct Shared {
        head: AtomicU32,
        tail: AtomicU32,
        bell: AtomicU32,
        places: [UnsafeCell<u32>; 2],
        rings: Mutex<u32>,
    }

    impl Shared {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                head: AtomicU32::new(0),
                tail: AtomicU32::new(0),
                bell: AtomicU32::new(0),
                places: [UnsafeCell::new(0), UnsafeCell::new(0)],
                rings: Mutex::new(0),
            })
        }

        fn indices(&self) -> Indices<'_> {
            Indices { head: &self.head, tail: &self.tail, entries: 2 }
        }

        fn put(&self, put: u32, value: u32) {
            let place = self.indices().place(put);
            // SAFETY: the caller has seen that the place is free.
            self.places[place].with_mut(|at| unsafe { *at = value });
            self.indices().publish(put + 1);
        }

        fn take(&self, taken: u32) -> u32 {
            let place = self.indices().place(taken);
            // SAFETY: the caller has seen that the place is filled.
            let value = self.places[place].with(|at| unsafe { *at });
            self.indices().release(taken + 1);
            value
        }
    }

    #[test]
    fn entries_arrive_whole_and_places_are_reused_only_when_read() {
        loom::model(|| {
            let shared = Shared::new();
            let putting = {
                let shared = shared.clone();
                thread::spawn(move || {
                    let mut put = 0;
                    while put < 3 {
                        match shared.indices().untaken(put) {
                            Ok(0 | 1) => {
                                shared.put(put, put + 10);
                                put += 1;
                            }
                            Ok(_) => thread::yield_now(),
                            Err(error) => panic!("{error}"),
                        }
                    }
                })
            };
            let mut taken = 0;
            while taken < 3 {
                match shared.indices().ready(taken).unwrap() {
                    0 => thread::yield_now(),
                    _ => {
                        assert_eq!(shared.take(taken), taken + 10);
                        taken += 1;
                    }
                }
            }
            putting.join().unwrap();
        });
    }

    #[test]
    fn who_goes_to_sleep_sees_the_entry_or_is_rung_for() {
        loom::model(|| {
            let shared = Shared::new();
            let putting = {
                let shared = shared.clone();
                thread::spawn(move || {
                    shared.put(0, 7);
                    if Bell(&shared.bell).take(WAITS_FOR_WORK) {
                        *shared.rings.lock().unwrap() += 1;
                    }
                })
            };
            Bell(&shared.bell).arm(WAITS_FOR_WORK);
            let seen = shared.indices().ready(0).unwrap() == 1;
            putting.join().unwrap();
            let rung = *shared.rings.lock().unwrap() == 1;
            assert!(seen || rung, "asleep over an entry");
        });
    }

    #[test]
    fn who_waits_for_room_sees_it_or_is_rung_for() {
        loom::model(|| {
            let shared = Shared::new();
            shared.put(0, 1);
            shared.put(1, 2);
            let taking = {
                let shared = shared.clone();
                thread::spawn(move || {
                    shared.take(0);
                    if Bell(&shared.bell).take(WAITS_FOR_ROOM) {
                        *shared.rings.lock().unwrap() += 1;
                    }
                })
            };
            Bell(&shared.bell).arm(WAITS_FOR_WORK | WAITS_FOR_ROOM);
            let seen = shared.indices().untaken(2).unwrap() < 2;
            taking.join().unwrap();
            let rung = *shared.rings.lock().unwrap() == 1;
            assert!(seen || rung, "asleep though there is room");
        });
    }
}
