//! `ModelInfer`: one request, one response.

use std::{
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{Either, LocalBoxFuture, select};
use h2::{RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header::CONTENT_TYPE};

use super::{
    compression::{self, Packing},
    connection::{Connection, Terms},
    decode, encode,
    message::MessageReader,
    status,
};
use crate::{
    inference::{Error, InferResponse, Rope, Timestamp, WireTimes},
    ingress::shared_memory::SharedTensors,
    runtime::{Label, ReplyReceiver, sleep},
    serving::{Reply, Server},
};

/// How long a large response may lie in the batch's memory while its client does not read. After
/// that it is copied out, so that a slow client holds up nobody's batch.
const PATIENCE: Duration = Duration::from_millis(5);

/// What the watchdog calls this work.
pub const LABEL: Label = &"gRPC ModelInfer";

/// How errors name this call.
const ENDPOINT: &str = "ModelInfer RPC";

/// Pieces up to this size are left to HTTP/2's own buffer: copies, which hold no batch's memory. The
/// number of open streams bounds them.
const SMALL_SEGMENT: usize = 2 * encode::COPIED_BYTES_MAX;

/// Answers a `ModelInfer` call. What the future keeps between its polls is kept small: there is one for
/// each request in flight, and from 1 KiB on the allocator takes a slower way.
pub async fn answer(
    connection: Rc<Connection>,
    terms: Terms,
    body: RecvStream,
    mut respond: SendResponse<Bytes>,
) {
    let segments = match infer(&connection, &terms, body, &mut respond).await {
        Ok(response) => encode::infer_response(&response),
        // Nobody is there to be told.
        Err(Error::Cancelled) => return respond.send_reset(h2::Reason::CANCEL),
        Err(error) => {
            let _sending = terms.wire.clone().map(WireTimes::sending);
            return send_trailers_only(respond, status::failed(&error));
        }
    };
    let _sending = terms.wire.clone().map(WireTimes::sending);
    let segments = match terms.responses {
        Packing::Identity => segments,
        packing => Box::pin(compression::pack(segments, packing)).await,
    };
    let head = response_head(terms.responses);
    let Ok(mut stream) = respond.send_response(head, false) else { return };
    for segment in segments {
        if send_segment(&connection, &mut stream, segment).await.is_err() {
            return;
        }
    }
    // An error here means that the client has left.
    let _ = stream.send_trailers(status::ok());
}

async fn infer(
    connection: &Connection,
    terms: &Terms,
    body: RecvStream,
    respond: &mut SendResponse<Bytes>,
) -> Result<InferResponse, Error> {
    let mut messages = MessageReader::of_call(body, connection);
    let message = messages.next().await?;
    let mut message = message.ok_or_else(|| Error::malformed("the call has no request message"))?;
    if message.packed {
        let limit = connection.settings.message_max;
        message = Box::pin(compression::unpack(message, terms.requests, limit)).await?;
    }
    let _reservation = message.reservation;
    terms.wire.iter().for_each(WireTimes::arrived);
    let begun = begin(&connection.server, message.bytes, terms)?;
    match begun {
        Begun::Asked(mut answer) => {
            let reply = poll_fn(|cx| poll_answer(&mut messages, &mut answer, respond, cx)).await;
            reply.unwrap_or_else(|| Err(Error::unanswered()))
        }
        Begun::Sharing(begun) => {
            let shared = async {
                let (mut answer, shared) = begun.await?;
                let reply =
                    poll_fn(|cx| poll_answer(&mut messages, &mut answer, respond, cx)).await;
                let response = reply.unwrap_or_else(|| Err(Error::unanswered()))?;
                shared.deliver(response, connection.server.pool()).await
            };
            Box::pin(shared).await
        }
    }
}

/// A request that the server has, or that waits for its tensors. Those that wait are kept apart: all
/// others need no room for that.
enum Begun<'a> {
    Asked(ReplyReceiver<Reply>),
    Sharing(LocalBoxFuture<'a, Result<(ReplyReceiver<Reply>, SharedTensors), Error>>),
}

fn begin<'a>(server: &'a Server, message: Rope, terms: &Terms) -> Result<Begun<'a>, Error> {
    let mut request = decode::infer_request(message)?;
    request.deadline = terms.deadline;
    terms.apply(&mut request);
    if !SharedTensors::are_named_by(&request) {
        return server.infer_one(&mut request, None, ENDPOINT).map(Begun::Asked);
    }
    Ok(Begun::Sharing(Box::pin(async move {
        let shared = SharedTensors::resolve(&mut request, server).await?;
        Ok((server.infer_one(&mut request, shared.outputs(), ENDPOINT)?, shared))
    })))
}

/// Waits for the answer, or for the client to leave or to send what does not belong there.
fn poll_answer(
    messages: &mut MessageReader,
    answer: &mut ReplyReceiver<Reply>,
    respond: &mut SendResponse<Bytes>,
    cx: &mut Context<'_>,
) -> Poll<Option<Reply>> {
    if let Poll::Ready(error) = messages.poll_surplus(cx) {
        return Poll::Ready(Some(Err(error)));
    }
    match answer.poll_receive(cx) {
        Poll::Pending if respond.poll_reset(cx).is_ready() => {
            Poll::Ready(Some(Err(Error::Cancelled)))
        }
        poll => poll,
    }
}

/// The client has left, or was sent away because it does not read.
pub struct Gone;

/// Sends a piece of a message, as fast as the client takes it.
pub async fn send_segment(
    connection: &Connection,
    stream: &mut SendStream<Bytes>,
    segment: Bytes,
) -> Result<(), Gone> {
    if segment.len() <= SMALL_SEGMENT {
        return stream.send_data(segment, false).map_err(|_| Gone);
    }
    Box::pin(send_large(connection, stream, segment)).await
}

async fn send_large(
    connection: &Connection,
    stream: &mut SendStream<Bytes>,
    mut segment: Bytes,
) -> Result<(), Gone> {
    let mut charge = None;
    while !segment.is_empty() {
        stream.reserve_capacity(segment.len());
        let capacity = std::future::poll_fn(|cx| stream.poll_capacity(cx));
        let capacity = match charge {
            Some(_) => capacity.await,
            None => match select(capacity, sleep(PATIENCE)).await {
                Either::Left((capacity, _)) => capacity,
                Either::Right(_) => {
                    let Some(charged) = connection.unsent.charge(segment.len()) else {
                        log::debug!("reset a response: its client does not read");
                        stream.send_reset(h2::Reason::ENHANCE_YOUR_CALM);
                        return Err(Gone);
                    };
                    charge = Some(charged);
                    segment = Bytes::copy_from_slice(&segment);
                    continue;
                }
            },
        };
        let Some(Ok(capacity)) = capacity else { return Err(Gone) };
        let step = segment.split_to(capacity.min(segment.len()));
        stream.send_data(step, false).map_err(|_| Gone)?;
    }
    Ok(())
}

/// The head of a gRPC response whose messages may be packed.
pub fn response_head(packing: Packing) -> Response<()> {
    let mut response = Response::new(());
    let content_type = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    if let Some(name) = packing.header() {
        response.headers_mut().insert(compression::GRPC_ENCODING.clone(), name);
    }
    response
}

/// Ends a call that has no message to give.
pub fn send_trailers_only(mut respond: SendResponse<Bytes>, trailers: HeaderMap) {
    let mut response = response_head(Packing::Identity);
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().extend(trailers);
    // An error here means that the client has left.
    let _ = respond.send_response(response, true);
}

/// When the client stops waiting, by its `grpc-timeout` header.
pub fn deadline(headers: &HeaderMap) -> Result<Option<Timestamp>, Error> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let timeout = value.to_str().ok().and_then(parse_timeout);
    let timeout = timeout.ok_or_else(|| {
        Error::malformed(format!(
            "the header grpc-timeout must be up to 8 digits and a unit of H, M, S, m, u or n, \
             got {value:?}"
        ))
    })?;
    Ok(Some(Timestamp::now() + timeout))
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn future_size<A, B, C, D, F: Future>(_: impl Fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn what_a_call_keeps_between_polls_is_small() {
        let size = future_size(answer);
        assert!(size <= 560, "{size} bytes");
    }

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        assert_eq!(parse_timeout("100m"), Some(Duration::from_millis(100)));
        assert_eq!(parse_timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "m", "100", "123456789S", "-1S", "1s", "1é"] {
            assert_eq!(parse_timeout(bad), None, "{bad}");
        }
    }
}
