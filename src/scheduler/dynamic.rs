mod auto_delay;
mod ways;

use std::{collections::VecDeque, time::Duration};

use crate::{
    inference::{Error, Timestamp},
    observe::Closure,
    repository::{DynamicBatching, QueuePolicy, TimeoutAction},
};

use auto_delay::AutoDelay;

/// What the queue must know of a request. What is not said is that of one that fits with all others, has no
/// wishes and is waited for.
pub trait Queued {
    /// Rows that it adds to a batch.
    fn rows(&self) -> u32;

    /// Whether it can be in one batch with `_other`: same shapes but for the rows.
    fn fits_with(&self, _other: &Self) -> bool {
        true
    }

    /// Its level, 1 being the most urgent; 0 leaves it to the policy.
    fn priority(&self) -> u64 {
        0
    }

    /// How long it may wait by the client's wish.
    fn queue_timeout(&self) -> Option<Duration> {
        None
    }

    /// When its client stops waiting.
    fn deadline(&self) -> Option<Timestamp> {
        None
    }

    /// Whether its client has left.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// How requests are put together.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchingPolicy {
    /// The most rows in a batch; 0 for a model whose tensors have no batch dimension.
    pub max_batch_size: u32,
    /// How requests wait for each other; without it each runs alone, in the order of arrival.
    pub dynamic: Option<DynamicBatching>,
}

/// What to do next.
#[derive(Debug, PartialEq)]
pub enum Decision<R> {
    /// Run these as one batch.
    Run(Vec<R>),
    /// Ask again at this time at the latest, or when something arrives.
    WaitUntil(Timestamp),
    /// Ask again when something arrives.
    Idle,
}

/// The queue of one model: levels of priority, each first in, first out.
#[cfg_attr(test, derive(Clone))]
pub struct DynamicQueue<R> {
    policy: BatchingPolicy,
    levels: Vec<Level<R>>,
    len: usize,
    /// Nothing expires before this.
    calm_until: Option<Timestamp>,
    /// Why the last batch was closed.
    closure: Closure,
    /// What chooses how long requests wait, if it is not fixed.
    auto_delay: Option<Box<AutoDelay>>,
}

#[cfg_attr(test, derive(Clone))]
struct Level<R> {
    policy: QueuePolicy,
    waiting: VecDeque<Waiting<R>>,
    /// Requests whose time is up but that may still run.
    delayed: VecDeque<Waiting<R>>,
}

#[cfg_attr(test, derive(Clone))]
struct Waiting<R> {
    request: R,
    since: Timestamp,
    expires: Option<Timestamp>,
}

impl<R: Queued> DynamicQueue<R> {
    /// An empty queue.
    pub fn new(policy: BatchingPolicy) -> Self {
        let count = policy.dynamic.as_ref().map_or(0, |dynamic| dynamic.priority_levels);
        let levels = (1..=count.max(1))
            .map(|level| Level {
                policy: policy
                    .dynamic
                    .as_ref()
                    .map(|dynamic| *dynamic.policy(level))
                    .unwrap_or_default(),
                waiting: VecDeque::new(),
                delayed: VecDeque::new(),
            })
            .collect();
        let target = policy.dynamic.as_ref().and_then(|dynamic| dynamic.delay_target_p99);
        Self {
            policy,
            levels,
            len: 0,
            calm_until: None,
            closure: Closure::Single,
            auto_delay: target.map(AutoDelay::new).map(Box::new),
        }
    }

    /// The same for so many instances; without, it feeds one.
    pub fn for_instances(mut self, instances: usize) -> Self {
        self.set_instances(instances);
        self
    }

    /// Feeds so many instances from now on.
    pub fn set_instances(&mut self, instances: usize) {
        if let Some(auto_delay) = &mut self.auto_delay {
            auto_delay.set_instances(instances);
        }
    }

    /// The number of requests that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Why the last batch was closed.
    pub fn last_closure(&self) -> Closure {
        self.closure
    }

    /// Whether no request waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts a request behind the others of its level.
    ///
    /// # Errors
    /// When its level is full; the request comes back.
    pub fn push(&mut self, request: R, now: Timestamp) -> Result<(), (R, Error)> {
        let level = self.level_of(&request);
        let level = &mut self.levels[level];
        let waiting = level.waiting.len() + level.delayed.len();
        if level.policy.max_queue_size.is_some_and(|limit| waiting >= limit as usize) {
            return Err((request, Error::QueueFull));
        }
        let allowed = match (level.policy.default_timeout, request.queue_timeout()) {
            (default, Some(asked)) if level.policy.allow_timeout_override => {
                Some(default.map_or(asked, |default| default.min(asked)))
            }
            (default, _) => default,
        };
        let expires = allowed.map(|allowed| now + allowed);
        self.calm_until = earliest([self.calm_until, expires, request.deadline()]);
        level.waiting.push_back(Waiting { request, since: now, expires });
        self.len += 1;
        Ok(())
    }

    /// Takes out the requests that must not run any more, each with the reason.
    pub fn expired(&mut self, now: Timestamp) -> Vec<(R, Error)> {
        let mut gone = Vec::new();
        if self.calm_until.is_none_or(|calm| now < calm) {
            return gone;
        }
        let mut calm_until = None;
        for level in &mut self.levels {
            let delays = level.policy.timeout_action == TimeoutAction::Delay;
            let mut in_time = VecDeque::with_capacity(level.waiting.len());
            for mut waiting in level.waiting.drain(..) {
                let deadline = waiting.request.deadline();
                if deadline.is_some_and(|deadline| deadline <= now) {
                    gone.push((waiting.request, Error::DeadlineExpired));
                } else if waiting.expires.is_none_or(|expires| expires > now) {
                    calm_until = earliest([calm_until, waiting.expires, deadline]);
                    in_time.push_back(waiting);
                } else if delays {
                    waiting.expires = None;
                    calm_until = earliest([calm_until, deadline, None]);
                    level.delayed.push_back(waiting);
                } else {
                    gone.push((waiting.request, Error::TimeoutExpired));
                }
            }
            level.waiting = in_time;
        }
        self.calm_until = calm_until;
        self.len -= gone.len();
        gone
    }

    /// Takes out requests at the front whose clients have left.
    pub fn cancelled(&mut self) -> Vec<R> {
        let mut gone = Vec::new();
        let next_batch = self.policy.dynamic.as_ref().map_or(1, |_| self.policy.max_batch_size);
        for level in &mut self.levels {
            for queue in [&mut level.waiting, &mut level.delayed] {
                let mut index = 0;
                // What is further behind is looked at when its turn comes.
                while index < next_batch.max(1) as usize {
                    match queue.get(index) {
                        None => break,
                        Some(waiting) if waiting.request.is_cancelled() => {
                            gone.extend(queue.remove(index).map(|waiting| waiting.request));
                        }
                        Some(_) => index += 1,
                    }
                }
            }
        }
        self.len -= gone.len();
        gone
    }

    /// What to do now that an instance is free. Expired requests must have been taken out before.
    pub fn next(&mut self, now: Timestamp) -> Decision<R> {
        if self.len == 0 {
            if let Some(auto_delay) = &mut self.auto_delay {
                auto_delay.gone();
            }
            return Decision::Idle;
        }
        let Some(dynamic) = &self.policy.dynamic else {
            self.closure = Closure::Single;
            return Decision::Run(self.take(1));
        };
        let pending = self.pending(dynamic, Some(now));
        if let Some(mut auto_delay) = self.auto_delay.take() {
            let decision = self.next_by(&mut auto_delay, &pending, now);
            self.auto_delay = Some(auto_delay);
            return decision;
        }
        let due = pending.oldest + dynamic.max_queue_delay;
        let (count, closure) = match self.closed(&pending) {
            Some(closed) => closed,
            None if due <= now => (pending.count, Closure::Delay),
            None => return Decision::WaitUntil(due),
        };
        self.closure = closure;
        Decision::Run(self.take(count))
    }

    /// What to do when it is found out while serving how long to wait. Preferred sizes have no say then.
    fn next_by(
        &mut self,
        auto_delay: &mut AutoDelay,
        pending: &Pending,
        now: Timestamp,
    ) -> Decision<R> {
        let wait = match pending.stop {
            Some(_) => None,
            None => {
                let sizes = (pending.rows, self.policy.max_batch_size);
                let first = self.in_order().take(pending.count);
                auto_delay.wait(sizes, first.map(|waiting| waiting.since), now)
            }
        };
        let most = self.policy.dynamic.as_ref().map(|dynamic| dynamic.max_queue_delay);
        let most = most.filter(|most| !most.is_zero()).map(|most| pending.oldest + most);
        let until = wait.map(|until| most.map_or(until, |most| until.min(most)));
        if let Some(until) = until.filter(|until| *until > now) {
            return Decision::WaitUntil(until);
        }
        let taken = self.in_order().take(pending.count);
        let as_aimed = auto_delay.begun(pending.rows, taken.map(|waiting| waiting.since), now);
        let closure = if as_aimed { Closure::Preferred } else { Closure::Delay };
        self.closure = pending.stop.unwrap_or(closure);
        Decision::Run(self.take(pending.count))
    }

    /// Notes that an instance has given a batch of so many rows back, and for how long it ran if it did.
    pub fn finished(&mut self, rows: u32, took: Option<Duration>) {
        if let Some(auto_delay) = &mut self.auto_delay {
            auto_delay.finished(rows, took);
        }
    }

    /// The next batch, if neither an arrival nor the passing of time could change it any more; only
    /// its clients can, by leaving. For a batch that is put together while every instance is busy:
    /// there is nothing to gain by leaving it in the queue.
    ///
    /// So it must be as large as it can get, not merely of a preferred size or past its delay: until
    /// an instance is free, more may join those. Its requests must be of the most urgent level, for
    /// what is more urgent would go first. And none of them may have a limit to its time, because it
    /// can be turned away only while it waits here. What keeps the batch from growing, a request
    /// behind it that does not fit, must be there to stay by the same rules. And where the queue's length
    /// is limited nothing leaves it early, for that would make room.
    pub fn settled(&mut self, now: Timestamp) -> Option<Vec<R>> {
        if self.levels.iter().any(|level| level.policy.max_queue_size.is_some()) {
            return None;
        }
        let Some(dynamic) = &self.policy.dynamic else {
            self.closure = Closure::Single;
            return self.stays(1).then(|| self.take(1));
        };
        let pending = self.pending(dynamic, None);
        pending.stop.filter(|_| self.stays(pending.seen))?;
        let (count, closure) = self.closed(&pending)?;
        if let Some(mut auto_delay) = self.auto_delay.take() {
            let taken = self.in_order().take(pending.count);
            auto_delay.begun(pending.rows, taken.map(|waiting| waiting.since), now);
            self.auto_delay = Some(auto_delay);
        }
        self.closure = closure;
        Some(self.take(count))
    }

    /// How many requests run whatever the time is, if any do, and why no more.
    fn closed(&self, pending: &Pending) -> Option<(usize, Closure)> {
        let can_grow = pending.rows < self.policy.max_batch_size;
        let preferred = pending.preferred_count.map(|count| (count, Closure::Preferred));
        preferred
            .filter(|(count, _)| can_grow || *count < pending.count)
            .or_else(|| pending.stop.map(|stop| (pending.count, stop)))
    }

    /// Whether the first `count` requests are there, nothing can come before or between them and none
    /// of them can expire.
    fn stays(&self, count: usize) -> bool {
        let Some(first) = self.levels.first() else { return false };
        first.waiting.len() >= count
            && first
                .waiting
                .iter()
                .take(count)
                .all(|waiting| waiting.expires.is_none() && waiting.request.deadline().is_none())
    }

    /// When a request may expire, at the earliest.
    pub fn next_expiry(&self) -> Option<Timestamp> {
        self.calm_until
    }

    /// Takes out everything.
    pub fn drain(&mut self) -> Vec<R> {
        self.take(self.len)
    }

    /// The batch that could run now; without `now`, when that is not known yet.
    fn pending(&self, dynamic: &DynamicBatching, now: Option<Timestamp>) -> Pending {
        let max_batch_size = self.policy.max_batch_size;
        let preferred = match dynamic.delay_target_p99 {
            None => &*dynamic.preferred_sizes,
            Some(_) => &[],
        };
        // Of the largest preferred size a batch is closed; with a delay those that have waited for as
        // long go with it.
        let largest = match dynamic.max_queue_delay.is_zero() {
            true => preferred.last().copied().unwrap_or(max_batch_size),
            false => max_batch_size,
        };
        let is_due =
            |since: Timestamp| now.is_some_and(|now| since + dynamic.max_queue_delay <= now);
        let mut pending = Pending {
            count: 0,
            rows: 0,
            seen: 0,
            oldest: Timestamp::default(),
            preferred_count: None,
            stop: None,
        };
        let mut first: Option<&Waiting<R>> = None;
        for waiting in self.in_order() {
            pending.seen += 1;
            let grown = pending.rows + waiting.request.rows();
            let fits = first.is_none_or(|first| waiting.request.fits_with(&first.request));
            if first.is_some() && (grown > largest || !fits) {
                pending.stop = Some(if fits { Closure::Full } else { Closure::Shape });
                break;
            }
            pending.oldest = first.map_or(waiting.since, |_| pending.oldest.min(waiting.since));
            first = first.or(Some(waiting));
            pending.count += 1;
            pending.rows = grown;
            let goes_with = pending.preferred_count == Some(pending.count - 1)
                && !dynamic.max_queue_delay.is_zero()
                && is_due(waiting.since);
            if preferred.contains(&grown) || goes_with {
                pending.preferred_count = Some(pending.count);
            }
            if grown >= largest {
                pending.stop = Some(Closure::Full);
                break;
            }
        }
        pending
    }

    /// Requests in the order in which they run: level by level, in each those in time before those
    /// delayed.
    fn in_order(&self) -> impl Iterator<Item = &Waiting<R>> {
        self.levels.iter().flat_map(|level| level.waiting.iter().chain(&level.delayed))
    }

    /// The requests in that order, and since when each waits.
    #[cfg(test)]
    pub fn waiting(&self) -> impl Iterator<Item = (&R, Timestamp)> {
        self.in_order().map(|waiting| (&waiting.request, waiting.since))
    }

    /// The requests in no order.
    #[cfg(test)]
    pub fn requests_mut(&mut self) -> impl Iterator<Item = &mut R> {
        let levels = self.levels.iter_mut();
        let all = levels.flat_map(|level| level.waiting.iter_mut().chain(&mut level.delayed));
        all.map(|waiting| &mut waiting.request)
    }

    fn take(&mut self, count: usize) -> Vec<R> {
        let mut taken = Vec::with_capacity(count);
        for level in &mut self.levels {
            for queue in [&mut level.waiting, &mut level.delayed] {
                let share = queue.len().min(count - taken.len());
                taken.extend(queue.drain(..share).map(|waiting| waiting.request));
            }
        }
        self.len -= taken.len();
        taken
    }

    fn level_of(&self, request: &R) -> usize {
        let default = self.policy.dynamic.as_ref().map_or(0, |dynamic| dynamic.default_priority);
        let last = self.levels.len() as u64;
        // A level that there is not is no wish.
        let asked = Some(request.priority()).filter(|asked| (1..=last).contains(asked));
        (asked.unwrap_or(default).clamp(1, last) - 1) as usize
    }
}

/// The batch that could run now.
struct Pending {
    count: usize,
    rows: u32,
    /// The requests that were looked at: one more when the next does not fit.
    seen: usize,
    oldest: Timestamp,
    /// The requests that make the largest preferred size that was reached.
    preferred_count: Option<usize>,
    /// Why it cannot grow, if it cannot.
    stop: Option<Closure>,
}

fn earliest(times: [Option<Timestamp>; 3]) -> Option<Timestamp> {
    times.into_iter().flatten().min()
}

#[cfg(test)]
mod tests;
