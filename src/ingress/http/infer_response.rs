//! [`InferResponse`] → the body of the answer: JSON, and behind it the outputs that travel in binary
//! form, of which large ones are not copied.

use bytes::Bytes;
use http::HeaderValue;
use smallvec::SmallVec;

use super::{
    infer_request::ResponseForm,
    json::{write_f64, write_integer, write_string},
};
use crate::inference::{DataType, Error, InferOutput, InferResponse, Parameter, Parameters};

static JSON: HeaderValue = HeaderValue::from_static("application/json");
static OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// An answer of up to so many bytes is sent as one piece: to copy it costs less than the pieces.
pub(super) const JOINED_MAX: usize = 1 << 10;

/// The body of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct EncodedResponse {
    /// The JSON at its start.
    pub json: Vec<u8>,
    /// What follows, in this order; none is empty.
    pub tails: SmallVec<[Bytes; 2]>,
}

impl EncodedResponse {
    /// The value of the header `Inference-Header-Content-Length`; `None` when it is to be left out.
    pub fn json_length(&self) -> Option<usize> {
        (!self.tails.is_empty()).then_some(self.json.len())
    }

    /// The value of the header `Content-Type`.
    pub fn content_type(&self) -> &'static HeaderValue {
        if self.tails.is_empty() { &JSON } else { &OCTETS }
    }

    /// The value of the header `Content-Length`: the bytes of all parts.
    pub fn content_length(&self) -> usize {
        self.parts().map(<[u8]>::len).sum()
    }

    /// The parts of the body in their order.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(self.json.as_slice()).chain(self.tails.iter().map(|tail| &tail[..]))
    }
}

/// Writes an answer as its request wants it.
///
/// # Errors
/// When an output cannot be written as JSON: a type that JSON does not carry, a string that is not
/// text, or a shape that does not fit the data.
pub fn encode(response: &InferResponse, form: &ResponseForm) -> Result<EncodedResponse, Error> {
    let mut json = Vec::with_capacity(capacity(response, form));
    let mut tails = SmallVec::new();
    json.push(b'{');
    if !response.id.is_empty() {
        json.extend_from_slice(b"\"id\":");
        write_string(&mut json, &response.id);
        json.push(b',');
    }
    json.extend_from_slice(b"\"model_name\":");
    write_string(&mut json, &response.model_name);
    json.extend_from_slice(b",\"model_version\":\"");
    write_integer(&mut json, response.model_version);
    json.push(b'"');
    if !response.parameters.is_empty() {
        json.extend_from_slice(b",\"parameters\":");
        write_parameters(&mut json, &response.parameters);
    }
    json.extend_from_slice(b",\"outputs\":[");
    for (index, output) in response.outputs.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        write_output_head(&mut json, output);
        if form.is_elsewhere(index, &output.name) {
            // It has been written to the client's memory.
        } else if form.is_binary(index, &output.name) {
            json.extend_from_slice(b",\"parameters\":{\"binary_data_size\":");
            write_integer(&mut json, output.data.len());
            json.push(b'}');
            if !output.data.is_empty() {
                tails.push(output.data.clone());
            }
        } else {
            json.extend_from_slice(b",\"data\":[");
            write_elements(&mut json, output)?;
            json.push(b']');
        }
        json.push(b'}');
    }
    json.extend_from_slice(b"]}");
    Ok(EncodedResponse { json, tails })
}

/// A guess at the length of the JSON, and what is [joined](JOINED_MAX) with it, that seldom needs to grow.
fn capacity(response: &InferResponse, form: &ResponseForm) -> usize {
    const HEAD: usize = 96;
    const OUTPUT: usize = 112;
    let outputs = response.outputs.iter().enumerate().map(|(index, output)| {
        let characters_per_byte = match output.datatype {
            _ if form.is_binary(index, &output.name) => {
                usize::from(output.data.len() <= JOINED_MAX)
            }
            DataType::Bool => 6,
            DataType::Bytes => 1,
            _ => 3,
        };
        OUTPUT + output.name.len() + output.data.len() * characters_per_byte
    });
    HEAD + response.model_name.len() + response.id.len() + outputs.sum::<usize>()
}

fn write_parameters(json: &mut Vec<u8>, parameters: &Parameters) {
    json.push(b'{');
    for (index, (name, value)) in parameters.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        write_string(json, name);
        json.push(b':');
        write_parameter(json, value);
    }
    json.push(b'}');
}

/// Writes the value of a parameter.
pub(super) fn write_parameter(json: &mut Vec<u8>, value: &Parameter) {
    match value {
        Parameter::Bool(value) => write_bool(json, *value),
        Parameter::Int(value) => write_integer(json, *value),
        Parameter::Uint(value) => write_integer(json, *value),
        Parameter::Double(value) => write_f64(json, *value),
        Parameter::String(value) => write_string(json, value),
    }
}

fn write_output_head(json: &mut Vec<u8>, output: &InferOutput) {
    json.extend_from_slice(b"{\"name\":");
    write_string(json, &output.name);
    json.extend_from_slice(b",\"datatype\":\"");
    json.extend_from_slice(output.datatype.protocol_name().as_bytes());
    json.extend_from_slice(b"\",\"shape\":[");
    for (index, &dim) in output.shape.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        write_integer(json, dim);
    }
    json.push(b']');
}

/// Writes the elements of an output with commas between them.
pub(super) fn write_elements(json: &mut Vec<u8>, output: &InferOutput) -> Result<(), Error> {
    match output.datatype {
        DataType::Bool => fixed(json, output, |json, [byte]| write_bool(json, byte != 0)),
        DataType::Uint8 => fixed(json, output, |json, [byte]| write_integer(json, byte)),
        DataType::Int8 => fixed(json, output, |json, b| write_integer(json, i8::from_le_bytes(b))),
        DataType::Uint16 => {
            fixed(json, output, |json, bytes| write_integer(json, u16::from_le_bytes(bytes)))
        }
        DataType::Uint32 => {
            fixed(json, output, |json, bytes| write_integer(json, u32::from_le_bytes(bytes)))
        }
        DataType::Uint64 => {
            fixed(json, output, |json, bytes| write_integer(json, u64::from_le_bytes(bytes)))
        }
        DataType::Int16 => {
            fixed(json, output, |json, bytes| write_integer(json, i16::from_le_bytes(bytes)))
        }
        DataType::Int32 => {
            fixed(json, output, |json, bytes| write_integer(json, i32::from_le_bytes(bytes)))
        }
        DataType::Int64 => {
            fixed(json, output, |json, bytes| write_integer(json, i64::from_le_bytes(bytes)))
        }
        // Digits enough for the value as a 64-bit float: a client that reads those gets it exactly.
        DataType::Fp32 => {
            fixed(json, output, |json, b| write_f64(json, f32::from_le_bytes(b).into()))
        }
        DataType::Fp64 => fixed(json, output, |json, b| write_f64(json, f64::from_le_bytes(b))),
        DataType::Bytes => write_strings(json, output),
        DataType::Fp16 | DataType::Bf16 => Err(Error::malformed(format!(
            "sending {} data via JSON is not supported. Please use the binary data format for output",
            output.datatype
        ))),
    }
}

/// Writes elements of `N` bytes each, with commas between them.
fn fixed<const N: usize>(
    json: &mut Vec<u8>,
    output: &InferOutput,
    write: impl Fn(&mut Vec<u8>, [u8; N]),
) -> Result<(), Error> {
    let (elements, rest) = output.data.as_chunks::<N>();
    if !rest.is_empty() || output.shape.element_count() != Some(elements.len() as u64) {
        return Err(size_mismatch(output));
    }
    for (index, &element) in elements.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        write(json, element);
    }
    Ok(())
}

fn write_strings(json: &mut Vec<u8>, output: &InferOutput) -> Result<(), Error> {
    let mut rest = output.data.as_ref();
    let mut count = 0_u64;
    while let Some((prefix, tail)) = rest.split_first_chunk() {
        let length = u32::from_le_bytes(*prefix) as usize;
        let (string, tail) = tail.split_at_checked(length).ok_or_else(|| size_mismatch(output))?;
        let text = std::str::from_utf8(string).map_err(|_| {
            Error::malformed(format!(
                "element {count} of output '{}' is not UTF-8 text, which JSON needs. Please use \
                 the binary data format for output '{}'",
                output.name, output.name
            ))
        })?;
        if count > 0 {
            json.push(b',');
        }
        write_string(json, text);
        count += 1;
        rest = tail;
    }
    if !rest.is_empty() || output.shape.element_count() != Some(count) {
        return Err(size_mismatch(output));
    }
    Ok(())
}

fn write_bool(json: &mut Vec<u8>, value: bool) {
    json.extend_from_slice(if value { b"true".as_slice() } else { b"false" });
}

/// A model gave fewer or more elements than the shape it gave has.
fn size_mismatch(output: &InferOutput) -> Error {
    Error::Internal {
        detail: format!(
            "output tensor shape does not match size of output for '{}': shape {} of {}, {} bytes",
            output.name,
            output.shape,
            output.datatype,
            output.data.len()
        ),
    }
}
