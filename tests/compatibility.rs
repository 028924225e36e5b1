//! `docs/src/compatibility.md` speaks of every call and every route of the protocol and of every flag,
//! and of each in one of a few words. What works is shown by tests, which it names.

use std::{fs, path::Path};

const PAGE: &str = include_str!("../docs/src/compatibility.md");
const PROTOS: [&str; 2] =
    [include_str!("../proto/grpc_service.proto"), include_str!("../proto/health.proto")];
const CONFIG: &str = include_str!("../proto/model_config.proto");
const WORKS: &str = "works";
const WITHOUT_EFFECT: &str = "accepted without effect";
const STATES: [&str; 5] = ["yes", "partly", "later", WORKS, WITHOUT_EFFECT];

/// Triton's routes, as its sources have them.
const ROUTES: [&str; 29] = [
    "GET /v2",
    "GET /v2/health/live",
    "GET /v2/health/ready",
    "GET /v2/models/stats",
    "GET /v2/models/{m}[/versions/{v}]",
    "GET /v2/models/{m}[/versions/{v}]/ready",
    "GET /v2/models/{m}[/versions/{v}]/config",
    "GET /v2/models/{m}[/versions/{v}]/stats",
    "POST /v2/models/{m}[/versions/{v}]/infer",
    "POST /v2/models/{m}[/versions/{v}]/generate",
    "POST /v2/models/{m}[/versions/{v}]/generate_stream",
    "GET, POST /v2/models/{m}/trace/setting",
    "POST /v2/repository[/{repo}]/index",
    "POST /v2/repository[/{repo}]/models/{m}/load",
    "POST /v2/repository[/{repo}]/models/{m}/unload",
    "GET /v2/systemsharedmemory[/region/{r}]/status",
    "POST /v2/systemsharedmemory[/region/{r}]/register",
    "POST /v2/systemsharedmemory[/region/{r}]/unregister",
    "GET /v2/cudasharedmemory[/region/{r}]/status",
    "POST /v2/cudasharedmemory[/region/{r}]/register",
    "POST /v2/cudasharedmemory[/region/{r}]/unregister",
    "GET, POST /v2/trace/setting",
    "GET, POST /v2/logging",
    "GET /metrics",
    "GET /ping",
    "POST /invocations",
    "GET, POST /models",
    "GET, DELETE /models/{m}",
    "POST /models/{m}/invoke",
];

/// tritonserver's flags, as its help lists them.
const FLAGS: [&str; 90] = [
    "id",
    "exit-timeout-secs",
    "log-verbose",
    "log-info",
    "log-warning",
    "log-error",
    "log-format",
    "log-file",
    "model-store",
    "model-repository",
    "exit-on-error",
    "disable-auto-complete-config",
    "strict-readiness",
    "model-control-mode",
    "load-model",
    "model-config-name",
    "model-load-thread-count",
    "model-load-retry-count",
    "model-namespacing",
    "repository-poll-secs",
    "enable-peer-access",
    "allow-http",
    "http-address",
    "http-port",
    "reuse-http-port",
    "http-header-forward-pattern",
    "http-thread-count",
    "http-restricted-api",
    "allow-grpc",
    "grpc-address",
    "grpc-port",
    "reuse-grpc-port",
    "grpc-header-forward-pattern",
    "grpc-infer-allocation-pool-size",
    "grpc-use-ssl",
    "grpc-use-ssl-mutual",
    "grpc-server-cert",
    "grpc-server-key",
    "grpc-root-cert",
    "grpc-infer-response-compression-level",
    "grpc-keepalive-time",
    "grpc-keepalive-timeout",
    "grpc-keepalive-permit-without-calls",
    "grpc-http2-max-pings-without-data",
    "grpc-http2-min-recv-ping-interval-without-data",
    "grpc-http2-max-ping-strikes",
    "grpc-max-connection-age",
    "grpc-max-connection-age-grace",
    "grpc-restricted-protocol",
    "allow-sagemaker",
    "sagemaker-port",
    "sagemaker-safe-port-range",
    "sagemaker-thread-count",
    "allow-vertex-ai",
    "vertex-ai-port",
    "vertex-ai-thread-count",
    "vertex-ai-default-model",
    "allow-metrics",
    "allow-gpu-metrics",
    "allow-cpu-metrics",
    "metrics-address",
    "metrics-port",
    "metrics-interval-ms",
    "metrics-config",
    "trace-config",
    "backend-directory",
    "backend-config",
    "repoagent-directory",
    "cache-config",
    "cache-directory",
    "rate-limit",
    "rate-limit-resource",
    "pinned-memory-pool-byte-size",
    "cuda-memory-pool-byte-size",
    "cuda-virtual-address-size",
    "min-supported-compute-capability",
    "buffer-manager-thread-count",
    "host-policy",
    "model-load-gpu-limit",
    "strict-model-config",
    "response-cache-byte-size",
    "trace-file",
    "trace-level",
    "trace-rate",
    "trace-count",
    "trace-log-frequency",
    "http-max-input-size",
    "allow-client-shm",
    "grpc-infer-thread-count",
    "grpc-max-response-pool-size",
];

/// The rows of the page's tables by their cells: what, how far, a note, the tests that show it.
fn cells() -> impl Iterator<Item = Vec<&'static str>> {
    PAGE.lines()
        .filter_map(|line| line.strip_prefix('|')?.strip_suffix('|'))
        .filter(|row| !row.starts_with("---") && !row.starts_with(" ---"))
        .map(|row| row.split('|').map(str::trim).collect::<Vec<_>>())
        .filter(|cells| cells.get(1) != Some(&"state"))
}

/// The first cell of each row, without its quotes, and the second.
fn rows() -> Vec<(String, &'static str)> {
    cells().filter_map(|cells| Some((cells.first()?.replace('`', ""), *cells.get(1)?))).collect()
}

fn rows_that_lack(wanted: impl IntoIterator<Item = String>) -> Vec<String> {
    let rows = rows();
    wanted.into_iter().filter(|name| !rows.iter().any(|(first, _)| first == name)).collect()
}

#[test]
fn every_call_has_a_row() {
    let calls: Vec<String> = PROTOS
        .iter()
        .flat_map(|proto| proto.lines())
        .filter_map(|line| line.trim().strip_prefix("rpc "))
        .filter_map(|line| Some(line.split('(').next()?.trim().to_owned()))
        .collect();
    assert!(calls.len() > 20, "{calls:?}");
    assert_eq!(rows_that_lack(calls), [""; 0]);
}

#[test]
fn every_route_has_a_row() {
    assert_eq!(rows_that_lack(ROUTES.map(str::to_owned)), [""; 0]);
}

#[test]
fn every_field_of_a_model_configuration_has_a_row() {
    let body = CONFIG.split_once("message ModelConfig {").expect("the message ModelConfig").1;
    let body = body.split("\n}").next().unwrap_or_default();
    let fields: Vec<String> = body
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default().trim())
        .filter_map(|line| line.split_once(" = ")?.0.rsplit(' ').next().map(str::to_owned))
        .collect();
    assert!(fields.contains(&"max_batch_size".to_owned()), "{fields:?}");
    assert_eq!(rows_that_lack(fields), [""; 0]);
}

#[test]
fn every_row_is_in_a_known_state() {
    let rows = rows();
    assert!(rows.len() > 80, "{} rows", rows.len());
    let unknown: Vec<_> =
        rows.iter().filter(|(_, state)| !STATES.contains(state)).map(|(first, _)| first).collect();
    assert_eq!(unknown, [""; 0]);
}

/// The text of all files below these folders that end so.
fn text_of(folders: &[&str], suffix: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut open: Vec<_> = folders.iter().map(|folder| root.join(folder)).collect();
    let mut text = String::new();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.to_string_lossy().ends_with(suffix) {
                text.push_str(&fs::read_to_string(&path).unwrap());
            }
        }
    }
    text
}

#[test]
fn what_works_is_shown_by_tests_that_exist() {
    let clients = text_of(&["tests/clients", "tests/differential"], ".py");
    let recorded = text_of(&["tests/differential"], "triton-2.51.json");
    let rust = text_of(&["src", "tests"], ".rs");
    let exists = |name: &str| {
        if name.contains('/') {
            // A key of the recording, or what several begin with.
            recorded.contains(&format!("\n\"{name}"))
        } else if name.starts_with("test_") {
            clients.contains(&format!("\ndef {name}("))
        } else {
            rust.contains(&format!("fn {name}()"))
        }
    };
    let mut wrong = Vec::new();
    for cells in cells() {
        let [what, state, _, tests] = cells[..] else { panic!("expected 4 cells: {cells:?}") };
        let names: Vec<_> = tests.split(", ").map(|name| name.trim_matches('`')).collect();
        let is_shown = ["yes", "partly", WORKS].contains(&state);
        if is_shown != names.iter().all(|name| !name.is_empty()) {
            wrong.push(format!("{what}: {state}, shown by '{tests}'"));
        } else if is_shown {
            let absent = names.into_iter().filter(|name| !exists(name));
            wrong.extend(absent.map(|name| format!("{what}: there is no test '{name}'")));
        }
    }
    assert_eq!(wrong, [""; 0]);
}

/// The names of all flags that the server takes, other names of them included.
fn flags() -> Vec<String> {
    nereid::cli::command()
        .get_arguments()
        .flat_map(|arg| {
            let others = arg.get_all_aliases().unwrap_or_default();
            arg.get_long().into_iter().chain(others).map(str::to_owned).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn every_flag_of_tritonserver_is_taken() {
    let taken = flags();
    let missing: Vec<_> =
        FLAGS.into_iter().filter(|flag| !taken.iter().any(|it| it == flag)).collect();
    assert_eq!(missing, [""; 0]);
}

#[test]
fn every_flag_has_a_row_that_tells_whether_it_works() {
    let rows = rows();
    let without_effect: Vec<&str> = nereid::cli::flags_without_effect().collect();
    for flag in flags() {
        let row = rows.iter().find(|(first, _)| first.strip_prefix("--") == Some(&flag));
        let expected = match without_effect.contains(&flag.as_str()) {
            true => WITHOUT_EFFECT,
            false => WORKS,
        };
        assert_eq!(row.map(|(_, state)| *state), Some(expected), "--{flag}");
    }
}
