use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    ops::Range,
};

/// A place for a sequence. Low rows are given out first, so that batches are small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot {
    pub row: u32,
    pub instance: u32,
}

/// The slots that no sequence has. An instance may have any number of them: those that were never given out
/// take no memory.
#[cfg_attr(test, derive(Clone))]
#[derive(Default)]
pub struct Slots {
    /// Of each instance those that came back, and the first that was never given out.
    free: BinaryHeap<Reverse<Slot>>,
    /// The rows behind these, by instance.
    untouched: BTreeMap<u32, Range<u32>>,
}

impl Slots {
    /// Adds the rows of a further instance.
    pub fn add(&mut self, instance: u32, rows: Range<u32>) {
        self.untouched.insert(instance, rows);
        self.uncover(instance);
    }

    /// Takes away those of an instance.
    pub fn remove(&mut self, instance: u32) {
        self.untouched.remove(&instance);
        self.free.retain(|Reverse(slot)| slot.instance != instance);
    }

    /// Takes the one with the lowest row.
    pub fn take(&mut self) -> Option<Slot> {
        let Reverse(slot) = self.free.pop()?;
        let behind = self.untouched.get(&slot.instance);
        if behind.is_some_and(|rows| rows.start == slot.row + 1) {
            self.uncover(slot.instance);
        }
        Some(slot)
    }

    /// Gives one back.
    pub fn give_back(&mut self, slot: Slot) {
        self.free.push(Reverse(slot));
    }

    /// All of them.
    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = Slot> {
        let untouched = self.untouched.iter();
        let untouched = untouched
            .flat_map(|(&instance, rows)| rows.clone().map(move |row| Slot { row, instance }));
        self.free.iter().map(|Reverse(slot)| *slot).chain(untouched)
    }

    fn uncover(&mut self, instance: u32) {
        if let Some(row) = self.untouched.get_mut(&instance).and_then(Iterator::next) {
            self.free.push(Reverse(Slot { row, instance }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(slots: &mut Slots, count: usize) -> Vec<(u32, u32)> {
        let taken = (0..count).map_while(|_| slots.take());
        taken.map(|slot| (slot.row, slot.instance)).collect()
    }

    #[test]
    fn low_rows_are_given_out_first() {
        let mut slots = Slots::default();
        slots.add(0, 0..3);
        slots.add(1, 1..2);
        assert_eq!(rows(&mut slots, 3), [(0, 0), (1, 0), (1, 1)]);
        slots.give_back(Slot { row: 1, instance: 0 });
        slots.give_back(Slot { row: 0, instance: 0 });
        assert_eq!(rows(&mut slots, 9), [(0, 0), (1, 0), (2, 0)]);
        slots.add(1, 0..2);
        slots.give_back(Slot { row: 2, instance: 0 });
        slots.remove(1);
        assert_eq!(rows(&mut slots, 9), [(2, 0)]);
    }

    #[test]
    fn any_number_of_slots_takes_no_memory() {
        let mut slots = Slots::default();
        slots.add(0, 0..u32::MAX);
        assert_eq!(rows(&mut slots, 2), [(0, 0), (1, 0)]);
        assert_eq!(slots.free.len(), 1);
    }
}
