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
use tonic::Status;

use super::{
    connection::Connection,
    infer::{send_segment, send_trailers_only},
    service::{GrpcService, to_status},
    status,
};
use crate::memory::Reservation;

/// Answers a call through tonic.
pub async fn answer(
    connection: &Connection,
    mut service: GrpcService,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let path = request.uri().path().to_owned();
    let reservation = connection.server.pool().reservation();
    let request = request.map(|frames| RequestBody { frames, reservation });
    let Some(response) = service.call(request).await else {
        send_trailers_only(respond, status::unimplemented(&path));
        return;
    };
    let (head, mut body) = response.into_parts();
    // A call that failed at once has its status in the head, and nothing may follow it.
    let ends = body.is_end_stream();
    let Ok(mut stream) = respond.send_response(Response::from_parts(head, ()), ends) else {
        return;
    };
    if ends {
        return;
    }
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

/// A request's frames as tonic wants them. What was read is charged for until the call is done with.
pub struct RequestBody {
    frames: RecvStream,
    reservation: Reservation,
}

impl RequestBody {
    fn take_in(&mut self, data: Result<Bytes, h2::Error>) -> Result<Frame<Bytes>, Status> {
        let data = data.map_err(|error| Status::from_error(Box::new(error)))?;
        self.reservation.grow(data.len()).map_err(|full| to_status(&full.into()))?;
        let released = self.frames.flow_control().release_capacity(data.len());
        released.map_err(|error| Status::from_error(Box::new(error)))?;
        Ok(Frame::data(data))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(data) = ready!(self.frames.poll_data(cx)) {
            return Poll::Ready(Some(self.take_in(data)));
        }
        let trailers: Result<Option<HeaderMap>, _> = ready!(self.frames.poll_trailers(cx));
        let trailers = trailers.map_err(|error| Status::from_error(Box::new(error)));
        Poll::Ready(trailers.transpose().map(|trailers| trailers.map(Frame::trailers)))
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_end_stream()
    }
}
