//! The wires: gRPC and HTTP bytes, and what lies in the ring's memory, ↔
//! [`InferRequest`](crate::inference::InferRequest) and
//! [`InferResponse`](crate::inference::InferResponse).
//!
//! Conversion is pure and apart from the I/O, so that it can be tested and fuzzed with bytes. This
//! room uses the server through [`serving`](crate::serving); it knows nothing of how requests are
//! scheduled or run.

mod away;
mod describe;
mod first_poll;
pub mod forward;
pub mod grpc;
pub mod http;
mod regions;
pub mod restricted;
pub mod ring;
mod settings;
mod shared_memory;
pub mod tls;
