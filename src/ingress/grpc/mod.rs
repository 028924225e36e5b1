//! gRPC. `ModelInfer` and `ModelStreamInfer` are answered on HTTP/2 frames directly: tensors stay in
//! the frames they arrived in, responses are written as segments. tonic serves every other call.

mod connection;
mod decode;
mod encode;
mod infer;
mod message;
mod parameters;
mod repository;
mod service;
mod settings;
mod status;
mod stream_infer;
mod tonic_bridge;
mod wire;

pub use connection::{GrpcSettings, serve};
pub use decode::infer_request;
pub use encode::infer_response;
pub use service::GrpcService;
