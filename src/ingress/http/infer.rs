//! The inference call.

use http::{
    HeaderMap, HeaderValue, Response,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
};
use hyper::body::Incoming;

use super::{
    encoding::Encoding,
    infer_request::{self, ResponseForm},
    infer_response, packed,
    response::{Segments, number, refused},
    route::Model,
    said::{HEADER_LENGTH, Said},
    service::Calls,
};
use crate::{
    inference::{Error, InferRequest, Rope, Timestamp, TraceParent, Wire, WireTimes},
    ingress::shared_memory::SharedTensors,
};

/// What the call is called in a refusal.
const ENDPOINT: &str = "HTTP end point";

impl Calls {
    pub(super) async fn infer(
        &self,
        model: &Model<'_>,
        headers: HeaderMap,
        body: Incoming,
    ) -> Result<Response<Segments>, Error> {
        // A client that has the wrong model is told that, whatever is wrong with its body.
        if self.server.version(&model.name, model.version)?.decoupled {
            return Err(Error::DecoupledModel { endpoint: ENDPOINT });
        }
        let began = self.server.tracer().now();
        let mut reservation = self.server.pool().reservation();
        let said = Said::by(&headers);
        let body = self.read_said(&said, body, &mut reservation).await?;
        let (mut request, form) = self.parse(model, &said, &body)?;
        let wire = self.adopt(&mut request, &headers, &said, began);
        let packing = Encoding::of_response(said.accept_encoding.map(HeaderValue::as_bytes));
        drop(body);
        let answered = self.answer_infer(&mut request, &form, packing, headers).await;
        Ok(answered.unwrap_or_else(|error| refused(&error)).map(|body| body.sending(wire)))
    }

    /// The answer's headers take the place of the request's `headers`, whose memory serves the next request
    /// of the connection in its turn.
    async fn answer_infer(
        &self,
        request: &mut InferRequest,
        form: &ResponseForm,
        packing: Encoding,
        mut headers: HeaderMap,
    ) -> Result<Response<Segments>, Error> {
        let server = &self.server;
        let shared = SharedTensors::resolve(request, server).await?;
        let mut answer = server.infer_one(request, shared.outputs(), ENDPOINT)?;
        let reply = answer.receive().await;
        let response = reply.unwrap_or_else(|| Err(Error::unanswered()))?;
        let response = shared.deliver(response, server.pool()).await?;
        let encoded = infer_response::encode(&response, form)?;
        headers.clear();
        headers.insert(CONTENT_TYPE, encoded.content_type().clone());
        match (encoded.json_length(), self.binary_types.responses) {
            (None, _) => {}
            (Some(length), None) => {
                headers.insert(HEADER_LENGTH.clone(), number(length));
            }
            (Some(length), Some(binary)) => {
                if let Ok(value) = HeaderValue::try_from(format!("{binary}{length}")) {
                    headers.insert(CONTENT_TYPE, value);
                }
            }
        }
        let body = match packing {
            Encoding::Identity => Segments::many(encoded),
            _ => {
                headers.insert(CONTENT_ENCODING, HeaderValue::from_static(packing.name()));
                Segments::one(Box::pin(packed::pack(packing, encoded)).await?)
            }
        };
        let mut response = Response::new(body);
        *response.headers_mut() = headers;
        Ok(response)
    }

    /// Gives a request what its headers say, and the times of the wire if it `began` to be read at one
    /// that is noted. Those are returned too.
    pub(super) fn adopt(
        &self,
        request: &mut InferRequest,
        headers: &HeaderMap,
        said: &Said<'_>,
        began: Option<Timestamp>,
    ) -> Option<WireTimes> {
        request.wire = began.map(|began| WireTimes::received(Wire::Http, began));
        let parent = said.trace_parent.map(HeaderValue::as_bytes);
        request.trace_parent = parent.and_then(TraceParent::parse);
        if let Some(pattern) = &self.settings.forwarded {
            for (name, value) in pattern.parameters(headers).iter() {
                request.parameters.insert(name, value.clone());
            }
        }
        request.wire.clone()
    }

    fn parse(
        &self,
        model: &Model<'_>,
        said: &Said<'_>,
        body: &Rope,
    ) -> Result<(InferRequest, ResponseForm), Error> {
        let header = match self.binary_types.requests {
            None => said.header_length.map(HeaderValue::as_bytes),
            Some(binary) => {
                said.content_type.and_then(|it| it.as_bytes().strip_prefix(binary.as_bytes()))
            }
        };
        match infer_request::json_length(header, body.len())? {
            0 if header.is_some() => {
                let version = self.server.version(&model.name, model.version)?;
                let body = body.clone();
                infer_request::raw_infer_request(&version.signature, model.version, body)
            }
            length => infer_request::parse(&model.name, model.version, body, length),
        }
    }
}
