//! Nereid, an inference server that speaks Triton.
//!
//! Each module is a room that says at its top what it is for and what it must not know. From the
//! door to the vocabulary, each using those below it:
//!
//! - [`cli`]: what a user types; [`cli::run`] is where the program begins.
//! - [`ingress`]: gRPC and HTTP; wire bytes become an [`InferRequest`](inference::InferRequest), and
//!   an [`InferResponse`](inference::InferResponse) becomes wire bytes.
//! - [`serving`]: the loaded models; [`Server::infer`](serving::Server::infer) is the way in.
//! - [`scheduler`]: what runs next, and what runs together; state machines over a clock.
//! - [`backend`]: what runs models: [`Backend`](backend::Backend) → [`Model`](backend::Model) →
//!   [`Instance`](backend::Instance).
//! - [`device`]: GPUs and their twin on the host: memory, streams, events, and what runs when.
//! - [`memory`]: where tensors lie, and the budget that bounds them.
//! - [`repository`]: model folders and their `config.pbtxt`.
//! - [`runtime`]: one thread, one core, one event loop; the only room that names io_uring or epoll.
//! - [`observe`]: statistics, metrics, traces, logs.
//! - [`inference`]: the vocabulary that all share.
//!
//! To follow one request: `ingress/grpc/infer.rs` reads it, `inference/signature/mod.rs` admits it,
//! `serving/version.rs` finds its queue, `scheduler/dynamic.rs` chooses its batch, `serving/batch.rs`
//! puts the batch together, `serving/execution.rs` runs it, and the answer goes back to where it
//! was read. The book in `docs/` tells why it is built so.
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks, missing_docs)]

pub mod backend;
pub mod cli;
pub mod device;
pub mod inference;
pub mod ingress;
pub mod memory;
pub mod observe;
pub mod repository;
pub mod runtime;
pub mod scheduler;
pub mod serving;

/// The messages and services of `proto/`, generated.
pub mod proto {
    #![allow(missing_docs, clippy::all)]

    tonic::include_proto!("inference");

    /// The standard gRPC health service.
    pub mod health {
        tonic::include_proto!("grpc.health.v1");
    }

    /// The standard gRPC reflection service.
    pub mod reflection {
        tonic::include_proto!("grpc.reflection.v1");
    }

    /// The encoded descriptors of all, for reflection and for the text format.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

/// The messages of OpenTelemetry's protocol, generated.
pub(crate) mod otlp {
    #![allow(missing_docs, clippy::all)]

    tonic::include_proto!("otlp");
}
