use std::{future::poll_fn, net::TcpStream};

use bytes::{BufMut, Bytes, BytesMut};
use h2::{
    RecvStream,
    client::{Builder, SendRequest},
};
use http::{HeaderMap, Method, Request, Uri, header::HeaderValue};

use super::{Failure, scan::ResponseScan};
use crate::runtime;

const SERVICE: &str = "inference.GRPCInferenceService";

/// Small windows make a server wait within each large response.
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 256 << 20;
const FRAME: u32 = 1 << 20;

/// The longest answer to a call that is kept whole.
const ANSWER_MAX: usize = 64 << 20;

/// The names of the gRPC status codes.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// A gRPC connection on the current reactor.
#[derive(Clone)]
pub struct GrpcConnection {
    sender: SendRequest<Bytes>,
    authority: String,
}

impl GrpcConnection {
    /// Begins to speak gRPC on a connected socket.
    ///
    /// # Errors
    /// When the socket is lost.
    pub async fn open(socket: TcpStream, authority: &str) -> Result<Self, Failure> {
        let stream = runtime::TcpStream::adopt(socket)
            .map_err(|error| Failure::Broken(error.to_string()))?;
        let (sender, connection) = Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME)
            .enable_push(false)
            .handshake(stream)
            .await
            .map_err(failure)?;
        runtime::spawn(&"a gRPC connection", async move {
            if let Err(error) = connection.await {
                log::debug!("a gRPC connection ended: {error}");
            }
        });
        Ok(Self { sender, authority: authority.to_owned() })
    }

    /// Calls a method of the inference service with an encoded message and returns that of the
    /// answer.
    ///
    /// # Errors
    /// When the call fails.
    pub async fn call(&mut self, method: &str, message: &[u8]) -> Result<Bytes, Failure> {
        let head = self.head(method)?;
        let mut answer = BytesMut::new();
        let read = |bytes: &[u8]| {
            if answer.len() + bytes.len() > ANSWER_MAX {
                return Err("it is too long");
            }
            answer.extend_from_slice(bytes);
            Ok(())
        };
        unary(&mut self.sender, head, frame(message), read).await?;
        take_message(&mut answer)
            .map_err(|problem| bad_answer(&problem))?
            .ok_or_else(|| bad_answer("it is cut off"))
    }

    /// The head of a call.
    pub(super) fn head(&self, method: &str) -> Result<Request<()>, Failure> {
        let problem = |error: http::Error| Failure::Broken(error.to_string());
        let uri = Uri::builder()
            .scheme("http")
            .authority(self.authority.as_str())
            .path_and_query(format!("/{SERVICE}/{method}"))
            .build()
            .map_err(problem)?;
        Request::builder()
            .method(Method::POST)
            .uri(uri)
            .header("content-type", HeaderValue::from_static("application/grpc"))
            .header("te", HeaderValue::from_static("trailers"))
            .body(())
            .map_err(problem)
    }

    pub(super) fn sender(&self) -> SendRequest<Bytes> {
        self.sender.clone()
    }
}

/// A call of ModelInfer at a time.
pub struct GrpcSlot {
    sender: SendRequest<Bytes>,
    head: Request<()>,
    message: Bytes,
}

impl GrpcSlot {
    pub fn new(connection: &GrpcConnection, message: Bytes) -> Result<Self, Failure> {
        let head = connection.head("ModelInfer")?;
        Ok(Self { sender: connection.sender(), head, message })
    }

    pub async fn infer(&mut self) -> Result<(), Failure> {
        let mut scan = ResponseScan::default();
        let (head, message) = (self.head.clone(), self.message.clone());
        unary(&mut self.sender, head, message, |bytes| scan.feed(bytes)).await?;
        scan.finish().map_err(bad_answer)?;
        Ok(())
    }
}

async fn unary(
    sender: &mut SendRequest<Bytes>,
    head: Request<()>,
    message: Bytes,
    mut read: impl FnMut(&[u8]) -> Result<(), &'static str>,
) -> Result<(), Failure> {
    poll_fn(|cx| sender.poll_ready(cx)).await.map_err(failure)?;
    let (response, mut body) = sender.send_request(head, false).map_err(failure)?;
    body.send_data(message, true).map_err(failure)?;
    let (head, mut answer) = response.await.map_err(failure)?.into_parts();
    check_head(head.status, &head.headers)?;
    while let Some(chunk) = answer.data().await {
        let chunk = chunk.map_err(failure)?;
        read(&chunk).map_err(bad_answer)?;
        answer.flow_control().release_capacity(chunk.len()).map_err(failure)?;
    }
    check_end(&mut answer).await
}

/// Checks the head of an answer, which tells the status already when the answer has no messages.
pub(super) fn check_head(status: http::StatusCode, headers: &HeaderMap) -> Result<(), Failure> {
    if !status.is_success() {
        return Err(Failure::Refused(format!("expected HTTP status 200, got {status}")));
    }
    grpc_status(headers).unwrap_or(Ok(()))
}

/// Checks the status that follows the messages of an answer.
pub(super) async fn check_end(answer: &mut RecvStream) -> Result<(), Failure> {
    let trailers = answer.trailers().await.map_err(failure)?;
    trailers.as_ref().and_then(grpc_status).unwrap_or(Err(bad_answer("it has no grpc-status")))
}

fn grpc_status(headers: &HeaderMap) -> Option<Result<(), Failure>> {
    let status = headers.get("grpc-status")?.as_bytes();
    if status == b"0" {
        return Some(Ok(()));
    }
    let status = String::from_utf8_lossy(status);
    let name = status.parse().ok().and_then(|code: usize| CODES.get(code).copied());
    let message = headers.get("grpc-message").map_or(&b""[..], HeaderValue::as_bytes);
    Some(Err(Failure::Refused(format!("{}: {}", name.unwrap_or(&status), unescape(message)))))
}

/// Undoes the percent-encoding of grpc-message.
fn unescape(message: &[u8]) -> String {
    let mut text = Vec::with_capacity(message.len());
    let mut rest = message;
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = after
            .get(..2)
            .filter(|_| byte == b'%')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        text.push(escaped.unwrap_or(byte));
        rest = if escaped.is_some() { after.get(2..).unwrap_or_default() } else { after };
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// A message with the prefix that gRPC wants.
pub fn frame(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put_slice(message);
    framed.freeze()
}

/// Takes the first message out of what was received, when it is there whole.
pub(super) fn take_message(received: &mut BytesMut) -> Result<Option<Bytes>, String> {
    let Some((&[flag, a, b, c, d], rest)) = received.split_first_chunk() else { return Ok(None) };
    if flag != 0 {
        return Err("it is compressed".to_owned());
    }
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if length > ANSWER_MAX {
        return Err(format!("it has {length} bytes; {ANSWER_MAX} at most are read"));
    }
    if rest.len() < length {
        return Ok(None);
    }
    let mut message = received.split_to(5 + length);
    Ok(Some(message.split_off(5).freeze()))
}

pub(super) fn bad_answer(problem: &str) -> Failure {
    Failure::Refused(format!("cannot read the answer: {problem}"))
}

/// A stream that was reset takes only its request with it, anything else the connection.
pub(super) fn failure(error: h2::Error) -> Failure {
    if error.is_reset() {
        Failure::Refused(error.to_string())
    } else {
        Failure::Broken(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_told_by_name_and_text() {
        let status = |pairs: &[(&'static str, &'static str)]| {
            let headers = pairs.iter().map(|&(name, value)| {
                (http::HeaderName::from_static(name), HeaderValue::from_static(value))
            });
            grpc_status(&headers.collect())
        };
        assert_eq!(status(&[]), None);
        assert_eq!(status(&[("grpc-status", "0")]), Some(Ok(())));
        for (pairs, message) in [
            (
                &[("grpc-status", "14"), ("grpc-message", "no%20model 100%")][..],
                "UNAVAILABLE: no model 100%",
            ),
            (&[("grpc-status", "99"), ("grpc-message", "%zz")], "99: %zz"),
            (&[("grpc-status", "5")], "NOT_FOUND: "),
        ] {
            assert_eq!(status(pairs), Some(Err(Failure::Refused(message.to_owned()))));
        }
    }

    #[test]
    fn messages_are_taken_when_they_are_whole() {
        let mut received = BytesMut::new();
        let sent = [frame(b"first"), frame(b""), frame(b"third")].concat();
        let mut taken = Vec::new();
        for byte in sent {
            received.put_u8(byte);
            taken.extend(take_message(&mut received).unwrap());
        }
        assert_eq!(taken, [&b"first"[..], b"", b"third"]);
        assert!(received.is_empty());
        for bytes in [&[1, 0, 0, 0, 0][..], &[0, 255, 255, 255, 255]] {
            assert!(take_message(&mut BytesMut::from(bytes)).is_err());
        }
    }
}
