//! Calls that tonic serves, over our HTTP/2 streams.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;

use super::{
    connection::Connection,
    infer::{send_segment, send_trailers_only},
    service::GrpcService,
    status,
};

/// Answers a call through tonic.
pub async fn answer(
    connection: &Connection,
    mut service: GrpcService,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let path = request.uri().path().to_owned();
    let Some(response) = service.call(request.map(RequestBody)).await else {
        send_trailers_only(respond, status::unimplemented(&path));
        return;
    };
    let (head, mut body) = response.into_parts();
    if body.is_end_stream() {
        // A call that failed at once has its status in the head, and neither message nor trailers.
        // An error here means that the client has left.
        let _ = respond.send_response(Response::from_parts(head, ()), true);
        return;
    }
    let Ok(mut stream) = respond.send_response(Response::from_parts(head, ()), false) else {
        return;
    };
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return stream.send_reset(h2::Reason::INTERNAL_ERROR) };
        match frame.into_data() {
            Ok(data) => {
                if send_segment(connection, &mut stream, data).await.is_err() {
                    return;
                }
            }
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                // An error here means that the client has left.
                let _ = stream.send_trailers(trailers);
                return;
            }
        }
    }
    let _ = stream.send_data(Bytes::new(), true);
}

/// A request's frames as tonic wants them.
pub struct RequestBody(RecvStream);

impl Body for RequestBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if let Some(data) = ready!(self.0.poll_data(cx)) {
            let released = data.and_then(|data| {
                self.0.flow_control().release_capacity(data.len())?;
                Ok(Frame::data(data))
            });
            return Poll::Ready(Some(released));
        }
        let trailers: Result<Option<HeaderMap>, _> = ready!(self.0.poll_trailers(cx));
        Poll::Ready(trailers.transpose().map(|trailers| trailers.map(Frame::trailers)))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}
