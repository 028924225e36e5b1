use std::{fmt::Write, path::PathBuf};

use bytes::{BufMut, Bytes, BytesMut};
use half::{bf16, f16};
use prost::Message;
use serde_json::json;

use super::{
    BenchError,
    args::{BenchArgs, InputData, Protocol},
    client::{Payload, RingRequest, frame},
    model::Model,
    shared::{Layout, Place},
    values::TENSOR_MAX,
};
use crate::{
    inference::DataType,
    proto::{
        InferParameter, ModelInferRequest,
        infer_parameter::ParameterChoice,
        model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
    },
};

/// Integers go up to here, which every integer type can hold and most vocabularies too.
const INTEGER_MAX: u8 = 127;

/// An input of the request that a load repeats.
pub struct Tensor {
    name: String,
    datatype: DataType,
    shape: Vec<i64>,
    pub data: Bytes,
}

/// Makes up the inputs of the request that a load repeats.
///
/// # Errors
/// When the options do not fit the model.
pub fn tensors(args: &BenchArgs, model: &Model) -> Result<Vec<Tensor>, BenchError> {
    let mut random = fastrand::Rng::with_seed(args.random_seed);
    let mut tensors = Vec::new();
    let shapes = model.shapes(&args.shape, args.batch_size)?;
    for (input, shape) in model.inputs.iter().zip(shapes) {
        let data = fill(input.datatype, &shape, args, &mut random).ok_or_else(|| {
            let detail = format!(
                "input '{}' of shape {shape:?} has more than the {TENSOR_MAX} bytes that are sent",
                input.name
            );
            BenchError::Model { model: model.name.clone(), detail }
        })?;
        let (name, datatype) = (input.name.clone(), input.datatype);
        tensors.push(Tensor { name, datatype, shape, data });
    }
    Ok(tensors)
}

/// Encodes the request, its tensors where `layout` says if it does.
///
/// # Errors
/// When the options do not fit the model or each other.
pub fn encode(
    args: &BenchArgs,
    model: &Model,
    tensors: Vec<Tensor>,
    layout: Option<&Layout>,
) -> Result<Payload, BenchError> {
    let authority = args.authority();
    match (args.protocol(), args.streaming) {
        (Protocol::Http, true) => {
            Err(BenchError::Options("--streaming needs -i grpc: http has no streams".to_owned()))
        }
        (Protocol::Ring, true) => {
            Err(BenchError::Options("--streaming needs -i grpc: a ring is one".to_owned()))
        }
        (_, false) if model.decoupled => Err(BenchError::Model {
            model: model.name.clone(),
            detail: "it is decoupled: its requests need -i grpc --streaming".to_owned(),
        }),
        (Protocol::Http, false) => {
            Ok(Payload::Http { request: http_request(&authority, model, tensors, layout) })
        }
        (Protocol::Ring, false) => {
            let path = args.ring_socket.clone().unwrap_or_default();
            Ok(Payload::Ring(Box::new(ring_request(path, model, tensors))))
        }
        (Protocol::Grpc, false) => {
            Ok(Payload::Grpc { authority, message: grpc_message(model, tensors, layout) })
        }
        (Protocol::Grpc, true) => {
            let message = grpc_message(model, tensors, layout);
            Ok(Payload::GrpcStream { authority, message, decoupled: model.decoupled })
        }
    }
}

const REGION: &str = "shared_memory_region";
const OFFSET: &str = "shared_memory_offset";
const BYTE_SIZE: &str = "shared_memory_byte_size";

fn grpc_message(model: &Model, tensors: Vec<Tensor>, layout: Option<&Layout>) -> Bytes {
    let mut request = ModelInferRequest {
        model_name: model.name.clone(),
        model_version: model.version.clone(),
        ..Default::default()
    };
    let parameter = |choice| InferParameter { parameter_choice: Some(choice) };
    if model.decoupled {
        let flag = parameter(ParameterChoice::BoolParam(true));
        request.parameters.insert("triton_enable_empty_final_response".to_owned(), flag);
    }
    for tensor in &tensors {
        request.inputs.push(InferInputTensor {
            name: tensor.name.clone(),
            datatype: tensor.datatype.protocol_name().to_owned(),
            shape: tensor.shape.clone(),
            ..Default::default()
        });
    }
    let Some(layout) = layout else {
        request.raw_input_contents.extend(tensors.into_iter().map(|tensor| tensor.data));
        return frame(&request.encode_to_vec());
    };
    let placed = |place: &Place| {
        let number = |value: usize| parameter(ParameterChoice::Int64Param(value as i64));
        let region = parameter(ParameterChoice::StringParam(layout.region.clone()));
        [
            (REGION.to_owned(), region),
            (OFFSET.to_owned(), number(place.offset)),
            (BYTE_SIZE.to_owned(), number(place.byte_size)),
        ]
    };
    for (input, place) in request.inputs.iter_mut().zip(&layout.inputs) {
        input.parameters.extend(placed(place));
    }
    for (name, place) in model.outputs.iter().zip(&layout.outputs) {
        let parameters = placed(place).into_iter().collect();
        request.outputs.push(InferRequestedOutputTensor { name: name.clone(), parameters });
    }
    frame(&request.encode_to_vec())
}

fn ring_request(path: PathBuf, model: &Model, tensors: Vec<Tensor>) -> RingRequest {
    let inputs = tensors
        .into_iter()
        .map(|tensor| (tensor.name, tensor.datatype.numbered(), tensor.shape, tensor.data));
    let (model_name, version) = (model.name.clone(), model.version.clone());
    RingRequest { path, model: model_name, version, inputs: inputs.collect() }
}

fn http_request(
    authority: &str,
    model: &Model,
    tensors: Vec<Tensor>,
    layout: Option<&Layout>,
) -> Bytes {
    let placed = |place: &Place| match layout {
        Some(Layout { region, .. }) => {
            json!({REGION: region, OFFSET: place.offset, BYTE_SIZE: place.byte_size})
        }
        None => json!({"binary_data_size": place.byte_size}),
    };
    let sent = |tensor: &Tensor| Place { offset: 0, byte_size: tensor.data.len() };
    let inputs = tensors.iter().enumerate().map(|(index, tensor)| {
        let place = layout.and_then(|layout| layout.inputs.get(index)).copied();
        json!({
            "name": tensor.name,
            "datatype": tensor.datatype.protocol_name(),
            "shape": tensor.shape,
            "parameters": placed(&place.unwrap_or_else(|| sent(tensor))),
        })
    });
    let mut request = json!({"inputs": inputs.collect::<Vec<_>>()});
    let mut tails = Vec::new();
    match layout {
        None => {
            request["parameters"] = json!({"binary_data_output": true});
            tails.extend(tensors.into_iter().map(|tensor| tensor.data));
        }
        Some(layout) => {
            let outputs = model.outputs.iter().zip(&layout.outputs);
            let outputs =
                outputs.map(|(name, place)| json!({"name": name, "parameters": placed(place)}));
            request["outputs"] = outputs.collect();
        }
    }
    let json = request.to_string();
    let length = json.len() + tails.iter().map(Bytes::len).sum::<usize>();
    let head = format!(
        "POST {}/infer HTTP/1.1\r\nHost: {authority}\r\nContent-Type: application/octet-stream\r\n\
         Inference-Header-Content-Length: {}\r\nContent-Length: {length}\r\n\r\n",
        model_path(&model.name, &model.version),
        json.len(),
    );
    let mut request = BytesMut::with_capacity(head.len() + length);
    request.put_slice(head.as_bytes());
    request.put_slice(json.as_bytes());
    tails.iter().for_each(|tail| request.put_slice(tail));
    request.freeze()
}

/// The path of a model in the HTTP protocol.
pub fn model_path(name: &str, version: &str) -> String {
    let mut path = format!("/v2/models/{}", escape(name));
    if !version.is_empty() {
        path.push_str("/versions/");
        path.push_str(&escape(version));
    }
    path
}

/// Percent-encodes everything but what RFC 3986 leaves unreserved.
fn escape(segment: &str) -> String {
    segment.bytes().fold(String::new(), |mut escaped, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                escaped.push(char::from(byte));
            }
            _ => write!(escaped, "%{byte:02X}").expect("a String takes any text"),
        }
        escaped
    })
}

/// The bytes of a tensor; `None` when they are too many.
fn fill(
    datatype: DataType,
    shape: &[i64],
    args: &BenchArgs,
    random: &mut fastrand::Rng,
) -> Option<Bytes> {
    let elements = shape
        .iter()
        .try_fold(1usize, |elements, &dim| elements.checked_mul(usize::try_from(dim).ok()?))?;
    let size = datatype.size().unwrap_or(args.string_length.checked_add(4)?);
    let bytes = elements.checked_mul(size).filter(|&bytes| bytes <= TENSOR_MAX)?;
    let is_random = args.input_data == InputData::Random;
    if !is_random && datatype != DataType::Bytes {
        return Some(BytesMut::zeroed(bytes).freeze());
    }
    let mut data = BytesMut::with_capacity(bytes);
    for _ in 0..elements {
        match datatype {
            DataType::Bool => data.put_u8(random.u8(0..2)),
            DataType::Fp16 => data.put_u16_le(f16::from_f32(random.f32()).to_bits()),
            DataType::Bf16 => data.put_u16_le(bf16::from_f32(random.f32()).to_bits()),
            DataType::Fp32 => data.put_f32_le(random.f32()),
            DataType::Fp64 => data.put_f64_le(random.f64()),
            DataType::Bytes => {
                data.put_u32_le(u32::try_from(args.string_length).ok()?);
                for _ in 0..args.string_length {
                    data.put_u8(if is_random { random.alphanumeric() as u8 } else { b'0' });
                }
            }
            DataType::Uint8
            | DataType::Uint16
            | DataType::Uint32
            | DataType::Uint64
            | DataType::Int8
            | DataType::Int16
            | DataType::Int32
            | DataType::Int64 => {
                data.put_uint_le(u64::from(random.u8(..=INTEGER_MAX)), size);
            }
        }
    }
    Some(data.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::{args, model::Input};

    fn args(line: &str) -> BenchArgs {
        args::parse(&format!("-m m {line}")).unwrap()
    }

    fn encoded(args: &BenchArgs, model: &Model) -> Result<Payload, BenchError> {
        encode(args, model, tensors(args, model)?, None)
    }

    fn model(decoupled: bool) -> Model {
        let inputs = DataType::ALL.map(|datatype| Input {
            name: datatype.to_string(),
            datatype,
            dims: vec![2, 3],
        });
        let inputs = inputs.into();
        let (name, version) = ("a b/c".to_owned(), "3".to_owned());
        let outputs = vec!["OUT".to_owned()];
        Model { name, version, inputs, outputs, max_batch_size: 0, decoupled }
    }

    #[test]
    fn a_grpc_request_holds_what_each_type_needs() {
        for data in ["zero", "random"] {
            let args = args(&format!("-i grpc --string-length 5 --input-data {data}"));
            let Payload::Grpc { message, .. } = encoded(&args, &model(false)).unwrap() else {
                panic!("not a gRPC payload");
            };
            let request = ModelInferRequest::decode(&message[5..]).unwrap();
            assert_eq!(
                (request.model_name.as_str(), request.model_version.as_str()),
                ("a b/c", "3")
            );
            for (input, raw) in request.inputs.iter().zip(&request.raw_input_contents) {
                let datatype: DataType = input.datatype.parse().unwrap();
                assert_eq!(input.shape, [2, 3]);
                assert_eq!(raw.len(), 6 * datatype.size().unwrap_or(4 + 5), "{datatype}");
                let is_zero = raw.iter().all(|&byte| byte == 0);
                assert_eq!(is_zero, data == "zero" && datatype != DataType::Bytes, "{datatype}");
            }
            assert_eq!(request.raw_input_contents.len(), DataType::ALL.len());
        }
    }

    #[test]
    fn an_http_request_says_how_long_its_parts_are() {
        let Payload::Http { request } = encoded(&args("-i http"), &model(false)).unwrap() else {
            panic!("not an HTTP payload");
        };
        let head_end = request.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let head = std::str::from_utf8(&request[..head_end]).unwrap();
        assert!(head.starts_with("POST /v2/models/a%20b%2Fc/versions/3/infer HTTP/1.1\r\n"));
        let number = |name: &str| -> usize {
            let line = head.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().parse().unwrap()
        };
        assert_eq!(number("Content-Length:"), request.len() - head_end);
        let json_end = head_end + number("Inference-Header-Content-Length:");
        let json: serde_json::Value = serde_json::from_slice(&request[head_end..json_end]).unwrap();
        let sizes = json["inputs"].as_array().unwrap().iter();
        let sizes = sizes.map(|input| input["parameters"]["binary_data_size"].as_u64().unwrap());
        assert_eq!(sizes.sum::<u64>() as usize, request.len() - json_end);
    }

    #[test]
    fn tensors_in_shared_memory_are_named_and_not_sent() {
        let model = model(false);
        let place = |offset| Place { offset, byte_size: 6 };
        let inputs = (0..model.inputs.len()).map(|index| place(64 * index)).collect();
        let layout = Layout { region: "r".to_owned(), inputs, outputs: vec![place(4096)] };
        let payload = |line: &str| {
            let args = args(line);
            encode(&args, &model, tensors(&args, &model).unwrap(), Some(&layout)).unwrap()
        };
        let Payload::Grpc { message, .. } = payload("--via shm") else {
            panic!("not a gRPC payload");
        };
        let request = ModelInferRequest::decode(&message[5..]).unwrap();
        assert!(request.raw_input_contents.is_empty());
        let number =
            |value| InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(value)) };
        assert_eq!(request.inputs[2].parameters[OFFSET], number(128));
        assert_eq!(request.outputs[0].name, "OUT");
        assert_eq!(request.outputs[0].parameters[OFFSET], number(4096));
        let Payload::Http { request } = payload("-i http --shared-memory system") else {
            panic!("not an HTTP payload");
        };
        let json_at = request.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let json: serde_json::Value = serde_json::from_slice(&request[json_at..]).unwrap();
        let expected = json!({REGION: "r", OFFSET: 4096, BYTE_SIZE: 6});
        assert_eq!(json["outputs"], json!([{"name": "OUT", "parameters": expected}]));
        assert_eq!(json["inputs"][1]["parameters"][OFFSET], 64);
    }

    #[test]
    fn the_same_seed_gives_the_same_request() {
        let bytes = |line: &str| match encoded(&args(line), &model(false)).unwrap() {
            Payload::Http { request } => request,
            _ => panic!("not an HTTP payload"),
        };
        assert_eq!(bytes("--random-seed 4"), bytes("--random-seed 4"));
        assert_ne!(bytes("--random-seed 4"), bytes("--random-seed 5"));
    }

    #[test]
    fn what_cannot_be_sent_is_told() {
        for (line, decoupled, words) in [
            ("--streaming", false, "--streaming needs -i grpc"),
            ("-i grpc", true, "its requests need -i grpc --streaming"),
            ("--string-length 1000000000", false, "input 'BYTES' of shape [2, 3] has more than"),
        ] {
            let error = encoded(&args(line), &model(decoupled)).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let streamed = encoded(&args("-i grpc --streaming"), &model(true)).unwrap();
        assert!(matches!(streamed, Payload::GrpcStream { decoupled: true, .. }));
    }
}
