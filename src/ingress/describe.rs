//! What the server says of itself and of its models. gRPC sends these messages, HTTP writes them as
//! JSON.

use crate::{
    inference::{Code, Error, Shape, TensorSpec},
    observe::{
        gpu, kept,
        prometheus::{self, ModelMetrics, PoolMetrics},
    },
    proto::{
        MemoryUsage, ModelMetadataResponse, ModelStatisticsResponse, RepositoryIndexResponse,
        ServerMetadataResponse, model_metadata_response::TensorMetadata,
        repository_index_response::ModelIndex,
    },
    serving::{IndexEntry, LoadedVersion, ModelControl, Server, ServerState, VersionState},
};

/// The protocol's extensions that the server offers.
const EXTENSIONS: [&str; 13] = [
    "classification",
    "sequence",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "cuda_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
];

/// Who the server is.
pub fn server(server: &Server) -> ServerMetadataResponse {
    ServerMetadataResponse {
        name: server.name().to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        extensions: EXTENSIONS.map(str::to_owned).to_vec(),
    }
}

/// Whether a model takes requests; an empty version asks for the newest.
///
/// # Errors
/// When the version is no number.
pub fn is_model_ready(server: &Server, model: &str, version: &str) -> Result<bool, Error> {
    match server.version(model, version) {
        Ok(version) => Ok(server.state() == ServerState::Ready && version.is_ready()),
        Err(error) if error.code() == Code::InvalidArgument => Err(error),
        Err(_) => Ok(false),
    }
}

/// The tensors of a model.
///
/// # Errors
/// When there is no such model or version.
pub fn model(server: &Server, model: &str, version: &str) -> Result<ModelMetadataResponse, Error> {
    let asked = server.version(model, version)?;
    let all = match version.is_empty() {
        true => server.versions(model)?,
        false => vec![asked.clone()],
    };
    Ok(metadata(&asked, &all))
}

fn metadata(
    version: &LoadedVersion,
    all: &[std::sync::Arc<LoadedVersion>],
) -> ModelMetadataResponse {
    let batched = version.signature.max_batch_size > 0;
    let tensor = |spec: &TensorSpec| TensorMetadata {
        name: spec.name.to_string(),
        datatype: spec.datatype.protocol_name().to_owned(),
        shape: if batched { spec.dims.with_batch(-1) } else { Shape::clone(&spec.dims) }.to_vec(),
    };
    let platform = match version.config.platform.as_str() {
        "" => version.config.backend.clone(),
        platform => platform.to_owned(),
    };
    ModelMetadataResponse {
        name: version.name.to_string(),
        versions: all.iter().map(|version| version.version.to_string()).collect(),
        platform,
        inputs: version.signature.inputs.iter().map(tensor).collect(),
        outputs: version.signature.outputs.iter().map(tensor).collect(),
    }
}

/// What was counted: of one version, of all versions of a model, or of everything.
///
/// # Errors
/// When there is no such model or version.
pub fn statistics(
    server: &Server,
    model: &str,
    version: &str,
) -> Result<ModelStatisticsResponse, Error> {
    let versions = match (model, version) {
        ("", _) => server.all_versions(),
        (model, "") => server.versions(model).map_err(without_statistics)?,
        (model, version) => vec![server.version(model, version).map_err(without_statistics)?],
    };
    let model_stats = versions
        .iter()
        .map(|version| {
            let mut statistics = version.statistics.to_proto(&version.name, version.version);
            let usage = |byte_size| MemoryUsage { r#type: "CPU".to_owned(), id: 0, byte_size };
            statistics.memory_usage.extend(version.memory_bytes().map(usage));
            statistics
        })
        .collect();
    Ok(ModelStatisticsResponse { model_stats })
}

/// Triton has its own texts for models and versions of which it counts nothing.
fn without_statistics(error: Error) -> Error {
    match error {
        Error::UnknownModel { model } => Error::NoStatisticsOfModel { model },
        Error::UnknownVersion { model, .. } => Error::NoStatisticsOfVersion { model },
        other => other,
    }
}

/// The parameters of a load that are files begin with this.
pub const FILE_PREFIX: &str = "file:";
/// The parameter of an unload that takes the models that depend on it along.
pub const UNLOAD_DEPENDENTS: &str = "unload_dependents";

/// Checks that a call about repositories means all of them.
///
/// # Errors
/// When it names one.
pub fn only_all_repositories(name: &str) -> Result<(), Error> {
    match name {
        "" => Ok(()),
        _ => {
            let detail = "'repository_name' specification is not supported".to_owned();
            Err(Error::Unsupported { detail })
        }
    }
}

/// What is in the repositories.
pub fn index(entries: &[IndexEntry]) -> RepositoryIndexResponse {
    let models = entries.iter().map(|entry| ModelIndex {
        name: entry.name.clone(),
        version: entry.version.map(|version| version.to_string()).unwrap_or_default(),
        state: entry.state.map(VersionState::name).unwrap_or_default().to_owned(),
        reason: entry.reason.clone(),
    });
    RepositoryIndexResponse { models: models.collect() }
}

/// What Prometheus reads.
pub fn metrics(control: &ModelControl) -> String {
    let server = control.server();
    let versions = server.all_versions();
    let models: Vec<_> = versions
        .iter()
        .map(|version| ModelMetrics {
            model: &version.name,
            namespace: &version.namespace,
            version: version.version,
            is_cached: version.is_cached(),
            may_stay: version.keeps_tensors(),
            totals: version.statistics.totals(),
            latencies: version.statistics.latencies(),
            load_seconds: version.load_time.as_secs_f64(),
            tags: version.config.metric_tags.iter().map(|(k, v)| (&**k, &**v)).collect(),
        })
        .collect();
    let pool = server.pool();
    let pool = PoolMetrics { total_bytes: pool.arena_bytes(), used_bytes: pool.used() };
    let mut page = prometheus::render(server.metrics(), &models, pool);
    if let Some(gpus) = server.gpu_metrics() {
        gpus.render(&mut page);
    }
    if server.metrics().gpu {
        let opened = control.loader().backends.opened();
        let told = opened.iter().filter_map(|(name, backend)| {
            Some((name.as_str(), backend.as_ref().ok()?.gpu_stocks()))
        });
        gpu::render_stocks(&mut page, &told.collect::<Vec<_>>());
    }
    if let Some(fleet) = server.fleet() {
        kept::render(&mut page, &fleet.kept());
    }
    server.host().metrics.render(&mut page);
    page
}
