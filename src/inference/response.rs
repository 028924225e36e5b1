use std::sync::Arc;

use bytes::Bytes;
use compact_str::CompactString;
use smallvec::SmallVec;

use super::{DataType, Parameters, Shape};

/// The answer to an inference request.
#[derive(Clone, Debug)]
pub struct InferResponse {
    /// Name of the model that ran.
    pub model_name: Arc<str>,
    /// Version of the model that ran.
    pub model_version: i64,
    /// The request's id.
    pub id: CompactString,
    /// Parameters of the response.
    pub parameters: Parameters,
    /// The outputs asked for, in that order, or all in the order of the model's configuration.
    pub outputs: SmallVec<[InferOutput; 2]>,
}

/// One output tensor of a response.
#[derive(Clone, Debug)]
pub struct InferOutput {
    /// The tensor's name.
    pub name: Arc<str>,
    /// Its element type.
    pub datatype: DataType,
    /// Its shape, the batch dimension included.
    pub shape: Shape,
    /// Its elements, little-endian and row-major; keeps the memory they lie in alive.
    pub data: Bytes,
}
