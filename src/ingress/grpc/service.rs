//! The calls that tonic serves.

use std::sync::Arc;

use http::{Request, Response};
use tonic::{Status, body::Body, codec::CompressionEncoding};
use tower_service::Service as _;

use super::{
    reflection::{self, Reflection},
    status,
    tonic_bridge::RequestBody,
};
use crate::{
    inference::Error,
    ingress::describe,
    proto::{
        ModelConfigRequest, ModelConfigResponse, ModelMetadataRequest, ModelMetadataResponse,
        ModelReadyRequest, ModelReadyResponse, ModelStatisticsRequest, ModelStatisticsResponse,
        ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse,
        ServerReadyRequest, ServerReadyResponse,
        grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer},
        health::{
            HealthCheckRequest, HealthCheckResponse,
            health_check_response::ServingStatus,
            health_server::{Health, HealthServer},
        },
        reflection::server_reflection_server::ServerReflectionServer,
    },
    serving::Server,
};

/// All calls but `ModelInfer` and `ModelStreamInfer`.
#[derive(Clone)]
pub struct GrpcService {
    server: Arc<Server>,
    inference: GrpcInferenceServiceServer<Calls>,
    health: HealthServer<Calls>,
    reflection: ServerReflectionServer<Reflection>,
}

impl GrpcService {
    /// Calls that ask this server.
    pub fn new(server: Arc<Server>) -> Self {
        let calls = Arc::new(Calls { server: server.clone() });
        Self {
            server,
            inference: GrpcInferenceServiceServer::from_arc(calls.clone())
                .accept_compressed(CompressionEncoding::Gzip)
                .accept_compressed(CompressionEncoding::Deflate),
            health: HealthServer::from_arc(calls)
                .accept_compressed(CompressionEncoding::Gzip)
                .accept_compressed(CompressionEncoding::Deflate),
            reflection: ServerReflectionServer::new(Reflection::new()),
        }
    }

    /// The server that is asked.
    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// Answers a call, or nothing when there is no such service.
    pub(super) async fn call(
        &mut self,
        mut request: Request<RequestBody>,
    ) -> Option<Response<Body>> {
        let service = request.uri().path().trim_start_matches('/').split('/').next();
        let answer = match service {
            Some("inference.GRPCInferenceService") => self.inference.call(request).await,
            Some("grpc.health.v1.Health") => self.health.call(request).await,
            Some(service) if reflection::SERVICES.contains(&service) => {
                *request.uri_mut() =
                    request.uri().path().replace(".v1alpha.", ".v1.").parse().ok()?;
                self.reflection.call(request).await
            }
            _ => return None,
        };
        match answer {
            Ok(response) => Some(response),
            Err(never) => match never {},
        }
    }
}

struct Calls {
    server: Arc<Server>,
}

type Answer<T> = Result<tonic::Response<T>, Status>;

fn answer<T>(result: Result<T, Error>) -> Answer<T> {
    result.map(tonic::Response::new).map_err(|error| {
        Status::new(tonic::Code::from_i32(status::code(&error).into()), error.to_string())
    })
}

#[tonic::async_trait]
impl GrpcInferenceService for Calls {
    async fn server_live(
        &self,
        _: tonic::Request<ServerLiveRequest>,
    ) -> Answer<ServerLiveResponse> {
        answer(Ok(ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: tonic::Request<ServerReadyRequest>,
    ) -> Answer<ServerReadyResponse> {
        answer(Ok(ServerReadyResponse { ready: self.server.is_ready() }))
    }

    async fn model_ready(
        &self,
        request: tonic::Request<ModelReadyRequest>,
    ) -> Answer<ModelReadyResponse> {
        let ModelReadyRequest { name, version } = request.into_inner();
        let ready = describe::is_model_ready(&self.server, &name, &version);
        answer(ready.map(|ready| ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: tonic::Request<ServerMetadataRequest>,
    ) -> Answer<ServerMetadataResponse> {
        answer(Ok(describe::server()))
    }

    async fn model_metadata(
        &self,
        request: tonic::Request<ModelMetadataRequest>,
    ) -> Answer<ModelMetadataResponse> {
        let ModelMetadataRequest { name, version } = request.into_inner();
        answer(describe::model(&self.server, &name, &version))
    }

    async fn model_config(
        &self,
        request: tonic::Request<ModelConfigRequest>,
    ) -> Answer<ModelConfigResponse> {
        let ModelConfigRequest { name, version } = request.into_inner();
        let version = self.server.version(&name, &version);
        answer(
            version.map(|version| ModelConfigResponse {
                config: Some(version.config.as_ref().clone()),
            }),
        )
    }

    async fn model_statistics(
        &self,
        request: tonic::Request<ModelStatisticsRequest>,
    ) -> Answer<ModelStatisticsResponse> {
        let ModelStatisticsRequest { name, version } = request.into_inner();
        answer(describe::statistics(&self.server, &name, &version))
    }
}

#[tonic::async_trait]
impl Health for Calls {
    async fn check(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Answer<HealthCheckResponse> {
        const SERVICES: [&str; 2] = ["", "inference.GRPCInferenceService"];
        let service = request.into_inner().service;
        if !SERVICES.contains(&service.as_str()) {
            return Err(Status::not_found(format!("unknown service '{service}'")));
        }
        let status = match self.server.is_ready() {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        };
        answer(Ok(HealthCheckResponse { status: status.into() }))
    }
}
