use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap, VecDeque},
    time::Duration,
};

use slab::Slab;

use super::{Carried, SequencePolicy, SequenceRow, Sequenced};
use crate::{
    inference::{CorrelationId, Error, Timestamp},
    scheduler::Queued,
};

/// A sequence, told apart from those that had its place before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceKey {
    index: usize,
    generation: u64,
}

/// A place for a sequence. Low rows are given out first, so that batches are small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot {
    pub row: u32,
    pub instance: u32,
}

/// The sequences of a model, and which of them have a slot.
pub(super) struct Table<R, C> {
    sequences: Slab<Entry<R, C>>,
    /// Those whose last request has not come yet. Clients choose the ids, so the hash must be one that
    /// they cannot aim at.
    by_id: HashMap<CorrelationId, SequenceKey>,
    free: BinaryHeap<Reverse<Slot>>,
    /// Sequences without a slot, in their order, and some that are over.
    backlog: VecDeque<SequenceKey>,
    /// For every sequence when it is looked at next, to see whether it is idle.
    looks: BinaryHeap<Reverse<(Timestamp, SequenceKey)>>,
    max_idle: Duration,
    /// Whether a sequence is over when none of its requests waits.
    is_of_requests: bool,
    /// Instances that no sequence is given a slot of any more, and how many have one there still.
    leaving: BTreeMap<u32, usize>,
    /// What a sequence carries when it begins.
    initial: C,
    begun: u64,
    waiting: usize,
}

struct Entry<R, C> {
    generation: u64,
    id: CorrelationId,
    slot: Option<Slot>,
    waiting: VecDeque<Waiting<R>>,
    /// Whether a request of it has been taken and has not run yet.
    busy: bool,
    /// Whether its last request has come.
    ended: bool,
    /// Whether the request that said that it is the first was never run.
    owes_start: bool,
    active: Timestamp,
    carried: C,
}

struct Waiting<R> {
    request: R,
    since: Timestamp,
    start: bool,
    end: bool,
}

/// A request that is the next of its sequence to run.
pub(super) struct Front<R> {
    pub key: SequenceKey,
    pub request: R,
    pub start: bool,
    pub end: bool,
    since: Timestamp,
}

impl<R: Sequenced, C: Carried> Table<R, C> {
    pub fn new(policy: &SequencePolicy, initial: C) -> Self {
        Self {
            sequences: Slab::new(),
            by_id: HashMap::new(),
            free: BinaryHeap::new(),
            backlog: VecDeque::new(),
            looks: BinaryHeap::new(),
            max_idle: policy.max_idle,
            is_of_requests: policy.iterative,
            leaving: BTreeMap::new(),
            initial,
            begun: 0,
            waiting: 0,
        }
    }

    /// Gives out the slots of a further instance. Returns the sequences that have waited for one.
    pub fn add(&mut self, instance: u32, slots: u32, now: Timestamp) -> Vec<SequenceKey> {
        let slots = (0..slots).map(|row| Slot { row, instance });
        slots.filter_map(|slot| self.give_on(slot, now)).collect()
    }

    /// Gives no sequence a slot of an instance any more.
    pub fn leave(&mut self, instance: u32) {
        self.free.retain(|Reverse(slot)| slot.instance != instance);
        let slots = self.sequences.iter().filter_map(|(_, entry)| entry.slot);
        self.leaving.insert(instance, slots.filter(|slot| slot.instance == instance).count());
    }

    /// The instances that were to leave and have no sequence any more. They are told once.
    pub fn left(&mut self) -> impl Iterator<Item = u32> {
        let left = self.leaving.extract_if(.., |_, sequences| *sequences == 0);
        left.map(|(instance, _)| instance)
    }

    /// Requests that wait here.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    pub fn live(&self) -> usize {
        self.sequences.len()
    }

    /// The sequence of that id; with `start` it begins if there is none.
    pub fn find_or_begin(
        &mut self,
        id: &CorrelationId,
        start: bool,
        now: Timestamp,
    ) -> Option<SequenceKey> {
        if let Some(&key) = self.by_id.get(id) {
            return Some(key);
        }
        if !start {
            return None;
        }
        self.forget_the_dead();
        self.begun += 1;
        let vacant = self.sequences.vacant_entry();
        let key = SequenceKey { index: vacant.key(), generation: self.begun };
        // While others wait there is no slot.
        let slot = self.free.pop().map(|Reverse(slot)| slot);
        if slot.is_none() {
            self.backlog.push_back(key);
        }
        vacant.insert(Entry {
            generation: key.generation,
            id: id.clone(),
            slot,
            waiting: VecDeque::new(),
            busy: false,
            ended: false,
            owes_start: false,
            active: now,
            carried: self.initial.clone(),
        });
        self.by_id.insert(id.clone(), key);
        self.looks.push(Reverse((now + self.max_idle, key)));
        Some(key)
    }

    /// Puts a request behind the others of its sequence.
    pub fn push(&mut self, key: SequenceKey, request: R, now: Timestamp, start: bool, end: bool) {
        let Some(entry) = self.get_mut(key) else { return };
        entry.active = now;
        entry.waiting.push_back(Waiting { request, since: now, start, end });
        if end {
            entry.ended = true;
            let id = entry.id.clone();
            self.by_id.remove(&id);
        }
        self.waiting += 1;
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
        let Some(entry) = self.get_mut(key).filter(|entry| entry.busy) else { return Err(request) };
        let waiting = Waiting { request, since: now, start: false, end: false };
        entry.waiting.push_front(waiting);
        self.waiting += 1;
        Ok(())
    }

    /// The slot of a sequence whose next request can be taken.
    pub fn ready_slot(&self, key: SequenceKey) -> Option<Slot> {
        let entry = self.get(key)?;
        entry.slot.filter(|_| !entry.busy && !entry.waiting.is_empty())
    }

    /// Since when the next request of a sequence has waited.
    pub fn since(&self, key: SequenceKey) -> Option<Timestamp> {
        Some(self.get(key)?.waiting.front()?.since)
    }

    /// Whether the next request of a sequence can be in a batch with one that carries this.
    pub fn fits(&self, key: SequenceKey, request: &R, carried: &C) -> bool {
        let front = self.get(key).and_then(|entry| entry.waiting.front());
        front.is_some_and(|front| front.request.fits_with(request))
            && self.carries_like(key, carried)
    }

    /// Whether a sequence's next request can be in a batch with one that carries this.
    pub fn carries_like(&self, key: SequenceKey, carried: &C) -> bool {
        self.get(key).is_some_and(|entry| entry.carried.fits_with(carried))
    }

    /// Takes the next request of a sequence, which is busy from then on.
    pub fn take(&mut self, key: SequenceKey) -> Option<Front<R>> {
        let entry = self.get_mut(key)?;
        let Waiting { request, since, start, end } = entry.waiting.pop_front()?;
        entry.busy = true;
        let start = start || std::mem::take(&mut entry.owes_start);
        self.waiting -= 1;
        Some(Front { key, request, start, end, since })
    }

    /// Gives back what was taken.
    pub fn put_back(&mut self, front: Front<R>) {
        let Front { key, request, start, end, since } = front;
        let Some(entry) = self.get_mut(key) else { return };
        entry.busy = false;
        entry.waiting.push_front(Waiting { request, since, start, end });
        self.waiting += 1;
    }

    /// Begins to run what was taken. A sequence that starts carries nothing of one before.
    pub fn begin(&mut self, front: Front<R>) -> SequenceRow<R, C> {
        let Front { key, request, start, end, .. } = front;
        let kept = self.get(key).filter(|_| !start).map(|entry| entry.carried.clone());
        let carried = kept.unwrap_or_else(|| self.initial.clone());
        SequenceRow { key, request, start, end, carried }
    }

    /// Notes that what was taken will not run. Whoever comes next in the sequence is then its first, if
    /// this was. Returns the sequence that can go on: this one, or one that got its slot.
    pub fn skipped(
        &mut self,
        key: SequenceKey,
        start: bool,
        end: bool,
        now: Timestamp,
    ) -> Option<SequenceKey> {
        let entry = self.get_mut(key)?;
        entry.owes_start |= start && !end;
        entry.busy = false;
        self.go_on(key, now)
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
        self.waiting = 0;
        let entries = self.sequences.iter_mut();
        entries.flat_map(|(_, entry)| entry.waiting.drain(..)).map(|it| it.request).collect()
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
        self.free.push(Reverse(slot));
        None
    }

    #[cfg(test)]
    pub(super) fn seated(&self, on: impl Fn(u32) -> bool) -> usize {
        let slots = self.sequences.iter().filter_map(|(_, entry)| entry.slot);
        slots.filter(|slot| on(slot.instance)).count()
    }

    #[cfg(test)]
    pub(super) fn kept(&self) -> (usize, usize) {
        (self.looks.len(), self.free.len())
    }

    fn get(&self, key: SequenceKey) -> Option<&Entry<R, C>> {
        self.sequences.get(key.index).filter(|entry| entry.generation == key.generation)
    }

    fn get_mut(&mut self, key: SequenceKey) -> Option<&mut Entry<R, C>> {
        self.sequences.get_mut(key.index).filter(|entry| entry.generation == key.generation)
    }
}

impl<R: Queued> Front<R> {
    /// Why it must not run any more, if so.
    pub fn hopeless(&self, now: Timestamp) -> Option<Error> {
        if self.request.is_cancelled() {
            return Some(Error::Cancelled);
        }
        let late = self.request.deadline().is_some_and(|deadline| deadline <= now);
        late.then_some(Error::DeadlineExpired)
    }
}

impl<R: Queued> Queued for Front<R> {
    fn rows(&self) -> u32 {
        self.request.rows()
    }

    fn fits_with(&self, other: &Self) -> bool {
        self.request.fits_with(&other.request)
    }

    fn priority(&self) -> u64 {
        self.request.priority()
    }

    fn queue_timeout(&self) -> Option<Duration> {
        self.request.queue_timeout()
    }

    fn deadline(&self) -> Option<Timestamp> {
        self.request.deadline()
    }

    fn is_cancelled(&self) -> bool {
        self.request.is_cancelled()
    }
}
