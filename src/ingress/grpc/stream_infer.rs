//! `ModelStreamInfer`: requests and responses in one stream, the responses in the order of their
//! requests.

use std::{collections::VecDeque, future::poll_fn, rc::Rc, task::Poll};

use bytes::Bytes;
use compact_str::CompactString;
use h2::{RecvStream, SendStream, server::SendResponse};
use smallvec::smallvec;

use super::{
    compression::{self, Packing},
    connection::{Connection, Terms},
    decode, encode,
    infer::{ask, response_head, send_segment},
    message::{Message, MessageReader},
    status,
};
use crate::{
    inference::{Error, Parameter},
    ingress::shared_memory::SharedTensors,
    memory::Reservation,
    runtime::ReplyReceiver,
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
    let memory = connection.server.pool();
    let mut requests = MessageReader::new(body, connection.settings.message_max, memory);
    let mut in_flight = VecDeque::new();
    let mut reading = true;
    while reading || !in_flight.is_empty() {
        match next_event(&mut requests, &mut responses, &mut in_flight, reading).await {
            Event::Request(message) => {
                let begun = match message.packed {
                    false => begin(&connection, &terms, message),
                    true => {
                        let limit = connection.settings.message_max;
                        let unpacked = compression::unpack(message, terms.requests, limit);
                        match Box::pin(unpacked).await {
                            Ok(message) => begin(&connection, &terms, message),
                            // What follows in the stream can be no better.
                            Err(error) => {
                                let _ = responses.send_trailers(status::failed(&error));
                                return;
                            }
                        }
                    }
                };
                in_flight.push_back(begun);
            }
            Event::Reply(id, shared, reply) => {
                let reply = delivered(&connection, shared, reply).await;
                if send(&connection, &terms, &mut responses, &id, reply).await.is_err() {
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

/// A request that has been taken in.
struct InFlight {
    id: CompactString,
    answer: Answer,
    shared: SharedTensors,
    _reservation: Reservation,
}

enum Answer {
    Coming(ReplyReceiver<Reply>),
    /// It failed before a model saw it; its turn to be told has not come.
    Failed(Option<Error>),
}

enum Event {
    Request(Message),
    /// The oldest request's answer.
    Reply(CompactString, SharedTensors, Reply),
    /// The client sends no more requests.
    End,
    /// What the client sends is no stream of messages.
    Broken(Error),
}

async fn next_event(
    requests: &mut MessageReader,
    responses: &mut SendStream<Bytes>,
    in_flight: &mut VecDeque<InFlight>,
    reading: bool,
) -> Event {
    poll_fn(|cx| {
        if let Some(oldest) = in_flight.front_mut() {
            let reply = match &mut oldest.answer {
                Answer::Coming(answer) => answer.poll_receive(cx),
                Answer::Failed(error) => Poll::Ready(error.take().map(Err)),
            };
            if let Poll::Ready(reply) = reply {
                let id = std::mem::take(&mut oldest.id);
                let shared = std::mem::take(&mut oldest.shared);
                in_flight.pop_front();
                return Poll::Ready(Event::Reply(
                    id,
                    shared,
                    reply.unwrap_or_else(|| Err(Error::unanswered())),
                ));
            }
        }
        if responses.poll_reset(cx).is_ready() {
            return Poll::Ready(Event::Broken(Error::Cancelled));
        }
        if !reading || in_flight.len() == IN_FLIGHT_MAX {
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

fn begin(connection: &Connection, terms: &Terms, message: Message) -> InFlight {
    let (id, begun) = match decode::infer_request(message.bytes) {
        Ok(mut request) => {
            terms.apply(&mut request);
            (request.id.clone(), ask(&connection.server, request))
        }
        Err(error) => (CompactString::default(), Err(error)),
    };
    let (answer, shared) = match begun {
        Ok((answer, shared)) => (Answer::Coming(answer), shared),
        Err(error) => (Answer::Failed(Some(error)), SharedTensors::default()),
    };
    InFlight { id, answer, shared, _reservation: message.reservation }
}

async fn delivered(connection: &Connection, shared: SharedTensors, reply: Reply) -> Reply {
    shared.deliver(reply?, connection.server.pool()).await
}

async fn send(
    connection: &Connection,
    terms: &Terms,
    responses: &mut SendStream<Bytes>,
    id: &str,
    reply: Reply,
) -> Result<(), super::infer::Gone> {
    let segments = match reply {
        Ok(mut response) => {
            response.parameters.insert("triton_final_response", Parameter::Bool(true));
            encode::stream_response(&response)
        }
        Err(error) => smallvec![encode::stream_error(&error.to_string(), id)],
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
