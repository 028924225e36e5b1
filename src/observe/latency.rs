//! How long requests and their steps took, as distributions.
//!
//! Each reactor notes into arrays of its own; whoever reads adds them up. Histograms have the buckets
//! that the operator wants; summaries have fine ones, from which any quantile can be read.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::statistics::bump;
use crate::proto::{ModelConfig, model_metrics::metric_control::MetricOptions};

/// What a request's time goes into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Step {
    Request,
    Queue,
    ComputeInput,
    ComputeInfer,
    ComputeOutput,
    CacheHit,
    CacheMiss,
    /// From the request to its first response; no summary is kept of it.
    FirstResponse,
}

impl Step {
    /// Those that summaries are kept of, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::Request,
        Self::Queue,
        Self::ComputeInput,
        Self::ComputeInfer,
        Self::ComputeOutput,
        Self::CacheHit,
        Self::CacheMiss,
    ];
}

/// A family of histograms.
#[derive(Debug)]
pub struct Family {
    /// Its name in the metrics, by which a model's configuration gives its buckets.
    pub name: &'static str,
    /// What it tells.
    pub help: &'static str,
    /// What is measured.
    pub step: Step,
    /// The unit of its buckets in nanoseconds.
    pub unit: u64,
    buckets: &'static [f64],
}

/// Upper bounds in microseconds, from what a small model takes to what nobody waits for.
const MICROS: &[f64] =
    &[50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 2.5e4, 5e4, 1e5, 2.5e5, 1e6];

/// The families of histograms. The first is Triton's, with Triton's buckets.
pub const FAMILIES: [Family; 6] = [
    Family {
        name: "nv_inference_first_response_histogram_ms",
        help: "Duration from request to first response in milliseconds",
        step: Step::FirstResponse,
        unit: 1_000_000,
        buckets: &[100.0, 500.0, 2000.0, 5000.0],
    },
    Family {
        name: "nv_inference_request_histogram_us",
        help: "Distribution of inference request durations in microseconds",
        step: Step::Request,
        unit: 1000,
        buckets: MICROS,
    },
    Family {
        name: "nv_inference_queue_histogram_us",
        help: "Distribution of inference queuing durations in microseconds",
        step: Step::Queue,
        unit: 1000,
        buckets: MICROS,
    },
    Family {
        name: "nv_inference_compute_input_histogram_us",
        help: "Distribution of compute input durations in microseconds",
        step: Step::ComputeInput,
        unit: 1000,
        buckets: MICROS,
    },
    Family {
        name: "nv_inference_compute_infer_histogram_us",
        help: "Distribution of compute inference durations in microseconds",
        step: Step::ComputeInfer,
        unit: 1000,
        buckets: MICROS,
    },
    Family {
        name: "nv_inference_compute_output_histogram_us",
        help: "Distribution of compute output durations in microseconds",
        step: Step::ComputeOutput,
        unit: 1000,
        buckets: MICROS,
    },
];

/// Which distributions are kept of a model.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The upper bounds of each family's buckets in nanoseconds; empty without histograms.
    bounds: Vec<Arc<[u64]>>,
    summaries: bool,
}

impl Plan {
    /// For a model with this configuration, whose `model_metrics` may give buckets of its own.
    pub fn new(config: &ModelConfig, histograms: bool, summaries: bool) -> Self {
        let families = if histograms { &FAMILIES[..] } else { &[] };
        Self { bounds: families.iter().map(|family| bounds(family, config)).collect(), summaries }
    }

    /// A place for one reactor to note in.
    pub(super) fn recorder(&self) -> Recorder {
        Recorder {
            histograms: self.bounds.iter().map(Histogram::new).collect(),
            summaries: match self.summaries {
                true => Step::ALL.iter().map(|_| Summary::default()).collect(),
                false => Box::default(),
            },
        }
    }
}

fn bounds(family: &Family, config: &ModelConfig) -> Arc<[u64]> {
    let controls = config.model_metrics.iter().flat_map(|metrics| &metrics.metric_control);
    let own = controls.into_iter().find_map(|control| match &control.metric_options {
        Some(MetricOptions::HistogramOptions(options))
            if control.metric_identifier.as_ref()?.family == family.name =>
        {
            Some(options.buckets.as_slice())
        }
        _ => None,
    });
    let bounds = own.unwrap_or(family.buckets).iter().filter(|bound| bound.is_finite());
    // Beyond 64 bits the cast keeps the largest.
    let mut bounds: Vec<u64> = bounds.map(|bound| (bound * family.unit as f64) as u64).collect();
    bounds.sort_unstable();
    bounds.dedup();
    bounds.into()
}

/// What one reactor noted of one model version.
#[derive(Default)]
pub(super) struct Recorder {
    /// By family.
    histograms: Box<[Histogram]>,
    /// By step.
    summaries: Box<[Summary]>,
}

impl Recorder {
    /// Notes that a step took `time` for each of `requests`.
    #[inline]
    pub fn note(&self, step: Step, time: Duration, requests: u64) {
        if self.histograms.is_empty() && self.summaries.is_empty() {
            return;
        }
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        for (family, histogram) in FAMILIES.iter().zip(&self.histograms) {
            if family.step == step {
                histogram.note(nanos, requests);
            }
        }
        if let Some(summary) = self.summaries.get(step as usize) {
            summary.note(nanos, requests);
        }
    }

    /// How many histograms and summaries there is memory for.
    #[cfg(test)]
    pub fn distributions(&self) -> usize {
        self.histograms.len() + self.summaries.len()
    }
}

struct Histogram {
    bounds: Arc<[u64]>,
    /// By power of two, the first bucket that a duration from there on may be in: what remains to be
    /// looked at is a bound or two, where a search would guess wrong at each of its steps.
    starts: Box<[u16; 64]>,
    /// One more than bounds: the last for what is above all.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Histogram {
    fn new(bounds: &Arc<[u64]>) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        let start = |power: usize| bounds.partition_point(|&bound| bound < 1 << power);
        let starts = std::array::from_fn(|power| u16::try_from(start(power)).unwrap_or(u16::MAX));
        Self { bounds: bounds.clone(), starts: Box::new(starts), counts, sum: AtomicU64::new(0) }
    }

    fn bucket(&self, nanos: u64) -> usize {
        let power = nanos.checked_ilog2().unwrap_or(0) as usize;
        let start = usize::from(self.starts[power % self.starts.len()]);
        let above = self.bounds.get(start..).unwrap_or_default();
        start + above.iter().take_while(|&&bound| bound < nanos).count()
    }

    fn note(&self, nanos: u64, times: u64) {
        if let Some(count) = self.counts.get(self.bucket(nanos)) {
            bump(count, times);
        }
        bump(&self.sum, nanos.wrapping_mul(times));
    }
}

/// Sixteen buckets for each power of two, so that none is wider than a sixteenth of its lower bound.
const FINE_BITS: u32 = 4;
/// The largest power of two that has buckets: over an hour.
const LARGEST_BITS: u32 = 42;
const FINE_BUCKETS: usize = ((LARGEST_BITS - FINE_BITS) << FINE_BITS) as usize;

fn fine_bucket(nanos: u64) -> usize {
    let nanos = nanos.clamp(1 << FINE_BITS, (1 << LARGEST_BITS) - 1);
    let power = nanos.ilog2();
    let fine = (nanos >> (power - FINE_BITS)) as usize & ((1 << FINE_BITS) - 1);
    (((power - FINE_BITS) as usize) << FINE_BITS) | fine
}

/// The middle of a fine bucket in nanoseconds.
fn fine_middle(bucket: usize) -> u64 {
    let power = (bucket >> FINE_BITS) as u32;
    let fine = (bucket & ((1 << FINE_BITS) - 1)) as u64;
    (((1 << FINE_BITS) + fine) << power) + ((1 << power) >> 1)
}

struct Summary {
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Default for Summary {
    fn default() -> Self {
        let counts = (0..FINE_BUCKETS).map(|_| AtomicU64::new(0)).collect();
        Self { counts, sum: AtomicU64::new(0) }
    }
}

impl Summary {
    fn note(&self, nanos: u64, times: u64) {
        if let Some(count) = self.counts.get(fine_bucket(nanos)) {
            bump(count, times);
        }
        bump(&self.sum, nanos.wrapping_mul(times));
    }
}

/// What was noted on all reactors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Latencies {
    /// By family; empty without histograms.
    pub histograms: Vec<HistogramTotals>,
    /// By step; empty without summaries.
    pub summaries: Vec<SummaryTotals>,
}

/// A histogram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistogramTotals {
    /// Upper bounds in nanoseconds.
    pub bounds: Arc<[u64]>,
    /// How many were in each bucket, and above the last.
    pub counts: Vec<u64>,
    /// Of all, in nanoseconds.
    pub sum: u64,
}

/// A distribution from which quantiles can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SummaryTotals {
    counts: Vec<u64>,
    /// Of all, in nanoseconds.
    pub sum: u64,
}

impl SummaryTotals {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What the share `quantile` of all stayed below, in nanoseconds, to within a sixteenth; `None`
    /// when there were none.
    pub fn quantile(&self, quantile: f64) -> Option<u64> {
        let rank = (quantile * self.count() as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        let bucket = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        Some(fine_middle(bucket))
    }
}

impl Latencies {
    /// Adds what one reactor noted. All have the same buckets.
    pub(super) fn add(&mut self, recorder: &Recorder) {
        let read = |counts: &[AtomicU64], sums: &mut Vec<u64>| {
            sums.resize(counts.len(), 0);
            for (sum, count) in sums.iter_mut().zip(counts) {
                *sum = sum.wrapping_add(count.load(Ordering::Relaxed));
            }
        };
        for (index, histogram) in recorder.histograms.iter().enumerate() {
            if self.histograms.len() == index {
                let bounds = histogram.bounds.clone();
                self.histograms.push(HistogramTotals { bounds, counts: Vec::new(), sum: 0 });
            }
            if let Some(totals) = self.histograms.get_mut(index) {
                read(&histogram.counts, &mut totals.counts);
                totals.sum = totals.sum.wrapping_add(histogram.sum.load(Ordering::Relaxed));
            }
        }
        self.summaries.resize_with(recorder.summaries.len(), SummaryTotals::default);
        for (totals, summary) in self.summaries.iter_mut().zip(&recorder.summaries) {
            read(&summary.counts, &mut totals.counts);
            totals.sum = totals.sum.wrapping_add(summary.sum.load(Ordering::Relaxed));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::{
        ModelMetrics,
        model_metrics::{
            MetricControl,
            metric_control::{HistogramOptions, MetricIdentifier},
        },
    };

    proptest! {
        #[test]
        fn a_duration_is_in_the_bucket_whose_bounds_hold_it(
            bounds in prop::collection::btree_set(any::<u64>(), 0..40),
            picked in any::<prop::sample::Index>(),
            shift in 0..64_u32,
            nanos in any::<u64>(),
        ) {
            let bounds: Arc<[u64]> = bounds.into_iter().collect();
            let histogram = Histogram::new(&bounds);
            let near = bounds.get(picked.index(bounds.len().max(1))).copied().unwrap_or(0);
            for nanos in [nanos >> shift, near, near.saturating_add(1), 0, u64::MAX] {
                let expected = bounds.partition_point(|&bound| bound < nanos);
                prop_assert_eq!(histogram.bucket(nanos), expected);
            }
        }

        #[test]
        fn a_fine_bucket_is_close_to_what_is_in_it(nanos in 16_u64..1 << LARGEST_BITS) {
            let bucket = fine_bucket(nanos);
            prop_assert!(bucket < FINE_BUCKETS);
            let off = fine_middle(bucket).abs_diff(nanos);
            prop_assert!(off <= nanos / 16, "{} is {off} off", nanos);
        }
    }

    #[test]
    fn extremes_have_buckets_too() {
        assert_eq!(fine_bucket(0), 0);
        assert_eq!(fine_bucket(u64::MAX), FINE_BUCKETS - 1);
    }

    #[test]
    fn what_reactors_note_is_added_up() {
        let plan = Plan::new(&ModelConfig::default(), true, true);
        let (one, other) = (plan.recorder(), plan.recorder());
        for step in [Step::Request, Step::FirstResponse] {
            one.note(step, Duration::from_millis(100), 1);
            other.note(step, Duration::from_millis(101), 2);
        }
        other.note(Step::Queue, Duration::from_secs(3600), 1);
        let mut sums = Latencies::default();
        sums.add(&one);
        sums.add(&other);
        let first_response = &sums.histograms[0];
        assert_eq!(first_response.counts, [1, 2, 0, 0, 0]);
        assert_eq!(first_response.sum, 302_000_000);
        assert_eq!(sums.histograms[2].counts.last(), Some(&1));
        let request = &sums.summaries[Step::Request as usize];
        assert_eq!(request.count(), 3);
        let median = request.quantile(0.5).unwrap();
        assert!((94_000_000..108_000_000).contains(&median), "{median}");
        assert_eq!(sums.summaries[Step::ComputeInfer as usize].quantile(0.5), None);
    }

    #[test]
    fn nothing_is_kept_that_nobody_asked_for() {
        let recorder = Plan::default().recorder();
        recorder.note(Step::Request, Duration::from_millis(1), 1);
        let mut sums = Latencies::default();
        sums.add(&recorder);
        assert_eq!(sums, Latencies::default());
    }

    #[test]
    fn a_model_may_have_buckets_of_its_own() {
        let control = MetricControl {
            metric_identifier: Some(MetricIdentifier {
                family: "nv_inference_queue_histogram_us".into(),
            }),
            metric_options: Some(MetricOptions::HistogramOptions(HistogramOptions {
                buckets: vec![2.0, 0.5, 2.0],
            })),
        };
        let config = ModelConfig {
            model_metrics: Some(ModelMetrics { metric_control: vec![control] }),
            ..ModelConfig::default()
        };
        let plan = Plan::new(&config, true, false);
        assert_eq!(*plan.bounds[2], [500, 2000]);
        assert_eq!(plan.bounds[0].len(), 4);
    }
}
