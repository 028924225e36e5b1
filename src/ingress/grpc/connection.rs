//! One HTTP/2 connection: its limits, and which call goes where.

use std::{
    cell::Cell,
    future::Future as _,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{Either, select};
use h2::{RecvStream, server::SendResponse};
use http::{Method, Request, header::CONTENT_TYPE};

use super::{infer, service::GrpcService, status, stream_infer, tonic_bridge};
use crate::{
    runtime::{TcpStream, draining, sleep, spawn},
    serving::Server,
};

/// How long a client may take to say that it speaks HTTP/2.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// What a client may send ahead on one stream before we have read it: a tensor of a few megabytes
/// arrives without a pause.
const STREAM_WINDOW: u32 = 8 << 20;
/// The same for all streams of a connection.
const CONNECTION_WINDOW: u32 = 32 << 20;
/// Larger frames mean fewer pieces of a tensor.
const FRAME_MAX: u32 = 1 << 20;
/// What one stream may hold ready to be sent: a response of up to this size is handed over whole, so
/// that it leaves in one write.
const SEND_BUFFER: usize = 1 << 20;
/// Streams that a client may have open; one busy channel carries a whole load generator.
const STREAMS_MAX: u32 = 4096;
/// All header fields of a request together.
const HEADERS_MAX: u32 = 16 << 10;
/// Streams that a client may open and reset before the connection ends (rapid reset).
const RESETS_MAX: usize = 256;

/// What an operator can set.
#[derive(Clone, Debug)]
pub struct GrpcSettings {
    /// The largest request message in bytes.
    pub message_max: usize,
    /// Responses that one connection may leave unread, in bytes.
    pub unsent_max: usize,
}

impl Default for GrpcSettings {
    fn default() -> Self {
        Self { message_max: i32::MAX as usize, unsent_max: 64 << 20 }
    }
}

/// What all calls of a connection share.
pub struct Connection {
    pub server: Arc<Server>,
    pub settings: GrpcSettings,
    pub unsent: Budget,
    service: GrpcService,
}

/// Serves a connection until it ends.
pub async fn serve(stream: TcpStream, service: GrpcService, settings: GrpcSettings) {
    let handshake = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_MAX)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_MAX)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_local_error_reset_streams(Some(RESETS_MAX))
        .handshake::<_, Bytes>(stream);
    let mut wire = match select(pin!(handshake), sleep(HANDSHAKE_MAX)).await {
        Either::Left((Ok(wire), _)) => wire,
        Either::Left((Err(error), _)) => {
            log::debug!("a gRPC connection did not begin as HTTP/2: {error}");
            return;
        }
        Either::Right(_) => {
            log::debug!("a gRPC connection did not begin within {HANDSHAKE_MAX:?}");
            return;
        }
    };
    let connection = Rc::new(Connection {
        server: service.server().clone(),
        unsent: Budget::new(settings.unsent_max),
        settings,
        service,
    });
    let mut drain = Some(draining());
    loop {
        let accepted = std::future::poll_fn(|cx| {
            let begun = drain.as_mut().is_some_and(|drain| Pin::new(drain).poll(cx).is_ready());
            if begun {
                drain = None;
                wire.graceful_shutdown();
            }
            wire.poll_accept(cx)
        });
        match accepted.await {
            Some(Ok((request, respond))) => dispatch(&connection, request, respond),
            Some(Err(error)) => {
                log::debug!("a gRPC connection ended: {error}");
                return;
            }
            None => return,
        }
    }
}

fn dispatch(
    connection: &Rc<Connection>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let (head, body) = request.into_parts();
    let is_grpc = head
        .headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    if head.method != Method::POST || !is_grpc {
        refuse(respond, head.method == Method::POST);
        return;
    }
    let connection = connection.clone();
    match head.uri.path() {
        "/inference.GRPCInferenceService/ModelInfer" => {
            let deadline = match infer::deadline(&head.headers) {
                Ok(deadline) => deadline,
                Err(error) => return infer::send_trailers_only(respond, status::failed(&error)),
            };
            spawn(&"gRPC ModelInfer", infer::answer(connection, deadline, body, respond));
        }
        "/inference.GRPCInferenceService/ModelStreamInfer" => {
            spawn(&"gRPC ModelStreamInfer", stream_infer::answer(connection, body, respond));
        }
        _ => {
            let request = Request::from_parts(head, body);
            let service = connection.service.clone();
            spawn(&"a gRPC call", async move {
                tonic_bridge::answer(&connection, service, request, respond).await;
            });
        }
    }
}

/// Ends a request that is not gRPC, as gRPC asks for.
fn refuse(mut respond: SendResponse<Bytes>, is_post: bool) {
    let code = if is_post { 415 } else { 405 };
    let trailers = status::with_message(3, "expected POST with content-type application/grpc");
    let mut response = http::Response::builder().status(code);
    if let Some(headers) = response.headers_mut() {
        headers.extend(trailers);
    }
    if let Ok(response) = response.body(()) {
        // An error here means that the client has left.
        let _ = respond.send_response(response, true);
    }
}

/// Bytes that may be held for something.
pub struct Budget {
    left: Rc<Cell<usize>>,
}

/// Bytes that are held; dropping it gives them back.
pub struct Charge {
    bytes: usize,
    left: Rc<Cell<usize>>,
}

impl Budget {
    fn new(bytes: usize) -> Self {
        Self { left: Rc::new(Cell::new(bytes)) }
    }

    /// Takes `bytes`, if so many are left.
    pub fn charge(&self, bytes: usize) -> Option<Charge> {
        self.left.set(self.left.get().checked_sub(bytes)?);
        Some(Charge { bytes, left: self.left.clone() })
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.left.set(self.left.get() + self.bytes);
    }
}
