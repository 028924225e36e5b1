use std::{future::Future, net::TcpStream, sync::mpsc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use prost::Message;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::{
    BenchError,
    args::{BenchArgs, Protocol},
    client::{self, Failure, GrpcConnection, HttpConnection},
    model::{Configuration, Metadata, Model},
    payload::model_path,
    statistics::{ServerStatistics, StatisticsAnswer},
};
use crate::{
    proto::{
        CudaSharedMemoryRegisterRequest, CudaSharedMemoryRegisterResponse,
        CudaSharedMemoryUnregisterRequest, CudaSharedMemoryUnregisterResponse, ModelConfigRequest,
        ModelConfigResponse, ModelMetadataRequest, ModelMetadataResponse, ModelStatisticsRequest,
        ModelStatisticsResponse, SystemSharedMemoryRegisterRequest,
        SystemSharedMemoryRegisterResponse, SystemSharedMemoryUnregisterRequest,
        SystemSharedMemoryUnregisterResponse,
    },
    runtime::{self, ReactorHandle},
};

const PATIENCE: Duration = Duration::from_secs(10);

/// Memory of this process that the server is to map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registration {
    /// A POSIX shared-memory object.
    System {
        /// Its name.
        key: String,
    },
    /// Memory of a GPU.
    Cuda {
        /// CUDA's handle of it.
        handle: [u8; 64],
        /// The GPU.
        device: i64,
    },
}

impl Registration {
    fn path(&self, name: &str, action: &str) -> String {
        let kind = match self {
            Self::System { .. } => "system",
            Self::Cuda { .. } => "cuda",
        };
        format!("/v2/{kind}sharedmemory/region/{name}/{action}")
    }
}

/// Asks the server about the model, blocking, over a connection for each question.
pub struct Control {
    reactor: ReactorHandle,
    protocol: Protocol,
    authority: String,
    model: String,
    version: String,
}

impl Control {
    /// Asks on this reactor.
    pub fn new(reactor: ReactorHandle, args: &BenchArgs) -> Self {
        Self {
            reactor,
            protocol: args.protocol(),
            authority: args.authority(),
            model: args.model_name.clone(),
            version: args.model_version.clone(),
        }
    }

    /// What the server says of the model.
    ///
    /// # Errors
    /// When it does not know the model or does not answer.
    pub fn model(&self) -> Result<Model, BenchError> {
        let (name, version) = (self.model.clone(), self.version.clone());
        let metadata = match self.protocol {
            Protocol::Grpc | Protocol::Ring => {
                let request = ModelMetadataRequest { name, version };
                self.call::<ModelMetadataResponse>("ModelMetadata", &request).map(Metadata::from)
            }
            Protocol::Http => self.fetch(""),
        };
        let metadata = metadata.map_err(|detail| self.error("metadata", detail))?;
        let configuration = self.configuration().unwrap_or_else(|detail| {
            // Servers of the bare v2 protocol have no configurations.
            let error = self.error("configuration", detail);
            log::warn!("{error}; its inputs are taken to have no batch dimension");
            Configuration::default()
        });
        Model::new(&self.model, &self.version, metadata, &configuration)
    }

    fn configuration(&self) -> Result<Configuration, String> {
        let (name, version) = (self.model.clone(), self.version.clone());
        match self.protocol {
            Protocol::Grpc | Protocol::Ring => {
                let request = ModelConfigRequest { name, version };
                let answer = self.call::<ModelConfigResponse>("ModelConfig", &request)?;
                Ok(answer.config.unwrap_or_default().into())
            }
            Protocol::Http => self.fetch("/config"),
        }
    }

    /// What the server has counted for the model.
    ///
    /// # Errors
    /// When it does not tell.
    pub fn statistics(&self) -> Result<ServerStatistics, BenchError> {
        let (name, version) = (self.model.clone(), self.version.clone());
        let statistics = match self.protocol {
            Protocol::Grpc | Protocol::Ring => {
                let request = ModelStatisticsRequest { name, version };
                self.call::<ModelStatisticsResponse>("ModelStatistics", &request)
                    .map(ServerStatistics::from)
            }
            Protocol::Http => self.fetch::<StatisticsAnswer>("/stats").map(ServerStatistics::from),
        };
        statistics.map_err(|detail| self.error("statistics", detail))
    }

    /// Has the server map memory of this process under `name`.
    ///
    /// # Errors
    /// When it refuses.
    pub fn register(
        &self,
        name: &str,
        registration: &Registration,
        byte_size: usize,
    ) -> Result<(), BenchError> {
        let (region, byte_size) = (name.to_owned(), byte_size as u64);
        let registered = match (self.protocol, registration) {
            (Protocol::Http, registration) => {
                let body = match registration {
                    Registration::System { key } => {
                        json!({"key": key, "offset": 0, "byte_size": byte_size})
                    }
                    Registration::Cuda { handle, device } => json!({
                        "raw_handle": {"b64": BASE64_STANDARD.encode(handle)},
                        "device_id": device,
                        "byte_size": byte_size,
                    }),
                };
                self.post(&registration.path(name, "register"), &body.to_string())
            }
            (_, Registration::System { key }) => {
                let (name, key) = (region, key.clone());
                let request = SystemSharedMemoryRegisterRequest { name, key, offset: 0, byte_size };
                self.call::<SystemSharedMemoryRegisterResponse>(
                    "SystemSharedMemoryRegister",
                    &request,
                )
                .map(drop)
            }
            (_, Registration::Cuda { handle, device }) => {
                let request = CudaSharedMemoryRegisterRequest {
                    name: region,
                    raw_handle: handle.to_vec().into(),
                    device_id: *device,
                    byte_size,
                };
                self.call::<CudaSharedMemoryRegisterResponse>("CudaSharedMemoryRegister", &request)
                    .map(drop)
            }
        };
        registered.map_err(|detail| BenchError::SharedMemory { detail })
    }

    /// Has the server forget what was registered under `name`.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn unregister(&self, name: &str, registration: &Registration) -> Result<(), BenchError> {
        let region = name.to_owned();
        let forgotten = match (self.protocol, registration) {
            (Protocol::Http, registration) => self.post(&registration.path(name, "unregister"), ""),
            (_, Registration::System { .. }) => {
                let request = SystemSharedMemoryUnregisterRequest { name: region };
                let method = "SystemSharedMemoryUnregister";
                self.call::<SystemSharedMemoryUnregisterResponse>(method, &request).map(drop)
            }
            (_, Registration::Cuda { .. }) => {
                let request = CudaSharedMemoryUnregisterRequest { name: region };
                let method = "CudaSharedMemoryUnregister";
                self.call::<CudaSharedMemoryUnregisterResponse>(method, &request).map(drop)
            }
        };
        forgotten.map_err(|detail| BenchError::SharedMemory { detail })
    }

    fn error(&self, what: &'static str, detail: String) -> BenchError {
        let (model, authority) = (self.model.clone(), self.authority.clone());
        BenchError::Query { what, model, authority, detail }
    }

    fn call<T: Message + Default>(
        &self,
        method: &'static str,
        request: &impl Message,
    ) -> Result<T, String> {
        let (message, authority) = (request.encode_to_vec(), self.authority.clone());
        let answer = self.ask(async move |socket| {
            GrpcConnection::open(socket, &authority).await?.call(method, &message).await
        })?;
        T::decode(answer).map_err(|error| error.to_string())
    }

    fn fetch<T: DeserializeOwned>(&self, below: &str) -> Result<T, String> {
        let path = model_path(&self.model, &self.version);
        let request = format!("GET {path}{below} HTTP/1.1\r\nHost: {}\r\n\r\n", self.authority);
        serde_json::from_slice(&self.exchange(request)?).map_err(|error| error.to_string())
    }

    fn post(&self, path: &str, body: &str) -> Result<(), String> {
        let (authority, length) = (&self.authority, body.len());
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {authority}\r\nContent-Length: {length}\r\n\r\n"
        );
        self.exchange(head + body).map(drop)
    }

    fn exchange(&self, request: String) -> Result<Bytes, String> {
        self.ask(async move |socket| {
            let mut connection = HttpConnection::new(socket)?;
            let answer = connection.exchange(request.as_bytes()).await?;
            answer.json().map(Bytes::copy_from_slice)
        })
    }

    fn ask<F, A>(&self, question: F) -> Result<Bytes, String>
    where
        F: FnOnce(TcpStream) -> A + Send + 'static,
        A: Future<Output = Result<Bytes, Failure>> + 'static,
    {
        let socket = client::connect(&self.authority).map_err(|error| error.to_string())?;
        let (report, reported) = mpsc::channel();
        let asking = move || {
            runtime::spawn(&"a question to the server", async move {
                let answer = question(socket).await;
                // Nobody listens any more when the answer took too long.
                let _ = report.send(answer.map_err(|failure| failure.message().to_owned()));
            });
        };
        self.reactor.send(Box::new(asking)).map_err(|closed| format!("{closed:?}"))?;
        reported
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| Err(format!("there was no answer within {PATIENCE:?}")))
    }
}
