use std::{future::poll_fn, mem};

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream, client::ResponseFuture};
use prost::Message;

use super::{
    Failure,
    grpc::{GrpcConnection, bad_answer, check_end, check_head, failure, take_message},
};
use crate::proto::{ModelStreamInferResponse, infer_parameter::ParameterChoice};

/// The parameter by which a response of a decoupled model says whether it is the last.
const FINAL: &str = "triton_final_response";

/// A request at a time on a stream of ModelStreamInfer.
pub struct StreamSlot {
    requests: SendStream<Bytes>,
    responses: Responses,
    received: BytesMut,
    message: Bytes,
    decoupled: bool,
}

enum Responses {
    /// The server may wait for the first request before it begins to answer.
    Awaited(ResponseFuture),
    Begun(RecvStream),
    Ended,
}

impl StreamSlot {
    pub async fn open(
        connection: &GrpcConnection,
        message: Bytes,
        decoupled: bool,
    ) -> Result<Self, Failure> {
        let head = connection.head("ModelStreamInfer")?;
        let mut sender = connection.sender();
        poll_fn(|cx| sender.poll_ready(cx)).await.map_err(failure)?;
        let (response, requests) = sender.send_request(head, false).map_err(failure)?;
        let responses = Responses::Awaited(response);
        Ok(Self { requests, responses, received: BytesMut::new(), message, decoupled })
    }

    pub async fn infer(&mut self) -> Result<(), Failure> {
        self.requests.send_data(self.message.clone(), false).map_err(broken)?;
        let mut outcome = Ok(());
        loop {
            let message = self.receive().await.map_err(|failure| {
                // Whatever ended the stream, it carries no further request.
                Failure::Broken(failure.message().to_owned())
            })?;
            let response = ModelStreamInferResponse::decode(message)
                .map_err(|error| Failure::Broken(error.to_string()))?;
            if !response.error_message.is_empty() {
                outcome = Err(Failure::Refused(response.error_message.clone()));
            } else if !self.decoupled && !has_outputs(&response) {
                outcome = Err(bad_answer("it has no outputs"));
            }
            if !self.decoupled || is_final(&response) {
                return outcome;
            }
        }
    }

    async fn receive(&mut self) -> Result<Bytes, Failure> {
        loop {
            if let Some(message) =
                take_message(&mut self.received).map_err(|problem| bad_answer(&problem))?
            {
                return Ok(message);
            }
            let mut body = match mem::replace(&mut self.responses, Responses::Ended) {
                Responses::Begun(body) => body,
                Responses::Awaited(response) => {
                    let (head, body) = response.await.map_err(failure)?.into_parts();
                    check_head(head.status, &head.headers)?;
                    body
                }
                Responses::Ended => return Err(Failure::Broken("the stream has ended".to_owned())),
            };
            let Some(chunk) = body.data().await else {
                check_end(&mut body).await?;
                return Err(Failure::Broken("the server ended the stream".to_owned()));
            };
            let chunk = chunk.map_err(failure)?;
            body.flow_control().release_capacity(chunk.len()).map_err(failure)?;
            self.received.extend_from_slice(&chunk);
            self.responses = Responses::Begun(body);
        }
    }
}

fn broken(error: h2::Error) -> Failure {
    Failure::Broken(error.to_string())
}

fn has_outputs(response: &ModelStreamInferResponse) -> bool {
    response.infer_response.as_ref().is_some_and(|response| !response.outputs.is_empty())
}

/// An error that does not say otherwise is the last response.
fn is_final(response: &ModelStreamInferResponse) -> bool {
    let parameter =
        response.infer_response.as_ref().and_then(|response| response.parameters.get(FINAL));
    match parameter.and_then(|parameter| parameter.parameter_choice.as_ref()) {
        Some(ParameterChoice::BoolParam(last)) => *last,
        _ => !response.error_message.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{InferParameter, ModelInferResponse};

    #[test]
    fn the_last_response_says_so_or_is_an_error() {
        for (error, last, expected) in [
            ("", None, false),
            ("", Some(false), false),
            ("", Some(true), true),
            ("bad", None, true),
            ("bad", Some(false), false),
            ("bad", Some(true), true),
        ] {
            let parameter = |last| {
                let parameter_choice = Some(ParameterChoice::BoolParam(last));
                (FINAL.to_owned(), InferParameter { parameter_choice })
            };
            let parameters = last.map(parameter).into_iter().collect();
            let response = ModelStreamInferResponse {
                error_message: error.to_owned(),
                infer_response: Some(ModelInferResponse { parameters, ..Default::default() }),
            };
            assert_eq!(is_final(&response), expected, "{error} {last:?}");
        }
    }
}
