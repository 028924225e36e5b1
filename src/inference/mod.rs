//! The vocabulary that all rooms share: tensors, requests, responses, errors, time.
//!
//! Nothing here does I/O, knows a wire format or names a runtime. A tensor's elements stay where
//! they arrived ([`Rope`]) until the one copy into a batch; [`Signature`] is what a model accepts,
//! and holding a request against it ([`Signature::admit`]) is the only validation a request gets.

mod callers;
mod clock;
mod datatype;
mod error;
mod parameters;
mod request;
mod response;
mod rope;
mod sequence;
mod shape;
mod signature;
mod trace_parent;
mod wire_times;

pub use callers::Callers;
pub use clock::Timestamp;
pub use datatype::DataType;
pub use error::{Code, Error, NameList};
pub use parameters::{Parameter, Parameters};
pub use request::{InferInput, InferRequest, RegionRange, RequestedOutput};
pub use response::{InferOutput, InferResponse};
pub use rope::Rope;
pub use sequence::{CorrelationId, Sequence};
pub use shape::Shape;
pub use signature::{Admitted, AdmittedInput, Signature, TensorSpec};
pub use trace_parent::TraceParent;
pub use wire_times::{Sending, Wire, WireRecord, WireTimes};
