//! Requests as prost writes and reads them: ours must read the same, wherever the network has cut them.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::{prelude::*, sample::Index};
use prost::Message as _;

use super::infer_request;
use crate::{
    inference::{DataType, Error, InferRequest, Parameter, Rope},
    proto::{
        InferParameter, InferTensorContents, ModelInferRequest,
        infer_parameter::ParameterChoice,
        model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
    },
};

/// What a request says, in a form that two of them can be compared by.
#[derive(Debug, PartialEq)]
struct Said {
    names: [String; 3],
    /// Sorted by name: a map has no order.
    parameters: Vec<(String, String)>,
    inputs: Vec<(String, String, Vec<i64>, Vec<u8>)>,
    outputs: Vec<String>,
}

fn said(request: InferRequest) -> Said {
    let parameters = request.parameters.iter();
    let mut parameters: Vec<_> =
        parameters.map(|(name, value)| (name.to_owned(), format!("{value:?}"))).collect();
    parameters.sort();
    Said {
        names: [request.model_name, request.model_version, request.id].map(String::from),
        parameters,
        inputs: request
            .inputs
            .into_iter()
            .map(|input| {
                let data = input.data.into_bytes().to_vec();
                (input.name.into(), input.datatype.to_string(), input.shape.to_vec(), data)
            })
            .collect(),
        outputs: request.outputs.into_iter().map(|output| output.name.into()).collect(),
    }
}

/// The same of prost's reading.
fn said_by_prost(message: &[u8]) -> Result<Said, prost::DecodeError> {
    let request = ModelInferRequest::decode(message)?;
    let value = |parameter: InferParameter| {
        let value = match parameter.parameter_choice {
            Some(ParameterChoice::BoolParam(value)) => Parameter::Bool(value),
            Some(ParameterChoice::Int64Param(value)) => Parameter::Int(value),
            Some(ParameterChoice::StringParam(value)) => Parameter::String(value.into()),
            Some(ParameterChoice::DoubleParam(value)) => Parameter::Double(value),
            Some(ParameterChoice::Uint64Param(value)) => Parameter::Uint(value),
            None => return "none".to_owned(),
        };
        format!("{value:?}")
    };
    let mut parameters: Vec<_> =
        request.parameters.into_iter().map(|(name, given)| (name, value(given))).collect();
    parameters.sort();
    let mut raw = request.raw_input_contents.into_iter();
    let inputs = request.inputs.into_iter().map(|input| {
        let floats = input.contents.unwrap_or_default().fp32_contents;
        let typed = floats.iter().flat_map(|float| float.to_le_bytes()).collect();
        let data = raw.next().map_or(typed, |bytes| bytes.to_vec());
        (input.name, input.datatype, input.shape, data)
    });
    Ok(Said {
        names: [request.model_name, request.model_version, request.id],
        parameters,
        inputs: inputs.collect(),
        outputs: request.outputs.into_iter().map(|output| output.name).collect(),
    })
}

/// `bytes` as they arrive when they are cut at these places.
fn cut(bytes: &[u8], places: &[Index]) -> Rope {
    let mut places: Vec<_> = places.iter().map(|place| place.index(bytes.len() + 1)).collect();
    places.extend([0, bytes.len()]);
    places.sort_unstable();
    let mut rope = Rope::default();
    for ends in places.windows(2) {
        rope.push(Bytes::copy_from_slice(&bytes[ends[0]..ends[1]]));
    }
    rope
}

fn outcome(message: Rope) -> Result<Said, String> {
    infer_request(message).map(said).map_err(|error| error.to_string())
}

fn parameters() -> impl Strategy<Value = BTreeMap<String, InferParameter>> {
    let choice = prop_oneof![
        any::<bool>().prop_map(ParameterChoice::BoolParam),
        any::<i64>().prop_map(ParameterChoice::Int64Param),
        "\\PC{0,9}".prop_map(ParameterChoice::StringParam),
        any::<f64>().prop_map(ParameterChoice::DoubleParam),
        any::<u64>().prop_map(ParameterChoice::Uint64Param),
    ];
    let value = choice.prop_map(|choice| InferParameter { parameter_choice: Some(choice) });
    prop::collection::btree_map("p[a-z]{0,3}", value, 0..4)
}

fn input(typed: bool) -> impl Strategy<Value = InferInputTensor> {
    let floats = prop::collection::vec(-9.0_f32..9.0, 0..5);
    let shape = prop::collection::vec(any::<i64>(), 0..4);
    ("\\PC{0,9}", shape, parameters(), floats).prop_map(move |(name, shape, parameters, floats)| {
        let contents = InferTensorContents { fp32_contents: floats, ..Default::default() };
        let contents = typed.then_some(contents);
        InferInputTensor { name, datatype: "FP32".into(), shape, parameters, contents }
    })
}

fn message() -> impl Strategy<Value = ModelInferRequest> {
    let tensors = any::<bool>().prop_flat_map(|typed| {
        prop::collection::vec(input(typed), 0..4).prop_flat_map(move |inputs| {
            let count = if typed { 0 } else { inputs.len() };
            let bytes = prop::collection::vec(any::<u8>(), 0..300);
            (Just(inputs), prop::collection::vec(bytes, count))
        })
    });
    let outputs = prop::collection::vec("\\PC{0,9}", 0..3);
    ("\\PC{0,20}", "[0-9]{0,2}", "\\PC{0,9}", parameters(), tensors, outputs).prop_map(
        |(model_name, model_version, id, parameters, (inputs, raw), outputs)| ModelInferRequest {
            model_name,
            model_version,
            id,
            parameters,
            inputs,
            outputs: outputs
                .into_iter()
                .map(|name| InferRequestedOutputTensor { name, ..Default::default() })
                .collect(),
            raw_input_contents: raw.into_iter().map(Bytes::from).collect(),
        },
    )
}

proptest! {
    #[test]
    fn a_request_is_read_as_prost_reads_it_wherever_it_is_cut(
        message in message(),
        places in prop::collection::vec(any::<Index>(), 0..12),
    ) {
        let bytes = message.encode_to_vec();
        let expected = said_by_prost(&bytes).unwrap();
        prop_assert_eq!(outcome(cut(&bytes, &places)), Ok(expected));
    }

    #[test]
    fn a_damaged_request_fares_the_same_wherever_it_is_cut(
        message in message(),
        damage in prop::collection::vec((any::<Index>(), any::<u8>()), 1..4),
        length in any::<Index>(),
        places in prop::collection::vec(any::<Index>(), 0..12),
    ) {
        let mut bytes = message.encode_to_vec();
        for (place, byte) in damage {
            let length = bytes.len().max(1);
            if let Some(at) = bytes.get_mut(place.index(length)) {
                *at = byte;
            }
        }
        bytes.truncate(bytes.len() - length.index(bytes.len() + 1) / 8);
        let whole = outcome(cut(&bytes, &[]));
        prop_assert_eq!(&outcome(cut(&bytes, &places)), &whole);
        let by_prost = said_by_prost(&bytes);
        if by_prost.is_err() {
            prop_assert!(whole.is_err(), "prost: {:?}, ours: {:?}", by_prost, whole);
        }
    }
}

/// A length-delimited field whose length is said to be `length`.
fn field(number: u8, length: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, length], bytes].concat()
}

/// The same, with its true length.
fn nested(number: u8, bytes: &[u8]) -> Vec<u8> {
    field(number, u8::try_from(bytes.len()).unwrap(), bytes)
}

#[test]
fn a_length_past_the_end_is_refused_with_both_sizes() {
    let too_long = field(1, 9, b"abc");
    let parameter = |value: &[u8]| [nested(1, b"p"), nested(2, value)].concat();
    for (place, message) in [
        ("the model's name", too_long.clone()),
        ("an unknown field", field(15, 9, b"abc")),
        ("raw contents", field(7, 9, b"abc")),
        ("an input", field(5, 9, b"abc")),
        ("an input's name", nested(5, &too_long)),
        ("an input's shape", nested(5, &field(3, 9, &[1, 2, 3]))),
        ("an input's contents", nested(5, &field(5, 9, b"abc"))),
        ("an unknown field of an input", nested(5, &field(15, 9, b"abc"))),
        ("an input's parameter", nested(5, &nested(4, &too_long))),
        ("an output's name", nested(6, &too_long)),
        ("a parameter's name", nested(4, &too_long)),
        ("a parameter's value", nested(4, &parameter(&field(3, 9, b"abc")))),
    ] {
        // More fields behind a nested message are not its own.
        let inside = message[1] != 9;
        let followed = if inside { [&*message, &nested(3, b"an id")].concat() } else { message };
        for size in 1..=followed.len() {
            let mut rope = Rope::default();
            for piece in followed.chunks(size) {
                rope.push(Bytes::copy_from_slice(piece));
            }
            assert_eq!(
                outcome(rope),
                Err("malformed request message: a field of 9 bytes where only 3 are left".into()),
                "{place}, in pieces of {size}"
            );
        }
    }
}

#[test]
fn a_nested_fixed_number_that_is_cut_is_refused_with_both_sizes() {
    let double = [&[4 << 3 | 1][..], &[0; 5]].concat();
    let parameter = [nested(1, b"p"), nested(2, &double)].concat();
    assert_eq!(
        outcome(Rope::from(nested(4, &parameter))),
        Err("malformed request message: a field of 8 bytes where only 5 are left".into())
    );
}

#[test]
fn more_dimensions_than_can_be_are_refused_by_the_inputs_name() {
    let shape = |dims: usize| {
        let shape = vec![1; dims];
        let input = InferInputTensor {
            name: "X".into(),
            datatype: "FP32".into(),
            shape,
            ..Default::default()
        };
        let request = ModelInferRequest { inputs: vec![input], ..Default::default() };
        outcome(Bytes::from(request.encode_to_vec()).into()).unwrap_err()
    };
    assert_eq!(shape(65), "inference input 'X' has more than 64 dimensions");
    assert!(!shape(64).contains("dimensions"), "{}", shape(64));
}

#[test]
fn a_length_of_64_bits_is_refused() {
    let length = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    for message in [[&[0x3a], &length[..]].concat(), nested(5, &[&[0x0a], &length[..]].concat())] {
        let error = infer_request(Rope::from(message)).unwrap_err();
        assert!(matches!(error, Error::MalformedRequest { .. }), "{error:?}");
        assert!(error.to_string().contains(&u64::MAX.to_string()), "{error}");
    }
}

#[test]
fn what_comes_twice_is_merged_as_protobuf_wants_it() {
    let contents = |float: f32| {
        let contents = InferTensorContents { fp32_contents: vec![float], ..Default::default() };
        nested(5, &contents.encode_to_vec())
    };
    let input = [
        nested(1, b"a"),
        nested(2, b"FP32"),
        nested(3, &[1]),
        contents(1.0),
        vec![3 << 3, 2],
        nested(1, b"b"),
        contents(2.0),
    ];
    let message = [nested(1, b"m"), nested(5, &input.concat()), nested(1, b"n")].concat();
    let read = outcome(Rope::from(message.clone()));
    assert_eq!(read, Ok(said_by_prost(&message).unwrap()));
    let read = read.unwrap();
    assert_eq!(read.names[0], "n");
    let floats = [1.0_f32, 2.0].iter().flat_map(|float| float.to_le_bytes()).collect();
    assert_eq!(read.inputs, [("b".into(), DataType::Fp32.to_string(), vec![1, 2], floats)]);
}
