//! The calls that tonic serves.

use std::sync::Arc;

use http::{Request, Response};
use tonic::{Status, body::Body, codec::CompressionEncoding};
use tower_service::Service as _;

use super::{
    reflection::{self, Reflection},
    repository, settings, status,
    tonic_bridge::RequestBody,
};
use crate::{
    inference::Error,
    ingress::{describe, regions, settings as live},
    observe::logging,
    proto::{
        CudaSharedMemoryRegisterRequest, CudaSharedMemoryRegisterResponse,
        CudaSharedMemoryStatusRequest, CudaSharedMemoryStatusResponse,
        CudaSharedMemoryUnregisterRequest, CudaSharedMemoryUnregisterResponse, LogSettingsRequest,
        LogSettingsResponse, ModelConfigRequest, ModelConfigResponse, ModelMetadataRequest,
        ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse, ModelStatisticsRequest,
        ModelStatisticsResponse, RepositoryIndexRequest, RepositoryIndexResponse,
        RepositoryModelLoadRequest, RepositoryModelLoadResponse, RepositoryModelUnloadRequest,
        RepositoryModelUnloadResponse, ServerLiveRequest, ServerLiveResponse,
        ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
        SystemSharedMemoryRegisterRequest, SystemSharedMemoryRegisterResponse,
        SystemSharedMemoryStatusRequest, SystemSharedMemoryStatusResponse,
        SystemSharedMemoryUnregisterRequest, SystemSharedMemoryUnregisterResponse,
        TraceSettingRequest, TraceSettingResponse,
        grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer},
        health::{
            HealthCheckRequest, HealthCheckResponse,
            health_check_response::ServingStatus,
            health_server::{Health, HealthServer},
        },
        reflection::server_reflection_server::ServerReflectionServer,
    },
    serving::{ModelControl, Server},
};

/// All calls but `ModelInfer` and `ModelStreamInfer`.
#[derive(Clone)]
pub struct GrpcService {
    control: Arc<ModelControl>,
    inference: GrpcInferenceServiceServer<Calls>,
    health: HealthServer<Calls>,
    reflection: ServerReflectionServer<Reflection>,
}

impl GrpcService {
    /// Calls that ask this server, in messages of at most `message_max` bytes.
    pub fn new(control: Arc<ModelControl>, message_max: usize) -> Self {
        let server = control.server().clone();
        let calls = Arc::new(Calls { control: control.clone(), server });
        Self {
            control,
            inference: GrpcInferenceServiceServer::from_arc(calls.clone())
                .max_decoding_message_size(message_max)
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
        self.control.server()
    }

    /// Answers a call, or nothing when there is no such service.
    pub(super) async fn call(
        &mut self,
        mut request: Request<RequestBody>,
    ) -> Option<Response<Body>> {
        let path = request.uri().path();
        let answer = match service_of(path) {
            "inference.GRPCInferenceService" => self.inference.call(request).await,
            "grpc.health.v1.Health" => self.health.call(request).await,
            _ if takes_many(path) => {
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

/// Whether a call takes any number of messages; all others take one.
pub(super) fn takes_many(path: &str) -> bool {
    reflection::SERVICES.contains(&service_of(path))
}

fn service_of(path: &str) -> &str {
    let path = path.trim_start_matches('/');
    path.split_once('/').map_or(path, |(service, _)| service)
}

struct Calls {
    control: Arc<ModelControl>,
    server: Arc<Server>,
}

type Answer<T> = Result<tonic::Response<T>, Status>;

fn answer<T>(result: Result<T, Error>) -> Answer<T> {
    result.map(tonic::Response::new).map_err(|error| to_status(&error))
}

/// A failure as tonic says it.
pub(super) fn to_status(error: &Error) -> Status {
    let message = status::shortened(&error.to_string()).into_owned();
    Status::new(tonic::Code::from_i32(status::code(error).into()), message)
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
        answer(Ok(describe::server(&self.server)))
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

    async fn repository_index(
        &self,
        request: tonic::Request<RepositoryIndexRequest>,
    ) -> Answer<RepositoryIndexResponse> {
        let RepositoryIndexRequest { repository_name, ready } = request.into_inner();
        answer(match describe::only_all_repositories(&repository_name) {
            Ok(()) => self.control.index(ready).await.map(|index| describe::index(&index)),
            Err(error) => Err(error),
        })
    }

    async fn repository_model_load(
        &self,
        request: tonic::Request<RepositoryModelLoadRequest>,
    ) -> Answer<RepositoryModelLoadResponse> {
        let request = request.into_inner();
        let name = request.model_name.clone();
        answer(match repository::overrides(request) {
            Ok(overrides) => self.control.load(&name, overrides).await,
            Err(error) => Err(error),
        })
        .map(|_| tonic::Response::new(RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: tonic::Request<RepositoryModelUnloadRequest>,
    ) -> Answer<RepositoryModelUnloadResponse> {
        let request = request.into_inner();
        answer(match repository::unload_dependents(&request) {
            Ok(with_models) => self.control.unload(&request.model_name, with_models).await,
            Err(error) => Err(error),
        })
        .map(|_| tonic::Response::new(RepositoryModelUnloadResponse {}))
    }

    async fn system_shared_memory_status(
        &self,
        request: tonic::Request<SystemSharedMemoryStatusRequest>,
    ) -> Answer<SystemSharedMemoryStatusResponse> {
        answer(regions::status(&self.server, &request.into_inner().name))
    }

    async fn system_shared_memory_register(
        &self,
        request: tonic::Request<SystemSharedMemoryRegisterRequest>,
    ) -> Answer<SystemSharedMemoryRegisterResponse> {
        let registered = regions::register(self.server.regions(), &request.into_inner());
        answer(registered.map(|()| SystemSharedMemoryRegisterResponse {}))
    }

    async fn system_shared_memory_unregister(
        &self,
        request: tonic::Request<SystemSharedMemoryUnregisterRequest>,
    ) -> Answer<SystemSharedMemoryUnregisterResponse> {
        regions::unregister(self.server.regions(), &request.into_inner().name);
        answer(Ok(SystemSharedMemoryUnregisterResponse {}))
    }

    async fn cuda_shared_memory_status(
        &self,
        request: tonic::Request<CudaSharedMemoryStatusRequest>,
    ) -> Answer<CudaSharedMemoryStatusResponse> {
        answer(regions::cuda_status(&self.server, &request.into_inner().name))
    }

    async fn cuda_shared_memory_register(
        &self,
        request: tonic::Request<CudaSharedMemoryRegisterRequest>,
    ) -> Answer<CudaSharedMemoryRegisterResponse> {
        let registered = regions::cuda_register(&self.server, request.into_inner()).await;
        answer(registered.map(|()| CudaSharedMemoryRegisterResponse {}))
    }

    async fn cuda_shared_memory_unregister(
        &self,
        request: tonic::Request<CudaSharedMemoryUnregisterRequest>,
    ) -> Answer<CudaSharedMemoryUnregisterResponse> {
        let regions = self.server.device_regions();
        regions.unregister(self.server.regions(), &request.into_inner().name);
        answer(Ok(CudaSharedMemoryUnregisterResponse {}))
    }

    async fn log_settings(
        &self,
        request: tonic::Request<LogSettingsRequest>,
    ) -> Answer<LogSettingsResponse> {
        answer(settings::log_change(request.get_ref()).map(|change| {
            logging::change(change);
            settings::log_settings(&logging::settings())
        }))
    }

    async fn trace_setting(
        &self,
        request: tonic::Request<TraceSettingRequest>,
    ) -> Answer<TraceSettingResponse> {
        let request = request.get_ref();
        let model = &request.model_name;
        let changed = live::trace(&self.server, model)
            .and_then(|_| settings::trace_change(request))
            .and_then(|change| live::change_trace(&self.server, model, change));
        let file = live::trace_file(self.server.tracer());
        let mode = self.server.tracer().mode();
        answer(changed.map(|told| settings::trace_settings(&told, file, mode)))
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
