use std::{any::Any, ops::Range, sync::Arc, time::Duration};

use compact_str::CompactString;
use smallvec::SmallVec;

use super::{
    Callers, DataType, Error, Parameters, Rope, Sequence, Shape, Timestamp, TraceParent, WireTimes,
};

/// An inference request as an ingress has read it off the wire, not yet held against any model.
#[derive(Clone, Debug, Default)]
pub struct InferRequest {
    /// The model's name.
    pub model_name: CompactString,
    /// The version asked for; empty leaves the choice to the server.
    pub model_version: CompactString,
    /// The client's name for the request, returned in the response; may be empty.
    pub id: CompactString,
    /// Parameters less those that became fields of this struct.
    pub parameters: Parameters,
    /// Input tensors in the order they came.
    pub inputs: SmallVec<[InferInput; 2]>,
    /// Outputs asked for; none asks for all.
    pub outputs: SmallVec<[RequestedOutput; 2]>,
    /// 0 leaves the choice to the model; 1 is the most urgent.
    pub priority: u64,
    /// How long the request may wait in the queue, by the client's `timeout` parameter.
    pub queue_timeout: Option<Duration>,
    /// Whether its client can still change the bytes of an input, which lie in memory that they share.
    pub inputs_may_change: bool,
    /// Tensors that lie in the memory of the device that the model runs on, as the server's own type for
    /// them. Inputs among them are here without bytes.
    pub on_device: Option<Arc<dyn Any + Send + Sync>>,
    /// When the client stops waiting for the answer.
    pub deadline: Option<Timestamp>,
    /// What it belongs to in a trace of the client's.
    pub trace_parent: Option<TraceParent>,
    /// When it came, where that is noted.
    pub wire: Option<WireTimes>,
    /// The sequence that it belongs to, if it names one.
    pub sequence: Option<Box<Sequence>>,
    /// The models that wait for it, when it comes from inside the server.
    pub callers: Option<Arc<Callers>>,
    /// Whether the client wants to be told of the end by a response without outputs, when the model
    /// gives its last response before it knows that it is the last. Only gRPC streams have that choice.
    pub empty_final_response: bool,
}

/// One input tensor of a request.
#[derive(Clone, Debug)]
pub struct InferInput {
    /// The tensor's name.
    pub name: CompactString,
    /// Its element type.
    pub datatype: DataType,
    /// Its shape, the batch dimension included.
    pub shape: Shape,
    /// Its elements, little-endian and row-major, where they arrived.
    pub data: Rope,
    /// Where its elements are instead, if they did not come with the request.
    pub source: Option<Box<RegionRange>>,
}

impl InferInput {
    /// A tensor whose elements came with the request.
    pub fn new(
        name: impl Into<CompactString>,
        datatype: DataType,
        shape: Shape,
        data: impl Into<Rope>,
    ) -> Self {
        Self { name: name.into(), datatype, shape, data: data.into(), source: None }
    }
}

/// Bytes of a shared-memory region that a client registered, as a request names them: nobody has
/// looked yet whether they are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionRange {
    /// The region's name.
    pub region: CompactString,
    /// Where they begin in it.
    pub offset: u64,
    /// How many there are.
    pub byte_size: u64,
}

impl RegionRange {
    /// Where the bytes lie in a region of `region_size` bytes, which is in memory.
    ///
    /// # Errors
    /// When they do not lie within; the texts are Triton's.
    pub fn within(&self, region_size: u64) -> Result<Range<usize>, Error> {
        let Self { region, offset, byte_size } = self;
        if *offset >= region_size {
            return Err(Error::malformed(format!(
                "Invalid offset for shared memory region: '{region}'"
            )));
        }
        if *byte_size > region_size - offset {
            return Err(Error::malformed(format!(
                "Invalid offset + byte size for shared memory region: '{region}'"
            )));
        }
        // Both are at most the size of what is in memory.
        Ok(*offset as usize..(offset + byte_size) as usize)
    }
}

/// An output that a request asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestedOutput {
    /// The tensor's name.
    pub name: CompactString,
    /// How many of the largest values to return as classes instead of the tensor; 0 for the tensor.
    pub classification: u32,
    /// Whether the tensor travels in binary form behind a JSON response; `None` leaves that to the
    /// request's default. Only HTTP has a choice.
    pub binary: Option<bool>,
    /// Where the tensor is to be written instead of being sent.
    pub target: Option<Box<RegionRange>>,
}
