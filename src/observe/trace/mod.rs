//! Traces of single requests: which of them are sampled, what is noted of one, the JSON files that Triton's
//! tools read, and the spans of OpenTelemetry.
//!
//! A request that is not traced costs one relaxed load. What a traced one has noted is written by a
//! thread of its own; when that falls behind, traces are dropped and counted, and no request waits.

mod opentelemetry;
mod record;
mod settings;
mod tracer;
mod writer;

pub use opentelemetry::{OpenTelemetry, Post};
pub use record::{Event, OuterTrace, Trace, TracedTensor};
pub use settings::{Change, Fields, Level, Settings};
pub use tracer::{InvalidSettings, ModelTracer, Output, Tracer};
