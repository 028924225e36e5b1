//! The body of an inference call → [`InferRequest`].
//!
//! A body is JSON, behind which the elements of tensors may follow in binary form; those stay where
//! they arrived. Elements in JSON become little-endian bytes as they are read.

pub(super) mod elements;
pub(super) mod members;
mod raw;
mod tensors;

#[cfg(test)]
mod tests;

use std::mem;

use smallvec::SmallVec;

use super::json::{Cursor, Kind};
use crate::inference::{Error, InferRequest, RequestedOutput, Rope, Sequence};

pub use raw::raw_infer_request;

/// The most inputs, and the most outputs, of one request.
pub const TENSORS_MAX: usize = 4096;
/// The most parameters of one request.
pub const PARAMETERS_MAX: usize = 1024;
/// The most dimensions of one tensor.
pub const RANK_MAX: usize = 256;

/// How a request wants its answer written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResponseForm {
    /// Whether outputs that [`outputs`](Self::outputs) does not name travel in binary form.
    pub binary_by_default: bool,
    /// The outputs that the request names, in its order.
    pub outputs: SmallVec<[RequestedOutput; 2]>,
}

impl ResponseForm {
    /// What the request said of the output `name`, which is probably its `index`th one.
    pub fn output(&self, index: usize, name: &str) -> Option<&RequestedOutput> {
        let at_index = self.outputs.get(index).filter(|output| output.name == name);
        at_index.or_else(|| self.outputs.iter().find(|output| output.name == name))
    }

    /// Whether the output goes to shared memory instead of into the answer.
    pub fn is_elsewhere(&self, index: usize, name: &str) -> bool {
        self.output(index, name).is_some_and(|output| output.target.is_some())
    }

    /// Whether the output travels in binary form.
    pub fn is_binary(&self, index: usize, name: &str) -> bool {
        let said = self.output(index, name).and_then(|output| output.binary);
        said.unwrap_or(self.binary_by_default)
    }
}

/// The length of the JSON at the start of a body of `body_length` bytes, by the value of the header
/// `Inference-Header-Content-Length`; without the header all of it. Zero means that there is no JSON
/// and that the body is the one tensor of a raw binary request ([`raw_infer_request`]).
///
/// # Errors
/// When the header is not a number or says more than there is.
pub fn json_length(header: Option<&[u8]>, body_length: usize) -> Result<usize, Error> {
    let Some(header) = header else {
        return Ok(body_length);
    };
    let text = String::from_utf8_lossy(header);
    let text = text.trim_ascii();
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || digits.bytes().any(|byte| !byte.is_ascii_digit()) {
        return Err(Error::malformed(format!(
            "Unable to parse Inference-Header-Content-Length, got: {text}"
        )));
    }
    match text.parse() {
        Ok(length) if length <= body_length => Ok(length),
        _ => Err(Error::malformed(format!(
            "inference header size should be in range (0, {body_length}), got: {text}"
        ))),
    }
}

/// Reads a body whose first `json_length` bytes are JSON, addressed to a model and a version; an
/// empty version leaves the choice to the server.
///
/// # Errors
/// Names what is malformed, missing, surplus or out of range.
pub fn parse(
    model: &str,
    version: &str,
    body: &Rope,
    json_length: usize,
) -> Result<(InferRequest, ResponseForm), Error> {
    let json_length = json_length.min(body.len());
    let json = body.front(json_length);
    let mut cursor = Cursor::new(&json)?;
    let mut reader = BodyReader {
        model,
        tail: Tail { body, at: json_length },
        request: InferRequest::default(),
        binary_by_default: false,
        met: Met::default(),
    };
    if cursor.kind() != Kind::Object {
        cursor.skip()?;
        return Err(members::missing("inputs"));
    }
    cursor.object(|cursor, name| reader.member(cursor, &name))?;
    cursor.finish()?;
    reader.finish(version)
}

/// What was read of the root object. Of a member given twice the first counts, as with Triton.
struct BodyReader<'a> {
    model: &'a str,
    tail: Tail<'a>,
    request: InferRequest,
    binary_by_default: bool,
    met: Met,
}

/// Which members of the root object were met.
#[derive(Default)]
struct Met {
    id: bool,
    parameters: bool,
    inputs: bool,
    outputs: bool,
}

impl BodyReader<'_> {
    fn member(&mut self, cursor: &mut Cursor<'_>, name: &str) -> Result<(), Error> {
        let Self { model, tail, request, met, .. } = self;
        match name {
            "id" if !mem::replace(&mut met.id, true) => {
                request.id = members::string(cursor, "id")?.as_ref().into();
            }
            "parameters" if !mem::replace(&mut met.parameters, true) => {
                let mut parameters = members::request_parameters(cursor)?;
                request.priority = parameters.priority;
                request.queue_timeout = parameters.queue_timeout;
                request.sequence = Sequence::take(&mut parameters.others);
                request.parameters = parameters.others;
                self.binary_by_default = parameters.binary_data_output;
            }
            "inputs" if !mem::replace(&mut met.inputs, true) => {
                tensors::inputs(cursor, model, tail, &mut request.inputs)?;
            }
            "outputs" if !mem::replace(&mut met.outputs, true) => {
                tensors::outputs(cursor, &mut request.outputs)?;
            }
            _ => {
                cursor.skip()?;
            }
        }
        Ok(())
    }

    fn finish(self, version: &str) -> Result<(InferRequest, ResponseForm), Error> {
        let Self { model, tail, mut request, binary_by_default, met } = self;
        if !met.inputs {
            return Err(members::missing("inputs"));
        }
        if tail.remaining() > 0 {
            return Err(Error::malformed(format!(
                "unexpected additional input data for model '{model}'"
            )));
        }
        request.model_name = model.into();
        request.model_version = version.into();
        let form = ResponseForm { binary_by_default, outputs: request.outputs.clone() };
        Ok((request, form))
    }
}

/// The part of a body behind the JSON, which inputs take in their order.
struct Tail<'a> {
    body: &'a Rope,
    at: usize,
}

impl Tail<'_> {
    fn remaining(&self) -> usize {
        self.body.len() - self.at
    }

    /// Takes `size` bytes.
    ///
    /// # Errors
    /// How many bytes are missing.
    fn take(&mut self, size: u64) -> Result<Rope, u64> {
        let remaining = self.remaining();
        match usize::try_from(size) {
            Ok(size) if size <= remaining => {
                let start = self.at;
                self.at += size;
                Ok(self.body.slice(start..self.at))
            }
            _ => Err(size - remaining as u64),
        }
    }
}
