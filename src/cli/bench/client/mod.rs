//! The client's side of the wire: one request at a time in each [`Slot`].
//!
//! Requests are encoded once, before the load starts, and responses are checked without keeping
//! them: the client runs beside the server that it measures, so what it spends is taken from it.

mod grpc;
mod http;
mod ring;
mod scan;
mod stream;

use std::{
    io,
    net::{TcpStream, ToSocketAddrs},
    time::Duration,
};

use bytes::Bytes;

use self::{grpc::GrpcSlot, http::HttpSlot, ring::RingSlot, stream::StreamSlot};
pub use self::{
    grpc::{GrpcConnection, frame},
    http::HttpConnection,
    ring::RingRequest,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a request has no good answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The server answered with an error; the next request may fare better.
    Refused(String),
    /// The connection or stream is lost.
    Broken(String),
}

impl Failure {
    /// What went wrong.
    pub fn message(&self) -> &str {
        match self {
            Self::Refused(message) | Self::Broken(message) => message,
        }
    }
}

/// The request that a load repeats, as the bytes that go onto the wire.
#[derive(Clone, Debug)]
pub enum Payload {
    /// A call of ModelInfer per request.
    Grpc {
        /// HOST:PORT.
        authority: String,
        /// The message with its gRPC prefix.
        message: Bytes,
    },
    /// A stream of ModelStreamInfer per slot.
    GrpcStream {
        /// HOST:PORT.
        authority: String,
        /// The message with its gRPC prefix.
        message: Bytes,
        /// Whether a request has any number of responses, of which the last says that it is.
        decoupled: bool,
    },
    /// An HTTP/1.1 request, head and body.
    Http {
        /// The bytes of both.
        request: Bytes,
    },
    /// A request through the ring.
    Ring(Box<RingRequest>),
}

/// Carries one request at a time.
pub enum Slot {
    /// On a gRPC connection that it shares.
    Grpc(GrpcSlot),
    /// On a stream of its own in a gRPC connection that it shares.
    Stream(StreamSlot),
    /// On an HTTP connection of its own.
    Http(HttpSlot),
    /// In a ring that it shares.
    Ring(RingSlot),
}

impl Slot {
    /// Sends the request and waits for a good answer.
    ///
    /// # Errors
    /// When there is none.
    pub async fn infer(&mut self) -> Result<(), Failure> {
        match self {
            Self::Grpc(slot) => slot.infer().await,
            Self::Stream(slot) => slot.infer().await,
            Self::Http(slot) => slot.infer().await,
            Self::Ring(slot) => slot.infer().await,
        }
    }
}

/// Makes `count` slots on these connected sockets, on the current reactor.
///
/// # Errors
/// When the server does not speak the protocol.
pub async fn open(
    payload: &Payload,
    sockets: Vec<TcpStream>,
    count: usize,
) -> Result<Vec<Slot>, Failure> {
    let (authority, stream) = match payload {
        Payload::Http { request } => {
            let slot = |socket| HttpSlot::new(socket, request.clone()).map(Slot::Http);
            return sockets.into_iter().take(count).map(slot).collect();
        }
        Payload::Ring(request) => {
            return Ok(RingSlot::open(request, count)?.into_iter().map(Slot::Ring).collect());
        }
        Payload::Grpc { authority, .. } => (authority, None),
        Payload::GrpcStream { authority, decoupled, .. } => (authority, Some(*decoupled)),
    };
    let (Payload::Grpc { message, .. } | Payload::GrpcStream { message, .. }) = payload else {
        return Ok(Vec::new());
    };
    let mut connections = Vec::new();
    for socket in sockets {
        connections.push(GrpcConnection::open(socket, authority).await?);
    }
    let mut slots = Vec::new();
    for connection in connections.iter().cycle().take(count) {
        slots.push(match stream {
            None => Slot::Grpc(GrpcSlot::new(connection, message.clone())?),
            Some(decoupled) => {
                Slot::Stream(StreamSlot::open(connection, message.clone(), decoupled).await?)
            }
        });
    }
    Ok(slots)
}

/// Connects to HOST:PORT, blocking.
///
/// # Errors
/// When nobody accepts the connection at any of its addresses.
pub fn connect(authority: &str) -> io::Result<TcpStream> {
    let mut refused = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in authority.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(socket) => {
                socket.set_nodelay(true)?;
                return Ok(socket);
            }
            Err(error) => refused = error,
        }
    }
    Err(refused)
}
