mod orders;
mod world;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::inference::CorrelationId;

#[derive(Clone, Debug, PartialEq)]
struct Fake {
    name: usize,
    rows: u32,
    sequence: Option<Sequence>,
    cancelled: bool,
    deadline: Option<Timestamp>,
}

impl Queued for Fake {
    fn rows(&self) -> u32 {
        self.rows
    }
    fn deadline(&self) -> Option<Timestamp> {
        self.deadline
    }
    fn is_cancelled(&self) -> bool {
        self.cancelled
    }
}

impl Sequenced for Fake {
    fn sequence(&self) -> Option<&Sequence> {
        self.sequence.as_ref()
    }
}

/// What a sequence carries: how many of its requests have run.
impl Carried for u32 {
    fn fits_with(&self, _: &Self) -> bool {
        true
    }
}

const IDLE: Duration = Duration::from_millis(1);

fn at(us: u64) -> Timestamp {
    Timestamp::from_nanos(us * 1000)
}

fn fake(name: usize, id: u64, flags: &str) -> Fake {
    let sequence = Sequence {
        id: CorrelationId::Number(id),
        start: flags.contains('s'),
        end: flags.contains('e'),
    };
    let cancelled = flags.contains('x');
    Fake { name, rows: 1, sequence: Some(sequence), cancelled, deadline: None }
}

fn direct(max_batch_size: u32) -> SequencePolicy {
    let strategy =
        SequenceStrategy::Direct { max_queue_delay: Duration::ZERO, minimum_slot_utilization: 0.0 };
    SequencePolicy { model: "m".into(), max_batch_size, strategy, max_idle: IDLE, iterative: false }
}

fn oldest(max_batch_size: u32, max_candidates: u32) -> SequencePolicy {
    let strategy = SequenceStrategy::Oldest {
        max_candidates,
        preferred_sizes: Vec::new(),
        max_queue_delay: Duration::ZERO,
        preserve_ordering: false,
    };
    SequencePolicy { model: "m".into(), max_batch_size, strategy, max_idle: IDLE, iterative: false }
}

type Queue = SequenceQueue<Fake, u32>;
type Batch = SequenceBatch<Fake, u32>;

/// Runs what there is to run on an instance, and returns it with what was hopeless.
fn take(queue: &mut Queue, instance: u32, now: Timestamp) -> (Option<Batch>, Vec<usize>) {
    let mut hopeless = Vec::new();
    let batch = match queue.next(instance, now, &mut hopeless) {
        SequenceDecision::Run(batch) => Some(batch),
        SequenceDecision::Idle | SequenceDecision::WaitUntil(_) => None,
    };
    (batch, hopeless.into_iter().map(|(request, _)| request.name).collect())
}

/// The names by row; 0 where there is none.
fn names(batch: &Batch) -> Vec<usize> {
    batch.rows.iter().map(|row| row.as_ref().map_or(0, |row| row.request.name)).collect()
}

fn finish(queue: &mut Queue, batch: Batch, now: Timestamp) {
    for row in batch.rows.into_iter().flatten() {
        queue.finished(row.key, row.carried + 1, now);
    }
}

/// The batches that run one after the other on instance 0 until nothing is left.
fn run_all(queue: &mut Queue, now: Timestamp) -> Vec<Vec<usize>> {
    let mut all = Vec::new();
    while let (Some(batch), _) = take(queue, 0, now) {
        all.push(names(&batch));
        finish(queue, batch, now);
    }
    all
}

#[test]
fn direct_rows_stay_and_gaps_are_filled() {
    let mut queue = Queue::new(direct(4), 1, 0);
    for (name, id) in [(1, 11), (2, 22), (3, 33)] {
        queue.push(fake(name, id, "s"), at(0)).unwrap();
    }
    assert_eq!(run_all(&mut queue, at(0)), [[1, 2, 3]]);
    queue.push(fake(4, 33, ""), at(1)).unwrap();
    assert_eq!(run_all(&mut queue, at(1)), [[0, 0, 4]]);
    queue.push(fake(5, 22, "e"), at(2)).unwrap();
    queue.push(fake(6, 11, ""), at(2)).unwrap();
    assert_eq!(run_all(&mut queue, at(2)), [[6, 5]]);
    // The row that was freed goes to the next.
    queue.push(fake(7, 44, "s"), at(3)).unwrap();
    assert_eq!(run_all(&mut queue, at(3)), [[0, 7]]);
    assert_eq!(queue.live(), 3);
}

#[test]
fn without_a_slot_sequences_wait_in_their_order() {
    for policy in [direct(1), oldest(1, 1), direct(0), oldest(0, 1)] {
        let mut queue = Queue::new(policy, 1, 0);
        for (name, id, flags) in [
            (1, 11, "s"),
            (2, 22, "s"),
            (3, 33, "se"),
            (4, 22, "e"),
            (5, 11, "e"),
            // The same name again, for another sequence.
            (6, 22, "se"),
        ] {
            queue.push(fake(name, id, flags), at(0)).unwrap();
        }
        let order = run_all(&mut queue, at(0)).concat();
        assert_eq!(order, [1, 5, 2, 4, 3, 6]);
        assert_eq!((queue.live(), queue.len()), (0, 0));
    }
}

#[test]
fn the_oldest_requests_of_all_candidates_form_a_batch() {
    let mut queue = Queue::new(oldest(4, 2), 1, 0);
    for (name, id, flags) in
        [(1, 11, "s"), (2, 22, "s"), (3, 33, "s"), (4, 11, "e"), (5, 22, "e"), (6, 33, "e")]
    {
        queue.push(fake(name, id, flags), at(0)).unwrap();
    }
    assert_eq!(run_all(&mut queue, at(0)), [vec![1, 2], vec![4, 5], vec![3], vec![6]]);
}

#[test]
fn wrong_requests_are_refused_and_named() {
    let mut queue = Queue::new(direct(4), 1, 0);
    let mut refused = |request: Fake| queue.push(request, at(0)).unwrap_err().1.to_string();
    let two = Fake { rows: 2, ..fake(1, 11, "se") };
    assert!(refused(two).contains("must specify batch-size 1"));
    assert!(refused(fake(1, 0, "s")).contains("non-zero or non-empty correlation ID"));
    assert!(refused(Fake { sequence: None, ..fake(1, 0, "") }).contains("correlation ID"));
    for flags in ["", "e"] {
        let text = refused(fake(1, 11, flags));
        assert!(text.contains("sequence 11 to model 'm' must specify the START flag"), "{text}");
    }
    assert_eq!(queue.live(), 0);
}

#[test]
fn an_idle_sequence_ends_and_its_slot_is_given_on() {
    for policy in [direct(1), oldest(1, 1)] {
        let mut queue = Queue::new(policy, 1, 0);
        queue.push(fake(1, 11, "s"), at(0)).unwrap();
        queue.push(fake(2, 22, "s"), at(0)).unwrap();
        let (batch, _) = take(&mut queue, 0, at(0));
        // It runs for longer than a sequence may be idle.
        assert!(queue.expire(at(5000)).is_empty());
        finish(&mut queue, batch.unwrap(), at(5000));
        assert!(queue.expire(at(5999)).is_empty());
        assert_eq!(queue.expire(at(6001)), [0]);
        assert!(queue.push(fake(3, 11, ""), at(6001)).is_err());
        assert_eq!(run_all(&mut queue, at(6001)), [[2]]);
        assert_eq!(queue.live(), 1);
    }
}

#[test]
fn who_starts_again_carries_nothing_over() {
    for policy in [direct(1), oldest(1, 1)] {
        let mut queue = Queue::new(policy, 1, 0);
        let mut carried = Vec::new();
        for (name, flags) in [(1, "s"), (2, ""), (3, "s"), (4, "")] {
            queue.push(fake(name, 11, flags), at(0)).unwrap();
        }
        while let (Some(batch), _) = take(&mut queue, 0, at(0)) {
            carried.extend(batch.rows.iter().flatten().map(|row| (row.start, row.carried)));
            finish(&mut queue, batch, at(0));
        }
        assert_eq!(carried, [(true, 0), (false, 1), (true, 0), (false, 1)]);
    }
}

/// What a queue with one slot makes of requests, each of a sequence, while the first runs: which run after
/// it, which fail, and who lives on.
#[test]
fn who_leaves_while_a_request_waits_ends_the_sequence_and_its_slot_goes_on() {
    type Case<'a> = (&'a [(u64, &'a str)], &'a [usize], &'a [usize], usize);
    let cases: [Case<'_>; 8] = [
        // A first request that waits for a slot, and those behind it.
        (&[(1, "s"), (2, "sx"), (1, "e"), (3, "s")], &[1, 3, 4], &[2], 1),
        (&[(1, "s"), (2, "sx"), (2, "x"), (1, "e"), (3, "s")], &[1, 4, 5], &[2, 3], 1),
        (&[(1, "s"), (2, "sx"), (2, ""), (2, "e"), (1, "e"), (3, "s")], &[1, 5, 6], &[2, 3, 4], 1),
        // A request in the middle, and the last.
        (&[(1, "s"), (1, "x"), (1, ""), (3, "s")], &[1, 4], &[2, 3], 1),
        (&[(1, "s"), (1, "ex"), (3, "se")], &[1, 3], &[2], 0),
        // Who begins anew does not go with the one before.
        (&[(1, "s"), (2, "sx"), (2, ""), (2, "se"), (1, "e"), (3, "s")], &[1, 5, 4, 6], &[2, 3], 1),
        (&[(1, "s"), (1, "x"), (1, "s"), (1, "e"), (3, "se")], &[1, 3, 4, 5], &[2], 0),
        (
            &[(1, "s"), (2, "sx"), (3, "sx"), (4, "sx"), (1, "x"), (5, "s")],
            &[1, 6],
            &[5, 2, 3, 4],
            1,
        ),
    ];
    for (case, (requests, expected, failed, live)) in cases.into_iter().enumerate() {
        for policy in [direct(1), oldest(1, 1), direct(0), oldest(0, 1)] {
            let mut queue = Queue::new(policy, 1, 0);
            for (&(id, flags), name) in requests.iter().zip(1..) {
                queue.push(fake(name, id, flags), at(0)).unwrap();
            }
            let (mut ran, mut gone) = (Vec::new(), Vec::new());
            loop {
                let (batch, hopeless) = take(&mut queue, 0, at(0));
                gone.extend(hopeless);
                let Some(batch) = batch else { break };
                ran.extend(names(&batch));
                finish(&mut queue, batch, at(0));
            }
            assert_eq!((&ran[..], &gone[..]), (expected, failed), "case {case}");
            assert_eq!((queue.live(), queue.len()), (live, 0), "case {case}");
        }
    }
}

#[test]
fn an_instance_that_is_lost_ends_its_sequences_and_no_others() {
    for policy in [direct(1), oldest(1, 1)] {
        let mut queue = Queue::new(policy, 2, 0);
        for (name, id, flags) in
            [(1, 11, "s"), (2, 22, "s"), (3, 33, "s"), (4, 11, ""), (5, 22, ""), (6, 11, "e")]
        {
            queue.push(fake(name, id, flags), at(0)).unwrap();
        }
        let lose = |queue: &mut Queue, instance| {
            let mut hopeless = Vec::new();
            queue.lose(instance, "it is gone".to_owned(), at(1), &mut hopeless);
            let told = |(request, error): (Fake, Error)| {
                assert_eq!(error.to_string(), "model 'm' is unavailable: it is gone");
                request.name
            };
            hopeless.into_iter().map(told).collect::<Vec<_>>()
        };
        let told = |queue: &mut Queue, request| queue.push(request, at(2)).unwrap_err().1;
        assert_eq!(lose(&mut queue, 0), [1, 4, 6]);
        // The sequence had said that it ends.
        assert!(matches!(told(&mut queue, fake(7, 11, "")), Error::SequenceNotStarted { .. }));
        let (batch, _) = take(&mut queue, 1, at(2));
        assert_eq!(names(batch.as_ref().unwrap()), [2]);
        finish(&mut queue, batch.unwrap(), at(2));
        // Who waits for a slot gets it where one is left, and who begins anew too.
        queue.push(fake(8, 22, "e"), at(2)).unwrap();
        queue.push(fake(9, 11, "s"), at(2)).unwrap();
        let mut ran = Vec::new();
        while let (Some(batch), _) = take(&mut queue, 1, at(2)) {
            ran.extend(names(&batch));
            finish(&mut queue, batch, at(2));
        }
        assert_eq!(ran, [5, 8, 3]);
        // Nothing of 33 waits; its client is told once, as is everybody when no instance is left.
        assert_eq!(lose(&mut queue, 1), [9]);
        for (name, id, flags) in [(10, 33, ""), (11, 33, "s"), (12, 44, "se"), (13, 11, "e")] {
            let error = told(&mut queue, fake(name, id, flags));
            assert!(matches!(error, Error::ModelUnavailable { .. }), "{name}: {error}");
        }
        assert_eq!((queue.live(), queue.len(), queue.table.free().len()), (0, 0, 0));
    }
}

#[test]
fn a_sequence_that_was_lost_while_idle_is_told_so_once() {
    for policy in [direct(1), oldest(1, 1)] {
        let mut queue = Queue::new(policy, 2, 0);
        for (name, id) in [(1, 11), (2, 22)] {
            queue.push(fake(name, id, "s"), at(0)).unwrap();
            let (batch, _) = take(&mut queue, name as u32 - 1, at(0));
            finish(&mut queue, batch.unwrap(), at(0));
        }
        queue.lose(0, "it is gone".to_owned(), at(1), &mut Vec::new());
        let mut told = |name, id, flags| queue.push(fake(name, id, flags), at(1));
        assert!(matches!(told(3, 11, ""), Err((_, Error::ModelUnavailable { .. }))));
        assert!(matches!(told(4, 11, ""), Err((_, Error::SequenceNotStarted { .. }))));
        assert!(told(5, 22, "e").is_ok());
        assert!(told(6, 11, "se").is_ok());
        let (batch, _) = take(&mut queue, 1, at(1));
        finish(&mut queue, batch.unwrap(), at(1));
        assert_eq!(names(&take(&mut queue, 1, at(1)).0.unwrap()), [6]);
    }
}

#[test]
fn a_batch_waits_until_enough_slots_are_ready() {
    let mut policy = direct(4);
    policy.strategy = SequenceStrategy::Direct {
        max_queue_delay: Duration::from_micros(100),
        minimum_slot_utilization: 0.5,
    };
    let mut queue = Queue::new(policy, 1, 0);
    let mut hopeless = Vec::new();
    queue.push(fake(1, 11, "s"), at(10)).unwrap();
    let decision = queue.next(0, at(20), &mut hopeless);
    assert!(matches!(decision, SequenceDecision::WaitUntil(due) if due == at(110)));
    queue.push(fake(2, 22, "s"), at(30)).unwrap();
    assert_eq!(run_all(&mut queue, at(30)), [[1, 2]]);
    queue.push(fake(3, 11, ""), at(200)).unwrap();
    assert_eq!(run_all(&mut queue, at(299)), Vec::<Vec<usize>>::new());
    assert_eq!(run_all(&mut queue, at(300)), [[3]]);
}

#[test]
fn slots_are_spread_over_the_instances() {
    let mut queue = Queue::new(direct(2), 2, 0);
    for (name, id) in [(1, 11), (2, 22), (3, 33), (4, 44)] {
        queue.push(fake(name, id, "s"), at(0)).unwrap();
    }
    let mut on = |instance| names(&take(&mut queue, instance, at(0)).0.unwrap());
    assert_eq!((on(0), on(1)), (vec![1, 3], vec![2, 4]));
}

#[test]
fn sequences_that_are_over_are_forgotten() {
    let mut queue = Queue::new(direct(1), 1, 0);
    for name in 1..10_000 {
        queue.push(fake(name, name as u64, "se"), at(0)).unwrap();
        run_all(&mut queue, at(0));
    }
    let looks = queue.table.looks();
    assert!(looks < 100, "{looks}");
    assert_eq!(queue.table.free().len(), 1);
}

proptest! {
    #[test]
    fn requests_of_a_sequence_run_in_their_order(
        ids in prop::collection::vec(1..6_u64, 1..60),
        slots in 1..4_u32,
        is_direct in any::<bool>(),
    ) {
        let policy = if is_direct { direct(slots) } else { oldest(2, slots) };
        let mut queue = Queue::new(policy, 1, 0);
        let mut expected: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        let last: BTreeMap<u64, usize> = ids.iter().zip(1..).map(|(&id, name)| (id, name)).collect();
        for (&id, name) in ids.iter().zip(1..) {
            let flags = match (expected.contains_key(&id), last[&id] == name) {
                (false, true) => "se",
                (false, false) => "s",
                (true, true) => "e",
                (true, false) => "",
            };
            queue.push(fake(name, id, flags), at(0)).unwrap();
            expected.entry(id).or_default().push(name);
        }
        let mut ran: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for name in run_all(&mut queue, at(0)).concat().into_iter().filter(|&name| name > 0) {
            ran.entry(ids[name - 1]).or_default().push(name);
        }
        prop_assert_eq!(ran, expected);
        prop_assert_eq!(queue.live(), 0);
    }
}

#[test]
fn an_iterative_sequence_is_one_request_that_runs_as_often_as_it_wants() {
    for policy in [direct(0), oldest(0, 1), direct(1), oldest(1, 1)] {
        let mut queue = Queue::new(SequencePolicy { iterative: true, ..policy }, 1, 0);
        assert_eq!(queue.unused_id(), CorrelationId::Number(1));
        queue.push(fake(1, 2, "s"), at(0)).unwrap();
        // A client has taken 2.
        assert_eq!(queue.unused_id(), CorrelationId::Number(3));
        queue.push(fake(2, 22, "s"), at(0)).unwrap();
        let mut seen = Vec::new();
        while let (Some(batch), _) = take(&mut queue, 0, at(seen.len() as u64)) {
            let row = batch.rows.into_iter().flatten().next().unwrap();
            seen.push((row.request.name, row.start));
            if seen.len() < 3 {
                queue.push_again(row.key, row.request, at(9)).unwrap();
                queue.finished(row.key, row.carried, at(9));
            } else {
                queue.finished(row.key, row.carried, at(9));
                let late = queue.push_again(row.key, row.request, at(9)).unwrap_err();
                assert!(matches!(late.1, Error::SequenceNotStarted { .. }));
            }
        }
        assert_eq!(seen, [(1, true), (1, false), (1, false), (2, true)]);
        assert_eq!((queue.live(), queue.len()), (0, 0));
    }
}
