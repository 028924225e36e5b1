use std::path::Path;

use crate::{
    proto::ModelConfig,
    repository::{Gpu, Options, normalise, text},
};

/// What the rules say of a configuration of the identity back end named `m`, completed as served.
fn verdict(rest: &str, options: &Options) -> Result<ModelConfig, String> {
    let head =
        if rest.contains("platform:") { "name: 'm'" } else { "name: 'm' backend: 'identity'" };
    let text = format!("{head} {rest}");
    let mut config =
        text::parse(Path::new("f"), &text).unwrap_or_else(|error| panic!("{error}")).config;
    normalise::config(&mut config);
    normalise::instance_groups(&mut config, options);
    super::config(&config)
        .and_then(|()| super::instances(&config, options))
        .and_then(|()| super::tensors(&config))
        .map_err(|fault| fault.message)?;
    Ok(config)
}

fn refused(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        assert_eq!(verdict(text, &Options::default()).unwrap_err(), *expected, "{text}");
    }
}

fn accepted(cases: &[&str]) {
    for text in cases {
        if let Err(message) = verdict(text, &Options::default()) {
            panic!("{text}: {message}");
        }
    }
}

#[test]
fn tensors() {
    refused(&[
        ("input { data_type: TYPE_FP32 dims: 1 }", "model input must specify 'name' for m"),
        ("output { data_type: TYPE_FP32 dims: 1 }", "model output must specify 'name' for m"),
        ("input { name: 'a' dims: 1 }", "model input 'a' must specify 'data_type' for m"),
        ("output { name: 'a' data_type: TYPE_FP32 }", "model output 'a' must specify 'dims' for m"),
        (
            "input { name: 'a' data_type: TYPE_FP32 dims: 0 }",
            "model input 'a' dimension must be integer >= 1, or -1 to indicate a variable-size \
             dimension for m",
        ),
        (
            "input { name: 'a' data_type: TYPE_FP32 dims: -2 }",
            "model input 'a' dimension must be integer >= 1, or -1 to indicate a variable-size \
             dimension for m",
        ),
        (
            "input { name: 'a' data_type: TYPE_FP32 dims: 1 reshape { shape: [] } }",
            "model input 'a' cannot have empty reshape for non-batching model as scalar tensors \
             are not supported for m",
        ),
        (
            "input { name: 'a' data_type: TYPE_FP32 dims: 1 reshape { shape: [ 0 ] } }",
            "model input 'a' reshape dimensions must be integer >= 1, or -1 to indicate a \
             variable-size dimension for m",
        ),
        (
            "input { name: 'a' data_type: TYPE_FP32 dims: [ 2, 3 ] reshape { shape: [ 5 ] } }",
            "model input 'a' has different size for dims and reshape for m",
        ),
        (
            "output { name: 'a' data_type: TYPE_FP32 dims: [ 2, -1 ] reshape { shape: [ 3, -1 ] \
             } }",
            "model output 'a' has different size for dims and reshape for m",
        ),
        (
            "output { name: 'a' data_type: TYPE_FP32 dims: [ 2, -1 ] reshape { shape: [ 2 ] } }",
            "model output 'a' has different size for dims and reshape for m",
        ),
        (
            "output { name: 'a' data_type: TYPE_FP32 dims: [ -1, 2, -1 ] reshape { shape: [ 2, \
             -1 ] } }",
            "model output 'a' has different number of variable-size dimensions for dims and \
             reshape for m",
        ),
        (
            "input { name: 'a' data_type: TYPE_FP32 dims: [ 4611686018427387904, 4 ] reshape { \
             shape: [ 1 ] } }",
            "model input 'a' has too many elements in dims or reshape for m",
        ),
        (
            "input { name: 'a' data_type: TYPE_FP32 dims: [ 3, 3 ] format: FORMAT_NCHW }",
            "model input NHWC/NCHW require 3 dims for m",
        ),
        (
            "input { name: 'a' data_type: TYPE_FP32 dims: 1 is_shape_tensor: true }",
            "shape tensors are only supported for TensorRT platform for m",
        ),
        (
            "output { name: 'a' data_type: TYPE_FP32 dims: 1 is_non_linear_format_io: true }",
            "Non-linear IO format is only supported for the TensorRT platform for m",
        ),
        (
            "backend: 'tensorrt' platform: 'tensorrt_plan' input { name: 'a' data_type: \
             TYPE_FP32 dims: 1 is_non_linear_format_io: true }",
            "Non-linear IO format input requires 3 dims for m",
        ),
        (
            "input [ { name: 'a' data_type: TYPE_FP32 dims: 1 }, { name: 'a' data_type: \
             TYPE_FP32 dims: 1 } ]",
            "model input 'a' is specified more than once for m",
        ),
    ]);
    accepted(&[
        "",
        "input { name: 'a' data_type: TYPE_STRING dims: [ -1 ] }",
        "max_batch_size: 2 input { name: 'a' data_type: TYPE_FP32 dims: 1 reshape { shape: [] } }",
        "input { name: 'a' data_type: TYPE_FP32 dims: [ 2, 4, -1, 6 ] reshape { shape: [ 8, -1, \
         1, 6 ] } }",
        "input { name: 'a' data_type: TYPE_FP32 dims: [ 3, 8, 8 ] format: FORMAT_NCHW }",
    ]);
}

#[test]
fn batch_tensors() {
    let input = "input { name: 'a' data_type: TYPE_FP32 dims: -1 } output { name: 'o' data_type: \
                 TYPE_FP32 dims: -1 }";
    let cases = [
        (
            "batch_input { kind: BATCH_ELEMENT_COUNT target_name: 'n' data_type: TYPE_FP32 }",
            "batch input kind 'BATCH_ELEMENT_COUNT' expects 1 source input, got 0 for m",
        ),
        (
            "batch_input { kind: BATCH_ITEM_SHAPE target_name: 'n' data_type: TYPE_INT64 \
             source_input: 'a' }",
            "batch input data type must be TYPE_INT32 or TYPE_FP32 for m",
        ),
        (
            "batch_input { target_name: 'n' data_type: TYPE_FP32 source_input: 'b' }",
            "unknown source input name 'b' for m",
        ),
        ("batch_input { kind: 9 source_input: 'a' }", "unknown batch input kind '9' for m"),
        (
            "batch_output { target_name: 'o' }",
            "batch output kind 'BATCH_SCATTER_WITH_INPUT_SHAPE' expects 1 source input, got 0 \
             for m",
        ),
        (
            "batch_output { target_name: 'p' source_input: 'a' }",
            "unknown target output name 'p' for m",
        ),
        (
            "batch_output { target_name: [ 'o', 'o' ] source_input: 'a' }",
            "target output name 'o' can only be specified once for m",
        ),
    ];
    for (text, expected) in cases {
        let text = format!("{input} {text}");
        assert_eq!(verdict(&text, &Options::default()).unwrap_err(), expected);
    }
    let fits = format!(
        "{input} batch_input {{ target_name: 'n' data_type: TYPE_INT32 source_input: 'a' }} \
         batch_output {{ target_name: 'o' source_input: 'a' }}"
    );
    accepted(&[&fits]);
}

#[test]
fn sizes_and_dynamic_batching() {
    refused(&[
        ("max_batch_size: -1", "'max_batch_size' must be non-negative value for m"),
        (
            "max_batch_size: 4 dynamic_batching { preferred_batch_size: [ 4, 0 ] }",
            "dynamic batching preferred size must be positive for m",
        ),
        (
            "max_batch_size: 4 dynamic_batching { preferred_batch_size: [ 4, 5 ] }",
            "dynamic batching preferred size must be <= max batch size for m",
        ),
        (
            "dynamic_batching { priority_levels: 2 }",
            "default priority level must be in range [1, 2] for m",
        ),
        (
            "dynamic_batching { priority_levels: 2 default_priority_level: 3 }",
            "default priority level must be in range [1, 2] for m",
        ),
        (
            "dynamic_batching { priority_levels: 2 default_priority_level: 1 \
             priority_queue_policy { key: 3 value {} } }",
            "priority queue policy must have priority level in range [1, 2] for m",
        ),
        (
            "dynamic_batching { preserve_ordering: true priority_levels: 2 \
             default_priority_level: 1 }",
            "Only one priority level is allowed when 'preserve_ordering' is true for m",
        ),
        (
            "dynamic_batching { preserve_ordering: true default_queue_policy { timeout_action: \
             DELAY default_timeout_microseconds: 1 } }",
            "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true \
             for m",
        ),
        (
            "dynamic_batching { preserve_ordering: true priority_queue_policy { key: 1 value { \
             timeout_action: DELAY default_timeout_microseconds: 1 } } }",
            "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true \
             for m",
        ),
        (
            "response_cache { enable: true } model_transaction_policy { decoupled: true }",
            "Response Cache does not currently support model m with 'decoupled' transaction \
             policy. Please disable the response cache.",
        ),
    ]);
    accepted(&[
        "max_batch_size: 8 dynamic_batching { preferred_batch_size: [ 4, 8 ] preserve_ordering: \
         true }",
        "max_batch_size: 8 dynamic_batching { default_queue_policy { timeout_action: DELAY \
         default_timeout_microseconds: 1 } }",
    ]);
}

#[test]
fn sequence_batching() {
    let flag = |body: &str| {
        format!(
            "sequence_batching {{ control_input {{ name: 's' control {{ kind: \
             CONTROL_SEQUENCE_START {body} }} }} }}"
        )
    };
    let cases = [
        (
            flag(""),
            "sequence batching must specify either 'int32_false_true', 'fp32_false_true' or \
             'bool_false_true' for CONTROL_SEQUENCE_START for m",
        ),
        (
            flag("int32_false_true: [ 0, 1 ] fp32_false_true: [ 0, 1 ]"),
            "sequence batching specifies more than one from 'int32_false_true', \
             'fp32_false_true' and 'bool_false_true' for CONTROL_SEQUENCE_START for m",
        ),
        (
            flag("fp32_false_true: [ 0 ]"),
            "sequence batching control 'fp32_false_true' must have exactly 2 entries for \
             CONTROL_SEQUENCE_START for m",
        ),
    ];
    for (text, expected) in &cases {
        refused(&[(text, expected)]);
    }
    let corrid = "kind: CONTROL_SEQUENCE_CORRID";
    refused(&[
        (
            "sequence_batching { control_input { control { kind: CONTROL_SEQUENCE_START } } }",
            "sequence batching control tensor must have a name for m",
        ),
        (
            "sequence_batching { control_input [ { name: 's' }, { name: 's' } ] }",
            "sequence batching control tensor 's' is specified for multiple control kinds for m",
        ),
        (
            "sequence_batching { control_input [ { name: 's' control { int32_false_true: [ 0, 1 \
             ] } }, { name: 't' control { int32_false_true: [ 0, 1 ] } } ] }",
            "sequence batching specifies multiple CONTROL_SEQUENCE_START tensors for m",
        ),
        (
            &format!(
                "sequence_batching {{ control_input {{ name: 's' control {{ {corrid} data_type: \
                 TYPE_FP32 }} }} }}"
            ),
            "unexpected data type for control CONTROL_SEQUENCE_CORRID for m. Allowed data types \
             are TYPE_UINT64, TYPE_INT64, TYPE_UINT32, TYPE_INT32 and TYPE_STRING",
        ),
        (
            &format!(
                "sequence_batching {{ control_input {{ name: 's' control {{ {corrid} data_type: \
                 TYPE_UINT64 int32_false_true: [ 0, 1 ] }} }} }}"
            ),
            "sequence batching must not specify either 'int32_false_true', 'fp32_false_true' or \
             'bool_false_true' for CONTROL_SEQUENCE_CORRID for m",
        ),
        (
            "max_batch_size: 2 sequence_batching { oldest { preferred_batch_size: 3 } }",
            "sequence batching preferred batch size must be <= max batch size for m",
        ),
        (
            "max_batch_size: 2 sequence_batching { oldest { preferred_batch_size: -3 } }",
            "sequence batching preferred batch size must be positive for m",
        ),
        (
            "sequence_batching { direct { minimum_slot_utilization: 1.5 } }",
            "sequence batching minimum slot utilization must be in range (0.0, 1.0] for m",
        ),
        (
            "sequence_batching { direct { minimum_slot_utilization: nan } }",
            "sequence batching minimum slot utilization must be in range (0.0, 1.0] for m",
        ),
        (
            "response_cache { enable: true } sequence_batching { }",
            "Response Cache does not currently support model m with sequence batching scheduler. \
             Please disable the response cache.",
        ),
    ]);
    accepted(&[
        &flag("bool_false_true: [ false, true ]"),
        "max_batch_size: 2 sequence_batching { oldest { max_candidate_sequences: 4 \
         preferred_batch_size: [ 1, 2 ] } }",
    ]);
}

#[test]
fn instance_groups() {
    refused(&[
        (
            "instance_group { kind: KIND_CPU gpus: 0 }",
            "instance group m_0 of model m has kind KIND_CPU but specifies one or more GPUs",
        ),
        (
            "instance_group [ { }, { kind: KIND_MODEL gpus: 0 } ]",
            "instance group m_1 of model m has kind KIND_MODEL but specifies one or more GPUs",
        ),
        (
            "instance_group { name: 'g' kind: KIND_GPU }",
            "instance group g of model m has kind KIND_GPU but no GPUs are available",
        ),
        ("instance_group { kind: 7 }", "instance group m_0 of model m has unexpected kind 7"),
        (
            "instance_group { profile: '0' }",
            "instance group m_0 of model m and platform  specifies profile field which is only \
             supported for TensorRT models",
        ),
        (
            "instance_group { count: 2000000000 }",
            "instance group m_0 of model m brings the model to 2000000000 instances, expected at \
             most 4096",
        ),
        (
            "platform: 'tensorrt_plan' backend: 'tensorrt' instance_group { profile: '-1' }",
            "instance group m_0 of model m and platform tensorrt_plan specifies invalid profile \
             -1. The field should contain the string representation of a non-negative integer.",
        ),
    ]);
    let gpu = |ordinal, major| Gpu { ordinal, compute_capability: Some((major, 0)) };
    let gpus = vec![gpu(0, 9), gpu(1, 5), gpu(2, 8)].into();
    let options = Options { gpus, ..Options::default() };
    assert_eq!(
        verdict("instance_group { kind: KIND_GPU gpus: [ 0, 1 ] }", &options).unwrap_err(),
        "instance group m_0 of model m specifies invalid or unsupported gpu id 1. GPUs with at \
         least the minimum required CUDA compute compatibility of 6.000000 are: 0, 2"
    );
}

#[test]
fn ensembles() {
    let step = |maps: &str| format!("step {{ model_name: 'x' {maps} }}");
    let ensemble = |io: &str, steps: &str| {
        format!("platform: 'ensemble' {io} ensemble_scheduling {{ {steps} }}")
    };
    let io = "input { name: 'i' data_type: TYPE_FP32 dims: 1 } output { name: 'o' data_type: \
              TYPE_FP32 dims: 1 }";
    let map = |kind: &str, key: &str, value: &str| {
        format!("{kind}_map {{ key: '{key}' value: '{value}' }}")
    };
    let through = |from: &str, to: &str| step(&(map("input", "a", from) + &map("output", "b", to)));
    let cases = [
        (ensemble(io, ""), "must specify 'step' for ensemble 'm'"),
        (
            ensemble(&format!("{io} instance_group {{ }}"), &through("i", "o")),
            "instance group should not be specified for ensemble 'm'",
        ),
        (
            ensemble(&format!("{io} optimization {{ }}"), &through("i", "o")),
            "optimization should not be specified for ensemble 'm'",
        ),
        (
            ensemble(&format!("{io} model_warmup {{ }}"), &through("i", "o")),
            "model_warmup can not be specified for ensemble 'm'",
        ),
        (ensemble(io, "step { }"), "must specify 'model_name' in step 0 of ensemble 'm'"),
        (ensemble(io, &step("")), "must specify 'input_map' in step 0 of ensemble 'm'"),
        (
            ensemble(io, &step(&map("input", "a", "i"))),
            "must specify 'output_map' in step 0 of ensemble 'm'",
        ),
        (
            ensemble(io, &(through("i", "o") + &through("i", "o"))),
            "ensemble tensor 'o' can appear in an output map only once for ensemble 'm' step 1",
        ),
        (ensemble(io, &through("j", "o")), "ensemble input 'i' for ensemble m is not used"),
        (ensemble(io, &through("i", "p")), "ensemble output 'o' for ensemble m is not used"),
        (
            ensemble(io, &(through("i", "p") + &through("q", "o"))),
            "output 'o' for ensemble 'm' is not written: at least one of its depending tensors, \
             'q', is not connected",
        ),
        (
            ensemble(io, &(through("i", "p") + &through("q", "o") + &through("o", "q"))),
            "output 'o' for ensemble 'm' is not written",
        ),
        (
            ensemble(io, &(through("i", "o") + &through("i", "p"))),
            "ensemble tensor 'p' is unused in ensemble 'm'",
        ),
        (
            format!("platform: 'ensemble' {io}"),
            "ensemble scheduling must be set for ensemble m whose platform is ensemble",
        ),
    ];
    for (text, expected) in cases {
        refused(&[(&text, expected)]);
    }
    accepted(&[
        &ensemble(io, &through("i", "o")),
        &ensemble(io, &(through("p", "o") + &through("i", "p"))),
    ]);
    refused(&[(
        "ensemble_scheduling { }",
        "ensemble scheduling cannot be set for model 'm' whose platform is not ensemble",
    )]);
}

#[test]
fn metrics() {
    refused(&[
        ("model_metrics { metric_control { } }", "metric control must specify 'metric_identifier'"),
        (
            "model_metrics { metric_control { metric_identifier { } } }",
            "metric identifier must specify non-empty 'family'",
        ),
        (
            "model_metrics { metric_control { metric_identifier { family: 'f' } } }",
            "metric control must specify 'histogram_options'",
        ),
        (
            "model_metrics { metric_control { metric_identifier { family: 'f' } \
             histogram_options { } } }",
            "histogram options must specify non-empty 'buckets'",
        ),
    ]);
}
