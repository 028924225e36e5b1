//! The calls of the extensions: flat inference, and settings that change while serving.

use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use hyper::body::Incoming;

use super::{
    error, generate, load_metrics,
    response::{Segments, json, refused, with_type},
    route::Model,
    said::Said,
    service::Calls,
    settings,
};
use crate::{
    inference::{Error, WireTimes},
    ingress::settings as live,
    observe::{logging, trace::Settings},
    runtime::{End, ReplyReceiver},
    serving::Reply,
};

/// The events that follow the first.
pub(super) struct Events(ReplyReceiver<Reply>);

impl Events {
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let reply = self.0.poll_receive(cx);
        reply.map(|reply| Some(event(reply.or_else(|| dropped(&self.0))?).1))
    }
}

/// What a client is told when the model let go of its request.
fn dropped(replies: &ReplyReceiver<Reply>) -> Option<Reply> {
    (replies.end() == Some(End::Dropped)).then(|| Err(Error::unanswered()))
}

/// A reply as an event, and the status of an answer that begins with it.
fn event(reply: Reply) -> (StatusCode, Bytes) {
    let (status, json) = match reply.and_then(|response| generate::response(&response)) {
        Ok(json) => (StatusCode::OK, json.into()),
        Err(error) => error::answer(&error),
    };
    (status, generate::event(&json))
}

/// The only reply there may be.
async fn only_reply(replies: &mut ReplyReceiver<Reply>) -> Reply {
    let only = replies.receive().await;
    let surplus = match replies.end() {
        Some(End::Last) => None,
        _ => replies.receive().await,
    };
    match (only, surplus) {
        (Some(only), None) => only,
        // A model that is not decoupled has let go of the request.
        (None, _) if replies.end() == Some(End::Dropped) => Err(Error::unanswered()),
        _ => Err(Error::NotOneResponse),
    }
}

impl Calls {
    pub(super) async fn generate(
        &self,
        model: &Model<'_>,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<Response<Segments>, Error> {
        let (mut replies, wire) = self.ask(model, headers, body).await?;
        let answered = only_reply(&mut replies).await;
        let answered = answered.and_then(|only| generate::response(&only));
        let mut response = answered.map_or_else(|error| refused(&error), |body| json(body.into()));
        self.tell_load(headers, &mut response);
        Ok(response.map(|body| body.sending(wire)))
    }

    /// What is wrong with the request is the answer; what goes wrong after that is an event.
    pub(super) async fn generate_stream(
        &self,
        model: &Model<'_>,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<Response<Segments>, Error> {
        let (mut replies, wire) = self.ask(model, headers, body).await?;
        let first = replies.receive().await;
        let (status, body) = match first.or_else(|| dropped(&replies)) {
            None => (StatusCode::OK, Segments::default()),
            Some(first) => {
                let (status, event) = event(first);
                (status, Segments::one(event))
            }
        };
        let body = match replies.end() {
            Some(_) => body,
            None => body.followed_by(Events(replies)),
        };
        let mut response = with_type(body, "text/event-stream; charset=utf-8");
        *response.status_mut() = status;
        self.tell_load(headers, &mut response);
        Ok(response.map(|body| body.sending(wire)))
    }

    /// Adds to an answer how much of a language model's cache is used, if its client asks for that.
    fn tell_load(&self, asked: &HeaderMap, response: &mut Response<Segments>) {
        if let Some(format) = asked.get(load_metrics::FORMAT)
            && let Some(load) = load_metrics::header(format, &self.server.host().metrics)
        {
            response.headers_mut().insert(load_metrics::NAME, load);
        }
    }

    /// Sends a flat request to its model. The error is one of the request.
    async fn ask(
        &self,
        model: &Model<'_>,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<(ReplyReceiver<Reply>, Option<WireTimes>), Error> {
        let began = self.server.tracer().now();
        let version = self.server.version(&model.name, model.version)?;
        let mut reservation = self.server.pool().reservation();
        let body = self.read(headers, body, &mut reservation).await?;
        let mut request = generate::request(&version.signature, model.version, &body)?;
        let wire = self.adopt(&mut request, headers, &Said::by(headers), began);
        Ok((self.server.infer(request, None)?, wire))
    }

    pub(super) fn trace_settings(&self, told: &Settings) -> Response<Segments> {
        let tracer = self.server.tracer();
        json(settings::trace_settings(told, &live::trace_file(tracer), tracer.mode()))
    }

    pub(super) async fn set_log(
        &self,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<Response<Segments>, Error> {
        let mut reservation = self.server.pool().reservation();
        let body = self.read(headers, body, &mut reservation).await?;
        logging::change(settings::log_change(&body)?);
        Ok(json(settings::log_settings(&logging::settings())))
    }

    pub(super) async fn set_trace(
        &self,
        model: &str,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<Response<Segments>, Error> {
        live::trace(&self.server, model)?;
        let mut reservation = self.server.pool().reservation();
        let body = self.read(headers, body, &mut reservation).await?;
        let change = settings::trace_change(&body)?;
        Ok(self.trace_settings(&live::change_trace(&self.server, model, change)?))
    }
}
