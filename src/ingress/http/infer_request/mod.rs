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

use compact_str::CompactString;
use smallvec::SmallVec;

use super::json::{Cursor, Kind};
use crate::inference::{Error, InferInput, InferRequest, RequestedOutput, Rope, Sequence};

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
    let json = body.slice(0..json_length).into_bytes();
    let mut cursor = Cursor::new(&json)?;
    let mut reader = BodyReader {
        model,
        tail: Tail { body, at: json_length },
        id: None,
        parameters: None,
        inputs: None,
        outputs: None,
    };
    if cursor.kind() != Kind::Object {
        cursor.skip()?;
        return Err(members::missing("inputs"));
    }
    cursor.object(|cursor, name| reader.member(cursor, &name))?;
    cursor.finish()?;
    reader.finish(version)
}

/// The members of the root object, as far as they were met. Of a member given twice the first
/// counts, as with Triton.
struct BodyReader<'a> {
    model: &'a str,
    tail: Tail<'a>,
    id: Option<CompactString>,
    parameters: Option<members::RequestParameters>,
    inputs: Option<SmallVec<[InferInput; 2]>>,
    outputs: Option<SmallVec<[RequestedOutput; 2]>>,
}

impl BodyReader<'_> {
    fn member(&mut self, cursor: &mut Cursor<'_>, name: &str) -> Result<(), Error> {
        match name {
            "id" if self.id.is_none() => {
                self.id = Some(members::string(cursor, "id")?.as_ref().into());
            }
            "parameters" if self.parameters.is_none() => {
                self.parameters = Some(members::request_parameters(cursor)?);
            }
            "inputs" if self.inputs.is_none() => {
                self.inputs = Some(tensors::inputs(cursor, self.model, &mut self.tail)?);
            }
            "outputs" if self.outputs.is_none() => {
                self.outputs = Some(tensors::outputs(cursor)?);
            }
            _ => {
                cursor.skip()?;
            }
        }
        Ok(())
    }

    fn finish(self, version: &str) -> Result<(InferRequest, ResponseForm), Error> {
        let inputs = self.inputs.ok_or_else(|| members::missing("inputs"))?;
        if self.tail.remaining() > 0 {
            return Err(Error::malformed(format!(
                "unexpected additional input data for model '{}'",
                self.model
            )));
        }
        let mut parameters = self.parameters.unwrap_or_default();
        let outputs = self.outputs.unwrap_or_default();
        let form = ResponseForm {
            binary_by_default: parameters.binary_data_output,
            outputs: outputs.clone(),
        };
        let request = InferRequest {
            model_name: self.model.into(),
            model_version: version.into(),
            id: self.id.unwrap_or_default(),
            sequence: Sequence::take(&mut parameters.others),
            parameters: parameters.others,
            inputs,
            outputs,
            priority: parameters.priority,
            queue_timeout: parameters.queue_timeout,
            ..InferRequest::default()
        };
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
