//! HTTP/REST. [`serve`] carries a connection of the inference port and [`serve_metrics`] one of the
//! operators'; `service` says what answers each call, `infer` the main one, `receive` brings in their
//! bodies. All else is pure: [`route`] says which call a method and a path mean, [`encoding`] unpacks
//! bodies, [`infer_request`] and [`infer_response`] convert between bodies and the vocabulary,
//! [`metadata`] writes the answers that are not tensors and [`error`] those that say why not.
//!
//! The pure parts use the vocabulary and the protocol's messages; sockets and the server are known to
//! the others alone, the runtime also to `packed`, which keeps long unpacking off the reactor.

pub mod body;
mod cloud;
mod connection;
pub mod encoding;
pub mod error;
mod extensions;
mod generate;
mod infer;
pub mod infer_request;
pub mod infer_response;
mod json;
mod load_metrics;
pub mod metadata;
mod metrics_port;
mod pace;
mod packed;
mod receive;
mod regions;
mod repository;
mod response;
pub mod route;
mod sagemaker;
mod said;
mod service;
mod settings;

pub use cloud::{Cloud, CloudError, serve_cloud};
pub use metrics_port::serve_metrics;
pub use service::{HttpSettings, serve};

#[cfg(test)]
mod tests;
