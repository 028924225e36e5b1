//! [`InferResponse`] → `ModelInferResponse` on the wire, behind its gRPC frame header. Large tensors
//! are not copied: they follow as segments of their own.

use std::mem;

use bytes::{BufMut, Bytes};
use prost::encoding::{WireType, encoded_len_varint, key_len};
use smallvec::SmallVec;

use crate::inference::{InferOutput, InferResponse, Parameter, Parameters};

/// A tensor of at most so many bytes is copied next to the message's other fields: cheaper than a
/// segment of its own, and its batch's memory is free at once.
pub const COPIED_BYTES_MAX: usize = 4 << 10;

/// The five bytes in front of each gRPC message: no compression, and the length.
pub const FRAME_HEADER: usize = 5;

/// Pieces of a gRPC message, to be sent one after the other.
pub type Segments = SmallVec<[Bytes; 3]>;

/// A `ModelInferResponse` as a gRPC message.
pub fn infer_response(response: &InferResponse) -> Segments {
    segments(response, |_, _| {})
}

/// A `ModelStreamInferResponse` with that response in it.
pub fn stream_response(response: &InferResponse) -> Segments {
    segments(response, |head, len| {
        put_key(head, 2, WireType::LengthDelimited);
        put_varint(head, len as u64);
    })
}

/// A `ModelStreamInferResponse` that says what went wrong with the request named `id`.
pub fn stream_error(message: &str, id: &str) -> Bytes {
    let inner = string_len(3, id);
    let len = string_len(1, message) + message_len(2, inner);
    let mut out = Vec::with_capacity(FRAME_HEADER + len);
    put_frame_header(&mut out, len);
    put_string(&mut out, 1, message);
    put_key(&mut out, 2, WireType::LengthDelimited);
    put_varint(&mut out, inner as u64);
    put_string(&mut out, 3, id);
    out.into()
}

/// A `ModelStreamInferResponse` without outputs that says only that a request's last response has been
/// sent. The model and its version are as the request named them.
pub fn stream_end(model: &str, version: &str, id: &str) -> Bytes {
    let mut parameters = Parameters::default();
    parameters.insert("triton_final_response", Parameter::Bool(true));
    let inner = string_len(1, model)
        + string_len(2, version)
        + string_len(3, id)
        + parameters_len(4, &parameters);
    let len = message_len(2, inner);
    let mut out = Vec::with_capacity(FRAME_HEADER + len);
    put_frame_header(&mut out, len);
    put_key(&mut out, 2, WireType::LengthDelimited);
    put_varint(&mut out, inner as u64);
    put_string(&mut out, 1, model);
    put_string(&mut out, 2, version);
    put_string(&mut out, 3, id);
    put_parameters(&mut out, 4, &parameters);
    out.into()
}

/// Writes the response behind a wrapper message's field header, if `wrap` writes one.
fn segments(response: &InferResponse, wrap: impl Fn(&mut Vec<u8>, usize)) -> Segments {
    let version = compact_str::format_compact!("{}", response.model_version);
    let outputs: SmallVec<[usize; 4]> = response.outputs.iter().map(output_len).collect();
    let len = string_len(1, &response.model_name)
        + string_len(2, &version)
        + string_len(3, &response.id)
        + parameters_len(4, &response.parameters)
        + outputs.iter().map(|&len| message_len(5, len)).sum::<usize>()
        + response.outputs.iter().map(|output| message_len(6, output.data.len())).sum::<usize>();

    let mut wrapper = Vec::new();
    wrap(&mut wrapper, len);

    let uncopied: usize = response
        .outputs
        .iter()
        .map(|output| output.data.len())
        .filter(|&len| len > COPIED_BYTES_MAX)
        .sum();
    let mut segments = Segments::new();
    // What is not yet written of all but large tensors.
    let mut small = FRAME_HEADER + wrapper.len() + len - uncopied;
    let mut out = Vec::with_capacity(small);
    put_frame_header(&mut out, wrapper.len() + len);
    out.extend_from_slice(&wrapper);
    put_string(&mut out, 1, &response.model_name);
    put_string(&mut out, 2, &version);
    put_string(&mut out, 3, &response.id);
    put_parameters(&mut out, 4, &response.parameters);
    for (output, len) in response.outputs.iter().zip(outputs) {
        put_key(&mut out, 5, WireType::LengthDelimited);
        put_varint(&mut out, len as u64);
        put_output(&mut out, output);
    }
    for output in &response.outputs {
        put_key(&mut out, 6, WireType::LengthDelimited);
        put_varint(&mut out, output.data.len() as u64);
        if output.data.len() > COPIED_BYTES_MAX {
            small -= out.len();
            segments.push(mem::replace(&mut out, Vec::with_capacity(small)).into());
            segments.push(output.data.clone());
        } else {
            out.extend_from_slice(&output.data);
        }
    }
    if !out.is_empty() {
        segments.push(out.into());
    }
    segments
}

fn put_frame_header(out: &mut Vec<u8>, len: usize) {
    out.push(0);
    // A response is bounded by the server's memory budget, far below 4 GiB.
    out.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
}

fn output_len(output: &InferOutput) -> usize {
    let dims: usize = output.shape.iter().map(|dim| encoded_len_varint(dim.cast_unsigned())).sum();
    string_len(1, &output.name)
        + string_len(2, output.datatype.protocol_name())
        + if dims > 0 { message_len(3, dims) } else { 0 }
}

fn put_output(out: &mut Vec<u8>, output: &InferOutput) {
    put_string(out, 1, &output.name);
    put_string(out, 2, output.datatype.protocol_name());
    let dims: usize = output.shape.iter().map(|dim| encoded_len_varint(dim.cast_unsigned())).sum();
    if dims > 0 {
        put_key(out, 3, WireType::LengthDelimited);
        put_varint(out, dims as u64);
        for dim in output.shape.iter() {
            put_varint(out, dim.cast_unsigned());
        }
    }
}

fn put_key(out: &mut Vec<u8>, field: u32, wire: WireType) {
    put_varint(out, u64::from(field << 3 | wire as u32));
}

/// Of these most are one byte each, for which a call would be much.
#[inline]
fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The size of a field that holds a message of `len` bytes.
fn message_len(field: u32, len: usize) -> usize {
    key_len(field) + encoded_len_varint(len as u64) + len
}

fn string_len(field: u32, text: &str) -> usize {
    if text.is_empty() { 0 } else { message_len(field, text.len()) }
}

fn put_string(out: &mut Vec<u8>, field: u32, text: &str) {
    if !text.is_empty() {
        put_key(out, field, WireType::LengthDelimited);
        put_varint(out, text.len() as u64);
        out.extend_from_slice(text.as_bytes());
    }
}

fn parameters_len(field: u32, parameters: &Parameters) -> usize {
    parameters
        .iter()
        .map(|(name, value)| {
            message_len(field, string_len(1, name) + message_len(2, parameter_len(value)))
        })
        .sum()
}

fn put_parameters(out: &mut Vec<u8>, field: u32, parameters: &Parameters) {
    for (name, value) in parameters.iter() {
        let value_len = parameter_len(value);
        put_key(out, field, WireType::LengthDelimited);
        put_varint(out, (string_len(1, name) + message_len(2, value_len)) as u64);
        put_string(out, 1, name);
        put_key(out, 2, WireType::LengthDelimited);
        put_varint(out, value_len as u64);
        put_parameter(out, value);
    }
}

/// A member of a `oneof` is written even when it is zero or empty.
fn parameter_len(value: &Parameter) -> usize {
    match value {
        Parameter::Bool(_) => key_len(1) + 1,
        Parameter::Int(value) => key_len(2) + encoded_len_varint(value.cast_unsigned()),
        Parameter::String(value) => message_len(3, value.len()),
        Parameter::Double(_) => key_len(4) + size_of::<f64>(),
        Parameter::Uint(value) => key_len(5) + encoded_len_varint(*value),
    }
}

fn put_parameter(out: &mut Vec<u8>, value: &Parameter) {
    match value {
        Parameter::Bool(value) => {
            put_key(out, 1, WireType::Varint);
            put_varint(out, u64::from(*value));
        }
        Parameter::Int(value) => {
            put_key(out, 2, WireType::Varint);
            put_varint(out, value.cast_unsigned());
        }
        Parameter::String(value) => {
            put_key(out, 3, WireType::LengthDelimited);
            put_varint(out, value.len() as u64);
            out.extend_from_slice(value.as_bytes());
        }
        Parameter::Double(value) => {
            put_key(out, 4, WireType::SixtyFourBit);
            out.put_f64_le(*value);
        }
        Parameter::Uint(value) => {
            put_key(out, 5, WireType::Varint);
            put_varint(out, *value);
        }
    }
}
