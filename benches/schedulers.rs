//! What a request costs the sequence batcher, for few sequences that live and for many; and, on a virtual clock,
//! what the delay that the dynamic batcher chooses brings beside fixed ones.
//!
//! `make bench-schedulers`; what both cost over the wire is measured by `make bench-sequences` and
//! `make bench-ensembles`.

mod goals;
#[path = "../tests/delay/simulation.rs"]
mod simulation;

use std::{collections::HashMap, hint::black_box, process::ExitCode, time::Duration};

use criterion::{BenchmarkId, Criterion, criterion_group};
use goals::Goals;
use nereid::{
    inference::{CorrelationId, Sequence, Timestamp},
    repository::SequenceStrategy,
    scheduler::{Carried, Queued, SequenceDecision, SequencePolicy, SequenceQueue, Sequenced},
};

use simulation::{Delay, Outcome, played_fixed, share_of_best, simulate};

/// As large as a request on its way through the server, for what is cold costs by its size.
struct Request {
    sequence: Sequence,
    _rest: [u8; 512],
}

impl Queued for Request {
    fn rows(&self) -> u32 {
        1
    }
}

impl Sequenced for Request {
    fn sequence(&self) -> Option<&Sequence> {
        Some(&self.sequence)
    }
}

#[derive(Clone)]
struct Nothing;

impl Carried for Nothing {
    fn fits_with(&self, _: &Self) -> bool {
        true
    }
}

const TOGETHER: u64 = 8;
const LIVE: [u64; 4] = [10, 100, 1000, 10_000];

/// Eight requests come, of sequences in turn, and run together.
fn sequences(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("a batch of eight requests");
    for live in LIVE {
        let policy = SequencePolicy {
            model: "m".to_owned(),
            max_batch_size: TOGETHER as u32,
            strategy: SequenceStrategy::Oldest {
                max_candidates: 1 << 14,
                preferred_sizes: Vec::new(),
                max_queue_delay: Duration::ZERO,
                preserve_ordering: false,
            },
            iterative: false,
            max_idle: Duration::from_secs(1),
        };
        let mut queue = SequenceQueue::new(policy, 1, Nothing);
        let mut nanos = 0;
        let mut hopeless = Vec::new();
        let mut come = |queue: &mut SequenceQueue<Request, Nothing>, id: u64, start: bool| {
            nanos += 1000;
            let now = Timestamp::from_nanos(nanos);
            let id = CorrelationId::Number(id + 1);
            let sequence = Sequence { id, start, end: false };
            let request = Request { sequence, _rest: [0; 512] };
            assert!(queue.push(request, now).is_ok(), "the sequence has begun");
            now
        };
        let mut run = |queue: &mut SequenceQueue<Request, Nothing>, now| {
            queue.expire(now);
            while let SequenceDecision::Run(batch) = queue.next(0, now, &mut hopeless) {
                for row in batch.rows.into_iter().flatten() {
                    queue.finished(row.key, black_box(row.carried), now);
                }
            }
        };
        for id in 0..live {
            let now = come(&mut queue, id, true);
            run(&mut queue, now);
        }
        let mut next = 0;
        group.bench_function(BenchmarkId::from_parameter(live), |bencher| {
            bencher.iter(|| {
                let mut now = Timestamp::default();
                for _ in 0..TOGETHER {
                    now = come(&mut queue, next % live, false);
                    next += 1;
                }
                run(&mut queue, now);
            });
        });
        assert_eq!(queue.live() as u64, live);
    }
    group.finish();
}

/// The least that could be done for them: to find each by its id, and to write to what is known of it. It
/// too costs more the more there are, for they do not all lie in the nearest cache.
fn bound(criterion: &mut Criterion) {
    const KNOWN_BYTES: usize = 192;
    let mut group = criterion.benchmark_group("bound: to find eight sequences");
    for live in LIVE {
        let ids = (1..=live).map(CorrelationId::Number);
        let places: HashMap<CorrelationId, usize> = ids.zip(0..).collect();
        let mut known = vec![[0_u8; KNOWN_BYTES]; places.len()];
        let mut next = 0;
        group.bench_function(BenchmarkId::from_parameter(live), |bencher| {
            bencher.iter(|| {
                for _ in 0..TOGETHER {
                    let place = places[black_box(&CorrelationId::Number(next % live + 1))];
                    let known = &mut known[place];
                    known.iter_mut().step_by(64).for_each(|byte| *byte = byte.wrapping_add(1));
                    next += 1;
                }
            });
        });
    }
    group.finish();
}

/// The table of a delay that is chosen beside fixed ones. It is simulated: the same on every machine.
fn delays() -> ExitCode {
    const EACH: Duration = Duration::from_secs(2);
    const SHARE_MIN: f64 = 0.9;
    let [target, ..] = simulation::TARGETS;
    println!("Simulated, requests a second (p99 in ms), target {} ms", target.as_millis());
    let mut goals = Goals::of("schedulers");
    for site in &simulation::SITES {
        println!(
            "\n| {}, at most {:.0} rows a second | auto | 0 µs | 100 µs | 500 µs | 1000 µs | of the best |\n\
             |---|---|---|---|---|---|---|",
            site.name,
            site.capacity()
        );
        let auto = simulate(site, Delay::Auto { target }, &simulation::STEPS, EACH);
        let fixed = played_fixed(site, &simulation::STEPS, EACH);
        let mut worst = 0.0_f64;
        for (step, (load, auto)) in simulation::STEPS.iter().zip(auto).enumerate() {
            let fixed = fixed.each_ref().map(|of_delay| of_delay[step]);
            let is_late = auto.p99 > target && fixed.iter().any(|it| it.p99 <= target);
            let share = if is_late { 0.0 } else { share_of_best(&auto, &fixed, target) };
            worst = worst.max(1.0 / share);
            let cells = std::iter::once(auto).chain(fixed).map(|Outcome { per_second, p99 }| {
                format!(" {per_second:.0} ({:.1}) |", p99.as_secs_f64() * 1e3)
            });
            println!("| {load:?} |{} {share:.2} |", cells.collect::<String>());
        }
        goals.at_most(
            &format!(
                "{}: the best fixed delay's throughput beside it at equal p99, without end where it alone \
                 missed the target",
                site.name
            ),
            worst,
            1.0 / SHARE_MIN,
        );
    }
    goals.conclude()
}

criterion_group!(parts, sequences, bound);

fn main() -> ExitCode {
    parts();
    Criterion::default().configure_from_args().final_summary();
    delays()
}
