use std::{collections::VecDeque, time::Duration};

use crate::{
    inference::{Error, Timestamp},
    observe::Closure,
    repository::{DynamicBatching, QueuePolicy, TimeoutAction},
};

/// What the queue must know of a request.
pub trait Queued {
    /// Rows that it adds to a batch.
    fn rows(&self) -> u32;

    /// Whether it can be in one batch with `other`: same shapes but for the rows.
    fn fits_with(&self, other: &Self) -> bool;

    /// Its level, 1 being the most urgent; 0 leaves it to the policy.
    fn priority(&self) -> u64;

    /// How long it may wait by the client's wish.
    fn queue_timeout(&self) -> Option<Duration>;

    /// When its client stops waiting.
    fn deadline(&self) -> Option<Timestamp>;

    /// Whether its client has left.
    fn is_cancelled(&self) -> bool;
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
pub struct DynamicQueue<R> {
    policy: BatchingPolicy,
    levels: Vec<Level<R>>,
    len: usize,
    /// Nothing expires before this.
    calm_until: Option<Timestamp>,
    /// Why the last batch was closed.
    closure: Closure,
}

struct Level<R> {
    policy: QueuePolicy,
    waiting: VecDeque<Waiting<R>>,
    /// Requests whose time is up but that may still run.
    delayed: VecDeque<Waiting<R>>,
}

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
        Self { policy, levels, len: 0, calm_until: None, closure: Closure::Single }
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
            return Decision::Idle;
        }
        let Some(dynamic) = &self.policy.dynamic else {
            self.closure = Closure::Single;
            return Decision::Run(self.take(1));
        };
        let pending = self.pending(dynamic, Some(now));
        let due = pending.oldest + dynamic.max_queue_delay;
        let (count, closure) = match (pending.preferred_count, pending.stop) {
            (Some(count), _) => (count, Closure::Preferred),
            (None, Some(closure)) => (pending.count, closure),
            (None, None) if due <= now => (pending.count, Closure::Delay),
            (None, None) => return Decision::WaitUntil(due),
        };
        self.closure = closure;
        Decision::Run(self.take(count))
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
    pub fn settled(&mut self) -> Option<Vec<R>> {
        if self.levels.iter().any(|level| level.policy.max_queue_size.is_some()) {
            return None;
        }
        let Some(dynamic) = &self.policy.dynamic else {
            self.closure = Closure::Single;
            return self.stays(1).then(|| self.take(1));
        };
        let pending = self.pending(dynamic, None);
        let stop = pending.stop.filter(|_| self.stays(pending.seen))?;
        self.closure = pending.preferred_count.map_or(stop, |_| Closure::Preferred);
        Some(self.take(pending.preferred_count.unwrap_or(pending.count)))
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
        let preferred = &dynamic.preferred_sizes;
        let max_batch_size = self.policy.max_batch_size;
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
            seen: 0,
            oldest: Timestamp::default(),
            preferred_count: None,
            stop: None,
        };
        let mut rows = 0;
        let mut first: Option<&Waiting<R>> = None;
        for waiting in self.in_order() {
            pending.seen += 1;
            let grown = rows + waiting.request.rows();
            let fits = first.is_none_or(|first| waiting.request.fits_with(&first.request));
            if first.is_some() && (grown > largest || !fits) {
                pending.stop = Some(if fits { Closure::Full } else { Closure::Shape });
                break;
            }
            pending.oldest = first.map_or(waiting.since, |_| pending.oldest.min(waiting.since));
            first = first.or(Some(waiting));
            pending.count += 1;
            rows = grown;
            let goes_with = pending.preferred_count == Some(pending.count - 1)
                && !dynamic.max_queue_delay.is_zero()
                && is_due(waiting.since);
            if preferred.contains(&rows) || goes_with {
                pending.preferred_count = Some(pending.count);
            }
            if rows >= largest {
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Fake {
        name: usize,
        rows: u32,
        shape: u8,
        priority: u64,
        timeout: Option<Duration>,
        deadline: Option<Timestamp>,
        cancelled: bool,
    }

    fn fake(name: usize, rows: u32) -> Fake {
        Fake { name, rows, shape: 0, priority: 0, timeout: None, deadline: None, cancelled: false }
    }

    impl Queued for Fake {
        fn rows(&self) -> u32 {
            self.rows
        }
        fn fits_with(&self, other: &Self) -> bool {
            self.shape == other.shape
        }
        fn priority(&self) -> u64 {
            self.priority
        }
        fn queue_timeout(&self) -> Option<Duration> {
            self.timeout
        }
        fn deadline(&self) -> Option<Timestamp> {
            self.deadline
        }
        fn is_cancelled(&self) -> bool {
            self.cancelled
        }
    }

    fn batching(max_batch_size: u32, preferred: &[u32], delay_us: u64) -> BatchingPolicy {
        with(
            max_batch_size,
            DynamicBatching {
                preferred_sizes: preferred.to_vec(),
                max_queue_delay: Duration::from_micros(delay_us),
                ..DynamicBatching::default()
            },
        )
    }

    fn with(max_batch_size: u32, dynamic: DynamicBatching) -> BatchingPolicy {
        BatchingPolicy { max_batch_size, dynamic: Some(dynamic) }
    }

    fn at(us: u64) -> Timestamp {
        Timestamp::from_nanos(us * 1000)
    }

    fn names(decision: Decision<Fake>) -> Vec<usize> {
        match decision {
            Decision::Run(batch) => batch.into_iter().map(|request| request.name).collect(),
            other => panic!("expected a batch, got {other:?}"),
        }
    }

    #[test]
    fn without_batching_each_request_runs_alone() {
        let mut queue = DynamicQueue::new(BatchingPolicy { max_batch_size: 8, dynamic: None });
        queue.push(fake(1, 3), at(0)).unwrap();
        queue.push(fake(2, 1), at(0)).unwrap();
        assert_eq!(names(queue.next(at(0))), [1]);
        assert_eq!(names(queue.next(at(0))), [2]);
        assert_eq!(queue.next(at(0)), Decision::Idle);
    }

    #[test]
    fn without_a_delay_whatever_waits_runs_at_once() {
        let mut queue = DynamicQueue::new(batching(4, &[], 0));
        for name in 0..6 {
            queue.push(fake(name, 1), at(0)).unwrap();
        }
        assert_eq!(names(queue.next(at(0))), [0, 1, 2, 3]);
        assert_eq!(names(queue.next(at(0))), [4, 5]);
    }

    #[test]
    fn a_batch_waits_for_its_delay_and_closes_early_when_full() {
        let mut queue = DynamicQueue::new(batching(4, &[], 100));
        queue.push(fake(0, 1), at(10)).unwrap();
        assert_eq!(queue.next(at(20)), Decision::WaitUntil(at(110)));
        queue.push(fake(1, 3), at(30)).unwrap();
        assert_eq!(names(queue.next(at(30))), [0, 1]);
        queue.push(fake(2, 1), at(40)).unwrap();
        assert_eq!(names(queue.next(at(140))), [2]);
    }

    #[test]
    fn a_preferred_size_runs_at_once() {
        let mut queue = DynamicQueue::new(batching(8, &[2, 4], 100));
        for name in 0..3 {
            queue.push(fake(name, 1), at(0)).unwrap();
        }
        assert_eq!(names(queue.next(at(0))), [0, 1]);
        assert_eq!(queue.next(at(1)), Decision::WaitUntil(at(100)));
    }

    #[test]
    fn shapes_that_differ_are_not_mixed_and_order_is_kept() {
        let mut queue = DynamicQueue::new(batching(8, &[], 1000));
        queue.push(fake(0, 1), at(0)).unwrap();
        queue.push(Fake { shape: 1, ..fake(1, 1) }, at(0)).unwrap();
        queue.push(fake(2, 1), at(0)).unwrap();
        assert_eq!(names(queue.next(at(0))), [0]);
        assert_eq!(names(queue.next(at(0))), [1]);
        assert_eq!(queue.next(at(0)), Decision::WaitUntil(at(1000)));
    }

    #[test]
    fn urgent_levels_go_first() {
        let dynamic = DynamicBatching {
            priority_levels: 3,
            default_priority: 2,
            ..DynamicBatching::default()
        };
        let policy = with(2, dynamic);
        let mut queue = DynamicQueue::new(policy);
        queue.push(fake(0, 1), at(0)).unwrap();
        queue.push(Fake { priority: 3, ..fake(1, 1) }, at(0)).unwrap();
        queue.push(Fake { priority: 1, ..fake(2, 1) }, at(0)).unwrap();
        assert_eq!(names(queue.next(at(0))), [2, 0]);
        assert_eq!(names(queue.next(at(0))), [1]);
    }

    #[test]
    fn a_level_that_there_is_not_is_the_default_one() {
        let dynamic = DynamicBatching {
            priority_levels: 3,
            default_priority: 2,
            ..DynamicBatching::default()
        };
        let mut queue = DynamicQueue::new(with(2, dynamic));
        for (name, priority) in [(0, 2), (1, 3), (2, 1), (3, 3), (4, 1), (5, 9), (6, 2)] {
            queue.push(Fake { priority, ..fake(name, 1) }, at(0)).unwrap();
        }
        for expected in [&[2, 4][..], &[0, 5], &[6, 1], &[3]] {
            assert_eq!(names(queue.next(at(0))), expected);
        }
    }

    #[test]
    fn what_is_delayed_goes_before_lesser_levels() {
        let policy = QueuePolicy {
            timeout_action: TimeoutAction::Delay,
            default_timeout: Some(Duration::from_micros(10)),
            ..QueuePolicy::default()
        };
        let dynamic = DynamicBatching {
            priority_levels: 2,
            default_priority: 2,
            priority_policies: [(1, policy)].into(),
            ..DynamicBatching::default()
        };
        let mut queue = DynamicQueue::new(with(1, dynamic));
        queue.push(Fake { priority: 1, ..fake(0, 1) }, at(0)).unwrap();
        queue.push(fake(1, 1), at(0)).unwrap();
        assert_eq!(queue.expired(at(20)), []);
        queue.push(Fake { priority: 1, ..fake(2, 1) }, at(20)).unwrap();
        for expected in [2, 0, 1] {
            assert_eq!(names(queue.next(at(20))), [expected]);
        }
    }

    #[test]
    fn those_that_are_due_go_with_a_preferred_size() {
        for (delay, expected) in [(60, &[0, 1, 2, 3][..]), (0, &[0, 1, 2]), (150, &[0, 1, 2])] {
            let mut queue = DynamicQueue::new(batching(8, &[3], delay));
            for name in 0..5 {
                queue.push(fake(name, 1), at(50 * name as u64)).unwrap();
            }
            assert_eq!(names(queue.next(at(210))), expected, "{delay}");
            assert_eq!(queue.last_closure(), Closure::Preferred);
        }
    }

    #[test]
    fn why_a_batch_was_closed_is_known() {
        let other = Fake { shape: 1, ..fake(1, 1) };
        for (preferred, requests, at_us, expected) in [
            (&[][..], vec![fake(0, 4)], 0, Closure::Full),
            (&[], vec![fake(0, 3), fake(1, 2)], 0, Closure::Full),
            (&[2], vec![fake(0, 2)], 0, Closure::Preferred),
            (&[], vec![fake(0, 1), other], 0, Closure::Shape),
            (&[], vec![fake(0, 1)], 100, Closure::Delay),
        ] {
            let mut queue = DynamicQueue::new(batching(4, preferred, 100));
            requests.into_iter().for_each(|request| queue.push(request, at(0)).unwrap());
            names(queue.next(at(at_us)));
            assert_eq!(queue.last_closure(), expected);
        }
    }

    #[test]
    fn where_the_queue_is_limited_nothing_leaves_it_early() {
        let policy = QueuePolicy { max_queue_size: Some(4), ..QueuePolicy::default() };
        let dynamic = DynamicBatching { default_policy: policy, ..DynamicBatching::default() };
        let mut queue = DynamicQueue::new(with(2, dynamic));
        queue.push(fake(0, 2), at(0)).unwrap();
        assert_eq!(queue.settled(), None);
    }

    #[test]
    fn a_batch_is_settled_when_neither_arrivals_nor_time_can_change_it() {
        type Case<'a> = (&'a str, &'a [u32], &'a [Fake], Option<usize>);
        let timed = Fake { timeout: Some(Duration::from_millis(1)), ..fake(1, 2) };
        let hurried = Fake { deadline: Some(at(500)), ..fake(1, 2) };
        let lesser = Fake { priority: 2, ..fake(1, 2) };
        let other = Fake { shape: 1, ..fake(1, 2) };
        let urgent = || fake(0, 2);
        let cases: [Case<'_>; 14] = [
            ("nothing", &[], &[], None),
            ("more could join", &[], &[urgent()], None),
            ("full", &[], &[urgent(), urgent()], Some(2)),
            ("full, and more behind", &[], &[urgent(), urgent(), urgent()], Some(2)),
            ("too large for the next", &[], &[fake(0, 3), urgent()], Some(1)),
            ("of another shape than the next", &[], &[urgent(), other.clone()], Some(1)),
            ("a preferred size, not the largest", &[2, 4], &[urgent()], None),
            ("the largest preferred size", &[2], &[urgent(), urgent()], Some(1)),
            ("full, but one may expire", &[], &[urgent(), timed.clone()], None),
            ("full, but one has a deadline", &[], &[urgent(), hurried.clone()], None),
            ("the next may expire", &[], &[urgent(), Fake { shape: 1, ..timed }], None),
            ("full, but what is more urgent goes first", &[], &[urgent(), lesser.clone()], None),
            (
                "what is more urgent may still join",
                &[],
                &[urgent(), Fake { shape: 1, ..lesser }],
                None,
            ),
            ("full, the next may expire", &[], &[urgent(), urgent(), hurried], Some(2)),
        ];
        for (case, preferred, requests, expected) in cases {
            let dynamic = DynamicBatching {
                preferred_sizes: preferred.to_vec(),
                priority_levels: 2,
                default_priority: 1,
                default_policy: QueuePolicy {
                    allow_timeout_override: true,
                    ..QueuePolicy::default()
                },
                ..DynamicBatching::default()
            };
            let mut queue = DynamicQueue::new(with(4, dynamic));
            for request in requests {
                queue.push(request.clone(), at(0)).unwrap();
            }
            let settled = queue.settled().map(|batch| batch.len());
            assert_eq!(settled, expected, "{case}");
            assert_eq!(queue.len(), requests.len() - expected.unwrap_or(0), "{case}");
        }
    }

    #[test]
    fn without_batching_every_request_without_a_limit_is_settled() {
        let mut queue = DynamicQueue::new(BatchingPolicy { max_batch_size: 8, dynamic: None });
        assert_eq!(queue.settled(), None);
        queue.push(fake(0, 1), at(0)).unwrap();
        queue.push(Fake { deadline: Some(at(9)), ..fake(1, 1) }, at(0)).unwrap();
        assert_eq!(queue.settled().map(|batch| batch[0].name), Some(0));
        assert_eq!(queue.settled(), None);
    }

    #[test]
    fn timeouts_reject_or_delay_and_deadlines_always_reject() {
        let late = QueuePolicy {
            default_timeout: Some(Duration::from_micros(50)),
            allow_timeout_override: true,
            ..QueuePolicy::default()
        };
        for action in [TimeoutAction::Reject, TimeoutAction::Delay] {
            let policy = QueuePolicy { timeout_action: action, ..late };
            let mut queue = DynamicQueue::new(with(
                8,
                DynamicBatching {
                    default_policy: policy,
                    max_queue_delay: Duration::from_millis(1),
                    ..DynamicBatching::default()
                },
            ));
            queue.push(fake(0, 1), at(0)).unwrap();
            let shorter = Some(Duration::from_micros(10));
            queue.push(Fake { timeout: shorter, ..fake(1, 1) }, at(0)).unwrap();
            queue.push(Fake { deadline: Some(at(5)), ..fake(2, 1) }, at(0)).unwrap();
            assert_eq!(queue.next_expiry(), Some(at(5)));
            assert_eq!(queue.expired(at(4)), []);
            let gone = queue.expired(at(20));
            assert_eq!(gone.last().unwrap().1, Error::DeadlineExpired);
            match action {
                TimeoutAction::Reject => {
                    assert_eq!(gone.len(), 2);
                    assert_eq!(gone[0].1, Error::TimeoutExpired);
                }
                TimeoutAction::Delay => {
                    assert_eq!(gone.len(), 1);
                    queue.push(fake(3, 1), at(20)).unwrap();
                    assert_eq!(names(queue.next(at(1000))), [0, 3, 1]);
                }
            }
        }
    }

    #[test]
    fn a_full_queue_refuses_and_the_cancelled_leave() {
        let policy = QueuePolicy { max_queue_size: Some(2), ..QueuePolicy::default() };
        let dynamic = DynamicBatching { default_policy: policy, ..DynamicBatching::default() };
        let mut queue = DynamicQueue::new(with(8, dynamic));
        queue.push(Fake { cancelled: true, ..fake(0, 1) }, at(0)).unwrap();
        queue.push(fake(1, 1), at(0)).unwrap();
        assert_eq!(queue.push(fake(2, 1), at(0)).unwrap_err().1, Error::QueueFull);
        assert_eq!(queue.cancelled().len(), 1);
        assert_eq!(queue.len(), 1);
        assert_eq!(names(queue.next(at(0))), [1]);
    }

    proptest! {
        /// A settled batch is the one that would have run later, whatever arrives in between.
        #[test]
        fn no_arrival_changes_a_settled_batch(
            waiting in prop::collection::vec((1_u32..4, 0_u8..2, 1_u64..3), 1..12),
            arriving in prop::collection::vec((1_u32..4, 0_u8..2, 1_u64..3), 0..12),
            preferred in prop::sample::subsequence(vec![2_u32, 3, 5], 0..3),
        ) {
            let queue = || {
                let mut queue = DynamicQueue::new(with(6, DynamicBatching {
                    priority_levels: 2,
                    default_priority: 1,
                    preferred_sizes: preferred.clone(),
                    ..DynamicBatching::default()
                }));
                for (name, &(rows, shape, priority)) in waiting.iter().enumerate() {
                    queue.push(Fake { shape, priority, ..fake(name, rows) }, at(0)).unwrap();
                }
                queue
            };
            if let Some(settled) = queue().settled() {
                let mut later = queue();
                for &(rows, shape, priority) in &arriving {
                    later.push(Fake { shape, priority, ..fake(99, rows) }, at(1)).unwrap();
                }
                prop_assert_eq!(Decision::Run(settled), later.next(at(2)));
            }
        }

        /// Every request comes out exactly once, in the order of its level, in batches that hold.
        #[test]
        fn nothing_is_lost_doubled_or_starved(
            arrivals in prop::collection::vec((1_u32..6, 0_u8..2, 0_u64..4, 0_u64..30), 1..80),
            preferred in prop::sample::subsequence(vec![2_u32, 3, 5, 8], 0..4),
            delay in 0_u64..200,
        ) {
            let policy = with(8, DynamicBatching {
                priority_levels: 3,
                default_priority: 1,
                preferred_sizes: preferred.clone(),
                max_queue_delay: Duration::from_micros(delay),
                ..DynamicBatching::default()
            });
            let mut queue = DynamicQueue::new(policy);
            let (mut now, mut out) = (0, Vec::new());
            let mut run = |queue: &mut DynamicQueue<Fake>, now| {
                while let Decision::Run(batch) = queue.next(at(now)) {
                    let rows: u32 = batch.iter().map(|request| request.rows).sum();
                    prop_assert!(rows <= 8);
                    prop_assert!(batch.iter().all(|request| request.shape == batch[0].shape));
                    out.extend(batch);
                }
                Ok(())
            };
            for (name, &(rows, shape, priority, gap)) in arrivals.iter().enumerate() {
                now += gap;
                queue.push(Fake { shape, priority, ..fake(name, rows) }, at(now)).unwrap();
                run(&mut queue, now)?;
            }
            run(&mut queue, now + delay)?;
            prop_assert!(queue.is_empty());
            let mut all: Vec<_> = out.iter().map(|request| request.name).collect();
            for level in 1..=3 {
                let of_level: Vec<_> = out.iter().filter(|request| request.priority.max(1) == level).map(|request| request.name).collect();
                prop_assert!(of_level.is_sorted());
            }
            all.sort_unstable();
            prop_assert_eq!(all, (0..arrivals.len()).collect::<Vec<_>>());
        }
    }
}
