//! The sequence batcher: requests of one sequence run one after the other, on one instance.
//!
//! A sequence is given a slot, which is a row of an instance's batches (direct) or a place among an
//! instance's candidates (oldest), and keeps it until its last request has run or until it has been
//! idle for too long. A client that leaves while a request waits ends its sequence with it, and so does an
//! instance that cannot run any more. Sequences without a slot wait in the order in which they began. What a model
//! carries from request to request is kept with the sequence, and nobody here looks into it.
//!
//! `table.rs` knows the sequences and the slots that they have, and is the only place where a slot is released;
//! `slots.rs` has those that are free.

mod front;
mod lines;
mod slots;
mod table;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

use super::{BatchingPolicy, Decision, DynamicQueue, Queued};
use crate::{
    inference::{CorrelationId, Error, Sequence, Timestamp},
    repository::{DynamicBatching, SequenceStrategy},
};

pub use table::SequenceKey;

use front::Front;
use slots::Slot;
use table::{NoSequence, Table};

/// A request that may belong to a sequence.
pub trait Sequenced: Queued {
    /// The sequence that it names.
    fn sequence(&self) -> Option<&Sequence>;
}

/// What a sequence carries from request to request.
pub trait Carried: Clone {
    /// Whether requests that carry these can be in one batch.
    fn fits_with(&self, other: &Self) -> bool;
}

/// How sequences are served.
#[derive(Clone, Debug, PartialEq)]
pub struct SequencePolicy {
    /// The model's name, for messages.
    pub model: String,
    /// The most rows in a batch; 0 for a model whose tensors have no batch dimension.
    pub max_batch_size: u32,
    /// How they share batches.
    pub strategy: SequenceStrategy,
    /// Without a request for so long a sequence is over.
    pub max_idle: Duration,
    /// Whether a sequence is one request, which runs as often as its model wants.
    pub iterative: bool,
}

/// The sequences of one model, and the requests of them that wait.
#[cfg_attr(test, derive(Clone))]
pub struct SequenceQueue<R, C> {
    policy: SequencePolicy,
    table: Table<R, C>,
    /// By their numbers.
    instances: BTreeMap<u32, Instance<R>>,
    /// Why an instance was lost, if one was.
    lost: Option<String>,
    ids_given: u64,
}

/// What may run next on one instance.
#[cfg_attr(test, derive(Clone))]
enum Instance<R> {
    /// Fronts of sequences, by their row.
    Direct(BTreeMap<u32, SequenceKey>),
    /// Fronts of sequences in the order in which they came to be that.
    Oldest(DynamicQueue<Front<R>>),
}

/// A batch of sequences for one instance.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub struct SequenceBatch<R, C> {
    /// By row; `None` where a sequence has nothing to run.
    pub rows: Vec<Option<SequenceRow<R, C>>>,
}

/// A request in a [`SequenceBatch`].
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub struct SequenceRow<R, C> {
    /// Its sequence.
    pub key: SequenceKey,
    /// The request.
    pub request: R,
    /// Whether it is the first of its sequence.
    pub start: bool,
    /// Whether it is the last.
    pub end: bool,
    /// What the sequence carries, to be given back by [`SequenceQueue::finished`].
    pub carried: C,
}

/// What to do next with an instance.
#[derive(Debug)]
pub enum SequenceDecision<R, C> {
    /// Run this.
    Run(SequenceBatch<R, C>),
    /// Ask again at this time at the latest, or when something arrives or ends.
    WaitUntil(Timestamp),
    /// Ask again when something arrives or ends.
    Idle,
}

impl<R: Sequenced, C: Carried> SequenceQueue<R, C> {
    /// No sequences yet; each begins by carrying `initial`. The instances are numbered from 0 on.
    pub fn new(policy: SequencePolicy, instances: u32, initial: C) -> Self {
        let table = Table::new(&policy, initial);
        let mut queue =
            Self { table, instances: BTreeMap::new(), policy, lost: None, ids_given: 0 };
        // Nobody waits who would want to know the time.
        (0..instances).for_each(|instance| queue.add(instance, Timestamp::default()));
        queue
    }

    /// Feeds a further instance, which has this number.
    pub fn add(&mut self, instance: u32, now: Timestamp) {
        let SequencePolicy { max_batch_size, strategy, .. } = &self.policy;
        let rows = (*max_batch_size).max(1);
        let (slots, fed) = match strategy {
            SequenceStrategy::Direct { .. } => (rows, Instance::Direct(BTreeMap::new())),
            SequenceStrategy::Oldest {
                max_candidates, preferred_sizes, max_queue_delay, ..
            } => {
                let dynamic = (*max_batch_size > 0).then(|| DynamicBatching {
                    preferred_sizes: preferred_sizes.clone(),
                    max_queue_delay: *max_queue_delay,
                    ..DynamicBatching::default()
                });
                let batching = BatchingPolicy { max_batch_size: *max_batch_size, dynamic };
                let slots = if *max_candidates == 0 { rows } else { *max_candidates };
                (slots, Instance::Oldest(DynamicQueue::new(batching)))
            }
        };
        self.instances.insert(instance, fed);
        for key in self.table.add(instance, slots, now) {
            self.offer(key, now);
        }
    }

    /// Binds no further sequence to an instance. It is fed until those that are bound to it are over,
    /// and then among those that [have left](Self::left).
    pub fn leave(&mut self, instance: u32) {
        if self.instances.contains_key(&instance) {
            self.table.leave(instance);
        }
    }

    /// The instances that have left since this was asked last, and are fed no more.
    pub fn left(&mut self) -> Vec<u32> {
        let left: Vec<u32> = self.table.left().collect();
        self.instances.retain(|instance, _| !left.contains(instance));
        left
    }

    /// The number of requests that wait.
    pub fn len(&self) -> usize {
        self.table.waiting() + self.instances.values().map(Instance::taken).sum::<usize>()
    }

    /// Whether no request waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of sequences that have begun and are not over.
    pub fn live(&self) -> usize {
        self.table.live()
    }

    /// Puts a request behind the others of its sequence. Returns the instance that can now run more
    /// than before, if one can.
    ///
    /// # Errors
    /// When it is no request of a sequence that has begun, or its sequence ended with its instance; it
    /// comes back.
    pub fn push(&mut self, request: R, now: Timestamp) -> Result<Option<u32>, (R, Error)> {
        let model = || self.policy.model.clone();
        if request.rows() > 1 {
            return Err((request, Error::BatchInSequence { model: model() }));
        }
        let Some(sequence) = request.sequence().filter(|sequence| !sequence.id.is_none()) else {
            return Err((request, Error::NoCorrelationId { model: model() }));
        };
        let Sequence { id, start, end } = sequence.clone();
        let key = match self.table.find_or_begin(&id, start, now) {
            Ok(key) => key,
            Err(NoSequence::NotStarted) => {
                let error = Error::SequenceNotStarted { model: model(), id: id.to_string() };
                return Err((request, error));
            }
            Err(NoSequence::Lost) => return Err((request, self.unavailable())),
        };
        self.table.push(key, request, now, start, end);
        Ok(self.offer(key, now))
    }

    /// An id for a sequence whose client gave none.
    pub fn unused_id(&mut self) -> CorrelationId {
        loop {
            self.ids_given = self.ids_given.wrapping_add(1);
            let id = CorrelationId::Number(self.ids_given);
            if !id.is_none() && !self.table.knows(&id) {
                return id;
            }
        }
    }

    /// Puts a request that runs before all others of its sequence, to run again when it has run.
    ///
    /// # Errors
    /// When the sequence is over; the request comes back.
    pub fn push_again(
        &mut self,
        key: SequenceKey,
        request: R,
        now: Timestamp,
    ) -> Result<(), (R, Error)> {
        self.table.push_again(key, request, now).map_err(|request| {
            let id = request.sequence().map(|sequence| sequence.id.to_string());
            let (model, id) = (self.policy.model.clone(), id.unwrap_or_default());
            (request, Error::SequenceNotStarted { model, id })
        })
    }

    /// What to do now with an instance that is free. Requests that must not run any more are put into
    /// `hopeless`, each with the reason.
    pub fn next(
        &mut self,
        instance: u32,
        now: Timestamp,
        hopeless: &mut Vec<(R, Error)>,
    ) -> SequenceDecision<R, C> {
        loop {
            let decision = match self.instances.get(&instance) {
                Some(Instance::Direct(_)) => self.next_direct(instance, now, hopeless),
                Some(Instance::Oldest(_)) => self.next_oldest(instance, now, hopeless),
                None => SequenceDecision::Idle,
            };
            match decision {
                // All of it was hopeless.
                SequenceDecision::Run(batch) if batch.rows.is_empty() => {}
                decision => return decision,
            }
        }
    }

    /// Takes an instance out on which nothing runs and nothing will, and ends its sequences; others go on,
    /// and begin, on the instances that are left. Requests that must not run any more are put into
    /// `hopeless`.
    pub fn lose(
        &mut self,
        instance: u32,
        reason: String,
        now: Timestamp,
        hopeless: &mut Vec<(R, Error)>,
    ) {
        let mut gone = Vec::new();
        match self.instances.remove(&instance) {
            Some(Instance::Direct(_)) => {}
            Some(Instance::Oldest(mut queue)) => {
                gone.extend(queue.drain().into_iter().map(|front| front.request));
            }
            None => return,
        }
        self.lost = Some(reason);
        self.table.lose(instance, now, &mut gone);
        hopeless.extend(gone.into_iter().map(|request| (request, self.unavailable())));
    }

    fn unavailable(&self) -> Error {
        let reason = self.lost.clone().unwrap_or_default();
        Error::ModelUnavailable { model: self.policy.model.clone(), reason }
    }

    /// Notes that a request of a sequence has run, and takes back what the sequence carries. Returns
    /// the instance that can now run more than before, if one can.
    pub fn finished(&mut self, key: SequenceKey, carried: C, now: Timestamp) -> Option<u32> {
        let freed = self.table.finished(key, carried, now);
        freed.and_then(|next| self.offer(next, now))
    }

    /// Ends the sequences that have been idle for too long. Returns the instances that can now run
    /// more than before.
    pub fn expire(&mut self, now: Timestamp) -> Vec<u32> {
        let begun = self.table.expire(now);
        begun.into_iter().filter_map(|key| self.offer(key, now)).collect()
    }

    /// When a sequence may have been idle for too long, at the earliest.
    pub fn next_expiry(&self) -> Option<Timestamp> {
        self.table.next_expiry()
    }

    /// Takes out all requests that wait.
    pub fn drain(&mut self) -> Vec<R> {
        let mut all = Vec::new();
        for instance in self.instances.values_mut() {
            match instance {
                Instance::Direct(ready) => ready.clear(),
                Instance::Oldest(queue) => {
                    all.extend(queue.drain().into_iter().map(|front| front.request));
                }
            }
        }
        all.extend(self.table.drain());
        all
    }

    /// Lets the front of a sequence run, if it has a slot and none of its requests is running.
    fn offer(&mut self, key: SequenceKey, now: Timestamp) -> Option<u32> {
        let Slot { row, instance } = self.table.ready_slot(key)?;
        match self.instances.get_mut(&instance)? {
            Instance::Direct(ready) => {
                ready.insert(row, key);
            }
            Instance::Oldest(queue) => {
                let front = self.table.take(key)?;
                // Its levels have no bounds.
                if let Err((front, _)) = queue.push(front, now) {
                    self.table.put_back(front);
                    return None;
                }
            }
        }
        Some(instance)
    }

    fn next_direct(
        &mut self,
        instance: u32,
        now: Timestamp,
        hopeless: &mut Vec<(R, Error)>,
    ) -> SequenceDecision<R, C> {
        let Some(Instance::Direct(ready)) = self.instances.get_mut(&instance) else {
            return SequenceDecision::Idle;
        };
        if ready.is_empty() {
            return SequenceDecision::Idle;
        }
        if let SequenceStrategy::Direct { max_queue_delay, minimum_slot_utilization } =
            self.policy.strategy
        {
            let slots = self.policy.max_batch_size.max(1);
            let enough = ready.len() as f32 >= minimum_slot_utilization * slots as f32;
            let oldest = ready.values().filter_map(|&key| self.table.since(key)).min();
            let due = oldest.unwrap_or(now) + max_queue_delay;
            if !enough && due > now {
                return SequenceDecision::WaitUntil(due);
            }
        }
        let chosen: Vec<(u32, SequenceKey)> = ready.iter().map(|(&row, &key)| (row, key)).collect();
        let mut rows: Vec<Option<SequenceRow<R, C>>> = Vec::new();
        let mut first: Option<usize> = None;
        let mut again = Vec::new();
        for (row, key) in chosen {
            let pattern = first.and_then(|first| rows.get(first)?.as_ref());
            if pattern
                .is_some_and(|pattern| !self.table.fits(key, &pattern.request, &pattern.carried))
            {
                // It stays, for the batch after this one.
                continue;
            }
            if let Some(Instance::Direct(ready)) = self.instances.get_mut(&instance) {
                ready.remove(&row);
            }
            let Some(front) = self.table.take(key) else { continue };
            if let Some(error) = front.hopeless(now) {
                again.extend(self.abandoned(front, error, now, hopeless));
                continue;
            }
            let index = row as usize;
            rows.resize_with(index, || None);
            rows.push(Some(self.table.begin(front)));
            first = first.or(Some(index));
        }
        for key in again {
            self.offer(key, now);
        }
        SequenceDecision::Run(SequenceBatch { rows })
    }

    /// Ends a sequence the client of which has left. Returns the one that can go on.
    fn abandoned(
        &mut self,
        front: Front<R>,
        error: Error,
        now: Timestamp,
        hopeless: &mut Vec<(R, Error)>,
    ) -> Option<SequenceKey> {
        let mut rest = Vec::new();
        let goes_on = self.table.abandoned(front.key, now, &mut rest);
        hopeless.push((front.request, error));
        for request in rest {
            let id = request.sequence().map(|sequence| sequence.id.to_string());
            let (model, id) = (self.policy.model.clone(), id.unwrap_or_default());
            hopeless.push((request, Error::SequenceLeft { model, id }));
        }
        goes_on
    }

    fn next_oldest(
        &mut self,
        instance: u32,
        now: Timestamp,
        hopeless: &mut Vec<(R, Error)>,
    ) -> SequenceDecision<R, C> {
        let Some(Instance::Oldest(queue)) = self.instances.get_mut(&instance) else {
            return SequenceDecision::Idle;
        };
        let expired = queue.expired(now);
        let cancelled = queue.cancelled().into_iter().map(|front| (front, Error::Cancelled));
        let gone: Vec<_> = expired.into_iter().chain(cancelled).collect();
        if !gone.is_empty() {
            for (front, error) in gone {
                if let Some(key) = self.abandoned(front, error, now, hopeless) {
                    self.offer(key, now);
                }
            }
            return SequenceDecision::Run(SequenceBatch { rows: Vec::new() });
        }
        match queue.next(now) {
            Decision::Idle => SequenceDecision::Idle,
            Decision::WaitUntil(due) => {
                let due = queue.next_expiry().map_or(due, |expiry| due.min(expiry));
                SequenceDecision::WaitUntil(due)
            }
            Decision::Run(fronts) => {
                let mut rows: Vec<Option<SequenceRow<R, C>>> = Vec::new();
                let mut unfit = Vec::new();
                for front in fronts {
                    let first = rows.first().and_then(Option::as_ref);
                    match first {
                        Some(first) if !self.table.carries_like(front.key, &first.carried) => {
                            unfit.push(front);
                        }
                        _ => rows.push(Some(self.table.begin(front))),
                    }
                }
                for front in unfit {
                    let key = front.key;
                    self.table.put_back(front);
                    self.offer(key, now);
                }
                SequenceDecision::Run(SequenceBatch { rows })
            }
        }
    }
}

impl<R: Sequenced> Instance<R> {
    /// Requests that wait here and not in the table.
    fn taken(&self) -> usize {
        match self {
            Self::Direct(_) => 0,
            Self::Oldest(queue) => queue.len(),
        }
    }
}
