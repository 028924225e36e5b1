//! gRPC. `ModelInfer` and `ModelStreamInfer` are answered on HTTP/2 frames directly: tensors stay in
//! the frames they arrived in, responses are written as segments. tonic serves every other call.

mod client_pings;
mod compression;
mod connection;
mod decode;
mod encode;
mod frames;
mod infer;
mod keep_alive;
mod message;
mod parameters;
mod reflection;
mod repository;
mod restricted_group;
mod service;
mod settings;
mod status;
mod stream_infer;
#[cfg(test)]
mod tests;
mod tonic_bridge;
mod wire;

pub use compression::ResponsePacking;
pub use connection::{GrpcSettings, serve};
pub use decode::infer_request;
pub use encode::infer_response;
pub use keep_alive::KeepAlive;
pub use service::GrpcService;
