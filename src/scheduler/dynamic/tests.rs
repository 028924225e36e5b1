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
fn a_delay_of_its_own_choice_is_learnt_from_what_ran_and_ends_with_the_target() {
    let target = Duration::from_millis(10);
    let queue = |most_us| {
        let mut queue = DynamicQueue::new(with(
            8,
            DynamicBatching {
                delay_target_p99: Some(target),
                max_queue_delay: Duration::from_micros(most_us),
                ..DynamicBatching::default()
            },
        ));
        // Nothing has run yet: nothing is known that would be worth a wait.
        queue.push(fake(0, 1), at(0)).unwrap();
        assert_eq!(names(queue.next(at(0))), [0]);
        queue.finished(1, Some(Duration::from_millis(1)));
        queue
    };
    // Two that ran as long as one would save 1 ms, of which half is spent.
    for (most_us, waited_us) in [(0, 500), (200, 200)] {
        let mut queue = queue(most_us);
        queue.push(fake(1, 1), at(2000)).unwrap();
        assert_eq!(queue.next(at(2000)), Decision::WaitUntil(at(2000 + waited_us)));
        queue.push(fake(2, 1), at(2100)).unwrap();
        assert_eq!(names(queue.next(at(2100))), [1, 2]);
        assert_eq!(queue.last_closure(), Closure::Preferred);
    }
    // With 8.9 ms of the target gone, no more than a twentieth of it is spent.
    let mut queue = queue(0);
    queue.push(fake(1, 1), at(2000)).unwrap();
    assert_eq!(queue.next(at(10_900)), Decision::WaitUntil(at(11_400)));
    assert_eq!(names(queue.next(at(11_400))), [1]);
    assert_eq!(queue.last_closure(), Closure::Delay);
    // It was in vain, so the next does not wait.
    queue.push(fake(2, 1), at(12_000)).unwrap();
    assert_eq!(names(queue.next(at(12_000))), [2]);
}

#[test]
fn nothing_waits_while_another_instance_is_free() {
    let dynamic = DynamicBatching {
        delay_target_p99: Some(Duration::from_millis(10)),
        ..DynamicBatching::default()
    };
    let mut queue = DynamicQueue::new(with(8, dynamic)).for_instances(2);
    let begin = |queue: &mut DynamicQueue<Fake>, name| {
        queue.push(fake(name, 1), at(0)).unwrap();
        queue.next(at(0))
    };
    assert_eq!(names(begin(&mut queue, 0)), [0]);
    queue.finished(1, Some(Duration::from_millis(1)));
    assert_eq!(names(begin(&mut queue, 1)), [1]);
    assert!(matches!(begin(&mut queue, 2), Decision::WaitUntil(_)));
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
    let dynamic =
        DynamicBatching { priority_levels: 3, default_priority: 2, ..DynamicBatching::default() };
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
    let dynamic =
        DynamicBatching { priority_levels: 3, default_priority: 2, ..DynamicBatching::default() };
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
        (&[2, 4], vec![fake(0, 2), fake(1, 2)], 0, Closure::Full),
        (&[2], vec![fake(0, 2), fake(1, 2)], 0, Closure::Preferred),
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
    assert_eq!(queue.settled(at(0)), None);
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
        ("what is more urgent may still join", &[], &[urgent(), Fake { shape: 1, ..lesser }], None),
        ("full, the next may expire", &[], &[urgent(), urgent(), hurried], Some(2)),
    ];
    for (case, preferred, requests, expected) in cases {
        let dynamic = DynamicBatching {
            preferred_sizes: preferred.to_vec(),
            priority_levels: 2,
            default_priority: 1,
            default_policy: QueuePolicy { allow_timeout_override: true, ..QueuePolicy::default() },
            ..DynamicBatching::default()
        };
        let mut queue = DynamicQueue::new(with(4, dynamic));
        for request in requests {
            queue.push(request.clone(), at(0)).unwrap();
        }
        let settled = queue.settled(at(0)).map(|batch| batch.len());
        assert_eq!(settled, expected, "{case}");
        assert_eq!(queue.len(), requests.len() - expected.unwrap_or(0), "{case}");
    }
}

#[test]
fn without_batching_every_request_without_a_limit_is_settled() {
    let mut queue = DynamicQueue::new(BatchingPolicy { max_batch_size: 8, dynamic: None });
    assert_eq!(queue.settled(at(0)), None);
    queue.push(fake(0, 1), at(0)).unwrap();
    queue.push(Fake { deadline: Some(at(9)), ..fake(1, 1) }, at(0)).unwrap();
    assert_eq!(queue.settled(at(0)).map(|batch| batch[0].name), Some(0));
    assert_eq!(queue.settled(at(0)), None);
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
        if let Some(settled) = queue().settled(at(0)) {
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
        target in prop::option::of(1_u64..1000),
        took in prop::collection::vec(1_u64..100, 1..9),
    ) {
        let policy = with(8, DynamicBatching {
            delay_target_p99: target.map(Duration::from_micros),
            priority_levels: 3,
            default_priority: 1,
            preferred_sizes: preferred.clone(),
            max_queue_delay: Duration::from_micros(delay),
            ..DynamicBatching::default()
        });
        let mut queue = DynamicQueue::new(policy);
        let (mut now, mut out) = (0, Vec::new());
        let mut run = |queue: &mut DynamicQueue<Fake>, now| {
            loop {
                match queue.next(at(now)) {
                    Decision::Idle => return Ok(at(now)),
                    Decision::WaitUntil(due) => {
                        prop_assert!(due > at(now));
                        return Ok(due);
                    }
                    Decision::Run(batch) => {
                        let rows: u32 = batch.iter().map(|request| request.rows).sum();
                        prop_assert!(rows <= 8);
                        prop_assert!(batch.iter().all(|request| request.shape == batch[0].shape));
                        let took = took[rows as usize % took.len()];
                        queue.finished(rows, Some(Duration::from_micros(took)));
                        out.extend(batch);
                    }
                }
            }
        };
        for (name, &(rows, shape, priority, gap)) in arrivals.iter().enumerate() {
            now += gap;
            queue.push(Fake { shape, priority, ..fake(name, rows) }, at(now)).unwrap();
            run(&mut queue, now)?;
        }
        for _ in 0..=arrivals.len() {
            let due = run(&mut queue, now)?;
            now = due.as_nanos().div_ceil(1000).max(now);
        }
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
