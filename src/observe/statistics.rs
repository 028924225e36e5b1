use std::{
    ops::Add,
    sync::atomic::{AtomicU64, Ordering},
    time::{self, SystemTime, UNIX_EPOCH},
};

use super::{
    Fallback,
    latency::{Latencies, Plan, Recorder, Step},
    responses::{ResponseKind, Responses},
};
use crate::{inference::Timestamp, proto};

/// Batches of more rows than this are counted in the totals only.
const BATCH_SIZES_MAX: usize = 1024;

/// How often something happened and how long it took in all.
#[derive(Default)]
struct Counter {
    count: AtomicU64,
    nanos: AtomicU64,
}

impl Counter {
    fn add(&self, count: u64, time: time::Duration) {
        bump(&self.count, count);
        bump(&self.nanos, nanos(time));
    }

    fn read(&self) -> Duration {
        Duration {
            count: self.count.load(Ordering::Relaxed),
            nanos: self.nanos.load(Ordering::Relaxed),
        }
    }
}

/// Only the owning reactor adds, so a load and a store are enough.
pub(super) fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

/// A time in the past in milliseconds since 1970.
fn unix_ms(at: Timestamp) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let then = now.saturating_sub(Timestamp::now() - at);
    u64::try_from(then.as_millis()).unwrap_or(u64::MAX)
}

fn nanos(time: time::Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A number of events and their total time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Duration {
    /// How many.
    pub count: u64,
    /// Nanoseconds in all.
    pub nanos: u64,
}

impl Duration {
    fn plus(self, other: Self) -> Self {
        Self { count: self.count + other.count, nanos: self.nanos + other.nanos }
    }
}

impl From<Duration> for proto::StatisticDuration {
    fn from(duration: Duration) -> Self {
        Self { count: duration.count, ns: duration.nanos }
    }
}

/// What one reactor counted of one model version.
#[derive(Default)]
#[repr(align(128))]
struct Core {
    success: Counter,
    fail: Counter,
    /// Failures by [`Failure`].
    failures: [AtomicU64; 4],
    /// Batches by [`Closure`].
    closures: [AtomicU64; Closure::ALL.len()],
    /// Batches by [`Fallback`].
    fallbacks: [AtomicU64; Fallback::ALL.len()],
    queue: Counter,
    compute_input: Counter,
    compute_infer: Counter,
    compute_output: Counter,
    cache_hit: Counter,
    cache_miss: Counter,
    inferences: AtomicU64,
    executions: AtomicU64,
    pending: AtomicU64,
    /// In nanoseconds; 0 when there was none.
    last_inference: AtomicU64,
    batches: Box<[BatchCounters]>,
    latencies: Recorder,
}

/// Executions of one batch size.
#[derive(Default)]
struct BatchCounters {
    compute_input: Counter,
    compute_infer: Counter,
    compute_output: Counter,
}

/// Statistics of one version of a model.
pub struct ModelStatistics {
    /// By reactor; none where the model is not served.
    cores: Box<[Option<Core>]>,
    responses: Responses,
}

/// Why a request failed, as the metrics tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The queue was full or the request waited too long.
    Rejected,
    /// Its client left.
    Cancelled,
    /// The back end failed.
    Backend,
    /// Anything else.
    Other,
}

/// Why the dynamic batcher closed a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closure {
    /// It was as large as a batch may be, or the next request too large for what was left.
    Full,
    /// It had a preferred size, and could have been larger.
    Preferred,
    /// Its oldest request had waited for long enough.
    Delay,
    /// The next request had another shape.
    Shape,
    /// The model does not batch.
    Single,
}

impl Closure {
    /// All of them with their names in the metrics, in the order of their numbers.
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::Full, "full"),
        (Self::Preferred, "preferred"),
        (Self::Delay, "delay"),
        (Self::Shape, "shape"),
        (Self::Single, "single"),
    ];
}

/// How long the steps of one batch took.
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchTimes {
    /// Putting the inputs in place.
    pub compute_input: time::Duration,
    /// Running the model.
    pub compute_infer: time::Duration,
    /// Taking the outputs apart.
    pub compute_output: time::Duration,
}

impl Add for BatchTimes {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            compute_input: self.compute_input + other.compute_input,
            compute_infer: self.compute_infer + other.compute_infer,
            compute_output: self.compute_output + other.compute_output,
        }
    }
}

impl BatchTimes {
    /// All of them together.
    pub fn total(&self) -> time::Duration {
        self.compute_input + self.compute_infer + self.compute_output
    }
}

/// Sums over all reactors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Totals {
    pub success: Duration,
    pub fail: Duration,
    pub queue: Duration,
    pub compute_input: Duration,
    pub compute_infer: Duration,
    pub compute_output: Duration,
    pub cache_hit: Duration,
    pub cache_miss: Duration,
    pub rejected: u64,
    pub cancelled: u64,
    pub backend_failures: u64,
    pub other_failures: u64,
    pub inferences: u64,
    pub executions: u64,
    pub pending: u64,
    pub last_inference_ms: u64,
    /// Batches by [`Closure`].
    pub closures: [u64; Closure::ALL.len()],
    /// Batches by [`Fallback`].
    pub fallbacks: [u64; Fallback::ALL.len()],
}

impl ModelStatistics {
    /// For a model whose batches have at most `max_batch_size` rows, and of which `plan` is kept. The
    /// iterator tells of each reactor whether the model is served there.
    pub fn new(served: impl Iterator<Item = bool>, max_batch_size: u32, plan: &Plan) -> Self {
        let sizes = (max_batch_size.max(1) as usize).min(BATCH_SIZES_MAX);
        let core = || Core {
            batches: (0..sizes).map(|_| BatchCounters::default()).collect(),
            latencies: plan.recorder(),
            ..Core::default()
        };
        let cores = served.map(|is_served| is_served.then(core)).collect();
        Self { cores, responses: Responses::default() }
    }

    fn core(&self, reactor: usize) -> Option<&Core> {
        self.cores.get(reactor)?.as_ref()
    }

    fn counted(&self) -> impl Iterator<Item = &Core> {
        self.cores.iter().flatten()
    }

    /// Counts a request that entered the queue. Called, as all that follow, on reactor `reactor`.
    pub fn enqueued(&self, reactor: usize) {
        if let Some(core) = self.core(reactor) {
            bump(&core.pending, 1);
        }
    }

    /// Counts a request that left the queue.
    pub fn dequeued(&self, reactor: usize) {
        if let Some(core) = self.core(reactor) {
            bump(&core.pending, 1_u64.wrapping_neg());
        }
    }

    /// Counts a batch that was closed.
    pub fn closed(&self, reactor: usize, why: Closure) {
        if let Some(core) = self.core(reactor) {
            bump(&core.closures[why as usize], 1);
        }
    }

    /// Counts a batch of which tensors came to the host, although they could have stayed on its device.
    pub fn fell_back(&self, reactor: usize, why: Fallback) {
        if let Some(core) = self.core(reactor) {
            bump(&core.fallbacks[why as usize], 1);
        }
    }

    /// Counts a batch that has run by `now`, of `rows` rows of requests and `fillers` others.
    pub fn executed(
        &self,
        reactor: usize,
        (rows, fillers): (u32, u32),
        requests: u64,
        times: BatchTimes,
        now: Timestamp,
    ) {
        let Some(core) = self.core(reactor) else { return };
        bump(&core.inferences, u64::from(rows));
        bump(&core.executions, 1);
        core.compute_input.add(requests, scaled(times.compute_input, requests));
        core.compute_infer.add(requests, scaled(times.compute_infer, requests));
        core.compute_output.add(requests, scaled(times.compute_output, requests));
        core.latencies.note(Step::ComputeInput, times.compute_input, requests);
        core.latencies.note(Step::ComputeInfer, times.compute_infer, requests);
        core.latencies.note(Step::ComputeOutput, times.compute_output, requests);
        core.last_inference.store(now.as_nanos().max(1), Ordering::Relaxed);
        if let Some(batch) = core.batches.get((rows as usize + fillers as usize).saturating_sub(1))
        {
            batch.compute_input.add(1, times.compute_input);
            batch.compute_infer.add(1, times.compute_infer);
            batch.compute_output.add(1, times.compute_output);
        }
    }

    /// Counts a request that succeeded after `total`, of which it waited `queued`, and whose first
    /// response came after `first_response`.
    pub fn succeeded(
        &self,
        reactor: usize,
        total: time::Duration,
        queued: time::Duration,
        first_response: time::Duration,
    ) {
        if let Some(core) = self.core(reactor) {
            core.success.add(1, total);
            core.queue.add(1, queued);
            core.latencies.note(Step::Request, total, 1);
            core.latencies.note(Step::FirstResponse, first_response, 1);
            core.latencies.note(Step::Queue, queued, 1);
        }
    }

    /// Counts a request that the response cache answered, which took `time`.
    pub fn found(&self, reactor: usize, time: time::Duration) {
        if let Some(core) = self.core(reactor) {
            core.cache_hit.add(1, time);
            core.latencies.note(Step::CacheHit, time, 1);
        }
    }

    /// Counts a request that the response cache did not answer; looking it up and keeping its answer took
    /// `time`.
    pub fn missed(&self, reactor: usize, time: time::Duration) {
        if let Some(core) = self.core(reactor) {
            core.cache_miss.add(1, time);
            core.latencies.note(Step::CacheMiss, time, 1);
        }
    }

    /// Counts a request that failed after `total`.
    pub fn failed(&self, reactor: usize, failure: Failure, total: time::Duration) {
        if let Some(core) = self.core(reactor) {
            core.fail.add(1, total);
            bump(&core.failures[failure as usize], 1);
        }
    }

    /// Counts the response `index` of a request to a model that gives several; it took `time` from the
    /// one before it. Called on any thread.
    pub fn responded(&self, index: usize, kind: ResponseKind, time: time::Duration) {
        self.responses.note(index, kind, time);
    }

    /// The sums over all reactors.
    pub fn totals(&self) -> Totals {
        let mut sum = Totals::default();
        for core in self.counted() {
            sum.success = sum.success.plus(core.success.read());
            sum.fail = sum.fail.plus(core.fail.read());
            let failures =
                |failure: Failure| core.failures[failure as usize].load(Ordering::Relaxed);
            sum.rejected += failures(Failure::Rejected);
            sum.cancelled += failures(Failure::Cancelled);
            sum.backend_failures += failures(Failure::Backend);
            sum.other_failures += failures(Failure::Other);
            for (sum, closures) in sum.closures.iter_mut().zip(&core.closures) {
                *sum += closures.load(Ordering::Relaxed);
            }
            for (sum, fallbacks) in sum.fallbacks.iter_mut().zip(&core.fallbacks) {
                *sum += fallbacks.load(Ordering::Relaxed);
            }
            sum.queue = sum.queue.plus(core.queue.read());
            sum.compute_input = sum.compute_input.plus(core.compute_input.read());
            sum.compute_infer = sum.compute_infer.plus(core.compute_infer.read());
            sum.compute_output = sum.compute_output.plus(core.compute_output.read());
            sum.cache_hit = sum.cache_hit.plus(core.cache_hit.read());
            sum.cache_miss = sum.cache_miss.plus(core.cache_miss.read());
            sum.inferences += core.inferences.load(Ordering::Relaxed);
            sum.executions += core.executions.load(Ordering::Relaxed);
            // A request may enter on one reactor and leave on another: only the sum means anything.
            sum.pending = sum.pending.wrapping_add(core.pending.load(Ordering::Relaxed));
            let last = match core.last_inference.load(Ordering::Relaxed) {
                0 => 0,
                nanos => unix_ms(Timestamp::from_nanos(nanos)),
            };
            sum.last_inference_ms = sum.last_inference_ms.max(last);
        }
        sum
    }

    /// The distributions of durations, of all reactors together.
    pub fn latencies(&self) -> Latencies {
        let mut sum = Latencies::default();
        self.counted().for_each(|core| sum.add(&core.latencies));
        sum
    }

    /// The statistics as the protocol reports them.
    pub fn to_proto(&self, name: &str, version: i64) -> proto::ModelStatistics {
        let totals = self.totals();
        proto::ModelStatistics {
            name: name.to_owned(),
            version: version.to_string(),
            last_inference: totals.last_inference_ms,
            inference_count: totals.inferences,
            execution_count: totals.executions,
            inference_stats: Some(proto::InferStatistics {
                success: Some(totals.success.into()),
                fail: Some(totals.fail.into()),
                queue: Some(totals.queue.into()),
                compute_input: Some(totals.compute_input.into()),
                compute_infer: Some(totals.compute_infer.into()),
                compute_output: Some(totals.compute_output.into()),
                cache_hit: Some(totals.cache_hit.into()),
                cache_miss: Some(totals.cache_miss.into()),
            }),
            batch_stats: self.batch_statistics(),
            memory_usage: Vec::new(),
            response_stats: self.responses.to_proto(),
        }
    }

    fn batch_statistics(&self) -> Vec<proto::InferBatchStatistics> {
        let sizes = self.counted().next().map_or(0, |core| core.batches.len());
        (0..sizes)
            .filter_map(|index| {
                let sum = |counter: fn(&BatchCounters) -> &Counter| {
                    self.counted()
                        .filter_map(|core| core.batches.get(index))
                        .fold(Duration::default(), |sum, batch| sum.plus(counter(batch).read()))
                };
                let compute_infer = sum(|batch| &batch.compute_infer);
                (compute_infer.count > 0).then(|| proto::InferBatchStatistics {
                    batch_size: index as u64 + 1,
                    compute_input: Some(sum(|batch| &batch.compute_input).into()),
                    compute_infer: Some(compute_infer.into()),
                    compute_output: Some(sum(|batch| &batch.compute_output).into()),
                })
            })
            .collect()
    }
}

/// Every request of a batch counts the whole of the batch's time, as Triton has it.
fn scaled(time: time::Duration, requests: u64) -> time::Duration {
    time.saturating_mul(u32::try_from(requests).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::{super::latency::FAMILIES, *};

    #[test]
    fn only_reactors_that_serve_a_model_have_memory_for_what_they_count() {
        let plan = Plan::new(&proto::ModelConfig::default(), true, true);
        let served = [false, true, false, true];
        let statistics = ModelStatistics::new(served.into_iter(), 8, &plan);
        let arrays: Vec<_> = statistics
            .cores
            .iter()
            .map(|core| {
                core.as_ref().map(|core| (core.batches.len(), core.latencies.distributions()))
            })
            .collect();
        let kept = Some((8, FAMILIES.len() + Step::ALL.len()));
        assert_eq!(arrays, [None, kept, None, kept]);
        // What is told of elsewhere is dropped, not counted at another's place.
        for reactor in 0..5 {
            statistics.succeeded(
                reactor,
                time::Duration::from_micros(3),
                time::Duration::ZERO,
                time::Duration::from_micros(3),
            );
        }
        assert_eq!(statistics.totals().success, Duration { count: 2, nanos: 6000 });

        let plain = ModelStatistics::new(served.into_iter(), 1, &Plan::default());
        let arrays =
            plain.counted().map(|core| (core.batches.len(), core.latencies.distributions()));
        assert_eq!(arrays.collect::<Vec<_>>(), [(1, 0); 2]);
    }
}
