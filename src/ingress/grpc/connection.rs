//! One HTTP/2 connection: its limits, and which call goes where.

use std::{
    cell::Cell,
    future::Future as _,
    pin::{Pin, pin},
    rc::Rc,
    sync::{Arc, atomic::AtomicU64},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{Either, select};
use h2::{Reason, RecvStream, server::SendResponse};
use http::{HeaderName, Method, Request, header::CONTENT_TYPE};

use super::{
    client_pings::ClientPings,
    compression::{self, Packing, ResponsePacking},
    infer,
    keep_alive::{self, KeepAlive, Order, Orders, Pings},
    restricted_group,
    service::GrpcService,
    status, stream_infer, tonic_bridge,
};
use crate::{
    inference::{Error, InferRequest, Parameters, Timestamp, TraceParent, Wire, WireTimes},
    ingress::{
        first_poll::FirstPoll,
        forward::{HeaderPattern, TRACE_PARENT},
        restricted::Restrictions,
    },
    runtime::{self, TcpStream, WatchedStream, draining, sleep, spawn},
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

/// `ModelInfer` calls that a connection begins to answer before it lets others have their turn.
const CALLS_AT_ONCE: usize = 64;

/// The header of a client that wants a stream to end with the code of a failure.
static ERRORS: HeaderName = HeaderName::from_static("triton_grpc_error");

const MODEL_INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
const MODEL_STREAM_INFER: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

/// What an operator can set.
#[derive(Clone, Debug)]
pub struct GrpcSettings {
    /// The largest request message in bytes.
    pub message_max: usize,
    /// How long a client may pause inside a message, and take for all header fields of a call.
    pub pause_max: Duration,
    /// Responses that one connection may leave unread, in bytes.
    pub unsent_max: usize,
    /// Calls that not everybody may make.
    pub restrictions: Option<Restrictions>,
    /// Headers that become parameters.
    pub forwarded: Option<HeaderPattern>,
    /// How inference responses are packed.
    pub response_packing: ResponsePacking,
    /// Pings and ages.
    pub keep_alive: KeepAlive,
}

impl Default for GrpcSettings {
    fn default() -> Self {
        Self {
            message_max: i32::MAX as usize,
            pause_max: Duration::from_secs(60),
            unsent_max: 64 << 20,
            restrictions: None,
            forwarded: None,
            response_packing: ResponsePacking::None,
            keep_alive: KeepAlive::default(),
        }
    }
}

/// What all calls of a connection share.
pub struct Connection {
    pub server: Arc<Server>,
    pub settings: Arc<GrpcSettings>,
    pub unsent: Budget,
    /// Bytes of tensors that have come from its client, whole frames or not.
    pub tensor_bytes: Arc<AtomicU64>,
    pub(super) orders: Rc<Orders>,
    service: GrpcService,
}

/// Serves a connection until it ends.
pub async fn serve(stream: TcpStream, service: GrpcService, settings: Arc<GrpcSettings>) {
    let client_pings = ClientPings::new(&settings.keep_alive);
    let stream = WatchedStream::new(stream, client_pings.clone());
    let handshake = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_MAX)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_MAX)
        // A call is answered when its message is there. What its client says after it, that it has
        // ended, is then no fault, however many such calls there are.
        .max_concurrent_reset_streams(STREAMS_MAX as usize)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_local_error_reset_streams(Some(RESETS_MAX))
        .handshake::<_, Bytes>(stream);
    let impatient = select(sleep(HANDSHAKE_MAX), draining());
    let mut wire = match select(pin!(handshake), impatient).await {
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
        tensor_bytes: client_pings.tensor_bytes(),
        orders: Rc::default(),
        service,
    });
    let _watch = keep_alive::watch(&connection, client_pings.clone());
    let mut pings = Pings::default();
    let mut drain = Some(draining());
    let mut arrived = Vec::new();
    let mut first_poll = FirstPoll::default();
    std::future::poll_fn(|cx| {
        let begun = drain.as_mut().is_some_and(|drain| Pin::new(drain).poll(cx).is_ready());
        if begun {
            drain = None;
            wire.graceful_shutdown();
        }
        let orders = connection.orders.take(cx);
        if orders.any() {
            if orders.has(Order::Close) {
                return Poll::Ready(());
            }
            if orders.has(Order::Drain) {
                wire.graceful_shutdown();
            }
            if orders.has(Order::Ping) {
                pings.send(|| wire.ping_pong());
            }
        }
        pings.look(&connection.orders, cx);
        let mut had_turn = false;
        loop {
            // Writes what has been answered, and reads.
            match wire.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    arrived.extend(dispatch(&connection, request, respond));
                    if arrived.len() < CALLS_AT_ONCE {
                        continue;
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    log::debug!("a gRPC connection ended: {error}");
                    return Poll::Ready(());
                }
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => {
                    // One reference is the connection's own; each call has one.
                    let idle = || arrived.is_empty() && Rc::strong_count(&connection) <= 1;
                    if client_pings.are_too_many(idle, Timestamp::now) {
                        log::debug!("a gRPC connection ends: its client pings too often");
                        wire.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                        continue;
                    }
                }
            }
            if arrived.is_empty() {
                return Poll::Pending;
            }
            if had_turn {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            had_turn = true;
            runtime::label(infer::LABEL);
            for Call { terms, body, respond } in arrived.drain(..) {
                first_poll.give(
                    infer::LABEL,
                    infer::answer(connection.clone(), terms, body, respond),
                    cx,
                );
            }
        }
    })
    .await;
}

/// A `ModelInfer` call that nobody has begun to answer.
struct Call {
    terms: Terms,
    body: RecvStream,
    respond: SendResponse<Bytes>,
}

/// Sends a call where it belongs; gives it back if this connection is to begin it.
fn dispatch(
    connection: &Rc<Connection>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) -> Option<Call> {
    let (head, body) = request.into_parts();
    let is_grpc = head
        .headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    if head.method != Method::POST || !is_grpc {
        refuse(respond, head.method == Method::POST);
        return None;
    }
    let settings = &connection.settings;
    connection.orders.calls.set(connection.orders.calls.get() + 1);
    if let Some(restrictions) = &settings.restrictions
        && let Some(group) = restricted_group::of_path(head.uri.path())
        && let Some(header) = restrictions.missing(group, &head.headers)
    {
        let message = format!("This protocol is restricted, expecting header '{header}'");
        infer::send_trailers_only(respond, status::with_message(14, &message));
        return None;
    }
    let path = head.uri.path();
    if path != MODEL_INFER && path != MODEL_STREAM_INFER {
        let (request, connection) = (Request::from_parts(head, body), connection.clone());
        let service = connection.service.clone();
        spawn(&"a gRPC call", async move {
            tonic_bridge::answer(&connection, service, request, respond).await;
        });
        return None;
    }
    let mut terms = match Terms::read(&head.headers, settings) {
        Ok(terms) => terms,
        Err(error) => {
            let mut trailers = status::failed(&error);
            if matches!(error, Error::Unsupported { .. }) {
                let name = compression::GRPC_ACCEPT_ENCODING.clone();
                trailers.insert(name, compression::ACCEPTED);
            }
            infer::send_trailers_only(respond, trailers);
            return None;
        }
    };
    if path == MODEL_INFER {
        let now = connection.server.tracer().now();
        terms.wire = now.map(|now| WireTimes::waiting(Wire::Grpc, now));
        return Some(Call { terms, body, respond });
    }
    let answer = stream_infer::answer(connection.clone(), terms, body, respond);
    spawn(&"gRPC ModelStreamInfer", answer);
    None
}

/// What the head of an inference call says of its messages.
pub struct Terms {
    /// When the client stops waiting.
    pub deadline: Option<Timestamp>,
    /// How its requests are packed, where they are.
    pub requests: Packing,
    /// How its responses are to be packed.
    pub responses: Packing,
    /// Headers that go with each request; rare, so they are kept out of the way.
    pub forwarded: Option<Box<Parameters>>,
    /// Whether a request that fails in its model ends a stream, with its code as the stream's.
    pub failures_end_streams: bool,
    /// What they belong to in a trace of the client's; rare too.
    pub trace_parent: Option<Box<TraceParent>>,
    /// The times of the one request of the call, where they are noted.
    pub wire: Option<WireTimes>,
}

impl Terms {
    fn read(headers: &http::HeaderMap, settings: &GrpcSettings) -> Result<Self, Error> {
        let forwarded = settings.forwarded.as_ref();
        Ok(Self {
            deadline: infer::deadline(headers)?,
            requests: Packing::of_request(headers)?,
            responses: settings.response_packing.of_response(headers),
            forwarded: forwarded.map(|pattern| Box::new(pattern.parameters(headers))),
            failures_end_streams: headers.get(&ERRORS).is_some_and(|value| value == "true"),
            trace_parent: headers
                .get(&TRACE_PARENT)
                .and_then(|value| TraceParent::parse(value.as_bytes()))
                .map(Box::new),
            wire: None,
        })
    }

    /// Gives a request what the head says.
    pub fn apply(&self, request: &mut InferRequest) {
        request.trace_parent = self.trace_parent.as_deref().copied();
        request.wire = self.wire.clone();
        for (name, value) in self.forwarded.iter().flat_map(|forwarded| forwarded.iter()) {
            request.parameters.insert(name, value.clone());
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
