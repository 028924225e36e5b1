//! The free parts of a half.

use std::collections::BTreeMap;

/// What is given out begins at multiples of this: the widest vector registers and a cache line.
pub const ALIGNMENT: usize = 64;

/// Ranges that are free, by where they begin; no two touch. The lowest that is large enough is taken
/// first, so that the pages of the far end are rarely needed.
pub struct Ranges(BTreeMap<usize, usize>);

impl Ranges {
    /// The range from `start` to `end`.
    pub fn new(start: usize, end: usize) -> Self {
        Self(BTreeMap::from([(start, end)]))
    }

    /// Takes so many bytes; gives where they begin, or `None` when there is no range for them.
    pub fn take(&mut self, length: usize) -> Option<usize> {
        // What is given out has a place of its own, even if it is empty.
        let length = length.max(1).checked_next_multiple_of(ALIGNMENT)?;
        let found = self.0.iter().find(|(start, end)| *end - *start >= length);
        let (&start, &end) = found?;
        self.0.remove(&start);
        if end - start > length {
            self.0.insert(start + length, end);
        }
        Some(start)
    }

    /// The length of the longest.
    pub fn widest(&self) -> usize {
        self.0.iter().map(|(start, end)| end - start).max().unwrap_or(0)
    }

    /// Takes all that is free from `from` on.
    pub fn split_off(&mut self, from: usize) -> BTreeMap<usize, usize> {
        let from = from.next_multiple_of(ALIGNMENT);
        let mut taken = self.0.split_off(&from);
        if let Some(mut last) = self.0.last_entry()
            && *last.get() > from
        {
            taken.insert(from, std::mem::replace(last.get_mut(), from));
        }
        taken
    }

    /// Frees what was taken.
    pub fn give(&mut self, start: usize, length: usize) {
        let (mut start, mut end) = (start, start + length.max(1).next_multiple_of(ALIGNMENT));
        if let Some(next) = self.0.remove(&end) {
            end = next;
        }
        let before = self.0.range(..start).next_back().map(|(&from, &to)| (from, to));
        if let Some((from, to)) = before
            && to == start
        {
            start = from;
        }
        self.0.insert(start, end);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_that_are_taken_do_not_overlap_and_all_come_back(
            steps in prop::collection::vec((any::<bool>(), 0..3000_usize), 1..80),
        ) {
            let mut free = Ranges::new(0, 64 << 10);
            let mut taken: Vec<(usize, usize)> = Vec::new();
            for (takes, size) in steps {
                if takes || taken.is_empty() {
                    let Some(start) = free.take(size) else { continue };
                    prop_assert!(start % ALIGNMENT == 0 && start + size <= 64 << 10);
                    for &(other, length) in &taken {
                        prop_assert!(start + size.max(1) <= other || other + length.max(1) <= start);
                    }
                    taken.push((start, size));
                } else {
                    let (start, length) = taken.swap_remove(size % taken.len());
                    free.give(start, length);
                }
            }
            for (start, length) in taken {
                free.give(start, length);
            }
            prop_assert_eq!(free.0, BTreeMap::from([(0, 64 << 10)]));
        }
    }
}
