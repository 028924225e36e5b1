//! The wires: gRPC and HTTP bytes ↔ [`InferRequest`](crate::inference::InferRequest) and
//! [`InferResponse`](crate::inference::InferResponse).
//!
//! Conversion is pure and apart from the I/O, so that it can be tested and fuzzed with bytes. This
//! room uses the server through [`serving`](crate::serving); it knows nothing of how requests are
//! scheduled or run.

mod away;
mod describe;
pub mod forward;
pub mod grpc;
pub mod http;
mod regions;
pub mod restricted;
mod settings;
mod shared_memory;
pub mod tls;
