use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::proto::{
    DataType, model_config::SchedulingChoice, model_instance_group,
    model_version_policy::PolicyChoice,
};

fn parsed(text: &str) -> ModelConfig {
    parse(Path::new("config.pbtxt"), text).unwrap_or_else(|error| panic!("{text}\n{error}")).config
}

fn error(text: &str) -> String {
    parse(Path::new("config.pbtxt"), text).unwrap_err().to_string()
}

#[test]
fn tensors_are_written_in_many_ways() {
    let ways = [
        r#"input [ { name: "a" data_type: TYPE_FP32 dims: [ 3, 4 ] } ]"#,
        r#"input: [ { name: "a" data_type: TYPE_FP32 dims: [ 3, 4 ] } ]"#,
        r#"input [{name:"a",data_type:TYPE_FP32,dims:[3,4]}]"#,
        r#"input { name: "a" data_type: TYPE_FP32 dims: 3 dims: 4 }"#,
        r#"input: { name: "a"; data_type: TYPE_FP32; dims: [ 3 ]; dims: [4]; }"#,
        r#"input < name: "a" data_type: TYPE_FP32 dims: 3, dims: 4, >"#,
        r#"input: < name: 'a' data_type: 11 dims: [0x3, 04] >"#,
        r#"input [ < name: "a" data_type: TYPE_FP32 dims [ 3, 4 ] > ]"#,
        "input [\n  {\n    name: \"a\"\r\n    data_type: TYPE_FP32 # [ { in a comment\n\tdims: \
         [\n3\n,\n4\n]\n  }\n]\n",
        r#"input{name:"a" data_type:TYPE_FP32 dims:[3,4]}"#,
        r#"input [ { name: "a" data_type: TYPE_FP32 dims: [ 3, 4 ] } ],"#,
        "\u{feff}input { name: \"a\" data_type: TYPE_FP32 dims: [ 3, 4 ] };",
    ];
    for text in ways {
        let config = parsed(text);
        assert_eq!(config.input.len(), 1, "{text}");
        let input = config.input.first().unwrap();
        assert_eq!(
            (input.name.as_str(), input.data_type(), input.dims.as_slice()),
            ("a", DataType::TypeFp32, [3, 4].as_slice()),
            "{text}"
        );
    }
}

#[test]
fn lists_may_be_empty_repeated_and_of_several() {
    let config = parsed(
        r#"input [ { name: "a" }, { name: "b" dims: [ ] } ] input { name: "c" dims: [ -1 ] }
           output [ ] output: [ ]
           instance_group [ { kind: KIND_CPU gpus: [ ] }, { kind: 1 gpus [ 0, 1 ] } ]"#,
    );
    let names: Vec<&str> = config.input.iter().map(|input| input.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!(config.input.last().unwrap().dims, [-1]);
    assert!(config.output.is_empty());
    assert_eq!(config.instance_group[0].kind(), model_instance_group::Kind::Cpu);
    assert_eq!(config.instance_group[1].kind(), model_instance_group::Kind::Gpu);
    assert_eq!(config.instance_group[1].gpus, [0, 1]);
}

#[test]
fn strings_are_joined_quoted_and_escaped() {
    let cases = [
        (r#""plain""#, "plain"),
        (r#"'single'"#, "single"),
        (r#""a 'b' c""#, "a 'b' c"),
        (r#"'a "b" c'"#, r#"a "b" c"#),
        ("\"one \"  \n # between\n 'two'", "one two"),
        (r#""tab\t nl\n quote\" slash\\ \x41 \101 \u00e9""#, "tab\t nl\n quote\" slash\\ A A é"),
        (r##""# no comment [ { : ""##, "# no comment [ { : "),
        (r#""größe 😀""#, "größe 😀"),
        (r#""""#, ""),
    ];
    for (text, expected) in cases {
        assert_eq!(parsed(&format!("name: {text}")).name, expected, "{text}");
    }
}

#[test]
fn scalars_of_every_kind_are_read() {
    let config = parsed(
        r#"max_batch_size: 0x10
           model_transaction_policy { decoupled: True }
           response_cache { enable: t }
           optimization { graph { level: -1 } input_pinned_memory { enable: false }
                          output_pinned_memory { enable: 1 } gather_kernel_buffer_threshold: 010
                          cuda { graphs: f busy_wait_events: False } }
           model_metrics { metric_control: [ { metric_identifier: { family: "x" }
             histogram_options: { buckets: [ 0.5, 1, 2.5e3, .25, 10f, -1.5E-2, inf ] } } ] }
           version_policy: { specific { versions: [ 1, 9223372036854775807 ] } }
           sequence_batching { direct { minimum_slot_utilization: 0.75 }
             max_sequence_idle_microseconds: 18446744073709551615 }"#,
    );
    assert_eq!(config.max_batch_size, 16);
    assert!(config.model_transaction_policy.unwrap().decoupled);
    assert!(config.response_cache.unwrap().enable);
    let optimization = config.optimization.unwrap();
    assert_eq!(optimization.graph.unwrap().level, -1);
    assert_eq!(optimization.gather_kernel_buffer_threshold, 8);
    assert!(!optimization.input_pinned_memory.unwrap().enable);
    assert!(optimization.output_pinned_memory.unwrap().enable);
    let Some(PolicyChoice::Specific(specific)) = config.version_policy.unwrap().policy_choice
    else {
        panic!("expected a specific policy");
    };
    assert_eq!(specific.versions, [1, i64::MAX]);
    let Some(SchedulingChoice::SequenceBatching(sequence)) = config.scheduling_choice else {
        panic!("expected a sequence batcher");
    };
    assert_eq!(sequence.max_sequence_idle_microseconds, u64::MAX);
    let metrics = config.model_metrics.unwrap();
    let Some(crate::proto::model_metrics::metric_control::MetricOptions::HistogramOptions(
        histogram,
    )) = &metrics.metric_control[0].metric_options
    else {
        panic!("expected a histogram");
    };
    assert_eq!(histogram.buckets, [0.5, 1.0, 2500.0, 0.25, 10.0, -0.015, f64::INFINITY]);
}

#[test]
fn maps_are_entries_of_key_and_value() {
    let config = parsed(
        r#"parameters { key: "one" value: { string_value: "1" } }
           parameters: { key: "two", value { string_value: "2" } },
           parameters [ { key: "three" value: { string_value: "3" } }, { key: "four" } ]
           metric_tags { key: "team" value: "vision" }
           cc_model_filenames [ { key: "9.0" value: "model.sm90" } ]
           dynamic_batching { priority_levels: 2 default_priority_level: 1
             priority_queue_policy { key: 2 value { timeout_action: DELAY max_queue_size: 5 } } }"#,
    );
    let parameters: Vec<(&str, &str)> = config
        .parameters
        .iter()
        .map(|(key, value)| (key.as_str(), value.string_value.as_str()))
        .collect();
    assert_eq!(parameters, [("four", ""), ("one", "1"), ("three", "3"), ("two", "2")]);
    assert_eq!(config.metric_tags["team"], "vision");
    assert_eq!(config.cc_model_filenames["9.0"], "model.sm90");
    let Some(SchedulingChoice::DynamicBatching(batching)) = config.scheduling_choice else {
        panic!("expected a dynamic batcher");
    };
    assert_eq!(batching.priority_queue_policy[&2].max_queue_size, 5);
}

#[test]
fn an_empty_message_is_there() {
    let config = parsed("dynamic_batching { } version_policy: { all { } }");
    assert!(matches!(config.scheduling_choice, Some(SchedulingChoice::DynamicBatching(_))));
    let choice = config.version_policy.unwrap().policy_choice;
    assert!(matches!(choice, Some(PolicyChoice::All(_))));
    assert_eq!(parsed(""), ModelConfig::default());
    assert_eq!(parsed("# nothing\n"), ModelConfig::default());
}

#[test]
fn faults_are_told_with_their_place_in_the_file() {
    let cases = [
        (
            "name: \"a\"\nbogus: 1\n",
            "config.pbtxt:2:1: field 'bogus' not found for message 'inference.ModelConfig'",
        ),
        (
            "input [ { name: \"a\" } ]\noutput [\n  { name: \"b\" dim: [ 1 ] }\n]",
            "config.pbtxt:3:15: field 'dim' not found for message 'inference.ModelOutput'",
        ),
        (
            "input [ { data_type: TYPE_FLOAT } ]",
            "config.pbtxt:1:22: value 'TYPE_FLOAT' was not found for enum 'inference.DataType'",
        ),
        ("name: \"a\"\nname: \"b\"", "config.pbtxt:2:7: 'name' is already set"),
        (
            "name: \"é\" bogus: 1",
            "config.pbtxt:1:11: field 'bogus' not found for message 'inference.ModelConfig'",
        ),
        ("max_batch_size: \"8\"", "config.pbtxt:1:17: expected an integer, but found '\"8\"'"),
        (
            "max_batch_size: 4294967296",
            "config.pbtxt:1:17: expected value to be a signed 32-bit integer, \
             but the value 4294967296 is out of range",
        ),
        (
            "input [\n  { name: \"a\" }\n",
            "config.pbtxt:2:16: expected ',' or ']', but reached end of input",
        ),
        ("name: \"a", "config.pbtxt:1:9: expected string terminator, but reached end of input"),
        ("name: \"a\n\"", "config.pbtxt:1:9: invalid string character"),
        ("input [ { dims: [ 1, ] } ]", "config.pbtxt:1:22: expected an integer, but found ']'"),
        ("name = \"a\"", "config.pbtxt:1:6: invalid token"),
        (
            "dynamic_batching { }\nsequence_batching { }",
            "config.pbtxt:2:19: a value is already set for oneof 'scheduling_choice'",
        ),
        ("name: \"\\q\"", "config.pbtxt:1:8: invalid string escape"),
        ("name: \"\\xff\"", "config.pbtxt:1:7: string is not valid utf-8"),
    ];
    for (text, expected) in cases {
        assert_eq!(error(text), expected, "{text}");
    }
}

#[test]
fn the_outline_finds_a_field_or_what_is_around_it() {
    let text = [
        "name: 'm'",
        "input [",
        "  { name: 'a' },",
        "  { name: 'b'",
        "    dims: [ 1, 0 ] }",
        "]",
        "input { name: 'c' }",
        "dynamic_batching {",
        "  preferred_batch_size: [ 4,",
        "    9 ]",
        "}",
    ]
    .join("\n");
    let outline = parse(Path::new("config.pbtxt"), &text).unwrap().outline;
    let cases = [
        ("name", Some((1, 1))),
        ("input[0]", Some((3, 3))),
        ("input[1]", Some((4, 3))),
        ("input[1].dims", Some((5, 5))),
        ("input[1].dims[1]", Some((5, 16))),
        ("input[1].data_type", Some((4, 3))),
        ("input[2].name", Some((7, 9))),
        ("input[7].name", Some((2, 1))),
        ("dynamic_batching.preferred_batch_size[1]", Some((10, 5))),
        ("dynamic_batching.default_queue_policy", Some((8, 1))),
        ("output[0]", None),
        ("", None),
    ];
    for (field, expected) in cases {
        assert_eq!(outline.position(field), expected, "{field}");
    }
}

#[test]
fn deep_nesting_is_refused_and_does_not_grow_without_bound() {
    let text = "input {".repeat(200_000);
    assert!(error(&text).starts_with("config.pbtxt:1:8: "), "{}", error(&text));
    let text = "[".repeat(200_000);
    assert!(error(&text).starts_with("config.pbtxt:1:"));
}

fn token() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "input",
            "dims",
            "name",
            "parameters",
            "key",
            "value",
            "TYPE_FP32",
            "true",
            "[",
            "]",
            "{",
            "}",
            "<",
            ">",
            ":",
            ",",
            ";",
            "-",
            "\"x\"",
            "'y'",
            "\"",
            "\\",
            "#c\n",
            "1",
            "0x1",
            "1.5e-3",
            "é",
            "\0",
            "version_policy",
            "latest",
            "\n",
        ])
        .prop_map(str::to_owned),
        "[ -~]{0,6}",
    ]
}

proptest! {
    #[test]
    fn any_text_gives_a_configuration_or_a_place(
        tokens in prop::collection::vec(token(), 0..40), gap in "[ \n]?",
    ) {
        let text = tokens.join(&gap);
        match parse(Path::new("f"), &text) {
            Ok(_) => {}
            Err(Error::Text { location, .. }) => {
                prop_assert!(location.line >= 1 && location.line <= text.matches('\n').count() + 1);
                prop_assert!(location.column >= 1);
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }

    #[test]
    fn what_the_format_prints_is_read_back(
        name in ".{0,20}", dims in prop::collection::vec(-1_i64.., 1..5), rows in 0..9_i32,
    ) {
        let mut config =
            ModelConfig { name: name.clone(), max_batch_size: rows, ..ModelConfig::default() };
        config.input.push(crate::proto::ModelInput { name, dims, ..Default::default() });
        let mut message = DynamicMessage::new(model_config_descriptor());
        message.transcode_from(&config).unwrap();
        prop_assert_eq!(parsed(&message.to_text_format()), config);
    }
}
