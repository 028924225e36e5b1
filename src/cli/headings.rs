//! The groups in which `--help` shows the flags: tritonserver's.

use clap::Command;

/// Groups by the beginnings of their flags' names; the first that fits counts.
const GROUPS: &[(&str, &[&str])] = &[
    (
        "Deprecated",
        &[
            "strict-model-config",
            "response-cache-byte-size",
            "trace-file",
            "trace-level",
            "trace-rate",
            "trace-count",
            "trace-log-frequency",
        ],
    ),
    ("Logging", &["log-"]),
    ("SageMaker", &["allow-sagemaker", "sagemaker-"]),
    ("Vertex AI", &["allow-vertex-ai", "vertex-ai-"]),
    ("Metrics", &["allow-metrics", "allow-gpu-metrics", "allow-cpu-metrics", "metrics-"]),
    ("HTTP", &["allow-http", "http-", "reuse-http-"]),
    ("gRPC", &["allow-grpc", "grpc-", "reuse-grpc-"]),
    ("Ring", &["ring-"]),
    ("Tracing", &["trace-"]),
    ("Back ends", &["backend-"]),
    ("Repository agents", &["repoagent-"]),
    ("Response cache", &["cache-"]),
    ("Rate limiter", &["rate-limit", "rate-limit-"]),
    (
        "Memory and devices",
        &[
            "pinned-memory-",
            "memory-budget-",
            "cuda-",
            "min-supported-",
            "buffer-manager-",
            "host-policy",
            "model-load-gpu-limit",
            "enable-peer-access",
            "device",
            "device-",
            "gpu-kernels",
            "host-device",
            "exit-on-device-loss",
            "timeline-",
            "allow-client-shm",
        ],
    ),
    (
        "Model repository",
        &[
            "model-",
            "load-model",
            "repository-",
            "exit-on-error",
            "strict-readiness",
            "disable-auto-complete-config",
        ],
    ),
    (
        "Server",
        &[
            "id",
            "exit-timeout-secs",
            "shutdown-delay-secs",
            "reactors",
            "pin-threads",
            "io-driver",
            "idle-spin-us",
            "request-pause-max-secs",
        ],
    ),
];

/// Puts each flag of `command` under its group.
pub fn grouped(command: Command) -> Command {
    command.mut_args(|arg| match arg.get_long().and_then(heading) {
        Some(heading) => arg.help_heading(heading),
        None => arg,
    })
}

fn heading(flag: &str) -> Option<&'static str> {
    let of_group = |names: &[&str]| {
        names.iter().any(|name| match name.ends_with('-') {
            true => flag.starts_with(name),
            false => flag == *name,
        })
    };
    GROUPS.iter().find(|(_, names)| of_group(names)).map(|(heading, _)| *heading)
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    #[test]
    fn every_flag_has_a_group() {
        let command = crate::cli::command();
        let shown = command.get_arguments().filter(|flag| !flag.is_hide_set());
        let alone = shown.filter(|flag| flag.get_help_heading().is_none());
        assert_eq!(alone.filter_map(Arg::get_long).collect::<Vec<_>>(), [""; 0]);
    }
}
