//! What goes over the socket between the server and the process of a Python model's instance.
//!
//! Pure: bytes in, values out, and back. A frame is a header of eight bytes, which are the length of
//! the body, the kind and three zeroes, and a body whose length is a multiple of eight. Numbers are
//! little-endian. `python/README.md` has the layout of each kind, `python/nereid_stub/wire.py` is
//! the other end. The process runs what users wrote, so nothing of it is believed unseen.

mod read;
mod write;

#[cfg(test)]
mod tests;

use bytes::Bytes;
use compact_str::CompactString;
use smallvec::SmallVec;

use crate::inference::{Code, DataType, Shape};

pub use read::{Frames, Malformed, decode};
pub use write::{Writer, datatype_number};

/// The length of a header.
pub const HEADER_BYTES: usize = 8;
/// The longest body that is taken: larger tensors go through shared memory.
pub const BODY_BYTES_MAX: usize = 256 << 20;
/// The most dimensions that a tensor can have.
pub const RANK_MAX: usize = 32;

/// The kinds of frames that the server sends.
pub mod to_process {
    #![allow(missing_docs)]
    pub const START: u8 = 1;
    pub const EXECUTE: u8 = 2;
    pub const REPLY: u8 = 3;
    pub const CALL_RESPONSE: u8 = 4;
    pub const FREE: u8 = 5;
    pub const FINALIZE: u8 = 6;
    pub const ASK_READY: u8 = 7;
    pub const FLUSH: u8 = 8;
    pub const TRIM: u8 = 9;
}

/// The kinds of frames that the process sends.
pub mod from_process {
    #![allow(missing_docs)]
    pub const STARTED: u8 = 32;
    pub const RESPONSES: u8 = 33;
    pub const EXECUTED: u8 = 34;
    pub const CALL: u8 = 35;
    pub const CANCEL_CALL: u8 = 36;
    pub const ASK: u8 = 37;
    pub const LOG: u8 = 38;
    pub const IS_READY: u8 = 39;
    pub const FINALIZED: u8 = 40;
    pub const FREED: u8 = 48;
    pub const DROPPED: u8 = 49;
    pub const METRICS_GONE: u8 = 50;
    pub const FAMILIES_GONE: u8 = 51;
}

/// What the process said.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// The model is loaded, or not.
    Started {
        /// Whether it has the hook `is_ready`.
        has_is_ready: bool,
        /// The completed configuration, if that was asked for; or why the model failed.
        outcome: Result<String, String>,
    },
    /// Responses to requests that it was given.
    Responses(Vec<Response>),
    /// `execute` has returned, or failed.
    Executed(Result<Executed, String>),
    /// It calls another model.
    Call(Box<Call>),
    /// Nobody waits for the rest of a call any more.
    CancelCall(u64),
    /// It asks for something.
    Ask(Question),
    /// A line for the log.
    Log(LogLine),
    /// What the model's `is_ready` said.
    IsReady {
        /// Which question this answers.
        number: u64,
        /// The answer.
        is_ready: bool,
    },
    /// `finalize` has returned.
    Finalized,
    /// What nothing there refers to any more.
    Gone(Gone, Vec<u64>),
}

/// What can be gone in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// Memory that was lent to it, by offset.
    Memory,
    /// Requests, by number.
    Requests,
    /// Metrics, by number.
    Metrics,
    /// Families of metrics, by number.
    Families,
}

/// How an execution ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Executed {
    /// Requests that nothing answers any more.
    pub let_go: Vec<u64>,
    /// Requests that are to be scheduled again.
    pub again: Vec<u64>,
}

/// A response, to a request of the server or to a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// The request's number, or the call's.
    pub number: u64,
    /// Whether no more come.
    pub is_last: bool,
    /// The tensors or the error; `None` for an end without a response.
    pub outcome: Option<Result<Outputs, Failure>>,
}

/// The tensors of a response.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outputs {
    /// Parameters as a JSON object; empty without any.
    pub parameters: String,
    /// The tensors.
    pub tensors: SmallVec<[Tensor; 2]>,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The protocol's code.
    pub code: Code,
    /// What the client reads.
    pub message: String,
}

/// A tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Its name.
    pub name: CompactString,
    /// Its element type.
    pub datatype: DataType,
    /// Its dimensions, each zero or more.
    pub shape: Shape,
    /// Where its bytes are.
    pub place: Place,
}

/// Where a tensor's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the frame.
    Inline(Bytes),
    /// In the half of the shared memory that the sender gives out.
    Sender(Range),
    /// In the half that the receiver gives out: inside of what it lent.
    Receiver(Range),
}

/// Bytes of the shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Where they begin.
    pub offset: u64,
    /// How many there are.
    pub length: u64,
}

/// The sequence that a request belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Correlation {
    /// By number; 0 for none.
    Number(u64),
    /// By name.
    Text(CompactString),
}

/// A call of another model.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// What its responses are to be called.
    pub number: u64,
    /// Whether the caller takes any number of responses.
    pub is_decoupled: bool,
    /// Whether the model's `execute` waits for it.
    pub while_executing: bool,
    /// The model.
    pub model: CompactString,
    /// Its version; negative leaves the choice to the server.
    pub version: i64,
    /// The request's id.
    pub id: CompactString,
    /// How long it may wait, in microseconds; 0 without limit.
    pub timeout_us: u64,
    /// The sequence that it belongs to.
    pub correlation: Correlation,
    /// Whether it begins or ends the sequence: bits 0 and 1.
    pub flags: u32,
    /// Parameters as a JSON object; empty without any.
    pub parameters: String,
    /// The request in whose trace it is to be noted; 0 for none.
    pub within: u64,
    /// The outputs that are wanted.
    pub outputs: Vec<CompactString>,
    /// The tensors.
    pub inputs: Vec<Tensor>,
}

/// Something that the process wants of the server, with the number that its answer is to carry.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// The answer's number.
    pub number: u64,
    /// What is wanted.
    pub what: u8,
    /// Numbers that belong to it.
    pub numbers: Vec<u64>,
    /// Values that belong to it.
    pub values: Vec<f64>,
    /// Texts that belong to it.
    pub texts: Vec<String>,
}

/// What a [`Question`] can be about.
pub mod questions {
    #![allow(missing_docs)]
    pub const IS_CANCELLED: u8 = 0;
    pub const LOAD_MODEL: u8 = 1;
    pub const UNLOAD_MODEL: u8 = 2;
    pub const IS_MODEL_READY: u8 = 3;
    pub const NEW_FAMILY: u8 = 4;
    pub const NEW_METRIC: u8 = 5;
    pub const METRIC_INCREMENT: u8 = 6;
    pub const METRIC_SET: u8 = 7;
    pub const METRIC_OBSERVE: u8 = 8;
    pub const METRIC_VALUE: u8 = 9;
}

/// A line for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// How much it matters.
    pub level: log::Level,
    /// The file of the call.
    pub file: String,
    /// The line of the call.
    pub line: u32,
    /// What it says.
    pub message: String,
}

/// A request as the process reads it.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// What its responses are to be called.
    pub number: u64,
    /// The client's name for it.
    pub id: &'a str,
    /// How long it may wait, in microseconds; 0 without limit.
    pub timeout_us: u64,
    /// The sequence that it belongs to.
    pub correlation: &'a Correlation,
    /// Whether it begins or ends the sequence: bits 0 and 1.
    pub flags: u32,
    /// Parameters as a JSON object.
    pub parameters: &'a str,
    /// The context of the trace that it is noted in, as a JSON object; empty for none.
    pub trace: &'a str,
}
