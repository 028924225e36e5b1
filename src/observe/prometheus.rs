//! Statistics → the text that Prometheus reads, under Triton's names.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{Totals, host};

/// What is told of one version of a model.
pub struct ModelMetrics<'a> {
    /// The model's name.
    pub model: &'a str,
    /// The repository that it is from, where names are not unique; else empty.
    pub namespace: &'a str,
    /// The version.
    pub version: i64,
    /// What was counted.
    pub totals: Totals,
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
    host_usage(&mut out);
    out
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

fn host_usage(out: &mut String) {
    let gauges = [
        (
            "nv_cpu_utilization",
            "CPU utilization rate [0.0 - 1.0]",
            host::cpu_utilization().map(|rate| rate.to_string()),
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
        let models = [ModelMetrics {
            model: "a\"b",
            namespace: "",
            version: 4,
            totals,
            load_seconds: 0.5,
            tags: vec![("team", "x\ny")],
        }];
        let text = render(&models, PoolMetrics { total_bytes: 10, used_bytes: 5 });
        for expected in [
            "# TYPE nv_inference_request_success counter\n",
            "nv_inference_request_success{_team=\"x\\ny\",model=\"a\\\"b\",version=\"4\"} 3\n",
            "nv_inference_request_failure{_team=\"x\\ny\",model=\"a\\\"b\",reason=\"REJECTED\",version=\"4\"} 2\n",
            "nv_inference_request_duration_us{_team=\"x\\ny\",model=\"a\\\"b\",version=\"4\"} 7\n",
            "nv_inference_pending_request_count{_team=\"x\\ny\",model=\"a\\\"b\",version=\"4\"} 1\n",
            "nv_model_load_duration_secs{_team=\"x\\ny\",model=\"a\\\"b\",version=\"4\"} 0.5\n",
            "nv_pinned_memory_pool_used_bytes 5\n",
        ] {
            assert!(text.contains(expected), "{expected} is not in {text}");
        }
    }
}
