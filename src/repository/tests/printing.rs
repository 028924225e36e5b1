//! JSON out and in.

use super::*;

#[test]
fn json_has_every_field_that_triton_prints() {
    let config = "backend: 'onnxruntime' max_batch_size: 2 \
        input { name: 'x' data_type: TYPE_FP32 dims: [ 3, -1 ] reshape { shape: [ 3, -1 ] } } \
        dynamic_batching { max_queue_delay_microseconds: 18446744073709551615 \
            priority_queue_policy { key: 1 value { max_queue_size: 5 } } } \
        parameters { key: 'k' value { string_value: 'a\"b' } } metric_tags { key: 'b' value: '1' } \
        metric_tags { key: 'a' value: '2' }";
    let definition = onnx(config).draft("m", &Options::default()).unwrap().complete(None).unwrap();
    let expected = concat!(
        r#"{"name":"m","platform":"onnxruntime_onnx","backend":"onnxruntime","runtime":"","#,
        r#""version_policy":{"latest":{"num_versions":1}},"max_batch_size":2,"#,
        r#""input":[{"name":"x","data_type":"TYPE_FP32","format":"FORMAT_NONE","dims":[3,-1],"#,
        r#""reshape":{"shape":[3,-1]},"is_shape_tensor":false,"allow_ragged_batch":false,"#,
        r#""optional":false,"is_non_linear_format_io":false}],"output":[],"batch_input":[],"#,
        r#""batch_output":[],"optimization":{"priority":"PRIORITY_DEFAULT","#,
        r#""input_pinned_memory":{"enable":true},"output_pinned_memory":{"enable":true},"#,
        r#""gather_kernel_buffer_threshold":0,"eager_batching":false},"#,
        r#""dynamic_batching":{"preferred_batch_size":[2],"#,
        r#""max_queue_delay_microseconds":18446744073709551615,"preserve_ordering":false,"#,
        r#""priority_levels":0,"default_priority_level":0,"#,
        r#""priority_queue_policy":{"1":{"timeout_action":"REJECT","#,
        r#""default_timeout_microseconds":0,"allow_timeout_override":false,"max_queue_size":5}}},"#,
        r#""instance_group":[{"name":"m","kind":"KIND_CPU","count":2,"gpus":[],"#,
        r#""secondary_devices":[],"profile":[],"passive":false,"host_policy":""}],"#,
        r#""default_model_filename":"model.onnx","cc_model_filenames":{},"#,
        r#""metric_tags":{"a":"2","b":"1"},"parameters":{"k":{"string_value":"a\"b"}},"#,
        r#""model_warmup":[]}"#,
    );
    assert_eq!(to_json(&definition.config), expected);
}

#[test]
fn floats_print_as_short_as_they_are() {
    let text = "name: 'm' sequence_batching { direct { minimum_slot_utilization: 0.1 } \
                control_input { name: 's' control { fp32_false_true: [ 0, 1, -2.5 ] } } } \
                model_metrics { metric_control { histogram_options { buckets: [ 100, 0.25, inf ] \
                } } }";
    let config = text::parse(Path::new("f"), text).unwrap().config;
    let json = to_json(&config);
    for part in [r#""minimum_slot_utilization":0.1"#, r#"[0,1,-2.5]"#, r#"[100,0.25,"Infinity"]"#] {
        assert!(json.contains(part), "{part} in {json}");
    }
    assert_eq!(from_json(&json).unwrap(), config);
}

#[test]
fn an_override_is_read_as_clients_write_it() {
    let json = r#"{ "backend": "onnxruntime", "maxBatchSize": 8, "dynamic_batching": {},
        "input": [ { "name": "x", "data_type": "type_int64", "dims": [ "3", -1 ] } ],
        "parameters": { "k": { "string_value": "v" } }, "instance_group": [ { "kind": 2 } ] }"#;
    let config = from_json(json).unwrap();
    assert_eq!(config.max_batch_size, 8);
    assert_eq!(config.input[0].data_type(), crate::proto::DataType::TypeInt64);
    assert_eq!(config.input[0].dims, [3, -1]);
    assert_eq!(config.instance_group[0].kind, 2);
    let fixture = onnx("max_batch_size: 1");
    let options = Arc::new(Options::default());
    let draft = Draft::new("m", &fixture.root().join("m"), config.into(), &options).unwrap();
    assert_eq!(draft.config().max_batch_size, 8);
}

#[test]
fn a_bad_override_says_what_is_bad() {
    let cases = [
        (r#"{"bogus": 1}"#, "unrecognized field name 'bogus'"),
        (r#"{"max_batch_size": "many"}"#, "invalid digit"),
        (r#"{"input": [{"data_type": "TYPE_FLOAT"}]}"#, "TYPE_FLOAT"),
        (r#"{"name": "a"} x"#, "trailing characters"),
        ("[]", "invalid type"),
        ("", "EOF"),
    ];
    for (json, part) in cases {
        let error = from_json(json).unwrap_err().to_string();
        assert!(
            error.starts_with("Invalid config override: ") && error.contains(part),
            "{json}: {error}"
        );
    }
    let deep = format!("{}{}", r#"{"input":"#.repeat(1000), "1");
    assert!(from_json(&deep).is_err());
}
