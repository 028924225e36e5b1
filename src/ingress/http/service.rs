//! What answers each call.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, Method, Request, Response, StatusCode, request};
use hyper::body::Incoming;

use super::{
    connection::carry,
    metadata, regions as http_regions, repository,
    response::{Segments, failure, json, method_not_allowed, ready, refused, with_type},
    route::{self, Access, Route, RouteError, SharedMemoryAction, SharedMemoryKind},
    settings,
};
use crate::{
    inference::Error,
    ingress::{
        away::here_or_away,
        describe,
        forward::HeaderPattern,
        regions,
        restricted::{ApiGroup, Restrictions},
        settings as live,
    },
    observe::logging,
    runtime::TcpStream,
    serving::{ModelControl, Server},
};

/// What an operator can set.
#[derive(Clone, Debug)]
pub struct HttpSettings {
    /// The largest body in bytes, packed or not.
    pub body_max: usize,
    /// How long a client may pause inside a body, or take nothing of an answer.
    pub pause_max: Duration,
    /// Calls that not everybody may make.
    pub restrictions: Option<Restrictions>,
    /// Headers that become parameters.
    pub forwarded: Option<HeaderPattern>,
}

impl Default for HttpSettings {
    fn default() -> Self {
        let pause_max = Duration::from_secs(60);
        Self { body_max: 64 << 20, pause_max, restrictions: None, forwarded: None }
    }
}

/// Serves a connection of the inference port until it ends.
pub async fn serve(stream: TcpStream, control: Arc<ModelControl>, settings: Arc<HttpSettings>) {
    let pause_max = settings.pause_max;
    let calls = Arc::new(Calls::new(control, settings, BinaryTypes::default()));
    carry(stream, pause_max, move |request| calls.clone().answer(request)).await;
}

pub(super) struct Calls {
    pub(super) control: Arc<ModelControl>,
    pub(super) server: Arc<Server>,
    pub(super) settings: Arc<HttpSettings>,
    pub(super) binary_types: BinaryTypes,
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

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Segments> {
        if let Some(refusal) = self.refusal(&request) {
            return refusal;
        }
        let (request::Parts { method, uri, headers, .. }, body) = request.into_parts();
        match route::route(&method, uri.path()) {
            Ok(route) => self.make(route, headers, body).await,
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
        let (request::Parts { headers, .. }, body) = request.into_parts();
        match self.restricted(route.group(), &headers) {
            Some(refusal) => refusal,
            None => self.make(route, headers, body).await,
        }
    }

    async fn make(
        &self,
        route: Route<'_>,
        headers: HeaderMap,
        body: Incoming,
    ) -> Response<Segments> {
        let answered = match route {
            Route::Infer(model) => self.infer(&model, headers, body).await,
            // Each call's future is moved into its place, and these are the large ones.
            other => Box::pin(self.make_other(other, &headers, body)).await,
        };
        answered.unwrap_or_else(|error| refused(&error))
    }

    async fn make_other(
        &self,
        route: Route<'_>,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<Response<Segments>, Error> {
        match route {
            Route::Generate(model) => self.generate(&model, headers, body).await,
            Route::GenerateStream(model) => self.generate_stream(&model, headers, body).await,
            Route::RepositoryIndex { .. } => self.index(headers, body).await,
            Route::RepositoryLoad { repository, model } => {
                self.load(&repository, &model, headers, body).await
            }
            Route::RepositoryUnload { repository, model } => {
                self.unload(&repository, &model, headers, body).await
            }
            Route::SharedMemory { kind, action: SharedMemoryAction::Register, region } => {
                self.register(kind, &region, headers, body).await
            }
            Route::Logging(Access::Write) => self.set_log(headers, body).await,
            Route::Trace { model, access: Access::Write } => {
                self.set_trace(&model.unwrap_or_default(), headers, body).await
            }
            other => self.describe(&other),
        }
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
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<Response<Segments>, Error> {
        let mut reservation = self.server.pool().reservation();
        let body = self.read(headers, body, &mut reservation).await?;
        let index = self.control.index(repository::only_ready(&body)?).await?;
        Ok(json(metadata::repository_index(&describe::index(&index))))
    }

    async fn load(
        &self,
        repository: &str,
        model: &str,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<Response<Segments>, Error> {
        describe::only_all_repositories(repository)?;
        let mut reservation = self.server.pool().reservation();
        let body = self.read(headers, body, &mut reservation).await?;
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
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<Response<Segments>, Error> {
        describe::only_all_repositories(repository)?;
        let mut reservation = self.server.pool().reservation();
        let body = self.read(headers, body, &mut reservation).await?;
        let with_models = repository::unload_dependents(&body)?;
        self.control.unload(model, with_models).await?;
        Ok(with_type(Segments::default(), "application/json"))
    }

    async fn register(
        &self,
        kind: SharedMemoryKind,
        region: &str,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<Response<Segments>, Error> {
        let mut reservation = self.server.pool().reservation();
        let body = self.read(headers, body, &mut reservation).await?;
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
}
