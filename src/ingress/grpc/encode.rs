//! [`InferResponse`] → `ModelInferResponse` on the wire, behind its gRPC frame header. Large tensors
//! are not copied: they follow as segments of their own.

use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
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
        encode_key(2, WireType::LengthDelimited, head);
        encode_varint(len as u64, head);
    })
}

/// A `ModelStreamInferResponse` that says what went wrong with the request named `id`.
pub fn stream_error(message: &str, id: &str) -> Bytes {
    let inner = string_len(3, id);
    let len = string_len(1, message) + message_len(2, inner);
    let mut out = BytesMut::with_capacity(FRAME_HEADER + len);
    put_frame_header(&mut out, len);
    put_string(&mut out, 1, message);
    encode_key(2, WireType::LengthDelimited, &mut out);
    encode_varint(inner as u64, &mut out);
    put_string(&mut out, 3, id);
    out.freeze()
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
    let mut out = BytesMut::with_capacity(FRAME_HEADER + len);
    put_frame_header(&mut out, len);
    encode_key(2, WireType::LengthDelimited, &mut out);
    encode_varint(inner as u64, &mut out);
    put_string(&mut out, 1, model);
    put_string(&mut out, 2, version);
    put_string(&mut out, 3, id);
    put_parameters(&mut out, 4, &parameters);
    out.freeze()
}

/// Writes the response behind a wrapper message's field header, if `wrap` writes one.
fn segments(response: &InferResponse, wrap: impl Fn(&mut BytesMut, usize)) -> Segments {
    let version = compact_str::format_compact!("{}", response.model_version);
    let outputs: SmallVec<[usize; 4]> = response.outputs.iter().map(output_len).collect();
    let len = string_len(1, &response.model_name)
        + string_len(2, &version)
        + string_len(3, &response.id)
        + parameters_len(4, &response.parameters)
        + outputs.iter().map(|&len| message_len(5, len)).sum::<usize>()
        + response.outputs.iter().map(|output| message_len(6, output.data.len())).sum::<usize>();

    let mut wrapper = BytesMut::new();
    wrap(&mut wrapper, len);

    let uncopied: usize = response
        .outputs
        .iter()
        .map(|output| output.data.len())
        .filter(|&len| len > COPIED_BYTES_MAX)
        .sum();
    let mut segments = Segments::new();
    let mut out = BytesMut::with_capacity(FRAME_HEADER + wrapper.len() + len - uncopied);
    put_frame_header(&mut out, wrapper.len() + len);
    out.put_slice(&wrapper);
    put_string(&mut out, 1, &response.model_name);
    put_string(&mut out, 2, &version);
    put_string(&mut out, 3, &response.id);
    put_parameters(&mut out, 4, &response.parameters);
    for (output, len) in response.outputs.iter().zip(outputs) {
        encode_key(5, WireType::LengthDelimited, &mut out);
        encode_varint(len as u64, &mut out);
        put_output(&mut out, output);
    }
    for output in &response.outputs {
        encode_key(6, WireType::LengthDelimited, &mut out);
        encode_varint(output.data.len() as u64, &mut out);
        if output.data.len() > COPIED_BYTES_MAX {
            segments.push(out.split().freeze());
            segments.push(output.data.clone());
        } else {
            out.put_slice(&output.data);
        }
    }
    if !out.is_empty() {
        segments.push(out.freeze());
    }
    segments
}

fn put_frame_header(out: &mut BytesMut, len: usize) {
    out.put_u8(0);
    // A response is bounded by the server's memory budget, far below 4 GiB.
    out.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
}

fn output_len(output: &InferOutput) -> usize {
    let dims: usize = output.shape.iter().map(|dim| encoded_len_varint(dim.cast_unsigned())).sum();
    string_len(1, &output.name)
        + string_len(2, output.datatype.protocol_name())
        + if dims > 0 { message_len(3, dims) } else { 0 }
}

fn put_output(out: &mut BytesMut, output: &InferOutput) {
    put_string(out, 1, &output.name);
    put_string(out, 2, output.datatype.protocol_name());
    let dims: usize = output.shape.iter().map(|dim| encoded_len_varint(dim.cast_unsigned())).sum();
    if dims > 0 {
        encode_key(3, WireType::LengthDelimited, out);
        encode_varint(dims as u64, out);
        for dim in output.shape.iter() {
            encode_varint(dim.cast_unsigned(), out);
        }
    }
}

/// The size of a field that holds a message of `len` bytes.
fn message_len(field: u32, len: usize) -> usize {
    key_len(field) + encoded_len_varint(len as u64) + len
}

fn string_len(field: u32, text: &str) -> usize {
    if text.is_empty() { 0 } else { message_len(field, text.len()) }
}

fn put_string(out: &mut BytesMut, field: u32, text: &str) {
    if !text.is_empty() {
        encode_key(field, WireType::LengthDelimited, out);
        encode_varint(text.len() as u64, out);
        out.put_slice(text.as_bytes());
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

fn put_parameters(out: &mut BytesMut, field: u32, parameters: &Parameters) {
    for (name, value) in parameters.iter() {
        let value_len = parameter_len(value);
        encode_key(field, WireType::LengthDelimited, out);
        encode_varint((string_len(1, name) + message_len(2, value_len)) as u64, out);
        put_string(out, 1, name);
        encode_key(2, WireType::LengthDelimited, out);
        encode_varint(value_len as u64, out);
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

fn put_parameter(out: &mut BytesMut, value: &Parameter) {
    match value {
        Parameter::Bool(value) => {
            encode_key(1, WireType::Varint, out);
            encode_varint(u64::from(*value), out);
        }
        Parameter::Int(value) => {
            encode_key(2, WireType::Varint, out);
            encode_varint(value.cast_unsigned(), out);
        }
        Parameter::String(value) => {
            encode_key(3, WireType::LengthDelimited, out);
            encode_varint(value.len() as u64, out);
            out.put_slice(value.as_bytes());
        }
        Parameter::Double(value) => {
            encode_key(4, WireType::SixtyFourBit, out);
            out.put_f64_le(*value);
        }
        Parameter::Uint(value) => {
            encode_key(5, WireType::Varint, out);
            encode_varint(*value, out);
        }
    }
}
