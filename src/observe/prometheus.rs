//! Statistics → the text that Prometheus reads, under Triton's names.

use std::fmt::Write as _;

use super::Totals;

/// What is told of one version of a model.
pub struct ModelMetrics<'a> {
    /// The model's name.
    pub model: &'a str,
    /// The version.
    pub version: i64,
    /// What was counted.
    pub totals: Totals,
    /// How long it took to load, in seconds.
    pub load_seconds: f64,
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

/// The whole answer to a scrape.
pub fn render(models: &[ModelMetrics<'_>], pool: PoolMetrics) -> String {
    let mut out = String::new();
    let (name, help, value) = COUNTERS[0];
    family(&mut out, models, name, help, "counter", |model| value(&model.totals).to_string());
    failures(&mut out, models);
    for (name, help, value) in &COUNTERS[1..] {
        family(&mut out, models, name, help, "counter", |model| value(&model.totals).to_string());
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
    out
}

fn failures(out: &mut String, models: &[ModelMetrics<'_>]) {
    let name = "nv_inference_request_failure";
    head(out, name, "Number of failed inference requests, all batch sizes", "counter");
    for model in models {
        let labels = labels(model);
        let reasons = [
            ("REJECTED", model.totals.rejected),
            ("CANCELED", model.totals.cancelled),
            ("BACKEND", model.totals.backend_failures),
            ("OTHER", model.totals.other_failures),
        ];
        for (reason, count) in reasons {
            line(out, format_args!("{name}{{{labels},reason=\"{reason}\"}} {count}"));
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
        line(out, format_args!("{name}{{{}}} {}", labels(model), value(model)));
    }
}

fn labels(model: &ModelMetrics<'_>) -> String {
    let name = model.model.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("model=\"{name}\",version=\"{}\"", model.version)
}

fn head(out: &mut String, name: &str, help: &str, kind: &str) {
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
    use crate::observe::Duration;

    #[test]
    fn a_model_is_told_of_with_its_labels() {
        let totals = Totals {
            success: Duration { count: 3, nanos: 7_500 },
            rejected: 2,
            pending: 1,
            ..Totals::default()
        };
        let models = [ModelMetrics { model: "a\"b", version: 4, totals, load_seconds: 0.5 }];
        let text = render(&models, PoolMetrics { total_bytes: 10, used_bytes: 5 });
        for expected in [
            "# TYPE nv_inference_request_success counter\n",
            "nv_inference_request_success{model=\"a\\\"b\",version=\"4\"} 3\n",
            "nv_inference_request_failure{model=\"a\\\"b\",version=\"4\",reason=\"REJECTED\"} 2\n",
            "nv_inference_request_duration_us{model=\"a\\\"b\",version=\"4\"} 7\n",
            "nv_inference_pending_request_count{model=\"a\\\"b\",version=\"4\"} 1\n",
            "nv_model_load_duration_secs{model=\"a\\\"b\",version=\"4\"} 0.5\n",
            "nv_pinned_memory_pool_used_bytes 5\n",
        ] {
            assert!(text.contains(expected), "{expected} is not in {text}");
        }
    }
}
