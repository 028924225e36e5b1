//! The HTTP side of the v2 protocol, as far as it is pure: [`route`] says which call a method and a
//! path mean, [`encoding`] unpacks bodies, [`infer_request`] and [`infer_response`] convert between
//! bodies and the vocabulary, [`metadata`] writes the answers that are not tensors and [`error`] those
//! that say why not.
//!
//! It may use the vocabulary and the protocol's messages. It must not know sockets, the runtime or
//! the registry of models: whoever has those calls it with bytes and sends what it returns.

pub mod encoding;
pub mod error;
pub mod infer_request;
pub mod infer_response;
mod json;
pub mod metadata;
pub mod route;

#[cfg(test)]
mod tests;
