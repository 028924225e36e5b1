//! Statistics → the text that Prometheus reads, under Triton's names.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use super::{
    Closure, Fallback, MetricsSettings, Totals, host,
    latency::{FAMILIES, Latencies, Step},
};

/// What is told of one version of a model.
pub struct ModelMetrics<'a> {
    /// The model's name.
    pub model: &'a str,
    /// The repository that it is from, where names are not unique; else empty.
    pub namespace: &'a str,
    /// The version.
    pub version: i64,
    /// Whether it uses the response cache.
    pub is_cached: bool,
    /// Whether its tensors may stay on a device between runs.
    pub may_stay: bool,
    /// What was counted.
    pub totals: Totals,
    /// How the durations are distributed.
    pub latencies: Latencies,
    /// How long it took to load, in seconds.
    pub load_seconds: f64,
    /// The operator's own labels, by the model's configuration.
    pub tags: Vec<(&'a str, &'a str)>,
}

/// What is told of the server's memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct PoolMetrics {
    /// The size of the tensor arena.
    pub total_bytes: usize,
    /// The bytes of all tensors in memory.
    pub used_bytes: usize,
}

type Value = fn(&Totals) -> u64;

const MICROS: u64 = 1000;

/// Name, help and value of the counters that every model has.
const COUNTERS: [(&str, &str, Value); 8] = [
    (
        "nv_inference_request_success",
        "Number of successful inference requests, all batch sizes",
        |totals| totals.success.count,
    ),
    (
        "nv_inference_count",
        "Number of inferences performed (does not include cached requests)",
        |totals| totals.inferences,
    ),
    (
        "nv_inference_exec_count",
        "Number of model executions performed (does not include cached requests)",
        |totals| totals.executions,
    ),
    (
        "nv_inference_request_duration_us",
        "Cumulative inference request duration in microseconds (includes cached requests)",
        |totals| totals.success.nanos / MICROS,
    ),
    (
        "nv_inference_queue_duration_us",
        "Cumulative inference queuing duration in microseconds (includes cached requests)",
        |totals| totals.queue.nanos / MICROS,
    ),
    (
        "nv_inference_compute_input_duration_us",
        "Cumulative compute input duration in microseconds (does not include cached requests)",
        |totals| totals.compute_input.nanos / MICROS,
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "Cumulative compute inference duration in microseconds (does not include cached requests)",
        |totals| totals.compute_infer.nanos / MICROS,
    ),
    (
        "nv_inference_compute_output_duration_us",
        "Cumulative inference compute output duration in microseconds \
         (does not include cached requests)",
        |totals| totals.compute_output.nanos / MICROS,
    ),
];

/// Name and help of the summaries, by step.
const SUMMARIES: [(&str, &str); Step::ALL.len()] = [
    (
        "nv_inference_request_summary_us",
        "Summary of inference request duration in microseconds (includes cached requests)",
    ),
    (
        "nv_inference_queue_summary_us",
        "Summary of inference queuing duration in microseconds (includes cached requests)",
    ),
    (
        "nv_inference_compute_input_summary_us",
        "Cumulative compute input duration in microseconds (does not include cached requests)",
    ),
    (
        "nv_inference_compute_infer_summary_us",
        "Cumulative compute inference duration in microseconds (does not include cached requests)",
    ),
    (
        "nv_inference_compute_output_summary_us",
        "Cumulative inference compute output duration in microseconds \
         (does not include cached requests)",
    ),
    (
        "nv_cache_hit_summary_per_model",
        "Summary of cache hit counts/durations per model, in microseconds.",
    ),
    (
        "nv_cache_miss_summary_per_model",
        "Summary of cache miss counts/durations per model, in microseconds.",
    ),
];

/// Name, help and value of the counters of models that use the response cache.
const CACHE_COUNTERS: [(&str, &str, Value); 4] = [
    ("nv_cache_num_hits_per_model", "Number of cache hits per model", |totals| {
        totals.cache_hit.count
    }),
    (
        "nv_cache_hit_duration_per_model",
        "Total cache hit duration per model, in microseconds",
        |totals| totals.cache_hit.nanos / MICROS,
    ),
    ("nv_cache_num_misses_per_model", "Number of cache misses per model", |totals| {
        totals.cache_miss.count
    }),
    (
        "nv_cache_miss_duration_per_model",
        "Total cache miss (insert+lookup) duration per model, in microseconds",
        |totals| totals.cache_miss.nanos / MICROS,
    ),
];

/// The whole answer to a scrape.
pub fn render(
    settings: &MetricsSettings,
    models: &[ModelMetrics<'_>],
    pool: PoolMetrics,
) -> String {
    let mut out = String::new();
    let (name, help, value) = COUNTERS[0];
    family(&mut out, models, name, help, "counter", |model| value(&model.totals).to_string());
    failures(&mut out, models);
    closures(&mut out, models);
    fallbacks(&mut out, models);
    for (name, help, value) in &COUNTERS[1..] {
        if !settings.counters && name.ends_with("_duration_us") {
            continue;
        }
        family(&mut out, models, name, help, "counter", |model| value(&model.totals).to_string());
    }
    if models.iter().any(|model| model.is_cached) {
        for (name, help, value) in &CACHE_COUNTERS {
            head(&mut out, name, help, "counter");
            for model in models.iter().filter(|model| model.is_cached) {
                let labels = labels(model, None);
                line(&mut out, format_args!("{name}{{{labels}}} {}", value(&model.totals)));
            }
        }
    }
    family(
        &mut out,
        models,
        "nv_inference_pending_request_count",
        "Instantaneous number of pending requests awaiting execution per-model.",
        "gauge",
        |model| model.totals.pending.to_string(),
    );
    family(
        &mut out,
        models,
        "nv_model_load_duration_secs",
        "Model load time in seconds",
        "gauge",
        |model| model.load_seconds.to_string(),
    );
    if settings.summaries {
        summaries(&mut out, models, &settings.quantiles);
    }
    if settings.histograms {
        histograms(&mut out, models);
    }
    let pools = [
        (
            "nv_pinned_memory_pool_total_bytes",
            "Pinned memory pool total memory size, in bytes",
            pool.total_bytes,
        ),
        (
            "nv_pinned_memory_pool_used_bytes",
            "Pinned memory pool used memory size, in bytes",
            pool.used_bytes,
        ),
    ];
    for (name, help, bytes) in pools {
        head(&mut out, name, help, "gauge");
        line(&mut out, format_args!("{name} {bytes}"));
    }
    if settings.cpu {
        host_usage(&mut out, settings.interval);
    }
    out
}

fn summaries(out: &mut String, models: &[ModelMetrics<'_>], quantiles: &[f64]) {
    for (step, (name, help)) in SUMMARIES.iter().enumerate() {
        let is_of_cache = [Step::CacheHit as usize, Step::CacheMiss as usize].contains(&step);
        let models = || models.iter().filter(|model| model.is_cached || !is_of_cache);
        if models().next().is_none() {
            continue;
        }
        head(out, name, help, "summary");
        for model in models() {
            let Some(summary) = model.latencies.summaries.get(step) else { continue };
            let labels = labels(model, None);
            line(out, format_args!("{name}_count{{{labels}}} {}", summary.count()));
            line(out, format_args!("{name}_sum{{{labels}}} {}", summary.sum / MICROS));
            for &quantile in quantiles {
                let value = summary.quantile(quantile);
                let value = value.map_or("Nan".to_owned(), |nanos| (nanos / MICROS).to_string());
                let labels = format!("{labels},quantile=\"{quantile}\"");
                line(out, format_args!("{name}{{{labels}}} {value}"));
            }
        }
    }
}

fn histograms(out: &mut String, models: &[ModelMetrics<'_>]) {
    for (index, family) in FAMILIES.iter().enumerate() {
        let name = family.name;
        head(out, name, family.help, "histogram");
        for model in models {
            let Some(histogram) = model.latencies.histograms.get(index) else { continue };
            let labels = labels(model, None);
            let count: u64 = histogram.counts.iter().sum();
            let sum = histogram.sum as f64 / family.unit as f64;
            line(out, format_args!("{name}_count{{{labels}}} {count}"));
            line(out, format_args!("{name}_sum{{{labels}}} {sum}"));
            let mut below = 0;
            for (bound, count) in histogram.bounds.iter().zip(&histogram.counts) {
                below += count;
                let bound = *bound as f64 / family.unit as f64;
                line(out, format_args!("{name}_bucket{{{labels},le=\"{bound}\"}} {below}"));
            }
            line(out, format_args!("{name}_bucket{{{labels},le=\"+Inf\"}} {count}"));
        }
    }
}

fn failures(out: &mut String, models: &[ModelMetrics<'_>]) {
    let name = "nv_inference_request_failure";
    head(out, name, "Number of failed inference requests, all batch sizes", "counter");
    for model in models {
        let reasons = [
            ("REJECTED", model.totals.rejected),
            ("CANCELED", model.totals.cancelled),
            ("BACKEND", model.totals.backend_failures),
            ("OTHER", model.totals.other_failures),
        ];
        for (reason, count) in reasons {
            let labels = labels(model, Some(("reason", reason)));
            line(out, format_args!("{name}{{{labels}}} {count}"));
        }
    }
}

fn closures(out: &mut String, models: &[ModelMetrics<'_>]) {
    let name = "nv_inference_batch_closed";
    head(out, name, "Number of batches by the reason for which they were closed", "counter");
    for model in models {
        for ((_, reason), count) in Closure::ALL.into_iter().zip(model.totals.closures) {
            let labels = labels(model, Some(("reason", reason)));
            line(out, format_args!("{name}{{{labels}}} {count}"));
        }
    }
}

fn fallbacks(out: &mut String, models: &[ModelMetrics<'_>]) {
    if models.iter().all(|model| !model.may_stay) {
        return;
    }
    let name = "nereid_device_kept_fallback";
    let help = "Number of batches of which tensors came to the host although they could have stayed \
                on the device, by the reason";
    head(out, name, help, "counter");
    for model in models.iter().filter(|model| model.may_stay) {
        for ((_, reason), count) in Fallback::ALL.into_iter().zip(model.totals.fallbacks) {
            let labels = labels(model, Some(("reason", reason)));
            line(out, format_args!("{name}{{{labels}}} {count}"));
        }
    }
}

fn family(
    out: &mut String,
    models: &[ModelMetrics<'_>],
    name: &str,
    help: &str,
    kind: &str,
    value: impl Fn(&ModelMetrics<'_>) -> String,
) {
    head(out, name, help, kind);
    for model in models {
        line(out, format_args!("{name}{{{}}} {}", labels(model, None), value(model)));
    }
}

/// All labels in the order of their names, as Triton writes them; tags have an underscore in front.
fn labels(model: &ModelMetrics<'_>, extra: Option<(&str, &str)>) -> String {
    let version = model.version.to_string();
    let mut labels: BTreeMap<String, &str> =
        model.tags.iter().map(|&(name, value)| (format!("_{name}"), value)).collect();
    labels.insert("model".to_owned(), model.model);
    if !model.namespace.is_empty() {
        labels.insert("namespace".to_owned(), model.namespace);
    }
    labels.insert("version".to_owned(), &version);
    labels.extend(extra.map(|(name, value)| (name.to_owned(), value)));
    let labels = labels.iter().map(|(name, value)| {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        format!("{name}=\"{value}\"")
    });
    labels.collect::<Vec<_>>().join(",")
}

fn host_usage(out: &mut String, interval: Duration) {
    let gauges = [
        (
            "nv_cpu_utilization",
            "CPU utilization rate [0.0 - 1.0]",
            host::cpu_utilization(interval).map(|rate| rate.to_string()),
        ),
        (
            "nv_cpu_memory_total_bytes",
            "CPU total memory (RAM), in bytes",
            host::memory().map(|memory| memory.total_bytes.to_string()),
        ),
        (
            "nv_cpu_memory_used_bytes",
            "CPU used memory (RAM), in bytes",
            host::memory().map(|memory| memory.used_bytes.to_string()),
        ),
    ];
    for (name, help, value) in gauges {
        let Some(value) = value else { continue };
        head(out, name, help, "gauge");
        line(out, format_args!("{name} {value}"));
    }
}

pub(super) fn head(out: &mut String, name: &str, help: &str, kind: &str) {
    line(out, format_args!("# HELP {name} {help}"));
    line(out, format_args!("# TYPE {name} {kind}"));
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{self, ModelStatistics};

    #[test]
    fn a_model_is_told_of_with_its_labels() {
        let totals = Totals {
            success: observe::Duration { count: 3, nanos: 7_500 },
            rejected: 2,
            closures: [4, 0, 5, 0, 0],
            fallbacks: [0, 6, 0],
            pending: 1,
            ..Totals::default()
        };
        let models = [ModelMetrics {
            model: "a\"b",
            namespace: "",
            version: 4,
            is_cached: false,
            may_stay: true,
            totals,
            latencies: Latencies::default(),
            load_seconds: 0.5,
            tags: vec![("team", "x\ny")],
        }];
        let pool = PoolMetrics { total_bytes: 10, used_bytes: 5 };
        let text = render(&MetricsSettings::default(), &models, pool);
        for expected in [
            "# TYPE nv_inference_request_success counter\n",
            "nv_inference_request_success{_team=\"x\\ny\",model=\"a\\\"b\",version=\"4\"} 3\n",
            "nv_inference_request_failure{_team=\"x\\ny\",model=\"a\\\"b\",reason=\"REJECTED\",version=\"4\"} 2\n",
            "nv_inference_batch_closed{_team=\"x\\ny\",model=\"a\\\"b\",reason=\"delay\",version=\"4\"} 5\n",
            "nereid_device_kept_fallback{_team=\"x\\ny\",model=\"a\\\"b\",reason=\"memory\",version=\"4\"} 6\n",
            "nv_inference_request_duration_us{_team=\"x\\ny\",model=\"a\\\"b\",version=\"4\"} 7\n",
            "nv_inference_pending_request_count{_team=\"x\\ny\",model=\"a\\\"b\",version=\"4\"} 1\n",
            "nv_model_load_duration_secs{_team=\"x\\ny\",model=\"a\\\"b\",version=\"4\"} 0.5\n",
            "nv_pinned_memory_pool_used_bytes 5\n",
        ] {
            assert!(text.contains(expected), "{expected} is not in {text}");
        }
        assert!(!text.contains("nv_cache_"), "{text}");
    }

    #[test]
    fn distributions_are_told_when_asked_for() {
        let served = std::iter::once(true);
        let settings = MetricsSettings {
            cpu: false,
            counters: false,
            histograms: true,
            summaries: true,
            quantiles: vec![0.5, 0.99],
            ..MetricsSettings::default()
        };
        let plan = settings.plan(&crate::proto::ModelConfig::default());
        let statistics = ModelStatistics::new(served, 0, &plan);
        let total = Duration::from_millis(250);
        statistics.succeeded(0, total, Duration::from_micros(80), total);
        let models = [ModelMetrics {
            model: "m",
            namespace: "",
            version: 1,
            is_cached: true,
            may_stay: false,
            totals: statistics.totals(),
            latencies: statistics.latencies(),
            load_seconds: 0.5,
            tags: Vec::new(),
        }];
        let text = render(&settings, &models, PoolMetrics::default());
        let family = "nv_inference_first_response_histogram_ms";
        let labels = "model=\"m\",version=\"1\"";
        for expected in [
            format!("# TYPE {family} histogram\n{family}_count{{{labels}}} 1\n"),
            format!("{family}_sum{{{labels}}} 250\n{family}_bucket{{{labels},le=\"100\"}} 0\n"),
            format!("{family}_bucket{{{labels},le=\"500\"}} 1\n"),
            format!("{family}_bucket{{{labels},le=\"+Inf\"}} 1\n"),
            format!("nv_inference_queue_summary_us_sum{{{labels}}} 80\n"),
            format!("nv_cache_num_hits_per_model{{{labels}}} 0\n"),
            format!("nv_cache_miss_summary_per_model_count{{{labels}}} 0\n"),
            format!("nv_inference_compute_infer_summary_us{{{labels},quantile=\"0.99\"}} Nan\n"),
        ] {
            assert!(text.contains(&expected), "{expected} is not in {text}");
        }
        assert!(!text.contains("_duration_us") && !text.contains("nv_cpu_"), "{text}");
    }
}
