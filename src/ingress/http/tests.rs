//! Properties of both directions together: an answer whose `outputs` are called `inputs` is a
//! request, so what the one writes the other must read.

use bytes::Bytes;
use proptest::prelude::*;
use smallvec::SmallVec;

use super::{
    infer_request::{ResponseForm, json_length, parse},
    infer_response::{EncodedResponse, encode},
};
use crate::inference::{
    DataType, Error, InferInput, InferOutput, InferResponse, Parameter, Parameters,
    RequestedOutput, Rope, Shape,
};

fn output(name: &str, datatype: DataType, shape: &[i64], data: &[u8]) -> InferOutput {
    InferOutput {
        name: name.into(),
        datatype,
        shape: Shape::from(shape),
        data: Bytes::copy_from_slice(data),
    }
}

fn response(outputs: impl IntoIterator<Item = InferOutput>) -> InferResponse {
    InferResponse {
        model_name: "m".into(),
        model_version: 3,
        id: "".into(),
        parameters: Parameters::default(),
        outputs: outputs.into_iter().collect(),
    }
}

fn text(encoded: &EncodedResponse) -> &str {
    std::str::from_utf8(&encoded.json).unwrap()
}

#[test]
fn an_answer_has_tritons_members_in_tritons_order() {
    let floats: Vec<u8> = [0.1_f32, -1.0, 3.25e9].iter().flat_map(|v| v.to_le_bytes()).collect();
    let mut response = response([
        output("A", DataType::Fp32, &[1, 3], &floats),
        output("B", DataType::Bool, &[2], &[0, 7]),
        output("C", DataType::Bytes, &[2], b"\x02\0\0\0a\"\0\0\0\0"),
        output("D", DataType::Fp16, &[2], b"\0\x3c\0\x40"),
        output("E", DataType::Int8, &[0], b""),
    ]);
    response.id = "a/b".into();
    response.parameters.insert("final", Parameter::Bool(true));
    response.parameters.insert("n", Parameter::Int(-1));
    response.parameters.insert("u", Parameter::Uint(u64::MAX));
    response.parameters.insert("d", Parameter::Double(0.25));
    response.parameters.insert("s", Parameter::String("x".into()));
    let binary = |name: &str| RequestedOutput {
        name: name.into(),
        binary: Some(true),
        ..RequestedOutput::default()
    };
    let form = ResponseForm {
        binary_by_default: false,
        outputs: [binary("E"), binary("D")].into_iter().collect(),
    };
    let encoded = encode(&response, &form).unwrap();
    assert_eq!(
        text(&encoded),
        r#"{"id":"a/b","model_name":"m","model_version":"3","#.to_owned()
            + r#""parameters":{"final":true,"n":-1,"u":18446744073709551615,"d":0.25,"s":"x"},"#
            + r#""outputs":[{"name":"A","datatype":"FP32","shape":[1,3],"data":[0.10000000149011612,-1.0,3249999872.0]},"#
            + r#"{"name":"B","datatype":"BOOL","shape":[2],"data":[false,true]},"#
            + r#"{"name":"C","datatype":"BYTES","shape":[2],"data":["a\"",""]},"#
            + r#"{"name":"D","datatype":"FP16","shape":[2],"parameters":{"binary_data_size":4}},"#
            + r#"{"name":"E","datatype":"INT8","shape":[0],"parameters":{"binary_data_size":0}}]}"#
    );
    assert_eq!(encoded.tails.as_slice(), [response.outputs[3].data.clone()]);
    assert_eq!(encoded.tails[0].as_ptr(), response.outputs[3].data.as_ptr());
    assert_eq!(encoded.json_length(), Some(encoded.json.len()));
    assert_eq!(encoded.content_type(), "application/octet-stream");
    assert_eq!(encoded.content_length(), encoded.json.len() + 4);

    response.outputs.clear();
    let encoded = encode(&response, &ResponseForm::default()).unwrap();
    assert!(text(&encoded).ends_with(r#","outputs":[]}"#));
    assert_eq!(
        (encoded.json_length(), encoded.content_type().as_bytes()),
        (None, &b"application/json"[..])
    );
}

#[test]
fn what_json_cannot_carry_is_refused() {
    for (output, expected) in [
        (
            output("H", DataType::Fp16, &[1], b"\0\0"),
            "sending FP16 data via JSON is not supported. Please use the binary data format for output",
        ),
        (
            output("H", DataType::Bf16, &[1], b"\0\0"),
            "sending BF16 data via JSON is not supported. Please use the binary data format for output",
        ),
        (
            output("S", DataType::Bytes, &[2], b"\x01\0\0\0a\x01\0\0\0\xff"),
            "element 1 of output 'S' is not UTF-8 text, which JSON needs. Please use the binary \
             data format for output 'S'",
        ),
        (
            output("X", DataType::Int32, &[2], &[0; 7]),
            "output tensor shape does not match size of output for 'X': shape [2] of INT32, 7 bytes",
        ),
        (
            output("X", DataType::Int32, &[2], &[0; 4]),
            "output tensor shape does not match size of output for 'X': shape [2] of INT32, 4 bytes",
        ),
        (
            output("X", DataType::Int8, &[-1], &[0]),
            "output tensor shape does not match size of output for 'X': shape [-1] of INT8, 1 bytes",
        ),
        (
            output("X", DataType::Bytes, &[1], b"\x05\0\0\0a"),
            "output tensor shape does not match size of output for 'X': shape [1] of BYTES, 5 bytes",
        ),
        (
            output("X", DataType::Bytes, &[1], b"\0\0\0"),
            "output tensor shape does not match size of output for 'X': shape [1] of BYTES, 3 bytes",
        ),
        (
            output("X", DataType::Bytes, &[2], b"\0\0\0\0"),
            "output tensor shape does not match size of output for 'X': shape [2] of BYTES, 4 bytes",
        ),
    ] {
        let error = encode(&response([output]), &ResponseForm::default()).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

/// Elements of a type, such that JSON can carry them where the type can be carried at all.
fn elements(datatype: DataType, count: usize) -> BoxedStrategy<Vec<u8>> {
    let bytes = |size: usize| prop::collection::vec(any::<u8>(), count * size).boxed();
    let canonical_f32 = |bits: u32| match f32::from_bits(bits) {
        value if value.is_nan() => f32::NAN.to_le_bytes(),
        value => value.to_le_bytes(),
    };
    let canonical_f64 = |bits: u64| match f64::from_bits(bits) {
        value if value.is_nan() => f64::NAN.to_le_bytes(),
        value => value.to_le_bytes(),
    };
    match datatype {
        DataType::Bool => prop::collection::vec(0..2_u8, count).boxed(),
        DataType::Fp32 => prop::collection::vec(any::<u32>().prop_map(canonical_f32), count)
            .prop_map(|elements| elements.concat())
            .boxed(),
        DataType::Fp64 => prop::collection::vec(any::<u64>().prop_map(canonical_f64), count)
            .prop_map(|elements| elements.concat())
            .boxed(),
        DataType::Bytes => prop::collection::vec("\\PC{0,6}|[\\x00-\\x7f]{0,6}", count)
            .prop_map(|strings| {
                let prefixed = strings.iter().flat_map(|string: &String| {
                    let length = (string.len() as u32).to_le_bytes();
                    length.into_iter().chain(string.bytes())
                });
                prefixed.collect()
            })
            .boxed(),
        _ => bytes(datatype.size().unwrap_or(1)),
    }
}

fn any_output() -> impl Strategy<Value = InferOutput> {
    let datatype = prop::sample::select(DataType::ALL.as_slice());
    let shape = prop::collection::vec(0..4_i64, 0..4);
    (datatype, shape).prop_flat_map(|(datatype, shape)| {
        let count = shape.iter().product::<i64>() as usize;
        ("\\PC{0,8}", elements(datatype, count))
            .prop_map(move |(name, data)| output(&name, datatype, &shape, &data))
    })
}

fn any_response() -> impl Strategy<Value = (InferResponse, ResponseForm)> {
    (prop::collection::vec((any_output(), any::<bool>()), 0..4), "\\PC{0,4}").prop_map(
        |(outputs, id)| {
            let mut form = ResponseForm::default();
            let mut answer = response([]);
            answer.id = id.into();
            for (index, (mut output, binary)) in outputs.into_iter().enumerate() {
                output.name = format!("{index}{}", output.name).into();
                let json = !matches!(output.datatype, DataType::Fp16 | DataType::Bf16);
                form.outputs.push(RequestedOutput {
                    name: (&*output.name).into(),
                    binary: Some(binary || !json),
                    ..RequestedOutput::default()
                });
                answer.outputs.push(output);
            }
            (answer, form)
        },
    )
}

/// The answer as the body of a request, and the length of its JSON.
fn as_request(encoded: &EncodedResponse) -> (Vec<u8>, usize) {
    let json = text(encoded).replacen(r#""outputs":["#, r#""inputs":["#, 1);
    let length = json.len();
    let mut body = json.into_bytes();
    for tail in &encoded.tails {
        body.extend_from_slice(tail);
    }
    (body, length)
}

fn in_pieces(body: &[u8], size: usize) -> Rope {
    let mut rope = Rope::default();
    for piece in body.chunks(size) {
        rope.push(Bytes::copy_from_slice(piece));
    }
    rope
}

/// Parses, and holds what comes out against its own shape.
fn parse_soundly(body: &Rope, json_length: usize) -> Result<SmallVec<[InferInput; 2]>, Error> {
    let (request, _) = parse("m", "1", body, json_length)?;
    for input in &request.inputs {
        assert!(input.data.len() <= body.len() * 8);
        assert!(input.shape.iter().all(|&dim| dim >= 0));
    }
    Ok(request.inputs)
}

proptest! {
    #[test]
    fn tensors_survive_json_and_binary_form((answer, form) in any_response(), size in 1_usize..99) {
        let encoded = encode(&answer, &form).unwrap();
        let (body, length) = as_request(&encoded);
        let inputs = parse_soundly(&in_pieces(&body, size), length).unwrap();
        prop_assert_eq!(inputs.len(), answer.outputs.len());
        for (input, output) in inputs.into_iter().zip(&answer.outputs) {
            prop_assert_eq!(&*input.name, &*output.name);
            prop_assert_eq!(input.datatype, output.datatype);
            prop_assert_eq!(&input.shape, &output.shape);
            prop_assert_eq!(input.data.into_bytes(), &output.data);
        }
    }

    #[test]
    fn damaged_bodies_are_answered(
        (answer, form) in any_response(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3_u8), 1..4),
        length_off in -2..3_isize,
    ) {
        let (mut body, length) = as_request(&encode(&answer, &form).unwrap());
        for (at, byte, kind) in damage {
            let at = at.index(body.len());
            match kind {
                0 => body[at] = byte,
                1 => body.insert(at, byte),
                _ => drop(body.remove(at)),
            }
        }
        let _ = parse_soundly(&body.into(), length.saturating_add_signed(length_off));
    }

    #[test]
    fn no_bytes_upset_the_reader(
        body in prop::collection::vec(any::<u8>(), 0..200),
        header in prop::option::of("-?[0-9]{0,3}|\\PC{0,4}"),
    ) {
        if let Ok(length) = json_length(header.as_ref().map(String::as_bytes), body.len()) {
            let _ = parse_soundly(&body.into(), length);
        }
    }
}
