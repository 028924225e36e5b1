//! Nereid, an inference server that speaks Triton.
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks, missing_docs)]

pub mod backend;
pub mod cli;
pub mod inference;
pub mod memory;
pub mod runtime;

/// The messages and services of `proto/`, generated.
pub mod proto {
    #![allow(missing_docs, clippy::all)]

    tonic::include_proto!("inference");

    /// The standard gRPC health service.
    pub mod health {
        tonic::include_proto!("grpc.health.v1");
    }

    /// The encoded descriptors of both, for reflection and for the text format.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
