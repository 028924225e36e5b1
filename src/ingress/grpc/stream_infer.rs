//! `ModelStreamInfer`: requests and responses in one stream. The responses are in the order of their
//! requests, but for those of decoupled models, which are sent as they come.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use compact_str::CompactString;
use futures_util::{Stream, StreamExt as _, stream::SelectAll};
use h2::{RecvStream, SendStream, server::SendResponse};
use smallvec::smallvec;

use super::{
    compression::{self, Packing},
    connection::{Connection, Terms},
    decode, encode,
    infer::{Gone, response_head, send_segment},
    message::{Message, MessageReader},
    status,
};
use crate::{
    inference::{Error, InferRequest, Parameter, Wire, WireTimes},
    ingress::shared_memory::SharedTensors,
    memory::Reservation,
    runtime::{End, ReplyReceiver},
    serving::Reply,
};

/// Requests of one stream that may be in flight; the client's next ones wait in its window.
const IN_FLIGHT_MAX: usize = 1024;

/// Answers a `ModelStreamInfer` call.
pub async fn answer(
    connection: Rc<Connection>,
    terms: Terms,
    body: RecvStream,
    mut respond: SendResponse<Bytes>,
) {
    let head = response_head(terms.responses);
    let Ok(mut responses) = respond.send_response(head, false) else { return };
    let mut requests = MessageReader::of_stream(body, &connection);
    let mut in_flight = InFlight::default();
    let mut reading = true;
    let mut waiting = connection.server.tracer().now();
    while reading || !in_flight.is_empty() {
        match next_event(&mut requests, &mut responses, &mut in_flight, reading).await {
            Event::Request(message) => {
                let message = match message.packed {
                    false => message,
                    true => {
                        let limit = connection.settings.message_max;
                        let unpacked = compression::unpack(message, terms.requests, limit);
                        match Box::pin(unpacked).await {
                            Ok(message) => message,
                            // What follows in the stream can be no better.
                            Err(error) => {
                                let _ = responses.send_trailers(status::failed(&error));
                                return;
                            }
                        }
                    }
                };
                let now = connection.server.tracer().now();
                let wire = waiting.or(now).map(|began| WireTimes::received(Wire::Grpc, began));
                in_flight.begin(&connection, &terms, message, wire).await;
                waiting = connection.server.tracer().now();
            }
            Event::Answer(answer) => {
                if send(&connection, &terms, &mut responses, answer).await.is_err() {
                    return;
                }
            }
            Event::End => reading = false,
            Event::Broken(Error::Cancelled) => {
                responses.send_reset(h2::Reason::CANCEL);
                return;
            }
            Event::Broken(error) => {
                // An error here means that the client has left.
                let _ = responses.send_trailers(status::failed(&error));
                return;
            }
        }
    }
    let _ = responses.send_trailers(status::ok());
}

/// The requests of a stream that have been taken in.
#[derive(Default)]
struct InFlight {
    /// Those that are answered once each, in their order.
    in_order: VecDeque<Request>,
    /// Those of decoupled models, and for a while some that have ended.
    decoupled: SelectAll<Request>,
    /// Those of decoupled models that have not ended.
    decoupled_count: usize,
}

/// One of them.
struct Request {
    replies: Replies,
    asked: Rc<Asked>,
}

enum Replies {
    Coming(ReplyReceiver<Reply>),
    /// It failed before a model saw it; its turn to be told has not come.
    Failed(Error),
    Ended,
}

/// What is to be known of a request when it is answered.
#[derive(Default)]
struct Asked {
    id: CompactString,
    model: CompactString,
    version: CompactString,
    empty_final_response: bool,
    shared: SharedTensors,
    wire: Option<WireTimes>,
    _reservation: Option<Reservation>,
}

/// One answer to a request.
struct Answer {
    asked: Rc<Asked>,
    /// `None` for one that only tells that no more come.
    reply: Option<Reply>,
    is_last: bool,
    /// Whether it says that the request was not taken in.
    is_refusal: bool,
}

enum Event {
    Request(Message),
    Answer(Answer),
    /// The client sends no more requests.
    End,
    /// What the client sends is no stream of messages.
    Broken(Error),
}

async fn next_event(
    requests: &mut MessageReader,
    responses: &mut SendStream<Bytes>,
    in_flight: &mut InFlight,
    reading: bool,
) -> Event {
    poll_fn(|cx| {
        if let Poll::Ready(answer) = in_flight.poll_answer(cx) {
            return Poll::Ready(Event::Answer(answer));
        }
        if responses.poll_reset(cx).is_ready() {
            return Poll::Ready(Event::Broken(Error::Cancelled));
        }
        if !reading || in_flight.len() >= IN_FLIGHT_MAX {
            return Poll::Pending;
        }
        requests.poll_next(cx).map(|message| match message {
            Ok(Some(message)) => Event::Request(message),
            Ok(None) => Event::End,
            Err(error) => Event::Broken(error),
        })
    })
    .await
}

impl InFlight {
    fn len(&self) -> usize {
        self.in_order.len() + self.decoupled_count
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    async fn begin(
        &mut self,
        connection: &Connection,
        terms: &Terms,
        message: Message,
        wire: Option<WireTimes>,
    ) {
        let _reservation = Some(message.reservation);
        let mut asked = Asked { _reservation, wire, ..Asked::default() };
        let mut decoupled = false;
        let replies = match decode::infer_request(message.bytes) {
            Ok(mut request) => {
                asked.id = request.id.clone();
                terms.apply(&mut request);
                request.wire = asked.wire.clone();
                asked.take_in(connection, request, &mut decoupled).await
            }
            Err(error) => Err(error),
        };
        let replies = replies.map_or_else(Replies::Failed, Replies::Coming);
        let request = Request { replies, asked: Rc::new(asked) };
        match decoupled {
            false => self.in_order.push_back(request),
            true => {
                self.decoupled.push(request);
                self.decoupled_count += 1;
            }
        }
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Answer> {
        if let Some(oldest) = self.in_order.front_mut()
            && let Poll::Ready(Some(answer)) = oldest.poll_answer(cx)
        {
            if answer.is_last {
                self.in_order.pop_front();
            }
            return Poll::Ready(answer);
        }
        match self.decoupled.poll_next_unpin(cx) {
            Poll::Ready(Some(answer)) => {
                self.decoupled_count -= usize::from(answer.is_last);
                Poll::Ready(answer)
            }
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

impl Asked {
    async fn take_in(
        &mut self,
        connection: &Connection,
        mut request: InferRequest,
        decoupled: &mut bool,
    ) -> Result<ReplyReceiver<Reply>, Error> {
        let server = &connection.server;
        *decoupled = server.is_decoupled(&request.model_name, &request.model_version);
        self.empty_final_response = request.empty_final_response;
        if *decoupled {
            self.model = request.model_name.clone();
            self.version = request.model_version.clone();
        }
        if SharedTensors::are_named_by(&request) {
            self.shared = SharedTensors::resolve(&mut request, server).await?;
        }
        server.infer(request, self.shared.outputs())
    }
}

impl Request {
    /// The next answer, or `None` after the last.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Option<Answer>> {
        let is_refusal = matches!(self.replies, Replies::Failed(_));
        let (reply, is_last) = match std::mem::replace(&mut self.replies, Replies::Ended) {
            Replies::Ended => return Poll::Ready(None),
            Replies::Failed(error) => (Some(Err(error)), true),
            Replies::Coming(mut replies) => {
                let Poll::Ready(reply) = replies.poll_receive(cx) else {
                    self.replies = Replies::Coming(replies);
                    return Poll::Pending;
                };
                match (reply, replies.end()) {
                    (Some(reply), Some(End::Last)) => (Some(reply), true),
                    (Some(reply), _) => {
                        self.replies = Replies::Coming(replies);
                        (Some(reply), false)
                    }
                    (None, Some(End::Closed)) => (None, true),
                    (None, _) => (Some(Err(Error::unanswered())), true),
                }
            }
        };
        let asked = self.asked.clone();
        Poll::Ready(Some(Answer { asked, reply, is_last, is_refusal }))
    }
}

impl Stream for Request {
    type Item = Answer;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Answer>> {
        self.poll_answer(cx)
    }
}

async fn send(
    connection: &Connection,
    terms: &Terms,
    responses: &mut SendStream<Bytes>,
    answer: Answer,
) -> Result<(), Gone> {
    let Answer { asked, reply, is_last, is_refusal } = answer;
    let _sending = asked.wire.clone().map(WireTimes::sending);
    let reply = match reply {
        Some(Ok(response)) => Some(asked.shared.deliver(response, connection.server.pool()).await),
        other => other,
    };
    let segments = match reply {
        Some(Ok(mut response)) => {
            response.parameters.insert("triton_final_response", Parameter::Bool(is_last));
            encode::stream_response(&response)
        }
        Some(Err(error)) if terms.failures_end_streams && !is_refusal => {
            // An error here means that the client has left.
            let _ = responses.send_trailers(status::failed(&error));
            return Err(Gone);
        }
        Some(Err(error)) => smallvec![encode::stream_error(&error.to_string(), &asked.id)],
        None if asked.empty_final_response => {
            smallvec![encode::stream_end(&asked.model, &asked.version, &asked.id)]
        }
        None => return Ok(()),
    };
    let segments = match terms.responses {
        Packing::Identity => segments,
        packing => Box::pin(compression::pack(segments, packing)).await,
    };
    for segment in segments {
        send_segment(connection, responses, segment).await?;
    }
    Ok(())
}
