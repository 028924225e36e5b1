//! From a partial configuration and a model's file to what is served.

use proptest::prelude::*;

use super::*;
use crate::proto::{ModelConfig, model_config::SchedulingChoice, model_instance_group::Kind};

fn served(config: &str, io: &ModelIo) -> Definition {
    onnx(config).draft("m", &Options::default()).unwrap().complete(Some(io)).unwrap()
}

fn refused(config: &str, io: &ModelIo) -> String {
    let draft = onnx(config).draft("m", &Options::default()).unwrap();
    draft.complete(Some(io)).unwrap_err().to_string()
}

fn is_dynamic(config: &ModelConfig) -> bool {
    matches!(config.scheduling_choice, Some(SchedulingChoice::DynamicBatching(_)))
}

#[test]
fn a_model_without_a_configuration_is_taken_from_its_file() {
    let fixture = Fixture::new().with("m/1/model.onnx", "").with("m/3/model.onnx", "");
    let draft = fixture.draft("m", &Options::default()).unwrap();
    assert_eq!(draft.backend_name(), Some("onnxruntime"));
    let source = draft.source_for_inspect().unwrap();
    assert_eq!((source.version, source.model_path), (3, fixture.root().join("m/3/model.onnx")));
    let definition = draft.complete(Some(&io(&[("x", &[-1, 3])], &[("y", &[-1])]))).unwrap();
    let config = &definition.config;
    assert_eq!((config.name.as_str(), config.platform.as_str()), ("m", "onnxruntime_onnx"));
    assert_eq!(config.max_batch_size, 4);
    assert_eq!(config.input[0].dims, [3]);
    // A number per row has no dimensions left, so it is one that the model sees reshaped to none.
    assert_eq!(config.output[0].dims, [1]);
    assert!(config.output[0].reshape.as_ref().unwrap().shape.is_empty());
    let Scheduling::Dynamic(batching) = &definition.scheduling else { panic!("not dynamic") };
    assert_eq!(batching.preferred_sizes, [4]);
    assert_eq!(definition.versions, [3]);
    assert_eq!(definition.signature.max_batch_size, 4);
    assert_eq!(definition.signature.outputs[0].reshape, Some(Shape::scalar()));
    let names: Vec<&str> = definition.placements.iter().map(|place| place.name.as_str()).collect();
    assert_eq!(names, ["m_0", "m_1"]);
}

#[test]
fn the_batch_size_follows_the_file_unless_given() {
    let batching = io(&[("x", &[-1, 3])], &[("y", &[-1, 2])]);
    let fixed = io(&[("x", &[1, 3])], &[("y", &[1, 2])]);
    let config = served("", &batching).config;
    assert!(config.max_batch_size == 4 && is_dynamic(&config));
    let config = served("max_batch_size: 8", &batching).config;
    assert!(config.max_batch_size == 8 && is_dynamic(&config));
    let config = served("max_batch_size: 1", &batching).config;
    assert!(config.max_batch_size == 1 && config.scheduling_choice.is_none());
    let config = served("sequence_batching { }", &batching).config;
    assert!(config.max_batch_size == 4 && !is_dynamic(&config));
    let config = served("", &fixed).config;
    assert!(config.max_batch_size == 0 && config.scheduling_choice.is_none());
    assert_eq!(config.input[0].dims, [1, 3]);
    assert_eq!(
        refused("max_batch_size: 2", &fixed),
        "autofill failed for model 'm': model does not support batching while non-zero \
         max_batch_size is specified"
    );
    let scalar = io(&[("x", &[])], &[("y", &[1])]);
    assert_eq!(served("", &scalar).config.input[0].dims, [1]);
}

#[test]
fn a_full_configuration_is_left_as_it_is() {
    let full = "input { name: 'x' data_type: TYPE_FP32 dims: [ -1, 3 ] } \
                output { name: 'y' data_type: TYPE_FP32 dims: [ -1, 2 ] }";
    let config = served(full, &io(&[("x", &[-1, 3])], &[("y", &[-1, 2])])).config;
    assert_eq!(config.max_batch_size, 0);
    assert!(config.scheduling_choice.is_none());
}

#[test]
fn half_a_configuration_is_filled_up() {
    let file = io(&[("x", &[-1, 3]), ("w", &[-1])], &[("y", &[-1, 2])]);
    let config = served("max_batch_size: 2 output { name: 'y' }", &file).config;
    let names: Vec<&str> = config.input.iter().map(|input| input.name.as_str()).collect();
    assert_eq!(names, ["x", "w"]);
    assert_eq!(config.output[0].data_type(), crate::proto::DataType::TypeFp32);
    assert_eq!(config.output[0].dims, [2]);
}

#[test]
fn what_the_server_feeds_is_no_input_of_the_client() {
    let file = io(
        &[("x", &[-1, 3]), ("start", &[-1, 1]), ("in", &[-1, 5])],
        &[("y", &[-1]), ("out", &[-1, 5])],
    );
    let config = "sequence_batching { control_input { name: 'start' control { kind: \
                  CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } } state { input_name: 'in' \
                  output_name: 'out' data_type: TYPE_FP32 dims: 5 initial_state { name: 'zero' \
                  data_type: TYPE_FP32 dims: 5 zero_data: true } } }";
    let definition = served(config, &file);
    assert_eq!(definition.config.input.len(), 1);
    assert_eq!(definition.config.output.len(), 1);
    let Scheduling::Sequence(sequence) = &definition.scheduling else { panic!("not sequence") };
    assert_eq!(sequence.max_idle, std::time::Duration::from_secs(1));
    assert_eq!(
        sequence.controls[0].false_true,
        [0_f32, 1.0].map(|value| value.to_le_bytes().to_vec())
    );
    assert_eq!(sequence.states[0].initial.as_ref().unwrap().data, InitialStateData::Zero);
    assert_eq!(
        refused(config, &io(&[("x", &[-1, 3]), ("in", &[-1, 5])], &[("y", &[-1])])),
        "configuration specified sequence control, state or batch input 'start', but model does \
         not provide that input"
    );
}

#[test]
fn disagreement_with_the_file_is_refused() {
    let file = io(&[("x", &[-1, 3])], &[("y", &[-1, 2])]);
    let config = |input: &str, output: &str| {
        format!("max_batch_size: 4 input [ {input} ] output [ {output} ]")
    };
    let x = "{ name: 'x' data_type: TYPE_FP32 dims: 3 }";
    let y = "{ name: 'y' data_type: TYPE_FP32 dims: 2 }";
    let cases = [
        (
            config("{ name: 'z' data_type: TYPE_FP32 dims: 3 }", y),
            "unexpected inference input 'z', allowed inputs are: x",
        ),
        (
            config(x, "{ name: 'z' data_type: TYPE_FP32 dims: 2 }"),
            "unexpected inference output 'z', allowed outputs are: y",
        ),
        (
            config(&format!("{x}, {{ name: 'z' data_type: TYPE_FP32 dims: 3 }}"), y),
            "unable to load model 'm', configuration expects 2 inputs, model provides 1",
        ),
        (
            config("{ name: 'x' data_type: TYPE_INT32 dims: 3 }", y),
            "unable to load model 'm', configuration expects datatype TYPE_INT32 for input 'x', \
             model provides TYPE_FP32",
        ),
        (
            config("{ name: 'x' data_type: TYPE_FP32 dims: 4 }", y),
            "model 'm', tensor 'x': the model expects 2 dimensions (shape [-1,3]) but the model \
             configuration specifies 2 dimensions (an initial batch dimension because \
             max_batch_size > 0 followed by the explicit tensor shape, making complete shape \
             [-1,4])",
        ),
        (
            "input { name: 'x' data_type: TYPE_FP32 dims: 3 } output { name: 'y' data_type: \
             TYPE_FP32 dims: [ -1, 2 ] }"
                .to_owned(),
            "model 'm', tensor 'x': the model expects 2 dimensions (shape [-1,3]) but the model \
             configuration specifies 1 dimensions (shape [3])",
        ),
        (
            config("{ name: 'x' data_type: TYPE_FP32 dims: -1 allow_ragged_batch: true }", y),
            "unable to load model 'm', configuration expects model provides input with shape [-1] \
             for ragged input 'x', model provides [-1,3]",
        ),
    ];
    for (config, expected) in cases {
        assert_eq!(refused(&config, &file), expected, "{config}");
    }
    let unbatched = io(&[("x", &[1, 3])], &[("y", &[1, 2])]);
    assert_eq!(
        refused(&config(x, y), &unbatched),
        "model 'm', tensor 'x': for the model to support batching the shape should have at least 1 \
         dimension and the first dimension must be -1; but shape expected by the model is [1,3]"
    );
    let scalar = io(&[("x", &[])], &[("y", &[2])]);
    assert_eq!(
        refused(
            "input { name: 'x' data_type: TYPE_FP32 dims: 3 } output { name: 'y' data_type: \
             TYPE_FP32 dims: 2 }",
            &scalar
        ),
        "unable to load model 'm', scalar tensor 'x', should only provide 1 in the model \
         configuration when the model doesn't support batching. Model configuration provided: [3]."
    );
}

#[test]
fn agreement_minds_reshape_optional_and_ragged() {
    let reshaped = "max_batch_size: 4 input { name: 'x' data_type: TYPE_FP32 dims: 12 reshape { \
                    shape: [ 3, 4 ] } } output { name: 'y' data_type: TYPE_FP32 dims: 1 reshape { \
                    shape: [ ] } }";
    served(reshaped, &io(&[("x", &[-1, 3, 4])], &[("y", &[-1])]));
    let optional = "input [ { name: 'x' data_type: TYPE_FP32 dims: 1 }, { name: 'w' data_type: \
                    TYPE_FP32 dims: 1 optional: true } ] output { name: 'y' data_type: TYPE_FP32 \
                    dims: 1 }";
    let definition = served(optional, &io(&[("x", &[1])], &[("y", &[1])]));
    assert!(definition.signature.inputs[1].optional);
    let ragged = "max_batch_size: 4 input { name: 'x' data_type: TYPE_FP32 dims: -1 \
                  allow_ragged_batch: true } batch_input { kind: BATCH_ACCUMULATED_ELEMENT_COUNT \
                  target_name: 'n' data_type: TYPE_FP32 source_input: 'x' } output { name: 'y' \
                  data_type: TYPE_FP32 dims: 1 }";
    served(ragged, &io(&[("x", &[-1]), ("n", &[-1])], &[("y", &[-1, 1])]));
}

#[test]
fn auto_completion_can_be_turned_off() {
    let strict = Options { auto_complete: false, ..Options::default() };
    let absent = Fixture::new().with("m/1/model.onnx", "");
    let error = absent.draft("m", &strict).unwrap_err();
    assert!(
        matches!(&error, Error::Unreadable { path, .. } if path.ends_with("m/config.pbtxt")),
        "{error}"
    );
    let partial = onnx("input { name: 'x' }");
    assert_eq!(
        partial.draft("m", &strict).unwrap_err().to_string(),
        "model input 'x' must specify 'data_type' for m"
    );
    let definition =
        onnx("").draft("m", &strict).unwrap().complete(Some(&ModelIo::default())).unwrap();
    assert!(definition.config.input.is_empty());
}

#[test]
fn the_default_batch_size_is_a_setting_of_the_back_end() {
    let settings = |value: &str| {
        Arc::new([("default-max-batch-size".to_owned(), value.to_owned())].into_iter().collect())
    };
    let file = io(&[("x", &[-1, 3])], &[("y", &[-1, 2])]);
    let cases = [("onnxruntime", "16", 16), ("", "2", 2), ("python", "9", 4), ("", "0", 0)];
    for (backend, value, expected) in cases {
        let backend_settings = [(backend.to_owned(), settings(value))].into_iter().collect();
        let options = Options { backend_settings, ..Options::default() };
        let definition = onnx("").draft("m", &options).unwrap().complete(Some(&file)).unwrap();
        assert_eq!(definition.config.max_batch_size, expected, "{backend}={value}");
    }
    let backend_settings = [(String::new(), settings("many"))].into_iter().collect();
    let options = Options { backend_settings, ..Options::default() };
    assert!(onnx("").draft("m", &options).unwrap().complete(Some(&file)).is_err());
}

#[test]
fn instances_go_where_the_groups_say() {
    let gpu = |ordinal| Gpu { ordinal, compute_capability: Some((9, 0)) };
    let options = Options { gpus: vec![gpu(0), gpu(1)].into(), ..Options::default() };
    let placed = |groups: &str| {
        let fixture =
            onnx(&format!("cc_model_filenames {{ key: '9.0' value: 'model.sm90.onnx' }} {groups}"));
        let definition = fixture.draft("m", &options).unwrap().complete(None).unwrap();
        let file =
            definition.source(1).model_path.file_name().unwrap().to_str().unwrap().to_owned();
        let places: Vec<(String, PlacementDevice)> =
            definition.placements.iter().map(|place| (place.name.clone(), place.device)).collect();
        (places, file)
    };
    let at = |name: &str, device| (name.to_owned(), device);
    use PlacementDevice::{Cpu, Gpu as OnGpu, Model};
    assert_eq!(
        placed(""),
        (vec![at("m_0", OnGpu(0)), at("m_1", OnGpu(1))], "model.sm90.onnx".into())
    );
    assert_eq!(
        placed("instance_group { count: 2 }").0,
        [
            at("m_0_0", OnGpu(0)),
            at("m_0_1", OnGpu(1)),
            at("m_0_2", OnGpu(0)),
            at("m_0_3", OnGpu(1))
        ]
    );
    assert_eq!(
        placed("instance_group { kind: KIND_CPU count: 1 }"),
        (vec![at("m_0_0", Cpu)], "model.onnx".into())
    );
    let absent = onnx("instance_group { gpus: 5 }").draft("m", &options).unwrap();
    assert_eq!(
        absent.complete(None).unwrap_err().to_string(),
        "instance group m_0 of model m has kind KIND_CPU but specifies one or more GPUs"
    );
    assert_eq!(
        placed(
            "instance_group [ { name: 'a' gpus: 1 }, { kind: KIND_MODEL }, { kind: KIND_CPU \
                passive: true } ]"
        )
        .0,
        [at("a_0", OnGpu(1)), at("m_1_0", Model)]
    );
}

#[test]
fn defaults_are_echoed() {
    let config = served("max_batch_size: 2", &io(&[("x", &[-1, 3])], &[("y", &[-1, 2])])).config;
    let optimization = config.optimization.as_ref().unwrap();
    assert!(optimization.input_pinned_memory.unwrap().enable);
    assert!(optimization.output_pinned_memory.unwrap().enable);
    let group = &config.instance_group[0];
    assert_eq!((group.name.as_str(), group.kind(), group.count), ("m", Kind::Cpu, 2));
    let json = to_json(&config);
    assert!(json.contains(r#""version_policy":{"latest":{"num_versions":1}}"#), "{json}");
}

#[test]
fn queue_settings_are_typed() {
    let config = "max_batch_size: 8 dynamic_batching { preferred_batch_size: [ 8, 4, 8 ] \
                  max_queue_delay_microseconds: 100 priority_levels: 3 default_priority_level: 2 \
                  default_queue_policy { max_queue_size: 7 allow_timeout_override: true } \
                  priority_queue_policy { key: 1 value { timeout_action: DELAY \
                  default_timeout_microseconds: 5 } } }";
    let definition = onnx(config).draft("m", &Options::default()).unwrap().complete(None).unwrap();
    let Scheduling::Dynamic(batching) = definition.scheduling else { panic!("not dynamic") };
    let micros = std::time::Duration::from_micros;
    assert_eq!(batching.preferred_sizes, [4, 8]);
    assert_eq!(batching.max_queue_delay, micros(100));
    assert_eq!((batching.priority_levels, batching.default_priority), (3, 2));
    let first = QueuePolicy {
        timeout_action: TimeoutAction::Delay,
        default_timeout: Some(micros(5)),
        ..QueuePolicy::default()
    };
    let others = QueuePolicy {
        allow_timeout_override: true,
        max_queue_size: Some(7),
        ..QueuePolicy::default()
    };
    assert_eq!((batching.policy(1), batching.policy(2)), (&first, &others));
}

fn dims() -> impl Strategy<Value = Vec<i64>> {
    prop::collection::vec(prop_oneof![Just(-1_i64), 1_i64..9], 0..4)
}

proptest! {
    #[test]
    fn a_completed_configuration_agrees_and_completes_to_itself(
        inputs in prop::collection::vec(dims(), 1..4),
        outputs in prop::collection::vec(dims(), 1..4),
    ) {
        let named = |prefix: &str, list: Vec<Vec<i64>>| -> Vec<ModelIoTensor> {
            let with_name = |(index, dims): (usize, &Vec<i64>)| {
                tensor(&format!("{prefix}{index}"), DataType::Int64, dims)
            };
            list.iter().enumerate().map(with_name).collect()
        };
        let io = ModelIo { inputs: named("x", inputs), outputs: named("y", outputs) };
        let first = served("", &io);
        let options = Arc::new(Options::default());
        let fixture = onnx("");
        let dir = fixture.root().join("m");
        let again = Draft::new("m", &dir, (*first.config).clone().into(), &options).unwrap();
        prop_assert_eq!(&again.complete(Some(&io)).unwrap().config, &first.config);
        let read = from_json(&to_json(&first.config)).unwrap();
        prop_assert_eq!(&read, &*first.config);
    }
}
