#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// In [`Slot::start`]: nobody has the slot.
const FREE: usize = 0;
/// In [`Slot::start`]: it is being filled in.
const TAKEN: usize = 1;

/// Ranges of addresses, each with a mark. They are looked up without a lock, for a signal handler does it.
pub struct Table<const SLOTS: usize> {
    slots: [Slot; SLOTS],
}

struct Slot {
    /// Where the range begins, or one of the above.
    start: AtomicUsize,
    len: AtomicUsize,
    is_marked: AtomicBool,
}

/// A range that holds an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The slot that [`Table::put`] gave it.
    pub slot: usize,
    /// Where it begins.
    pub start: usize,
    /// Its length in bytes.
    pub len: usize,
}

impl<const SLOTS: usize> Table<SLOTS> {
    /// One without ranges.
    #[cfg(not(loom))]
    pub const fn empty() -> Self {
        Self {
            slots: [const {
                Slot {
                    start: AtomicUsize::new(FREE),
                    len: AtomicUsize::new(0),
                    is_marked: AtomicBool::new(false),
                }
            }; SLOTS],
        }
    }

    /// Puts the `len` bytes from `start` on, unmarked, and tells their slot; `None` when all are taken.
    pub fn put(&self, start: usize, len: usize) -> Option<usize> {
        let index = self.slots.iter().position(|slot| {
            slot.start.compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok()
        })?;
        let slot = &self.slots[index];
        // Whoever sees this length sees that the range before it has gone.
        slot.len.store(len, Ordering::Release);
        slot.is_marked.store(false, Ordering::Relaxed);
        slot.start.store(start, Ordering::Release);
        Some(index)
    }

    /// Takes a range out, by its slot.
    pub fn remove(&self, slot: usize) {
        self.slots[slot].start.store(FREE, Ordering::Release);
    }

    /// The range that holds `address`, which is one that nobody takes out meanwhile.
    pub fn find(&self, address: usize) -> Option<Found> {
        self.slots.iter().enumerate().find_map(|(index, slot)| {
            let start = slot.start.load(Ordering::Acquire);
            let len = slot.len.load(Ordering::Acquire);
            // The length may be that of another range, which has come in this one's place meanwhile and with
            // this start would reach where it does not.
            let is_one_range = slot.start.load(Ordering::Relaxed) == start;
            let holds = start > TAKEN && (start..start.saturating_add(len)).contains(&address);
            (is_one_range && holds).then_some(Found { slot: index, start, len })
        })
    }

    /// Marks a range, by its slot.
    pub fn mark(&self, slot: usize) {
        self.slots[slot].is_marked.store(true, Ordering::Release);
    }

    /// Whether a range was marked, by its slot.
    pub fn is_marked(&self, slot: usize) -> bool {
        self.slots[slot].is_marked.load(Ordering::Acquire)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_found_by_each_of_its_addresses_while_it_is_there() {
        let table = Table::<2>::empty();
        let (low, high) = (table.put(0x1000, 0x10).unwrap(), table.put(usize::MAX - 3, 9).unwrap());
        assert_eq!(table.put(0x2000, 1), None, "there is no third slot");
        for (address, slot) in [
            (0xfff, None),
            (0x1000, Some(low)),
            (0x100f, Some(low)),
            (0x1010, None),
            (usize::MAX - 1, Some(high)),
            (FREE, None),
            (TAKEN, None),
        ] {
            assert_eq!(table.find(address).map(|found| found.slot), slot, "{address:#x}");
        }
        table.mark(low);
        assert!(table.is_marked(low) && !table.is_marked(high));
        table.remove(low);
        assert_eq!(table.find(0x1000), None);
        assert!(!table.is_marked(table.put(0x3000, 1).unwrap()), "a mark goes with its range");
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::{sync::Arc, thread};

    use super::*;

    #[test]
    fn no_range_is_found_that_was_made_of_two() {
        loom::model(|| {
            let slots = std::array::from_fn(|_| Slot {
                start: AtomicUsize::new(FREE),
                len: AtomicUsize::new(0),
                is_marked: AtomicBool::new(false),
            });
            let table = Arc::new(Table::<2> { slots });
            let (first, own) = (table.put(0x1000, 0x10).unwrap(), table.put(0x2000, 0x10).unwrap());
            let changing = {
                let table = table.clone();
                thread::spawn(move || {
                    table.remove(first);
                    // From where the first began it would reach over the other.
                    table.put(0x3000, 0x2000).unwrap()
                })
            };
            assert_eq!(table.find(0x2008), Some(Found { slot: own, start: 0x2000, len: 0x10 }));
            changing.join().unwrap();
            assert!(table.find(0x4fff).is_some());
        });
    }
}
