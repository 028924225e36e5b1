//! What the log says when the server starts.

use super::args::ServeArgs;
use crate::{
    cli::table,
    device::kernels,
    observe::logging,
    runtime::Listener,
    serving::{Backends, ModelStatus, Server},
};

/// In tritonserver's words, which scripts look for.
pub fn log_listeners(listeners: &[(&'static str, Listener)]) {
    for (what, listener) in listeners {
        let service = match *what {
            "gRPC" => "GRPCInferenceService",
            "HTTP" => "HTTPService",
            "metrics" => "Metrics Service",
            "SageMaker" => "Sagemaker HTTPService",
            "Vertex AI" => "Vertex AI HTTPService",
            other => other,
        };
        match listener.address() {
            Ok(address) => log::info!("Started {service} at {address}"),
            Err(error) => log::warn!("Started {service} at an address unknown: {error}"),
        }
    }
}

pub fn log_backends(backends: &Backends) {
    let rows: Vec<_> = backends
        .opened()
        .into_iter()
        .map(|(name, opened)| match opened {
            Ok(backend) => [name, backend.version(), "OK".to_owned()],
            Err(reason) => [name, "-".to_owned(), reason.to_string()],
        })
        .collect();
    log::info!(target: logging::TABLE, "{}", table::frame(["Backend", "Version", "Status"], &rows));
}

pub fn log_models(models: &[ModelStatus]) {
    let rows: Vec<_> = models
        .iter()
        .map(|model| {
            let version = model.version.map_or("-".to_owned(), |version| version.to_string());
            let status = match &model.outcome {
                Ok(()) => "READY".to_owned(),
                Err(reason) => format!("UNAVAILABLE: {reason}"),
            };
            [model.name.clone(), version, status]
        })
        .collect();
    log::info!(target: logging::TABLE, "{}", table::frame(["Model", "Version", "Status"], &rows));
}

pub fn log_options(args: &ServeArgs, server: &Server) {
    let repositories: Vec<_> =
        args.model_repository.iter().map(|path| path.display().to_string()).collect();
    let drivers = server.reactors().first().map(|reactor| reactor.driver().to_string());
    let rows = [
        ("server_version", env!("CARGO_PKG_VERSION").to_owned()),
        ("model_repository_path", repositories.join(", ")),
        ("model_control_mode", args.model_control_mode.clone()),
        ("model_namespacing", args.model_namespacing.to_string()),
        ("strict_readiness", args.strict_readiness.to_string()),
        ("reactors", server.reactors().len().to_string()),
        ("io_driver", drivers.unwrap_or_default()),
        ("pinned_memory_pool_byte_size", args.memory().0.to_string()),
        ("memory_budget_byte_size", args.memory().1.to_string()),
        ("gpu_kernels", gpu_kernels()),
        ("exit_timeout", args.exit_timeout_secs.to_string()),
    ];
    let rows = rows.map(|(option, value)| [option.to_owned(), value]);
    log::info!(target: logging::TABLE, "{}", table::frame(["Option", "Value"], &rows));
}

/// What of our kernels a GPU could run.
fn gpu_kernels() -> String {
    match kernels::IMAGE {
        Some(_) => format!("sm_80, sm_90, sm_100, PTX ({})", kernels::COMPILED_BY),
        None => format!("none ({})", kernels::COMPILED_BY),
    }
}
