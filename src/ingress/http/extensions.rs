//! The calls of the extensions: flat inference, and settings that change while serving.

use http::{Response, StatusCode, request};
use hyper::body::Incoming;

use super::{
    error, generate,
    route::Model,
    service::{Calls, Segments, json, with_type},
    settings,
};
use crate::{
    inference::Error,
    ingress::settings as live,
    observe::{logging, trace::Settings},
    serving::Reply,
};

impl Calls {
    pub(super) async fn generate(
        &self,
        model: &Model<'_>,
        head: &request::Parts,
        body: Incoming,
    ) -> Result<Response<Segments>, Error> {
        let response = self.ask(model, head, body).await??;
        Ok(json(generate::response(&response)?.into()))
    }

    /// What is wrong with the request is the answer; what goes wrong after that is an event.
    pub(super) async fn generate_stream(
        &self,
        model: &Model<'_>,
        head: &request::Parts,
        body: Incoming,
    ) -> Result<Response<Segments>, Error> {
        let reply = self.ask(model, head, body).await?;
        let (status, json) = match reply.and_then(|response| generate::response(&response)) {
            Ok(json) => (StatusCode::OK, json.into()),
            Err(error) => error::answer(&error),
        };
        let event = Segments::one(generate::event(&json));
        let mut response = with_type(event, "text/event-stream; charset=utf-8");
        *response.status_mut() = status;
        Ok(response)
    }

    /// Sends a flat request to its model and waits for the reply. The error is one of the request.
    async fn ask(
        &self,
        model: &Model<'_>,
        head: &request::Parts,
        body: Incoming,
    ) -> Result<Reply, Error> {
        let version = self.server.version(&model.name, model.version)?;
        let mut reservation = self.server.pool().reservation();
        let body = self.read(head, body, &mut reservation).await?;
        let mut request = generate::request(&version.signature, model.version, &body)?;
        self.adopt(&mut request, &head.headers);
        let mut answer = self.server.infer(request)?;
        Ok(answer.receive().await.unwrap_or_else(|| Err(Error::unanswered())))
    }

    pub(super) fn trace_settings(&self, told: &Settings) -> Response<Segments> {
        let tracer = self.server.tracer();
        json(settings::trace_settings(told, &live::trace_file(tracer), tracer.mode()))
    }

    pub(super) async fn set_log(
        &self,
        head: &request::Parts,
        body: Incoming,
    ) -> Result<Response<Segments>, Error> {
        let mut reservation = self.server.pool().reservation();
        let body = self.read(head, body, &mut reservation).await?;
        logging::change(settings::log_change(&body)?);
        Ok(json(settings::log_settings(&logging::settings())))
    }

    pub(super) async fn set_trace(
        &self,
        model: &str,
        head: &request::Parts,
        body: Incoming,
    ) -> Result<Response<Segments>, Error> {
        live::trace(&self.server, model)?;
        let mut reservation = self.server.pool().reservation();
        let body = self.read(head, body, &mut reservation).await?;
        let change = settings::trace_change(&body)?;
        Ok(self.trace_settings(&live::change_trace(&self.server, model, change)?))
    }
}
