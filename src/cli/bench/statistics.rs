use std::ops::{AddAssign, Sub};

use serde::Deserialize;

use crate::proto::{self, ModelStatisticsResponse};

/// What a server counted for a model since it was loaded, over its versions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerStatistics {
    /// Inferences made, each row of a batch counted.
    pub inferences: u64,
    /// Batches executed.
    pub executions: u64,
    /// Requests answered well and the time from their arrival to their answer.
    pub success: Total,
    /// Requests that failed.
    pub fail: Total,
    /// Time spent waiting.
    pub queue: Total,
    /// Time spent to prepare inputs.
    pub compute_input: Total,
    /// Time spent in the model.
    pub compute_infer: Total,
    /// Time spent to hand out outputs.
    pub compute_output: Total,
}

/// How often something happened and how long it took altogether.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Total {
    /// How often.
    pub count: u64,
    /// Nanoseconds.
    pub ns: u64,
}

impl Total {
    /// The mean time in µs, when it happened at all.
    pub fn mean_us(self) -> Option<f64> {
        (self.count > 0).then(|| self.ns as f64 / self.count as f64 / 1e3)
    }
}

impl AddAssign for Total {
    fn add_assign(&mut self, other: Self) {
        self.count = self.count.saturating_add(other.count);
        self.ns = self.ns.saturating_add(other.ns);
    }
}

impl Sub for Total {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        let count = self.count.saturating_sub(earlier.count);
        Self { count, ns: self.ns.saturating_sub(earlier.ns) }
    }
}

impl ServerStatistics {
    /// What was counted since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            inferences: self.inferences.saturating_sub(earlier.inferences),
            executions: self.executions.saturating_sub(earlier.executions),
            success: self.success - earlier.success,
            fail: self.fail - earlier.fail,
            queue: self.queue - earlier.queue,
            compute_input: self.compute_input - earlier.compute_input,
            compute_infer: self.compute_infer - earlier.compute_infer,
            compute_output: self.compute_output - earlier.compute_output,
        }
    }

    /// Inferences per executed batch.
    pub fn average_batch(&self) -> Option<f64> {
        (self.executions > 0).then(|| self.inferences as f64 / self.executions as f64)
    }

    fn add(&mut self, inferences: u64, executions: u64, stats: &InferStats) {
        self.inferences = self.inferences.saturating_add(inferences);
        self.executions = self.executions.saturating_add(executions);
        self.success += stats.success;
        self.fail += stats.fail;
        self.queue += stats.queue;
        self.compute_input += stats.compute_input;
        self.compute_infer += stats.compute_infer;
        self.compute_output += stats.compute_output;
    }
}

/// The statistics of a model as the HTTP protocol gives them.
#[derive(Debug, Deserialize)]
pub struct StatisticsAnswer {
    model_stats: Vec<VersionStatistics>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct VersionStatistics {
    inference_count: u64,
    execution_count: u64,
    inference_stats: InferStats,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
struct InferStats {
    success: Total,
    fail: Total,
    queue: Total,
    compute_input: Total,
    compute_infer: Total,
    compute_output: Total,
}

impl From<StatisticsAnswer> for ServerStatistics {
    fn from(answer: StatisticsAnswer) -> Self {
        let mut sum = Self::default();
        for version in answer.model_stats {
            sum.add(version.inference_count, version.execution_count, &version.inference_stats);
        }
        sum
    }
}

impl From<ModelStatisticsResponse> for ServerStatistics {
    fn from(message: ModelStatisticsResponse) -> Self {
        let total = |total: &Option<proto::StatisticDuration>| {
            total
                .as_ref()
                .map_or(Total::default(), |total| Total { count: total.count, ns: total.ns })
        };
        let mut sum = Self::default();
        for version in message.model_stats {
            let stats = version.inference_stats.unwrap_or_default();
            let stats = InferStats {
                success: total(&stats.success),
                fail: total(&stats.fail),
                queue: total(&stats.queue),
                compute_input: total(&stats.compute_input),
                compute_infer: total(&stats.compute_infer),
                compute_output: total(&stats.compute_output),
            };
            sum.add(version.inference_count, version.execution_count, &stats);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_protocols_tell_the_same() {
        let json = r#"{"model_stats": [
            {"name": "m", "version": "1", "inference_count": 6, "execution_count": 2,
             "inference_stats": {"success": {"count": 6, "ns": 600}, "queue": {"count": 6, "ns": 60}}},
            {"name": "m", "version": "2", "inference_count": 4, "execution_count": 3}]}"#;
        let json: StatisticsAnswer = serde_json::from_str(json).unwrap();
        let duration = |count, ns| Some(proto::StatisticDuration { count, ns });
        let version = |inference_count, execution_count, stats| proto::ModelStatistics {
            inference_count,
            execution_count,
            inference_stats: stats,
            ..Default::default()
        };
        let stats = proto::InferStatistics {
            success: duration(6, 600),
            queue: duration(6, 60),
            ..Default::default()
        };
        let model_stats = vec![version(6, 2, Some(stats)), version(4, 3, None)];
        let message = ModelStatisticsResponse { model_stats };
        let sum = ServerStatistics::from(message);
        assert_eq!(ServerStatistics::from(json), sum);
        assert_eq!(sum.average_batch(), Some(2.0));
        assert_eq!(sum.queue.mean_us(), Some(0.01));
        assert_eq!(sum.since(sum), ServerStatistics::default());
        assert_eq!(sum.since(sum).average_batch(), None);
    }
}
