//! The inference call.

use http::{
    HeaderMap, HeaderName, HeaderValue, Response,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE},
    request,
};
use hyper::body::Incoming;

use super::{
    encoding::Encoding,
    infer_request::{self, ResponseForm},
    infer_response, packed,
    response::{Segments, refused, with_type},
    route::Model,
    service::Calls,
};
use crate::{
    inference::{Error, InferRequest, Rope, Timestamp, TraceParent, Wire, WireTimes},
    ingress::{forward::TRACE_PARENT, shared_memory::SharedTensors},
};

/// What the call is called in a refusal.
const ENDPOINT: &str = "HTTP end point";

static HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

impl Calls {
    pub(super) async fn infer(
        &self,
        model: &Model<'_>,
        head: &request::Parts,
        body: Incoming,
    ) -> Result<Response<Segments>, Error> {
        // A client that has the wrong model is told that, whatever is wrong with its body.
        if self.server.version(&model.name, model.version)?.decoupled {
            return Err(Error::DecoupledModel { endpoint: ENDPOINT });
        }
        let began = self.server.tracer().now();
        let mut reservation = self.server.pool().reservation();
        let body = self.read(head, body, &mut reservation).await?;
        let (mut request, form) = self.parse(model, &head.headers, &body)?;
        let wire = self.adopt(&mut request, &head.headers, began);
        drop(body);
        let answered = self.answer_infer(request, &form, head).await;
        Ok(answered.unwrap_or_else(|error| refused(&error)).map(|body| body.sending(wire)))
    }

    async fn answer_infer(
        &self,
        mut request: InferRequest,
        form: &ResponseForm,
        head: &request::Parts,
    ) -> Result<Response<Segments>, Error> {
        let server = &self.server;
        let shared = SharedTensors::resolve(&mut request, server);
        let shared = shared.await?;
        let mut answer = self.server.infer_one(request, shared.outputs(), ENDPOINT)?;
        let reply = answer.receive().await;
        let response = reply.unwrap_or_else(|| Err(Error::unanswered()))?;
        let response = shared.deliver(response, server.pool()).await?;
        let encoded = infer_response::encode(&response, form)?;
        let json_length = encoded.json_length();
        let content_type = encoded.content_type();
        let accepted = head.headers.get(ACCEPT_ENCODING).map(HeaderValue::as_bytes);
        let packing = Encoding::of_response(accepted);
        let (body, packed_as) = match packing {
            Encoding::Identity => (Segments::many(encoded), None),
            _ => (
                Segments::one(Box::pin(packed::pack(packing, encoded)).await?),
                Some(packing.name()),
            ),
        };
        let mut response = with_type(body, content_type);
        let headers = response.headers_mut();
        match (json_length, self.binary_types.responses) {
            (None, _) => {}
            (Some(length), None) => {
                headers.insert(HEADER_LENGTH.clone(), HeaderValue::from(length));
            }
            (Some(length), Some(binary)) => {
                if let Ok(value) = HeaderValue::try_from(format!("{binary}{length}")) {
                    headers.insert(CONTENT_TYPE, value);
                }
            }
        }
        if let Some(name) = packed_as {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(name));
        }
        Ok(response)
    }

    /// Gives a request what its headers say, and the times of the wire if it `began` to be read at one
    /// that is noted. Those are returned too.
    pub(super) fn adopt(
        &self,
        request: &mut InferRequest,
        headers: &HeaderMap,
        began: Option<Timestamp>,
    ) -> Option<WireTimes> {
        request.wire = began.map(|began| WireTimes::received(Wire::Http, began));
        let parent = headers.get(&TRACE_PARENT).map(HeaderValue::as_bytes);
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
        headers: &HeaderMap,
        body: &Rope,
    ) -> Result<(InferRequest, ResponseForm), Error> {
        let header = match self.binary_types.requests {
            None => headers.get(&HEADER_LENGTH).map(HeaderValue::as_bytes),
            Some(binary) => headers
                .get(CONTENT_TYPE)
                .and_then(|value| value.as_bytes().strip_prefix(binary.as_bytes())),
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
