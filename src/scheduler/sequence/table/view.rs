//! What tests may look at, and break.

use std::{cmp::Reverse, collections::BTreeSet, time::Duration};

use super::{Carried, CorrelationId, SequenceKey, Sequenced, Slot, Table, Timestamp};

/// All that can make a difference to what a table does from now on: times as they are seen from now, and
/// sequences by their place in the order in which they began. Of requests it has what `T` keeps.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct View<T, C> {
    pub sequences: Vec<SequenceView<T, C>>,
    free: BTreeSet<(u32, u32)>,
    /// `None` for one that is over.
    backlog: Vec<Option<usize>>,
    /// When each is looked at.
    looks: BTreeSet<(Duration, Option<usize>)>,
    leaving: Vec<(u32, usize)>,
    next_index: usize,
}

/// A sequence of a [`View`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SequenceView<T, C> {
    index: usize,
    id: CorrelationId,
    /// Whether requests of its id come to it.
    is_known: bool,
    slot: Option<(u32, u32)>,
    waiting: Vec<T>,
    is_busy: bool,
    has_ended: bool,
    is_lost: bool,
    /// Zero for one that is in use.
    idle_for: Duration,
    carried: C,
}

/// What a sequence is in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub key: SequenceKey,
    pub slot: Option<Slot>,
    pub has_waiting: bool,
    pub is_busy: bool,
    pub is_lost: bool,
}

impl<R: Sequenced, C: Carried> Table<R, C> {
    /// Requests as `seen`, with how long they have waited, of which no more than `delay` matters.
    pub fn view<T>(
        &self,
        now: Timestamp,
        delay: Duration,
        seen: impl Fn(&R, SequenceKey, Duration) -> T,
    ) -> View<T, C> {
        let standings = self.standings();
        let place = |key: &SequenceKey| standings.iter().position(|it| it.key == *key);
        let sequences = standings.iter().filter_map(|standing| {
            let entry = self.get(standing.key)?;
            let waiting = self.lines.values(entry.waiting).map(|waiting| {
                seen(&waiting.request, standing.key, (now - waiting.since).min(delay))
            });
            let is_used = standing.is_busy || standing.has_waiting;
            Some(SequenceView {
                index: standing.key.index,
                id: entry.id.clone(),
                is_known: self.by_id.get(&entry.id) == Some(&standing.key),
                slot: entry.slot.map(|slot| (slot.instance, slot.row)),
                waiting: waiting.collect(),
                is_busy: entry.busy,
                has_ended: entry.ended,
                is_lost: entry.is_lost,
                idle_for: match is_used {
                    true => Duration::ZERO,
                    false => (now - entry.active).min(self.max_idle),
                },
                carried: entry.carried.clone(),
            })
        });
        View {
            sequences: sequences.collect(),
            free: self.free.iter().map(|slot| (slot.instance, slot.row)).collect(),
            backlog: self.backlog.iter().map(place).collect(),
            looks: self.looks.iter().map(|Reverse((due, key))| (*due - now, place(key))).collect(),
            leaving: self.leaving.iter().map(|(&instance, &count)| (instance, count)).collect(),
            next_index: self.sequences.vacant_key(),
        }
    }

    /// The sequences in the order in which they began.
    pub fn standings(&self) -> Vec<Standing> {
        let standing = |(index, entry): (usize, &super::Entry<C>)| Standing {
            key: SequenceKey { index, generation: entry.generation },
            slot: entry.slot,
            has_waiting: !entry.waiting.is_empty(),
            is_busy: entry.busy,
            is_lost: entry.is_lost,
        };
        let mut all: Vec<_> = self.sequences.iter().map(standing).collect();
        all.sort_by_key(|standing| standing.key.generation);
        all
    }

    /// The sequence that a request of that id comes to.
    pub fn by_id(&self, id: u64) -> Option<Standing> {
        let key = self.by_id.get(&CorrelationId::Number(id))?;
        self.standings().into_iter().find(|standing| standing.key == *key)
    }

    /// The requests that wait, each with its sequence.
    pub fn requests(&self) -> impl Iterator<Item = (SequenceKey, &R)> {
        self.sequences.iter().flat_map(|(index, entry)| {
            let key = SequenceKey { index, generation: entry.generation };
            self.lines.values(entry.waiting).map(move |waiting| (key, &waiting.request))
        })
    }

    pub fn requests_mut(&mut self) -> impl Iterator<Item = &mut R> {
        self.lines.all_mut().map(|waiting| &mut waiting.request)
    }

    /// The slots that nobody holds.
    pub fn free(&self) -> Vec<Slot> {
        self.free.iter().collect()
    }

    /// The number of looks that are to be taken.
    pub fn looks(&self) -> usize {
        self.looks.len()
    }

    /// What a release would do that comes too often: gives the slot of the oldest sequence on.
    pub fn release_too_often(&mut self, now: Timestamp) {
        if let Some(slot) = self.standings().iter().find_map(|standing| standing.slot) {
            self.give_on(slot, now);
        }
    }

    /// What a release would do that comes never: nobody gets a slot that is free.
    pub fn release_never(&mut self) {
        self.free.take();
    }
}
