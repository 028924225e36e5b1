#[cfg(test)]
pub(super) mod view;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap, VecDeque},
    time::Duration,
};

use slab::Slab;

use super::{
    Carried, SequencePolicy, SequenceRow, Sequenced,
    front::Front,
    lines::{Line, Lines},
    slots::{Slot, Slots},
};
use crate::inference::{CorrelationId, Timestamp};

/// A sequence, told apart from those that had its place before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceKey {
    index: usize,
    generation: u64,
}

/// Why a request belongs to no sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoSequence {
    /// None of that id has begun.
    NotStarted,
    /// It ended with its instance, or there is no instance left.
    Lost,
}

/// The sequences of a model, and which of them have a slot.
#[cfg_attr(test, derive(Clone))]
pub(super) struct Table<R, C> {
    sequences: Slab<Entry<C>>,
    /// Requests that wait.
    lines: Lines<Waiting<R>>,
    /// Those whose last request has not come yet. Clients choose the ids, so the hash must be one that
    /// they cannot aim at.
    by_id: HashMap<CorrelationId, SequenceKey>,
    free: Slots,
    /// Sequences without a slot, in their order, and some that are over.
    backlog: VecDeque<SequenceKey>,
    /// For every sequence when it is looked at next, to see whether it is idle.
    looks: BinaryHeap<Reverse<(Timestamp, SequenceKey)>>,
    /// The number of instances of which slots are given.
    staying: usize,
    max_idle: Duration,
    /// Whether a sequence is over when none of its requests waits.
    is_of_requests: bool,
    /// Instances that no sequence is given a slot of any more, and how many have one there still.
    leaving: BTreeMap<u32, usize>,
    /// What a sequence carries when it begins.
    initial: C,
    begun: u64,
}

#[cfg_attr(test, derive(Clone))]
struct Entry<C> {
    generation: u64,
    id: CorrelationId,
    slot: Option<Slot>,
    waiting: Line,
    /// Whether a request of it has been taken and has not run yet.
    busy: bool,
    /// Whether its last request has come.
    ended: bool,
    /// Whether it ended with its instance, which its client has not been told yet.
    is_lost: bool,
    active: Timestamp,
    carried: C,
}

#[cfg_attr(test, derive(Clone))]
struct Waiting<R> {
    request: R,
    since: Timestamp,
    start: bool,
    end: bool,
}

impl<R: Sequenced, C: Carried> Table<R, C> {
    pub fn new(policy: &SequencePolicy, initial: C) -> Self {
        Self {
            sequences: Slab::new(),
            lines: Lines::new(),
            by_id: HashMap::new(),
            free: Slots::default(),
            backlog: VecDeque::new(),
            looks: BinaryHeap::new(),
            staying: 0,
            max_idle: policy.max_idle,
            is_of_requests: policy.iterative,
            leaving: BTreeMap::new(),
            initial,
            begun: 0,
        }
    }

    /// Gives out the slots of a further instance. Returns the sequences that have waited for one.
    pub fn add(&mut self, instance: u32, slots: u32, now: Timestamp) -> Vec<SequenceKey> {
        self.staying += 1;
        let mut rows = 0..slots;
        let mut given = Vec::new();
        while !self.backlog.is_empty()
            && let Some(row) = rows.next()
        {
            given.extend(self.give_on(Slot { row, instance }, now));
        }
        self.free.add(instance, rows);
        given
    }

    /// Gives no sequence a slot of an instance any more.
    pub fn leave(&mut self, instance: u32) {
        self.free.remove(instance);
        let slots = self.sequences.iter().filter_map(|(_, entry)| entry.slot);
        let sequences = slots.filter(|slot| slot.instance == instance).count();
        let was_leaving = self.leaving.insert(instance, sequences).is_some();
        self.staying -= usize::from(!was_leaving);
    }

    /// The instances that were to leave and have no sequence any more. They are told once.
    pub fn left(&mut self) -> impl Iterator<Item = u32> {
        let left = self.leaving.extract_if(.., |_, sequences| *sequences == 0);
        left.map(|(instance, _)| instance)
    }

    /// Requests that wait here.
    pub fn waiting(&self) -> usize {
        self.lines.len()
    }

    pub fn live(&self) -> usize {
        self.sequences.len()
    }

    /// The sequence of that id; with `start` it begins if there is none.
    ///
    /// # Errors
    /// When there is none, and none can begin.
    pub fn find_or_begin(
        &mut self,
        id: &CorrelationId,
        start: bool,
        now: Timestamp,
    ) -> Result<SequenceKey, NoSequence> {
        if let Some(&key) = self.by_id.get(id) {
            if self.get(key).is_some_and(|entry| !entry.is_lost) {
                return Ok(key);
            }
            self.release(key, now);
            if !start {
                return Err(NoSequence::Lost);
            }
        }
        match (self.staying, start) {
            (0, _) => return Err(NoSequence::Lost),
            (_, false) => return Err(NoSequence::NotStarted),
            (_, true) => {}
        }
        self.forget_the_dead();
        self.begun += 1;
        let vacant = self.sequences.vacant_entry();
        let key = SequenceKey { index: vacant.key(), generation: self.begun };
        // While others wait there is no slot.
        let slot = self.free.take();
        if slot.is_none() {
            self.backlog.push_back(key);
        }
        vacant.insert(Entry {
            generation: key.generation,
            id: id.clone(),
            slot,
            waiting: Line::default(),
            busy: false,
            ended: false,
            is_lost: false,
            active: now,
            carried: self.initial.clone(),
        });
        self.by_id.insert(id.clone(), key);
        self.looks.push(Reverse((now + self.max_idle, key)));
        Ok(key)
    }

    /// Puts a request behind the others of its sequence.
    pub fn push(&mut self, key: SequenceKey, request: R, now: Timestamp, start: bool, end: bool) {
        let Some(entry) = live(&mut self.sequences, key) else { return };
        entry.active = now;
        self.lines.push_back(&mut entry.waiting, Waiting { request, since: now, start, end });
        if end {
            entry.ended = true;
            let id = entry.id.clone();
            self.by_id.remove(&id);
        }
    }

    /// Whether a sequence of that id has begun, whose last request has not come.
    pub fn knows(&self, id: &CorrelationId) -> bool {
        self.by_id.contains_key(id)
    }

    /// Puts a request that runs in front of the others of its sequence.
    ///
    /// # Errors
    /// When nothing of the sequence runs; the request comes back.
    pub fn push_again(&mut self, key: SequenceKey, request: R, now: Timestamp) -> Result<(), R> {
        let entry = live(&mut self.sequences, key).filter(|entry| entry.busy);
        let Some(entry) = entry else { return Err(request) };
        let waiting = Waiting { request, since: now, start: false, end: false };
        self.lines.push_front(&mut entry.waiting, waiting);
        Ok(())
    }

    /// The slot of a sequence whose next request can be taken.
    pub fn ready_slot(&self, key: SequenceKey) -> Option<Slot> {
        let entry = self.get(key)?;
        entry.slot.filter(|_| !entry.busy && !entry.waiting.is_empty())
    }

    /// Since when the next request of a sequence has waited.
    pub fn since(&self, key: SequenceKey) -> Option<Timestamp> {
        Some(self.lines.front(self.get(key)?.waiting)?.since)
    }

    /// Whether the next request of a sequence can be in a batch with one that carries this.
    pub fn fits(&self, key: SequenceKey, request: &R, carried: &C) -> bool {
        let front = self.get(key).and_then(|entry| self.lines.front(entry.waiting));
        front.is_some_and(|front| front.request.fits_with(request))
            && self.carries_like(key, carried)
    }

    /// Whether a sequence's next request can be in a batch with one that carries this.
    pub fn carries_like(&self, key: SequenceKey, carried: &C) -> bool {
        self.get(key).is_some_and(|entry| entry.carried.fits_with(carried))
    }

    /// Takes the next request of a sequence, which is busy from then on.
    pub fn take(&mut self, key: SequenceKey) -> Option<Front<R>> {
        let entry = live(&mut self.sequences, key)?;
        let Waiting { request, since, start, end } = self.lines.pop_front(&mut entry.waiting)?;
        entry.busy = true;
        Some(Front { key, request, start, end, since })
    }

    /// Gives back what was taken.
    pub fn put_back(&mut self, front: Front<R>) {
        let Front { key, request, start, end, since } = front;
        let Some(entry) = live(&mut self.sequences, key) else { return };
        entry.busy = false;
        self.lines.push_front(&mut entry.waiting, Waiting { request, since, start, end });
    }

    /// Begins to run what was taken. A sequence that starts carries nothing of one before.
    pub fn begin(&mut self, front: Front<R>) -> SequenceRow<R, C> {
        let Front { key, request, start, end, .. } = front;
        let kept = self.get(key).filter(|_| !start).map(|entry| entry.carried.clone());
        let carried = kept.unwrap_or_else(|| self.initial.clone());
        SequenceRow { key, request, start, end, carried }
    }

    /// Notes that what was taken will not run, because its client has left. With it go those behind it in
    /// its sequence, up to one that begins anew. Returns the sequence that can go on: this one, or one that
    /// got its slot.
    pub fn abandoned(
        &mut self,
        key: SequenceKey,
        now: Timestamp,
        rest: &mut Vec<R>,
    ) -> Option<SequenceKey> {
        let entry = live(&mut self.sequences, key)?;
        entry.busy = false;
        entry.active = now;
        while self.lines.front(entry.waiting).is_some_and(|waiting| !waiting.start) {
            rest.extend(self.lines.pop_front(&mut entry.waiting).map(|waiting| waiting.request));
        }
        let is_over = entry.waiting.is_empty();
        if is_over { self.release(key, now) } else { Some(key) }
    }

    /// Takes the slots of an instance away, on which nothing runs, and ends the sequences that have them;
    /// with the last of which slots are given, also those that wait for one. Their requests are put into
    /// `rest`.
    pub fn lose(&mut self, instance: u32, now: Timestamp, rest: &mut Vec<R>) {
        let was_leaving = self.leaving.remove(&instance).is_some();
        self.staying -= usize::from(!was_leaving);
        self.free.remove(instance);
        let is_last = self.staying == 0;
        let mut over = Vec::new();
        for (index, entry) in &mut self.sequences {
            let is_lost = match entry.slot {
                Some(slot) => slot.instance == instance,
                None => is_last && !entry.is_lost,
            };
            if is_lost {
                while let Some(waiting) = self.lines.pop_front(&mut entry.waiting) {
                    rest.push(waiting.request);
                }
                (entry.slot, entry.busy, entry.is_lost) = (None, false, true);
                let key = SequenceKey { index, generation: entry.generation };
                over.extend(entry.ended.then_some(key));
            }
        }
        if is_last {
            self.backlog.clear();
        }
        for key in over {
            self.release(key, now);
        }
    }

    /// Notes that what was taken has run. Returns the sequence that can go on: this one, or one that
    /// got its slot.
    pub fn finished(
        &mut self,
        key: SequenceKey,
        carried: C,
        now: Timestamp,
    ) -> Option<SequenceKey> {
        let entry = self.get_mut(key)?;
        entry.busy = false;
        entry.carried = carried;
        self.go_on(key, now)
    }

    fn go_on(&mut self, key: SequenceKey, now: Timestamp) -> Option<SequenceKey> {
        let is_of_requests = self.is_of_requests;
        let entry = self.get_mut(key)?;
        entry.active = now;
        match entry.waiting.is_empty() && (entry.ended || is_of_requests) {
            true => self.release(key, now),
            false => Some(key),
        }
    }

    /// Ends the sequences that have been idle for too long. Returns those that got their slots.
    pub fn expire(&mut self, now: Timestamp) -> Vec<SequenceKey> {
        let mut begun = Vec::new();
        while let Some(&Reverse((due, key))) = self.looks.peek() {
            if due > now {
                break;
            }
            self.looks.pop();
            let Some(entry) = self.get(key) else { continue };
            let in_use = entry.busy || !entry.waiting.is_empty();
            let due = if in_use { now } else { entry.active } + self.max_idle;
            match due <= now {
                true => begun.extend(self.release(key, now)),
                false => self.looks.push(Reverse((due, key))),
            }
        }
        begun
    }

    /// When sequences are to be looked at next: a little after the first of them is due, so that those
    /// that are due soon after are looked at with it.
    pub fn next_expiry(&self) -> Option<Timestamp> {
        self.looks.peek().map(|Reverse((due, _))| *due + self.max_idle / 64)
    }

    /// Takes out all requests that wait.
    pub fn drain(&mut self) -> Vec<R> {
        let Self { sequences, lines, .. } = self;
        let entries = sequences.iter_mut().map(|(_, entry)| &mut entry.waiting);
        entries
            .flat_map(|line| std::iter::from_fn(|| lines.pop_front(line)).collect::<Vec<_>>())
            .map(|waiting| waiting.request)
            .collect()
    }

    /// Drops what is kept in lists of sequences that are over, once that is most of it.
    fn forget_the_dead(&mut self) {
        const FEW: usize = 64;
        let Self { sequences, looks, backlog, .. } = self;
        let most = FEW + 2 * sequences.len();
        let is_live = |key: &SequenceKey| {
            let entry = sequences.get(key.index);
            entry.is_some_and(|entry| entry.generation == key.generation)
        };
        if looks.len() > most {
            looks.retain(|Reverse((_, key))| is_live(key));
        }
        if backlog.len() > most {
            backlog.retain(is_live);
        }
    }

    /// Ends a sequence: the only way in which one ends and a slot is freed. Returns the sequence that
    /// waited longest for a slot, which now has this one's.
    fn release(&mut self, key: SequenceKey, now: Timestamp) -> Option<SequenceKey> {
        self.get(key)?;
        let entry = self.sequences.remove(key.index);
        if self.by_id.get(&entry.id) == Some(&key) {
            self.by_id.remove(&entry.id);
        }
        let slot = entry.slot?;
        if let Some(sequences) = self.leaving.get_mut(&slot.instance) {
            *sequences -= 1;
            return None;
        }
        self.give_on(slot, now)
    }

    /// Gives a slot to the sequence that has waited longest for one, and returns that.
    fn give_on(&mut self, slot: Slot, now: Timestamp) -> Option<SequenceKey> {
        while let Some(next) = self.backlog.pop_front() {
            if let Some(entry) = self.get_mut(next) {
                entry.slot = Some(slot);
                entry.active = now;
                return Some(next);
            }
        }
        self.free.give_back(slot);
        None
    }

    fn get(&self, key: SequenceKey) -> Option<&Entry<C>> {
        self.sequences.get(key.index).filter(|entry| entry.generation == key.generation)
    }

    fn get_mut(&mut self, key: SequenceKey) -> Option<&mut Entry<C>> {
        live(&mut self.sequences, key)
    }
}

fn live<C>(sequences: &mut Slab<Entry<C>>, key: SequenceKey) -> Option<&mut Entry<C>> {
    sequences.get_mut(key.index).filter(|entry| entry.generation == key.generation)
}
