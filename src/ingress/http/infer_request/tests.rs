use std::time::Duration;

use super::*;
use crate::inference::{
    CorrelationId, DataType, Parameter, RegionRange, Shape, Signature, TensorSpec,
};

fn parse_text(json: &str) -> Result<(InferRequest, ResponseForm), Error> {
    parse("m", "", &json.as_bytes().to_vec().into(), json.len())
}

fn parse_with_tail(json: &str, tail: &[u8]) -> Result<(InferRequest, ResponseForm), Error> {
    parse("m", "", &[json.as_bytes(), tail].concat().into(), json.len())
}

fn message(json: &str) -> String {
    parse_text(json).map(drop).unwrap_err().to_string()
}

/// A request with one input of these members.
fn input(members: &str) -> String {
    format!(r#"{{"inputs":[{{{members}}}]}}"#)
}

fn bytes_of(json: &str) -> Vec<u8> {
    let (request, _) = parse_text(json).unwrap();
    request.inputs[0].data.clone().into_bytes().to_vec()
}

#[test]
fn a_request_is_read_member_by_member() {
    let json = r#" { "id" : "4\u0032", "unknown": [{"x": null}],
        "parameters": {"priority": 3, "timeout": 1500, "binary_data_output": true,
            "sequence_id": 18446744073709551615, "sequence_start": true, "sequence_end": false,
            "temperature": 0.5, "n": -7, "greedy": true, "prompt": "a\nb"},
        "inputs": [
            {"name": "A", "shape": [1, 2], "datatype": "INT32", "data": [[1, -2]]},
            {"data": ["x", "", "ü"], "datatype": "BYTES", "shape": [3], "name": "B", "x": {}}
        ],
        "outputs": [
            {"name": "P"},
            {"name": "Q", "parameters": {"binary_data": true, "other": 1}},
            {"name": "R", "parameters": {"classification": 5, "binary_data": false}}
        ] } "#;
    let (request, form) =
        parse("simple", "7", &json.as_bytes().to_vec().into(), json.len()).unwrap();
    assert_eq!(request.model_name, "simple");
    assert_eq!(request.model_version, "7");
    assert_eq!(request.id, "42");
    assert_eq!(request.priority, 3);
    assert_eq!(request.queue_timeout, Some(Duration::from_micros(1500)));
    let sequence = Sequence { id: CorrelationId::Number(u64::MAX), start: true, end: false };
    assert_eq!(request.sequence.as_deref(), Some(&sequence));
    let parameters: Vec<_> = request.parameters.iter().collect();
    assert_eq!(
        parameters,
        [
            ("temperature", &Parameter::Double(0.5)),
            ("n", &Parameter::Int(-7)),
            ("greedy", &Parameter::Bool(true)),
            ("prompt", &Parameter::String("a\nb".into())),
        ]
    );
    let [a, b] = request.inputs.as_slice() else { panic!("two inputs") };
    assert_eq!((a.name.as_str(), a.datatype, &a.shape), ("A", DataType::Int32, &[1, 2].into()));
    assert_eq!(a.data.clone().into_bytes(), [1_i32, -2].map(i32::to_le_bytes).concat());
    assert_eq!((b.name.as_str(), b.datatype, &b.shape), ("B", DataType::Bytes, &[3].into()));
    assert_eq!(b.data.clone().into_bytes(), &b"\x01\0\0\0x\0\0\0\0\x02\0\0\0\xc3\xbc"[..]);
    assert_eq!(form.outputs, request.outputs);
    assert!(!form.is_binary(0, "P") && form.is_binary(1, "Q") && !form.is_binary(2, "R"));
    assert!(form.is_binary(0, "Q") && form.is_binary(0, "not named"));
    assert_eq!(form.output(9, "R").unwrap().classification, 5);
}

#[test]
fn the_order_of_members_does_not_matter() {
    let members = [r#""name":"A""#, r#""datatype":"FP32""#, r#""shape":[2]"#, r#""data":[0.5,1]"#];
    let expected = [0.5_f32, 1.0].map(f32::to_le_bytes).concat();
    for first in 0..4 {
        for second in 0..4 {
            let mut order = members.to_vec();
            order.swap(0, first);
            order.swap(1, second);
            assert_eq!(bytes_of(&input(&order.join(","))), expected, "{order:?}");
        }
    }
}

#[test]
fn binary_inputs_are_slices_of_the_tail_in_order() {
    let json = r#"{"inputs":[
        {"name":"A","shape":[3],"datatype":"UINT8","parameters":{"binary_data_size":3}},
        {"name":"B","shape":[1],"datatype":"INT8","data":[-1]},
        {"name":"C","shape":[0],"datatype":"FP32","parameters":{"binary_data_size":0}},
        {"name":"D","shape":[1],"datatype":"FP16","parameters":{"binary_data_size":2}}]}"#;
    let whole: bytes::Bytes = [json.as_bytes(), b"abcde"].concat().into();
    let (request, form) = parse("m", "", &whole.clone().into(), json.len()).unwrap();
    let data: Vec<_> =
        request.inputs.iter().map(|input| input.data.clone().into_bytes().to_vec()).collect();
    assert_eq!(data, [&b"abc"[..], &[0xFF], b"", b"de"]);
    let in_place = request.inputs[0].data.contiguous().unwrap();
    assert_eq!(in_place.as_ptr(), whole[json.len()..].as_ptr());
    assert_eq!(form, ResponseForm::default());

    let mut pieces = Rope::default();
    for piece in whole.chunks(7) {
        pieces.push(bytes::Bytes::copy_from_slice(piece));
    }
    let (scattered, _) = parse("m", "", &pieces, json.len()).unwrap();
    assert_eq!(scattered.inputs[3].data.clone().into_bytes(), &b"de"[..]);
}

#[test]
fn the_json_length_is_the_headers_or_the_bodys() {
    for (header, expected) in [
        (None, Ok(100)),
        (Some("0"), Ok(0)),
        (Some(" 42 "), Ok(42)),
        (Some("100"), Ok(100)),
        (Some("101"), Err("inference header size should be in range (0, 100), got: 101")),
        (Some("-1"), Err("inference header size should be in range (0, 100), got: -1")),
        (
            Some("99999999999999999999999"),
            Err("inference header size should be in range (0, 100), got: 99999999999999999999999"),
        ),
        (Some(""), Err("Unable to parse Inference-Header-Content-Length, got: ")),
        (Some("-"), Err("Unable to parse Inference-Header-Content-Length, got: -")),
        (Some("ten"), Err("Unable to parse Inference-Header-Content-Length, got: ten")),
        (Some("1e2"), Err("Unable to parse Inference-Header-Content-Length, got: 1e2")),
    ] {
        let length = json_length(header.map(str::as_bytes), 100);
        assert_eq!(length.map_err(|error| error.to_string()), expected.map_err(str::to_owned));
    }
}

#[test]
fn what_is_missing_or_of_the_wrong_type_is_named() {
    let good = r#""name":"A","datatype":"INT8","shape":[1],"data":[1]"#;
    let absent = |name| {
        format!("Unable to parse '{name}': attempt to access non-existing object member '{name}'")
    };
    let mistyped = |name, kind| {
        format!("Unable to parse '{name}': attempt to access JSON non-{kind} as {kind}")
    };
    let no_data = "Input must set only one of the following fields: 'data', 'binary_data_size' in \
                   'parameters', 'shared_memory_region' in 'parameters'. But no field is set";
    for (json, expected) in [
        ("[]".to_owned(), absent("inputs")),
        ("3".to_owned(), absent("inputs")),
        ("{}".to_owned(), absent("inputs")),
        (r#"{"inputs":{}}"#.to_owned(), mistyped("inputs", "array")),
        (r#"{"inputs":[1]}"#.to_owned(), no_data.to_owned()),
        (r#"{"inputs":[null]}"#.to_owned(), no_data.to_owned()),
        (r#"{"id":7,"inputs":[]}"#.to_owned(), mistyped("id", "string")),
        (input(r#""datatype":"INT8","shape":[1],"data":[1]"#), absent("name")),
        (input(r#""name":"A","shape":[1],"data":[1]"#), absent("datatype")),
        (input(r#""name":"A","datatype":"INT8","data":[1]"#), absent("shape")),
        (input(r#""name":null"#), mistyped("name", "string")),
        (input(r#""datatype":5"#), mistyped("datatype", "string")),
        (input(r#""shape":"1""#), mistyped("shape", "array")),
        (input(r#""shape":[-1]"#), mistyped("shape", "unsigned-integer")),
        (input(r#""shape":[1.5]"#), mistyped("shape", "unsigned-integer")),
        (
            input(r#""shape":[9223372036854775808]"#),
            "Unable to parse 'shape': dimension 9223372036854775808 is larger than \
             9223372036854775807"
                .to_owned(),
        ),
        (
            input(r#""parameters":{"binary_data_size":-1}"#),
            mistyped("binary_data_size", "unsigned-integer"),
        ),
        (input(r#""parameters":[]"#), no_data.to_owned()),
        (
            input(r#""name":"A","datatype":"FLOAT","shape":[1],"data":[1]"#),
            "invalid datatype for input A".to_owned(),
        ),
        (
            input(r#""name":"A","datatype":"INT8","shape":[1],"data":1"#),
            "Unable to parse 'data': attempt to access JSON non-array as array".to_owned(),
        ),
        (format!(r#"{{"inputs":[{{{good}}}],"outputs":3}}"#), mistyped("outputs", "array")),
        (format!(r#"{{"inputs":[{{{good}}}],"outputs":[{{}}]}}"#), absent("name")),
        (
            format!(
                r#"{{"inputs":[{{{good}}}],"outputs":[{{"name":"P","parameters":{{"binary_data":1}}}}]}}"#
            ),
            mistyped("binary_data", "boolean"),
        ),
        (
            format!(
                r#"{{"inputs":[{{{good}}}],"outputs":[{{"name":"P","parameters":{{"classification":4294967296}}}}]}}"#
            ),
            "Unable to parse 'classification': output 'P' asks for 4294967296 classes, expected at \
             most 4294967295"
                .to_owned(),
        ),
        (format!(r#"{{"inputs":[{{{good}}}],"outputs":[7]}}"#), absent("name")),
        (
            format!(r#"{{"inputs":[{{{good}}}]"#),
            "failed to parse the request JSON buffer: Missing a comma or '}' after an object \
             member. at 65"
                .to_owned(),
        ),
    ] {
        assert_eq!(message(&json), expected, "{json}");
    }
}

#[test]
fn wrong_parameters_are_named() {
    for (parameters, expected) in [
        (
            r#"{"priority":-1}"#,
            "Unable to parse 'priority': attempt to access JSON non-unsigned-integer as unsigned-integer",
        ),
        (
            r#"{"timeout":"1"}"#,
            "Unable to parse 'timeout': attempt to access JSON non-unsigned-integer as unsigned-integer",
        ),
        (
            r#"{"sequence_id":1.5}"#,
            "Unable to parse 'sequence_id': attempt to access JSON non-unsigned-integer as unsigned-integer",
        ),
        (
            r#"{"sequence_id":true}"#,
            "Unable to parse 'sequence_id': attempt to access JSON non-string as string",
        ),
        (
            r#"{"sequence_start":1}"#,
            "Unable to parse 'sequence_start': attempt to access JSON non-boolean as boolean",
        ),
        (
            r#"{"binary_data_output":"yes"}"#,
            "Unable to parse 'binary_data_output': attempt to access JSON non-boolean as boolean",
        ),
        (
            r#"{"triton_x":1}"#,
            "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified.",
        ),
        (
            r#"{"x":[1]}"#,
            "parameter 'x' has invalid type. It should be either 'int', 'bool', or 'string'.",
        ),
        (
            r#"{"x":null}"#,
            "parameter 'x' has invalid type. It should be either 'int', 'bool', or 'string'.",
        ),
        (r#"{"x":1e999}"#, "parameter 'x' is 1e999, too large for a 64-bit float"),
        ("7", "failed to get request params.: attempt to get members for non-object"),
        ("null", "failed to get request params.: attempt to get members for non-object"),
    ] {
        let json = format!(r#"{{"parameters":{parameters},"inputs":[]}}"#);
        assert_eq!(message(&json), expected, "{json}");
    }
    let (request, _) =
        parse_text(r#"{"parameters":{"sequence_id":"s","timeout":0},"inputs":[]}"#).unwrap();
    let sequence = request.sequence.unwrap();
    assert_eq!(
        *sequence,
        Sequence { id: CorrelationId::Text("s".into()), start: false, end: false }
    );
    assert_eq!(request.queue_timeout, None);
}

#[test]
fn elements_are_held_against_their_type() {
    let one = |datatype: &str, value: &str| {
        input(&format!(r#""name":"A","datatype":"{datatype}","shape":[1],"data":[{value}]"#))
    };
    for (datatype, value, expected) in [
        ("BOOL", "true", &[1_u8][..]),
        ("BOOL", "false", &[0]),
        ("UINT8", "255", &[255]),
        ("INT8", "-128", &[0x80]),
        ("UINT16", "65535", &[255, 255]),
        ("INT16", "-2", &[0xFE, 0xFF]),
        ("UINT64", "18446744073709551615", &[255; 8]),
        ("INT64", "-9223372036854775808", &[0, 0, 0, 0, 0, 0, 0, 0x80]),
        ("FP32", "1", &[0, 0, 0x80, 0x3F]),
        ("FP64", "-0.5", &[0, 0, 0, 0, 0, 0, 0xE0, 0xBF]),
        ("FP32", "Infinity", &[0, 0, 0x80, 0x7F]),
    ] {
        assert_eq!(bytes_of(&one(datatype, value)), expected, "{datatype} {value}");
    }
    let range = |value, datatype| {
        format!(
            "Unable to parse 'data': element 0 of input 'A' is {value}, out of range for {datatype}"
        )
    };
    let kind = |non, target| {
        format!("Unable to parse 'data': attempt to access JSON non-{non} as {target}")
    };
    let unsigned = "unsigned-integer";
    let signed = "signed-integer";
    for (datatype, value, expected) in [
        ("UINT8", "256", range("256", "UINT8")),
        ("UINT8", "-1", kind(unsigned, unsigned)),
        ("INT8", "128", range("128", "INT8")),
        ("INT8", "-129", range("-129", "INT8")),
        ("UINT16", "65536", range("65536", "UINT16")),
        ("INT16", "32768", range("32768", "INT16")),
        ("UINT32", "4294967296", range("4294967296", "UINT32")),
        ("INT32", "2147483648", range("2147483648", "INT32")),
        ("UINT64", "18446744073709551616", kind(unsigned, unsigned)),
        ("INT64", "9223372036854775808", kind(signed, signed)),
        ("FP32", "1e39", range("1e39", "FP32")),
        ("FP64", "1e309", range("1e309", "FP64")),
        ("INT32", "1.5", kind(signed, signed)),
        ("INT32", "1e2", kind(signed, signed)),
        ("INT32", "NaN", kind(signed, signed)),
        ("UINT8", "1.0", kind(unsigned, unsigned)),
        ("UINT8", "\"1\"", kind(unsigned, unsigned)),
        ("INT64", "null", kind(signed, signed)),
        ("FP32", "true", kind("number", "double")),
        ("FP64", "{\"x\":1}", kind("number", "double")),
        ("BOOL", "1", kind("boolean", "boolean")),
        (
            "BYTES",
            "1",
            "Unable to parse JSON bytes array: attempt to access JSON non-string as string"
                .to_owned(),
        ),
        (
            "FP16",
            "1",
            "receiving FP16 data via JSON is not supported. Please use the binary data format for \
             input A"
                .to_owned(),
        ),
        (
            "BF16",
            "1",
            "receiving BF16 data via JSON is not supported. Please use the binary data format for \
             input A"
                .to_owned(),
        ),
        ("INT8", "x", "failed to parse the request JSON buffer: Invalid value. at 61".to_owned()),
    ] {
        assert_eq!(message(&one(datatype, value)), expected, "{datatype} {value}");
    }
}

#[test]
fn the_number_of_elements_is_held_against_the_shape() {
    let of = |shape: &str, data: &str| {
        input(&format!(r#""name":"A","datatype":"INT8","shape":{shape},"data":{data}"#))
    };
    assert_eq!(bytes_of(&of("[2,2]", "[[1,2],[3,4]]")), [1, 2, 3, 4]);
    assert_eq!(bytes_of(&of("[2,2]", "[1,2,3,4]")), [1, 2, 3, 4]);
    assert_eq!(bytes_of(&of("[]", "[5]")), [5]);
    assert!(bytes_of(&of("[0,3]", "[]")).is_empty());
    let mismatch =
        "Unable to parse 'data': Shape does not match true shape of 'data' field".to_owned();
    for (shape, data, expected) in [
        ("[3]", "[1,2]", mismatch.clone()),
        ("[3]", "[1,2,3,4]", mismatch.clone()),
        ("[0]", "[1]", mismatch.clone()),
        ("[4611686018427387904]", "[1]", mismatch),
        (
            "[4611686018427387904,4]",
            "[1]",
            "input 'A' has shape [4611686018427387904,4]: the number of elements is too large"
                .to_owned(),
        ),
    ] {
        assert_eq!(message(&of(shape, data)), expected);
    }
}

#[test]
fn an_input_has_its_data_from_one_source() {
    let only = "Input must set only one of the following fields: 'data', 'binary_data_size' in \
                'parameters', 'shared_memory_region' in 'parameters'. But";
    let head = r#""name":"A","datatype":"INT8","shape":[1]"#;
    for (rest, expected) in [
        ("", format!("{only} no field is set")),
        (
            r#","data":[1],"parameters":{"binary_data_size":1}"#,
            format!("{only} set 'data' 'binary_data_size'"),
        ),
        (
            r#","parameters":{"binary_data_size":1,"shared_memory_region":"r"}"#,
            format!("{only} set 'binary_data_size' 'shared_memory_region'"),
        ),
    ] {
        assert_eq!(message(&input(&format!("{head}{rest}"))), expected);
    }
}

#[test]
fn the_tail_must_be_exactly_what_the_inputs_take() {
    let json =
        input(r#""name":"A","datatype":"INT8","shape":[4],"parameters":{"binary_data_size":4}"#);
    assert!(parse_with_tail(&json, b"1234").is_ok());
    for (tail, expected) in [
        (&b"12"[..], "unexpected size for input 'A', expecting 2 additional bytes for model 'm'"),
        (b"", "unexpected size for input 'A', expecting 4 additional bytes for model 'm'"),
        (b"123456", "unexpected additional input data for model 'm'"),
    ] {
        assert_eq!(parse_with_tail(&json, tail).unwrap_err().to_string(), expected);
    }
    let huge = json.replace(":4}", ":18446744073709551615}");
    assert_eq!(
        parse_with_tail(&huge, b"12").unwrap_err().to_string(),
        "unexpected size for input 'A', expecting 18446744073709551613 additional bytes for model \
         'm'"
    );
}

#[test]
fn tensors_may_lie_in_shared_memory() {
    let region = r#""parameters":{"shared_memory_region":"r","shared_memory_byte_size":4,"shared_memory_offset":8}"#;
    let json = input(&format!(r#""name":"A","datatype":"INT8","shape":[4],{region}"#));
    let expected = RegionRange { region: "r".into(), offset: 8, byte_size: 4 };
    let (request, _) = parse_text(&json).unwrap();
    assert_eq!(request.inputs[0].source.as_deref(), Some(&expected));
    let json = format!(r#"{{"inputs":[],"outputs":[{{"name":"P",{region}}}]}}"#);
    let (request, form) = parse_text(&json).unwrap();
    assert_eq!(request.outputs[0].target.as_deref(), Some(&expected));
    assert!(form.is_elsewhere(0, "P"));
    let output = |parameters: &str| {
        message(&format!(r#"{{"inputs":[],"outputs":[{{"name":"P","parameters":{parameters}}}]}}"#))
    };
    assert_eq!(
        output(r#"{"shared_memory_region":"r","classification":1}"#),
        "Output can't set both 'shared_memory_region' and 'classification'"
    );
    assert_eq!(
        output(r#"{"shared_memory_region":"r","binary_data":true}"#),
        "Output can't set both 'shared_memory_region' and 'binary_data'"
    );
}

#[test]
fn everything_that_can_be_many_is_bounded() {
    let repeat =
        |item: &dyn Fn(usize) -> String, count| (0..count).map(item).collect::<Vec<_>>().join(",");
    let outputs = |count| {
        let outputs = repeat(&|index| format!(r#"{{"name":"{index}"}}"#), count);
        format!(r#"{{"inputs":[],"outputs":[{outputs}]}}"#)
    };
    assert_eq!(parse_text(&outputs(TENSORS_MAX)).unwrap().0.outputs.len(), TENSORS_MAX);
    assert_eq!(message(&outputs(TENSORS_MAX + 1)), "a request may have 4096 outputs, got more");
    let parameters = |count| {
        let parameters = repeat(&|index| format!(r#""{index}":1"#), count);
        format!(r#"{{"inputs":[],"parameters":{{{parameters}}}}}"#)
    };
    assert!(parse_text(&parameters(PARAMETERS_MAX)).is_ok());
    assert_eq!(
        message(&parameters(PARAMETERS_MAX + 1)),
        "a request may have 1024 parameters, got more"
    );
    let ones = |count| format!(r#""shape":[{}]"#, repeat(&|_| "1".to_owned(), count));
    let (most, more) = (ones(RANK_MAX), ones(RANK_MAX + 2));
    let named = r#""name":"A","datatype":"INT8""#;
    assert!(parse_text(&input(&format!(r#"{named},{most},"data":[1]"#))).is_ok());
    for surplus in [
        format!(r#"{named},{more},"data":[1]"#),
        format!(r#"{more},"data":[1],{named}"#),
        format!(r#"{named},{more},"parameters":{{"binary_data_size":0}}"#),
    ] {
        assert_eq!(
            message(&input(&surplus)),
            "Unable to parse 'shape': input 'A' has 258 dimensions, expected at most 256"
        );
    }
    let deep = input(&format!(
        r#""name":"A","datatype":"INT8","shape":[1],"data":{}1{}"#,
        "[".repeat(98),
        "]".repeat(98)
    ));
    assert_eq!(
        message(&deep),
        "failed to parse the request JSON buffer: Arrays and objects are nested deeper than 100 \
         levels. at 157"
    );
}

#[test]
fn a_raw_body_is_the_only_input() {
    let signature = |specs: Vec<TensorSpec>, max_batch_size| Signature {
        model: "m".into(),
        max_batch_size,
        inputs: specs,
        outputs: Vec::new(),
    };
    let spec = |datatype, dims: &[i64]| TensorSpec::new("IN", datatype, Shape::from(dims));
    let raw = |specs, batch, body: &[u8]| {
        raw_infer_request(&signature(specs, batch), "1", body.to_vec().into())
    };
    for (datatype, dims, batch, body, shape) in [
        (DataType::Fp32, &[2, -1][..], 0, &[0; 24][..], &[2_i64, 3][..]),
        (DataType::Fp32, &[2, -1], 8, &[0; 24], &[1, 2, 3]),
        (DataType::Int8, &[4], 0, b"1234", &[4]),
        (DataType::Int8, &[4], 0, b"12", &[4]),
        (DataType::Bytes, &[1], 4, b"text", &[1, 1]),
        (DataType::Bytes, &[-1], 0, b"", &[1]),
        (DataType::Int8, &[-1, 0], 0, b"", &[0, 0]),
    ] {
        let (request, form) = raw(vec![spec(datatype, dims)], batch, body).unwrap();
        assert_eq!(request.inputs[0].shape, Shape::from(shape));
        assert_eq!((&*request.inputs[0].name, request.inputs[0].datatype), ("IN", datatype));
        let data = request.inputs[0].data.clone().into_bytes();
        match datatype {
            DataType::Bytes => assert_eq!(data[4..], *body),
            _ => assert_eq!(data, body),
        }
        assert!(form.is_binary(0, "any"));
    }
    let message = |specs| raw(specs, 0, b"12").unwrap_err().to_string();
    assert_eq!(
        message(vec![spec(DataType::Int8, &[1]), spec(DataType::Int8, &[1])]),
        "Raw request must only have 1 input (found 1) to be deduced but got 2 inputs in 'm' model \
         configuration"
    );
    assert_eq!(
        message(vec![spec(DataType::Int8, &[-1, -1])]),
        "The shape of the raw input 'IN' can not be deduced because there are more than one \
         variable-sized dimension"
    );
    assert_eq!(
        message(vec![spec(DataType::Bytes, &[2])]),
        "For BYTES datatype raw input 'IN', the model must have input shape [1]"
    );
}
