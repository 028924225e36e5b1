//! The ring: requests of clients on the same host, which lie in memory that each shares with the
//! server. `docs/src/ring.md` describes it to the byte.
//!
//! `handshake` hands a new client its memory; `turns` takes submissions and sleeps; `client` is what the
//! requests of a client share; `request` turns a description into an
//! [`InferRequest`](crate::inference::InferRequest), and `answer` a response into an answer. Nothing
//! that stands in the memory is believed: it is copied, then checked. This room maps no memory itself
//! and knows nothing of how requests run.

mod answer;
mod client;
mod handshake;
mod request;
mod turns;

use std::sync::Arc;

use crate::{runtime::UnixStream, serving::Server};

/// What an operator can set.
#[derive(Clone, Copy, Debug)]
pub struct RingSettings {
    /// The largest arena that a client may have, in bytes.
    pub arena_bytes_max: u64,
    /// Whether the reactors that serve the ring may look for submissions all the time.
    pub may_spin: bool,
    /// Whether the socket's permissions admit nobody but the server's own user.
    pub is_private: bool,
}

/// Serves a client until it leaves, breaks the rules, or the server stops.
pub async fn serve(socket: UnixStream, server: Arc<Server>, settings: RingSettings) {
    if let Some((client, spins)) = handshake::greet(socket, server, settings).await {
        turns::serve(&client, spins).await;
    }
}
