//! The ways in: wire bytes to [`InferRequest`](crate::inference::InferRequest) and
//! [`InferResponse`](crate::inference::InferResponse) to wire bytes, one room per protocol.
//!
//! In each room the conversion is pure, apart from the I/O, so that tables, properties and fuzzing
//! drive it by bytes alone. An ingress may use the vocabulary, the protocol's messages and the
//! runtime; it must not know schedulers' insides or back ends.

pub mod http;
