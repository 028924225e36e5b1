//! The answers that are not tensors. They are written from the messages that gRPC sends, so that
//! both protocols say the same.

use bytes::Bytes;
use serde::{Serialize, Serializer, ser::SerializeSeq as _};

use crate::{
    proto::{
        InferBatchStatistics, InferResponseStatistics, InferStatistics, MemoryUsage, ModelConfig,
        ModelMetadataResponse, ModelStatistics, ModelStatisticsResponse, RepositoryIndexResponse,
        ServerMetadataResponse, StatisticDuration, model_metadata_response::TensorMetadata,
    },
    repository,
};

/// The body of `GET /v2`.
pub fn server_metadata(metadata: &ServerMetadataResponse) -> Bytes {
    #[derive(Serialize)]
    struct Body<'a> {
        name: &'a str,
        version: &'a str,
        extensions: &'a [String],
    }
    let ServerMetadataResponse { name, version, extensions } = metadata;
    write(&Body { name, version, extensions })
}

/// The body of `GET /v2/models/{model}`.
pub fn model_metadata(metadata: &ModelMetadataResponse) -> Bytes {
    #[derive(Serialize)]
    struct Body<'a> {
        name: &'a str,
        versions: &'a [String],
        platform: &'a str,
        #[serde(serialize_with = "tensors")]
        inputs: &'a [TensorMetadata],
        #[serde(serialize_with = "tensors")]
        outputs: &'a [TensorMetadata],
    }
    let ModelMetadataResponse { name, versions, platform, inputs, outputs } = metadata;
    write(&Body { name, versions, platform, inputs, outputs })
}

/// The body of `GET /v2/models/{model}/stats` and of `GET /v2/models/stats`.
pub fn model_statistics(statistics: &ModelStatisticsResponse) -> Bytes {
    #[derive(Serialize)]
    struct Body<'a> {
        #[serde(serialize_with = "models")]
        model_stats: &'a [ModelStatistics],
    }
    write(&Body { model_stats: &statistics.model_stats })
}

/// The body of `GET /v2/models/{model}/config`: all fields by their names in the configuration, also
/// those that have their default, with 64-bit integers as numbers.
pub fn model_config(config: &ModelConfig) -> Bytes {
    repository::to_json(config).into()
}

/// The body of `POST /v2/repository/index`: members that say nothing are left out.
pub fn repository_index(index: &RepositoryIndexResponse) -> Bytes {
    #[derive(Serialize)]
    struct Body<'a> {
        name: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        version: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        state: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        reason: &'a str,
    }
    let models = index.models.iter().map(|model| Body {
        name: &model.name,
        version: &model.version,
        state: &model.state,
        reason: &model.reason,
    });
    write(&models.collect::<Vec<_>>())
}

pub(super) fn write(body: &impl Serialize) -> Bytes {
    // Strings and integers in structs and sequences: neither they nor a vector can refuse.
    serde_json::to_vec(body).unwrap_or_default().into()
}

fn tensors<S: Serializer>(tensors: &[TensorMetadata], serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Body<'a> {
        name: &'a str,
        datatype: &'a str,
        shape: &'a [i64],
    }
    sequence(serializer, tensors, |TensorMetadata { name, datatype, shape }| Body {
        name,
        datatype,
        shape,
    })
}

fn models<S: Serializer>(models: &[ModelStatistics], serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Body<'a> {
        name: &'a str,
        version: &'a str,
        last_inference: u64,
        inference_count: u64,
        execution_count: u64,
        inference_stats: InferenceStats,
        #[serde(serialize_with = "responses")]
        response_stats: &'a std::collections::BTreeMap<String, InferResponseStatistics>,
        #[serde(serialize_with = "batches")]
        batch_stats: &'a [InferBatchStatistics],
        #[serde(serialize_with = "memory")]
        memory_usage: &'a [MemoryUsage],
    }
    sequence(serializer, models, |model| Body {
        name: &model.name,
        version: &model.version,
        last_inference: model.last_inference,
        inference_count: model.inference_count,
        execution_count: model.execution_count,
        inference_stats: InferenceStats::from(model.inference_stats.unwrap_or_default()),
        response_stats: &model.response_stats,
        batch_stats: &model.batch_stats,
        memory_usage: &model.memory_usage,
    })
}

#[derive(Serialize)]
struct Duration {
    count: u64,
    ns: u64,
}

impl From<Option<StatisticDuration>> for Duration {
    fn from(duration: Option<StatisticDuration>) -> Self {
        let StatisticDuration { count, ns } = duration.unwrap_or_default();
        Self { count, ns }
    }
}

#[derive(Serialize)]
struct InferenceStats {
    success: Duration,
    fail: Duration,
    queue: Duration,
    compute_input: Duration,
    compute_infer: Duration,
    compute_output: Duration,
    cache_hit: Duration,
    cache_miss: Duration,
}

impl From<InferStatistics> for InferenceStats {
    fn from(stats: InferStatistics) -> Self {
        Self {
            success: stats.success.into(),
            fail: stats.fail.into(),
            queue: stats.queue.into(),
            compute_input: stats.compute_input.into(),
            compute_infer: stats.compute_infer.into(),
            compute_output: stats.compute_output.into(),
            cache_hit: stats.cache_hit.into(),
            cache_miss: stats.cache_miss.into(),
        }
    }
}

fn responses<S: Serializer>(
    responses: &std::collections::BTreeMap<String, InferResponseStatistics>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Body {
        compute_infer: Duration,
        compute_output: Duration,
        success: Duration,
        fail: Duration,
        empty_response: Duration,
        cancel: Duration,
    }
    serializer.collect_map(responses.iter().map(|(index, stats)| {
        let stats = Body {
            compute_infer: stats.compute_infer.into(),
            compute_output: stats.compute_output.into(),
            success: stats.success.into(),
            fail: stats.fail.into(),
            empty_response: stats.empty_response.into(),
            cancel: stats.cancel.into(),
        };
        (index, stats)
    }))
}

fn batches<S: Serializer>(
    batches: &[InferBatchStatistics],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Body {
        batch_size: u64,
        compute_input: Duration,
        compute_infer: Duration,
        compute_output: Duration,
    }
    sequence(serializer, batches, |batch| Body {
        batch_size: batch.batch_size,
        compute_input: batch.compute_input.into(),
        compute_infer: batch.compute_infer.into(),
        compute_output: batch.compute_output.into(),
    })
}

fn memory<S: Serializer>(memory: &[MemoryUsage], serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Body<'a> {
        #[serde(rename = "type")]
        kind: &'a str,
        id: i64,
        byte_size: u64,
    }
    sequence(serializer, memory, |usage| Body {
        kind: &usage.r#type,
        id: usage.id,
        byte_size: usage.byte_size,
    })
}

fn sequence<'a, S: Serializer, T, B: Serialize>(
    serializer: S,
    items: &'a [T],
    body: impl Fn(&'a T) -> B,
) -> Result<S::Ok, S::Error> {
    let mut sequence = serializer.serialize_seq(Some(items.len()))?;
    for item in items {
        sequence.serialize_element(&body(item))?;
    }
    sequence.end()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{
        ModelInput, model_config::SchedulingChoice, repository_index_response::ModelIndex,
    };

    #[test]
    fn server_metadata_has_tritons_members() {
        let body = server_metadata(&ServerMetadataResponse {
            name: "triton".to_owned(),
            version: "2.73.0".to_owned(),
            extensions: vec!["classification".to_owned(), "sequence".to_owned()],
        });
        assert_eq!(
            body,
            r#"{"name":"triton","version":"2.73.0","extensions":["classification","sequence"]}"#
        );
    }

    #[test]
    fn an_index_leaves_out_what_it_does_not_know() {
        let model = |name: &str, version: &str, state: &str, reason: &str| ModelIndex {
            name: name.to_owned(),
            version: version.to_owned(),
            state: state.to_owned(),
            reason: reason.to_owned(),
        };
        let models = vec![model("a", "", "", ""), model("b", "1", "UNAVAILABLE", "unloaded")];
        assert_eq!(
            repository_index(&RepositoryIndexResponse { models }),
            r#"[{"name":"a"},{"name":"b","version":"1","state":"UNAVAILABLE","reason":"unloaded"}]"#
        );
        assert_eq!(repository_index(&RepositoryIndexResponse::default()), "[]");
    }

    #[test]
    fn model_metadata_has_tritons_members() {
        let tensor = |name: &str, shape: &[i64]| TensorMetadata {
            name: name.to_owned(),
            datatype: "FP32".to_owned(),
            shape: shape.to_vec(),
        };
        let body = model_metadata(&ModelMetadataResponse {
            name: "a \"model\"".to_owned(),
            versions: vec!["1".to_owned(), "3".to_owned()],
            platform: "onnxruntime_onnx".to_owned(),
            inputs: vec![tensor("IN", &[-1, 16])],
            outputs: vec![],
        });
        assert_eq!(
            body,
            r#"{"name":"a \"model\"","versions":["1","3"],"platform":"onnxruntime_onnx","#
                .to_owned()
                + r#""inputs":[{"name":"IN","datatype":"FP32","shape":[-1,16]}],"outputs":[]}"#
        );
    }

    #[test]
    fn statistics_have_tritons_members_also_where_nothing_was_counted() {
        let duration = |count, ns| Some(StatisticDuration { count, ns });
        let mut stats = ModelStatistics {
            name: "m".to_owned(),
            version: "1".to_owned(),
            last_inference: 1_700_000_000_000,
            inference_count: 3,
            execution_count: 2,
            inference_stats: Some(InferStatistics { queue: duration(3, 70), ..Default::default() }),
            batch_stats: vec![InferBatchStatistics {
                batch_size: 2,
                compute_infer: duration(1, 9),
                ..Default::default()
            }],
            memory_usage: vec![MemoryUsage { r#type: "GPU".to_owned(), id: 1, byte_size: 64 }],
            ..Default::default()
        };
        let response = InferResponseStatistics {
            cancel: duration(1, 2),
            ..InferResponseStatistics::default()
        };
        stats.response_stats.insert("0".to_owned(), response);
        let body = model_statistics(&ModelStatisticsResponse { model_stats: vec![stats] });
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let model = &body["model_stats"][0];
        assert_eq!(model["last_inference"], 1_700_000_000_000_u64);
        assert_eq!(model["inference_stats"]["queue"], serde_json::json!({"count": 3, "ns": 70}));
        assert_eq!(model["inference_stats"]["cache_miss"]["count"], 0);
        assert_eq!(model["response_stats"]["0"]["cancel"]["ns"], 2);
        assert_eq!(model["batch_stats"][0]["batch_size"], 2);
        assert_eq!(model["batch_stats"][0]["compute_infer"]["ns"], 9);
        assert_eq!(
            model["memory_usage"][0],
            serde_json::json!({"type": "GPU", "id": 1, "byte_size": 64})
        );
    }

    #[test]
    fn a_configuration_echoes_defaults_and_numbers() {
        let config = ModelConfig {
            name: "m".to_owned(),
            max_batch_size: 8,
            input: vec![ModelInput {
                name: "IN".to_owned(),
                data_type: crate::proto::DataType::TypeFp32 as i32,
                dims: vec![-1, 1 << 40],
                ..Default::default()
            }],
            scheduling_choice: Some(SchedulingChoice::DynamicBatching(Default::default())),
            ..Default::default()
        };
        let body = model_config(&config);
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["platform"], "");
        assert_eq!(body["input"][0]["data_type"], "TYPE_FP32");
        assert_eq!(body["input"][0]["format"], "FORMAT_NONE");
        assert_eq!(body["input"][0]["dims"], serde_json::json!([-1, 1_i64 << 40]));
        assert_eq!(body["dynamic_batching"]["max_queue_delay_microseconds"], 0);
        assert_eq!(body["instance_group"], serde_json::json!([]));
        assert_eq!(body.get("optimization"), None);
        assert_eq!(body.get("sequence_batching"), None);
    }
}
