//! Calls that tonic serves, over our HTTP/2 streams.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::{RecvStream, server::SendResponse};
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use tonic::Status;

use super::{
    connection::Connection,
    encode::FRAME_HEADER,
    infer::{send_segment, send_trailers_only},
    message::{Message, MessageReader},
    service::{GrpcService, takes_many, to_status},
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
    let request = request.map(|frames| RequestBody {
        messages: MessageReader::of_call(frames, connection),
        takes_many: takes_many(&path),
        has_all: false,
        pieces: VecDeque::new(),
        _charge: None,
    });
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

/// A request's messages as tonic wants them. What was read is charged for until the call is done with, or
/// the next message has come.
pub struct RequestBody {
    messages: MessageReader,
    takes_many: bool,
    /// Whether the message of a call that takes one has come. Its client need not have ended the call.
    has_all: bool,
    /// Of a message that has come, what tonic has not got yet.
    pieces: VecDeque<Bytes>,
    _charge: Option<Reservation>,
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if self.has_all {
                let surplus = self.messages.poll_surplus(cx).map(|error| Err(to_status(&error)));
                return Poll::Ready(match surplus {
                    Poll::Ready(refused) => Some(refused),
                    Poll::Pending => None,
                });
            }
            match ready!(self.messages.poll_next(cx)) {
                Ok(Some(Message { bytes, packed, reservation })) => {
                    let mut header = BytesMut::with_capacity(FRAME_HEADER);
                    header.put_u8(packed.into());
                    header.put_u32(bytes.len() as u32);
                    self.pieces.push_back(header.freeze());
                    self.pieces.extend(bytes.into_pieces());
                    self._charge = Some(reservation);
                    self.has_all = !self.takes_many;
                }
                Ok(None) => return Poll::Ready(None),
                Err(error) => return Poll::Ready(Some(Err(to_status(&error)))),
            }
        }
    }
}
