use bytes::{Buf, Bytes, BytesMut};
use compact_str::CompactString;
use smallvec::SmallVec;

use super::{
    BODY_BYTES_MAX, Call, Correlation, Executed, Failure, Gone, HEADER_BYTES, LogLine, Outputs,
    Place, Question, RANK_MAX, Range, Response, Said, Tensor, from_process as kind,
    write::datatype_of,
};
use crate::inference::{Code, Shape};

/// The process said something that is not of the described form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the model's process sent a malformed message: {0}")]
pub struct Malformed(String);

fn malformed<T>(what: impl Into<String>) -> Result<T, Malformed> {
    Err(Malformed(what.into()))
}

/// Cuts a stream of bytes into frames.
#[derive(Debug, Default)]
pub struct Frames {
    pending: BytesMut,
}

impl Frames {
    /// Takes bytes as they come.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next frame's kind and body; `None` until it is whole.
    ///
    /// # Errors
    /// When the frame is longer than any may be.
    pub fn next_frame(&mut self) -> Result<Option<(u8, Bytes)>, Malformed> {
        let Some(header) = self.pending.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let [a, b, c, d, kind, ..] = *header;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if length > BODY_BYTES_MAX {
            return malformed(format!(
                "a frame of {length} bytes, expected at most {BODY_BYTES_MAX}"
            ));
        }
        if self.pending.len() - HEADER_BYTES < length {
            return Ok(None);
        }
        self.pending.advance(HEADER_BYTES);
        Ok(Some((kind, self.pending.split_to(length).freeze())))
    }
}

/// Reads a frame of the process.
///
/// # Errors
/// When it is not of the described form.
pub fn decode(frame: u8, body: Bytes) -> Result<Said, Malformed> {
    let mut body = Body { length: body.len(), rest: body };
    Ok(match frame {
        kind::STARTED => {
            let has_failed = body.flag()?;
            let has_is_ready = body.u32()? & 1 != 0;
            let text = body.text()?;
            Said::Started { has_is_ready, outcome: if has_failed { Err(text) } else { Ok(text) } }
        }
        kind::RESPONSES => Said::Responses(body.list(Body::response)?),
        kind::EXECUTED => Said::Executed(match body.flag()? {
            true => Err(body.text()?),
            false => Ok(Executed { let_go: body.list(Body::u64)?, again: body.list(Body::u64)? }),
        }),
        kind::CALL => Said::Call(Box::new(body.call()?)),
        kind::CANCEL_CALL => Said::CancelCall(body.u64()?),
        kind::ASK => Said::Ask(body.question()?),
        kind::LOG => Said::Log(body.log_line()?),
        kind::IS_READY => Said::IsReady { number: body.u64()?, is_ready: body.flag()? },
        kind::FINALIZED => Said::Finalized,
        kind::FREED => Said::Gone(Gone::Memory, body.list(Body::u64)?),
        kind::DROPPED => Said::Gone(Gone::Requests, body.list(Body::u64)?),
        kind::METRICS_GONE => Said::Gone(Gone::Metrics, body.list(Body::u64)?),
        kind::FAMILIES_GONE => Said::Gone(Gone::Families, body.list(Body::u64)?),
        other => return malformed(format!("a frame of the unknown kind {other}")),
    })
}

/// The body of a frame, from the front.
struct Body {
    length: usize,
    rest: Bytes,
}

impl Body {
    fn take(&mut self, length: usize) -> Result<Bytes, Malformed> {
        if self.rest.len() < length {
            return malformed(format!("{length} bytes expected, got {}", self.rest.len()));
        }
        Ok(self.rest.split_to(length))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let Some(array) = self.rest.first_chunk::<N>().copied() else {
            return malformed(format!("{N} bytes expected, got {}", self.rest.len()));
        };
        self.rest.advance(N);
        Ok(array)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_le_bytes)
    }

    fn flag(&mut self) -> Result<bool, Malformed> {
        Ok(self.u8()? != 0)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    /// A list behind the number of its elements. Memory is taken as they come, not as the number says.
    fn list<T>(
        &mut self,
        mut element: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        let count = self.u32()?;
        (0..count).map(|_| element(self)).collect()
    }

    fn name(&mut self) -> Result<CompactString, Malformed> {
        let length = self.u16()?.into();
        CompactString::from_utf8(self.take(length)?)
            .map_err(|error| Malformed(format!("a name is not UTF-8: {error}")))
    }

    fn text(&mut self) -> Result<String, Malformed> {
        let length = self.u32()? as usize;
        // Texts are for people: what Python could not write as UTF-8 is replaced.
        Ok(String::from_utf8_lossy(&self.take(length)?).into_owned())
    }

    fn range(&mut self) -> Result<Range, Malformed> {
        Ok(Range { offset: self.u64()?, length: self.u64()? })
    }

    fn tensor(&mut self) -> Result<Tensor, Malformed> {
        let name = self.name()?;
        let [datatype, rank, place] = self.array()?;
        let Some(datatype) = datatype_of(datatype) else {
            return malformed(format!("tensor '{name}' has the unknown type {datatype}"));
        };
        let rank = usize::from(rank);
        if rank > RANK_MAX {
            return malformed(format!(
                "tensor '{name}' has {rank} dimensions, expected at most {RANK_MAX}"
            ));
        }
        let shape = (0..rank)
            .map(|_| self.array().map(i64::from_le_bytes))
            .collect::<Result<SmallVec<[i64; 4]>, _>>()?;
        let shape = Shape::from(shape.as_slice());
        if !shape.is_fixed() {
            return malformed(format!("tensor '{name}' has the shape {shape}"));
        }
        let place = match place {
            0 => {
                let length = self.u32()? as usize;
                let at = self.length - self.rest.len();
                self.take(at.next_multiple_of(8) - at)?;
                Place::Inline(self.take(length)?)
            }
            1 => Place::Sender(self.range()?),
            2 => Place::Receiver(self.range()?),
            other => {
                return malformed(format!("tensor '{name}' lies in the unknown place {other}"));
            }
        };
        let tensor = Tensor { name, datatype, shape, place };
        tensor.check_length()?;
        Ok(tensor)
    }

    fn response(&mut self) -> Result<Response, Malformed> {
        let number = self.u64()?;
        let [flags, code] = self.array()?;
        let count = self.u16()?;
        let (is_last, is_present, has_failed) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
        let outcome = match (is_present, has_failed) {
            (false, _) => None,
            (true, true) => Some(Err(Failure { code: code_of(code), message: self.text()? })),
            (true, false) => {
                let parameters = self.text()?;
                let tensors = (0..count).map(|_| self.tensor()).collect::<Result<_, _>>()?;
                Some(Ok(Outputs { parameters, tensors }))
            }
        };
        Ok(Response { number, is_last, outcome })
    }

    fn call(&mut self) -> Result<Call, Malformed> {
        let number = self.u64()?;
        let bits = self.u8()?;
        let version = self.array().map(i64::from_le_bytes)?;
        let timeout_us = self.u64()?;
        let sequence = self.u64()?;
        let flags = self.u32()?;
        let (inputs, outputs) = (self.u16()?, self.u16()?);
        let is_text = self.flag()?;
        let within = self.u64()?;
        let model = self.name()?;
        let id = self.name()?;
        let correlation =
            if is_text { Correlation::Text(self.name()?) } else { Correlation::Number(sequence) };
        let parameters = self.text()?;
        let outputs = (0..outputs).map(|_| self.name()).collect::<Result<_, _>>()?;
        let inputs = (0..inputs).map(|_| self.tensor()).collect::<Result<_, _>>()?;
        Ok(Call {
            number,
            is_decoupled: bits & 1 != 0,
            while_executing: bits & 2 != 0,
            model,
            version,
            id,
            timeout_us,
            correlation,
            flags,
            parameters,
            within,
            outputs,
            inputs,
        })
    }

    fn question(&mut self) -> Result<Question, Malformed> {
        let number = self.u64()?;
        let [what, numbers] = self.array()?;
        let values = self.u16()?;
        let numbers = (0..numbers).map(|_| self.u64()).collect::<Result<_, _>>()?;
        let values =
            (0..values).map(|_| self.array().map(f64::from_le_bytes)).collect::<Result<_, _>>()?;
        let texts = self.u8()?;
        let texts = (0..texts).map(|_| self.text()).collect::<Result<_, _>>()?;
        Ok(Question { number, what, numbers, values, texts })
    }

    fn log_line(&mut self) -> Result<LogLine, Malformed> {
        let level = match self.u8()? {
            0 => log::Level::Info,
            1 => log::Level::Warn,
            2 => log::Level::Error,
            _ => log::Level::Debug,
        };
        Ok(LogLine { level, line: self.u32()?, file: self.text()?, message: self.text()? })
    }
}

impl Tensor {
    /// The number of its bytes.
    pub fn length(&self) -> u64 {
        match &self.place {
            Place::Inline(bytes) => bytes.len() as u64,
            Place::Sender(range) | Place::Receiver(range) => range.length,
        }
    }

    /// Its bytes must be as many as its shape says; those of strings are counted where they are read.
    fn check_length(&self) -> Result<(), Malformed> {
        let Some(size) = self.datatype.size() else { return Ok(()) };
        let expected = self.shape.element_count().and_then(|count| count.checked_mul(size as u64));
        if expected == Some(self.length()) {
            return Ok(());
        }
        malformed(format!(
            "tensor '{}' of type {} and shape {} has {} bytes",
            self.name,
            self.datatype,
            self.shape,
            self.length()
        ))
    }
}

fn code_of(number: u8) -> Code {
    match number {
        0 => Code::Unknown,
        2 => Code::NotFound,
        3 => Code::InvalidArgument,
        4 => Code::Unavailable,
        5 => Code::Unsupported,
        6 => Code::AlreadyExists,
        7 => Code::Cancelled,
        _ => Code::Internal,
    }
}
