//! The results as a table, as CSV and as JSON, all out of the same [`Figures`].

mod csv;
mod table;

use std::collections::BTreeMap;

use clap::ValueEnum as _;
use serde::Serialize;

pub use self::{csv::csv, table::table};
use super::{
    args::BenchArgs,
    load::{Distribution, Level},
    measure::Measurement,
};

/// The latency percentiles that are always reported.
const PERCENTILES: [f64; 5] = [50.0, 90.0, 95.0, 99.0, 99.9];

/// The figures of one load. Times are in µs.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_rate: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_distribution: Option<&'static str>,
    pub stable: bool,
    pub trials: usize,
    /// The time that the figures cover.
    pub seconds: f64,
    pub requests: u64,
    pub infer_per_s: f64,
    pub latency_mean_us: f64,
    pub latency_max_us: f64,
    /// By percentile, such as `99.9`.
    #[serde(serialize_with = "percentile_keys")]
    pub latency_us: Vec<(f64, f64)>,
    /// How late the client sent what was due: by percentile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub send_delay_p50_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub send_delay_p99_us: Option<f64>,
    pub errors: u64,
    pub error_messages: BTreeMap<String, u64>,
    pub client_cpu_us_per_request: f64,
    pub server_cpu_us_per_request: Option<f64>,
    pub server: Option<ServerFigures>,
}

/// What the server itself counted in the same time.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ServerFigures {
    pub inferences: u64,
    pub executions: u64,
    pub average_batch: Option<f64>,
    pub failures: u64,
    pub request_us: Option<f64>,
    pub queue_us: Option<f64>,
    pub compute_input_us: Option<f64>,
    pub compute_infer_us: Option<f64>,
    pub compute_output_us: Option<f64>,
}

impl Figures {
    /// The figures of a measurement.
    pub fn new(measured: &Measurement, args: &BenchArgs) -> Self {
        let recording = &measured.recording;
        let mut percentiles = PERCENTILES.to_vec();
        if !percentiles.contains(&args.percentile) {
            percentiles.push(args.percentile);
            percentiles.sort_by(f64::total_cmp);
        }
        let (concurrency, request_rate, request_distribution) = match measured.level {
            Level::Concurrency(count) => (Some(count), None, None),
            Level::Rate(rate, Distribution::Constant) => (None, Some(rate), Some("constant")),
            Level::Rate(rate, Distribution::Poisson) => (None, Some(rate), Some("poisson")),
        };
        let requests = recording.answers();
        // A failed request costs both sides too.
        let ended = (requests + recording.failures()).max(1) as f64;
        let per_request = |time: std::time::Duration| time.as_secs_f64() * 1e6 / ended;
        let delay = |percentile| request_rate.map(|_| recording.delay_us(percentile));
        Self {
            concurrency,
            request_rate,
            request_distribution,
            stable: measured.stable,
            trials: measured.trials,
            seconds: recording.elapsed().as_secs_f64(),
            requests,
            infer_per_s: recording.rate() * args.batch_size as f64,
            latency_mean_us: recording.mean_us(),
            latency_max_us: recording.longest_us(),
            latency_us: percentiles.into_iter().map(|p| (p, recording.latency_us(p))).collect(),
            send_delay_p50_us: delay(50.0),
            send_delay_p99_us: delay(99.0),
            errors: recording.failures(),
            error_messages: recording.errors().clone(),
            client_cpu_us_per_request: per_request(measured.client_cpu),
            server_cpu_us_per_request: measured.server_cpu.map(per_request),
            server: measured.server.map(|server| ServerFigures {
                inferences: server.inferences,
                executions: server.executions,
                average_batch: server.average_batch(),
                failures: server.fail.count,
                request_us: server.success.mean_us(),
                queue_us: server.queue.mean_us(),
                compute_input_us: server.compute_input.mean_us(),
                compute_infer_us: server.compute_infer.mean_us(),
                compute_output_us: server.compute_output.mean_us(),
            }),
        }
    }

    /// The load, as in the first column.
    fn load(&self) -> String {
        match (self.concurrency, self.request_rate) {
            (Some(count), _) => count.to_string(),
            (None, rate) => rate.unwrap_or_default().to_string(),
        }
    }
}

fn percentile_keys<S: serde::Serializer>(
    latencies: &[(f64, f64)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(latencies.iter().map(|(percentile, us)| (percentile.to_string(), us)))
}

/// The results as JSON, with what was measured.
pub fn json(args: &BenchArgs, figures: &[Figures]) -> String {
    let via = args.via.to_possible_value().map(|value| value.get_name().to_owned());
    let report = serde_json::json!({
        "model_name": args.model_name,
        "model_version": args.model_version,
        "url": args.authority(),
        "protocol": via,
        "streaming": args.streaming,
        "batch_size": args.batch_size,
        "client_threads": args.client_threads,
        "measurement_interval_ms": args.measurement_interval.as_millis() as u64,
        "percentile": args.percentile,
        "results": figures,
    });
    format!("{report:#}\n")
}

#[cfg(test)]
mod tests;
