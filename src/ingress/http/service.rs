//! HTTP/1.1 connections, and what answers each call.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use futures_util::future::{Either, select};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE},
    request,
};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};

use super::{
    encoding::Encoding,
    infer_request::{self, ResponseForm},
    infer_response, metadata, packed, regions as http_regions, repository,
    response::{Segments, failure, json, method_not_allowed, ready, refused, with_type},
    route::{self, Access, Model, Route, RouteError, SharedMemoryAction, SharedMemoryKind},
    settings,
};
use crate::{
    inference::{Error, InferRequest, Rope, Timestamp, TraceParent, Wire, WireTimes},
    ingress::{
        away::here_or_away,
        describe,
        forward::{HeaderPattern, TRACE_PARENT},
        regions,
        restricted::{ApiGroup, Restrictions},
        settings as live,
        shared_memory::SharedTensors,
    },
    memory::Reservation,
    observe::logging,
    runtime::{HyperTimer, TcpStream, draining, offload, sleep},
    serving::{ModelControl, Server},
};

/// How long a client may take to send the head of its next request; an idle connection counts.
const HEAD_MAX: Duration = Duration::from_secs(300);
/// How long a client may pause inside a body.
const BODY_PAUSE_MAX: Duration = Duration::from_secs(60);
/// A connection's buffer for heads and small bodies, and the most of a body that is read at once.
const BUFFER_MAX: usize = 512 << 10;

/// What the inference call is called in a refusal.
const ENDPOINT: &str = "HTTP end point";

const HEADER_LENGTH: &str = "inference-header-content-length";

/// What an operator can set.
#[derive(Clone, Debug)]
pub struct HttpSettings {
    /// The largest body in bytes, packed or not.
    pub body_max: usize,
    /// Calls that not everybody may make.
    pub restrictions: Option<Restrictions>,
    /// Headers that become parameters.
    pub forwarded: Option<HeaderPattern>,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self { body_max: 64 << 20, restrictions: None, forwarded: None }
    }
}

/// Serves a connection of the inference port until it ends.
pub async fn serve(stream: TcpStream, control: Arc<ModelControl>, settings: Arc<HttpSettings>) {
    let calls = Arc::new(Calls::new(control, settings, BinaryTypes::default()));
    carry(stream, move |request| {
        let calls = calls.clone();
        async move { calls.answer(request).await }
    })
    .await;
}

/// Serves a connection of the metrics port until it ends.
pub async fn serve_metrics(stream: TcpStream, server: Arc<Server>) {
    carry(stream, move |request: Request<Incoming>| {
        let server = server.clone();
        async move {
            match (request.uri().path(), request.method()) {
                ("/metrics" | "/metrics/", &Method::GET) => metrics(&server).await,
                ("/timeline", &Method::GET) => timeline(&server).await,
                ("/metrics" | "/metrics/" | "/timeline", _) => method_not_allowed("GET"),
                _ => failure(StatusCode::NOT_FOUND, "Not Found"),
            }
        }
    })
    .await;
}

/// What the engines of devices did lately, as Perfetto opens it.
async fn timeline(server: &Server) -> Response<Segments> {
    let Some(fleet) = server.fleet() else {
        return failure(StatusCode::NOT_FOUND, "this server has no devices");
    };
    let written = match fleet.timeline().await {
        Some(timeline) => offload(move || timeline.chrome_trace().to_string()).await,
        None => None,
    };
    match written {
        Some(text) => with_type(Segments::one(text.into()), "application/json"),
        None => failure(StatusCode::SERVICE_UNAVAILABLE, "the devices' lanes have ended"),
    }
}

/// The page of metrics, which with many models is long: no request waits until it is written.
pub(super) async fn metrics(server: &Arc<Server>) -> Response<Segments> {
    let server = server.clone();
    match offload(move || describe::metrics(&server)).await {
        Some(text) => with_type(Segments::one(text.into()), "text/plain; charset=utf-8"),
        None => failure(StatusCode::INTERNAL_SERVER_ERROR, "the page of metrics was given up"),
    }
}

pub(super) async fn carry<Answer, Answering>(stream: TcpStream, answer: Answer)
where
    Answer: Fn(Request<Incoming>) -> Answering,
    Answering: Future<Output = Response<Segments>>,
{
    let service = service_fn(|request| {
        let answering = answer(request);
        async move { Ok::<_, Infallible>(answering.await) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(HyperTimer)
            .header_read_timeout(HEAD_MAX)
            .max_buf_size(BUFFER_MAX)
            .pipeline_flush(true)
            .serve_connection(stream, service)
    );
    let ended = match select(connection.as_mut(), draining()).await {
        Either::Left((ended, _)) => ended,
        Either::Right(_) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        log::debug!("an HTTP connection ended: {error}");
    }
}

pub(super) struct Calls {
    pub(super) control: Arc<ModelControl>,
    pub(super) server: Arc<Server>,
    settings: Arc<HttpSettings>,
    binary_types: BinaryTypes,
}

/// The content types of binary bodies, less the length of the JSON at their end, where no header tells that
/// length.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BinaryTypes {
    pub requests: Option<&'static str>,
    pub responses: Option<&'static str>,
}

impl Calls {
    pub(super) fn new(
        control: Arc<ModelControl>,
        settings: Arc<HttpSettings>,
        binary_types: BinaryTypes,
    ) -> Self {
        Self { server: control.server().clone(), control, settings, binary_types }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Segments> {
        if let Some(refusal) = self.refusal(&request) {
            return refusal;
        }
        let (head, body) = request.into_parts();
        match route::route(&head.method, head.uri.path()) {
            Ok(route) => self.make(route, &head, body).await,
            Err(RouteError::MethodNotAllowed { allow }) => method_not_allowed(allow),
            Err(wrong @ RouteError::NotFound) => failure(wrong.status(), &wrong.to_string()),
        }
    }

    /// Makes a call whatever the path of the request.
    pub(super) async fn dispatch(
        &self,
        route: Route<'_>,
        request: Request<Incoming>,
    ) -> Response<Segments> {
        let (head, body) = request.into_parts();
        match self.restricted(route.group(), &head.headers) {
            Some(refusal) => refusal,
            None => self.make(route, &head, body).await,
        }
    }

    async fn make(
        &self,
        route: Route<'_>,
        head: &request::Parts,
        body: Incoming,
    ) -> Response<Segments> {
        let answered = match route {
            Route::Infer(model) => self.infer(&model, head, body).await,
            Route::Generate(model) => self.generate(&model, head, body).await,
            Route::GenerateStream(model) => self.generate_stream(&model, head, body).await,
            Route::RepositoryIndex { .. } => self.index(head, body).await,
            Route::RepositoryLoad { repository, model } => {
                self.load(&repository, &model, head, body).await
            }
            Route::RepositoryUnload { repository, model } => {
                self.unload(&repository, &model, head, body).await
            }
            Route::SharedMemory { kind, action: SharedMemoryAction::Register, region } => {
                self.register(kind, &region, head, body).await
            }
            Route::Logging(Access::Write) => self.set_log(head, body).await,
            Route::Trace { model, access: Access::Write } => {
                self.set_trace(&model.unwrap_or_default(), head, body).await
            }
            other => self.describe(&other),
        };
        answered.unwrap_or_else(|error| refused(&error))
    }

    /// The answer to one who may not make this call. Like the real server's, it does not depend on the
    /// method.
    fn refusal(&self, request: &Request<Incoming>) -> Option<Response<Segments>> {
        self.settings.restrictions.as_ref()?;
        let path = request.uri().path();
        let route = route::route(&Method::GET, path).or_else(|_| route::route(&Method::POST, path));
        self.restricted(route.ok()?.group(), request.headers())
    }

    /// The answer to one who may not make calls of this group.
    pub(super) fn restricted(
        &self,
        group: ApiGroup,
        headers: &HeaderMap,
    ) -> Option<Response<Segments>> {
        let restrictions = self.settings.restrictions.as_ref()?;
        let header = restrictions.missing(group, headers)?;
        let message = format!("This API is restricted, expecting header '{header}'");
        Some(failure(StatusCode::FORBIDDEN, &message))
    }

    fn describe(&self, route: &Route<'_>) -> Result<Response<Segments>, Error> {
        let server = &self.server;
        Ok(match route {
            Route::ServerLive => ready(true),
            Route::ServerReady => ready(server.is_ready()),
            Route::ServerMetadata => json(metadata::server_metadata(&describe::server(server))),
            Route::ModelReady(model) => {
                match describe::is_model_ready(server, &model.name, model.version)? {
                    true => ready(true),
                    false => failure(StatusCode::BAD_REQUEST, "Model version not ready"),
                }
            }
            Route::ModelMetadata(model) => {
                let described = describe::model(server, &model.name, model.version)?;
                json(metadata::model_metadata(&described))
            }
            Route::ModelConfig(model) => {
                let version = server.version(&model.name, model.version)?;
                json(metadata::model_config(&version.config))
            }
            Route::ModelStatistics(model) => {
                let statistics = describe::statistics(server, &model.name, model.version)?;
                json(metadata::model_statistics(&statistics))
            }
            Route::AllStatistics => {
                json(metadata::model_statistics(&describe::statistics(server, "", "")?))
            }
            Route::SharedMemory { kind, action, region } => match (kind, action) {
                (SharedMemoryKind::System, SharedMemoryAction::Status) => {
                    json(http_regions::status(&regions::status(server, region)?))
                }
                (SharedMemoryKind::Cuda, SharedMemoryAction::Status) => {
                    let status = regions::cuda_status(server, region)?;
                    json(http_regions::cuda_status(&status))
                }
                (SharedMemoryKind::System, _) => {
                    regions::unregister(server.regions(), region);
                    with_type(Segments::default(), "application/json")
                }
                (SharedMemoryKind::Cuda, _) => {
                    server.device_regions().unregister(server.regions(), region);
                    with_type(Segments::default(), "application/json")
                }
            },
            Route::Logging(Access::Read) => json(settings::log_settings(&logging::settings())),
            Route::Trace { model, access: Access::Read } => {
                self.trace_settings(&live::trace(server, model.as_deref().unwrap_or_default())?)
            }
            other => {
                let call = format!("{other:?}");
                let call = call.split([' ', '(']).next().unwrap_or_default();
                let detail = format!("the call {call} is not supported");
                return Err(Error::Unsupported { detail });
            }
        })
    }

    async fn index(
        &self,
        head: &request::Parts,
        body: Incoming,
    ) -> Result<Response<Segments>, Error> {
        let mut reservation = self.server.pool().reservation();
        let body = self.read(head, body, &mut reservation).await?;
        let index = self.control.index(repository::only_ready(&body)?).await?;
        Ok(json(metadata::repository_index(&describe::index(&index))))
    }

    async fn load(
        &self,
        repository: &str,
        model: &str,
        head: &request::Parts,
        body: Incoming,
    ) -> Result<Response<Segments>, Error> {
        describe::only_all_repositories(repository)?;
        let mut reservation = self.server.pool().reservation();
        let body = self.read(head, body, &mut reservation).await?;
        let length = body.len();
        let overrides = here_or_away(length, move || repository::overrides(&body)).await?;
        drop(reservation);
        self.control.load(model, overrides).await?;
        Ok(with_type(Segments::default(), "application/json"))
    }

    async fn unload(
        &self,
        repository: &str,
        model: &str,
        head: &request::Parts,
        body: Incoming,
    ) -> Result<Response<Segments>, Error> {
        describe::only_all_repositories(repository)?;
        let mut reservation = self.server.pool().reservation();
        let body = self.read(head, body, &mut reservation).await?;
        let with_models = repository::unload_dependents(&body)?;
        self.control.unload(model, with_models).await?;
        Ok(with_type(Segments::default(), "application/json"))
    }

    async fn register(
        &self,
        kind: SharedMemoryKind,
        region: &str,
        head: &request::Parts,
        body: Incoming,
    ) -> Result<Response<Segments>, Error> {
        let mut reservation = self.server.pool().reservation();
        let body = self.read(head, body, &mut reservation).await?;
        match kind {
            SharedMemoryKind::System => {
                let request = http_regions::register(region, &body)?;
                regions::register(self.server.regions(), &request)?;
            }
            SharedMemoryKind::Cuda => {
                let request = http_regions::cuda_register(region, &body)?;
                regions::cuda_register(&self.server, request).await?;
            }
        }
        Ok(with_type(Segments::default(), "application/json"))
    }

    async fn infer(
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
            _ => (Segments::one(packed::pack(packing, encoded).await?), Some(packing.name())),
        };
        let mut response = with_type(body, content_type);
        let headers = response.headers_mut();
        match (json_length, self.binary_types.responses) {
            (None, _) => {}
            (Some(length), None) => {
                headers.insert(HEADER_LENGTH, HeaderValue::from(length));
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
        let parent = headers.get(TRACE_PARENT).map(HeaderValue::as_bytes);
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
            None => headers.get(HEADER_LENGTH).map(HeaderValue::as_bytes),
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

    /// The body of a request, unpacked.
    pub(super) async fn read(
        &self,
        head: &request::Parts,
        mut body: Incoming,
        reservation: &mut Reservation,
    ) -> Result<Rope, Error> {
        let limit = self.settings.body_max;
        let packing = head.headers.get(CONTENT_ENCODING).map(HeaderValue::as_bytes);
        let packing = Encoding::of_request(packing)?;
        let announced = head
            .headers
            .get(CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if let Some(got) = announced.filter(|&got| got > limit as u64) {
            return Err(Error::RequestTooLarge { limit, got });
        }
        let mut rope = Rope::default();
        loop {
            let frame = match select(pin!(body.frame()), pin!(late())).await {
                Either::Left((Some(frame), _)) => frame,
                Either::Left((None, _)) => break,
                Either::Right(_) => {
                    return Err(Error::malformed(format!(
                        "the request's body paused for over {BODY_PAUSE_MAX:?}"
                    )));
                }
            };
            let frame = frame.map_err(|error| {
                Error::malformed(format!("the request's body could not be read: {error}"))
            })?;
            if let Ok(data) = frame.into_data() {
                reservation.grow(data.len())?;
                rope.arrive(data);
            }
            if rope.len() > limit {
                return Err(Error::RequestTooLarge { limit, got: rope.len() as u64 });
            }
        }
        let packed_len = rope.len();
        if packing == Encoding::Identity {
            return Ok(rope);
        }
        let unpacked = packed::unpack(packing, rope, limit).await?;
        reservation.grow(unpacked.len().saturating_sub(packed_len))?;
        Ok(unpacked)
    }
}

/// The pause that no body may have. The timer is set only once there is something to wait for.
async fn late() {
    crate::runtime::yield_now().await;
    sleep(BODY_PAUSE_MAX).await;
}
