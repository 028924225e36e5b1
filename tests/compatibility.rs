//! `docs/src/compatibility.md` speaks of every call and every route of the protocol and of every flag,
//! and of each in one of a few words. What works is shown by tests, which it names.

use std::{collections::BTreeMap, fs, path::Path};

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

/// The flags of tritonserver 2.51 and the forms of their values, a line each, as its help lists them.
const RECORDED_FLAGS: &str = include_str!("differential/triton-2.51-flags.txt");
/// Those that came after it, as the sources of 2.73 have them.
const NEWER_FLAGS: [(&str, &str); 4] = [
    ("http-max-input-size", "integer"),
    ("allow-client-shm", "boolean"),
    ("grpc-infer-thread-count", "integer"),
    ("grpc-max-response-pool-size", "integer"),
];

/// tritonserver's flags, each with the form of its value; a switch without one has none.
fn tritons_flags() -> impl Iterator<Item = (&'static str, &'static str)> {
    let recorded = RECORDED_FLAGS.lines().map(|line| line.split_once(' ').unwrap_or((line, "")));
    recorded.filter(|(name, _)| *name != "help").chain(NEWER_FLAGS)
}

/// The rows of the page's tables by their cells: what, how far, a note, the tests that show it.
fn cells() -> impl Iterator<Item = Vec<&'static str>> {
    PAGE.lines()
        .filter_map(|line| line.strip_prefix('|')?.strip_suffix('|'))
        .filter(|row| !row.starts_with("---") && !row.starts_with(" ---"))
        .map(|row| row.split('|').map(str::trim).collect::<Vec<_>>())
        .filter(|cells| cells.get(1) != Some(&"state"))
}

/// The first cell of each row, without its quotes, and the second; of a row of several fields, each.
fn rows() -> Vec<(String, &'static str)> {
    let named = cells().filter_map(|cells| Some((cells.first()?.replace('`', ""), *cells.get(1)?)));
    named
        .flat_map(|(first, state)| {
            let fields: Vec<_> = first.split(", ").map(|field| (field.to_owned(), state)).collect();
            let are_fields = fields.len() > 1 && fields.iter().all(|(it, _)| it.contains('.'));
            if are_fields { fields } else { vec![(first, state)] }
        })
        .collect()
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

/// The messages of a model's configuration: of each its fields, by name and type.
fn messages() -> BTreeMap<&'static str, Vec<(&'static str, &'static str)>> {
    let mut messages: BTreeMap<_, Vec<_>> = BTreeMap::new();
    // What is open: a message by its name, anything else by none. A oneof is a part of its message.
    let mut open: Vec<Option<&str>> = Vec::new();
    for line in CONFIG.lines() {
        let line = line.split("//").next().unwrap_or_default().trim();
        let words: Vec<_> = line.split_whitespace().collect();
        match (words.as_slice(), open.last().copied().flatten()) {
            (["message", name, ..], _) => {
                messages.entry(*name).or_default();
                open.push(Some(*name));
            }
            (["oneof", ..], message) => open.push(message),
            _ if line.ends_with('{') => open.push(None),
            (["}", ..], _) => drop(open.pop()),
            ([.., kind, name, "=", _], Some(message)) => {
                messages.entry(message).or_default().push((*name, kind.trim_end_matches('>')));
            }
            _ => {}
        }
    }
    messages
}

#[test]
fn every_field_of_a_model_configuration_has_a_row() {
    let messages = messages();
    let config = &messages["ModelConfig"];
    let fields: Vec<String> = config.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert!(fields.contains(&"max_batch_size".to_owned()), "{fields:?}");
    assert_eq!(rows_that_lack(fields), [""; 0]);
    // What has several fields of its own has rows of theirs too.
    let parts: Vec<String> = config
        .iter()
        .filter_map(|(name, kind)| Some((name, messages.get(kind.rsplit('.').next()?)?)))
        .filter(|(_, parts)| parts.len() > 1)
        .flat_map(|(name, parts)| parts.iter().map(move |(part, _)| format!("{name}.{part}")))
        .collect();
    assert!(parts.contains(&"batch_input.kind".to_owned()), "{parts:?}");
    assert!(parts.contains(&"sequence_batching.direct".to_owned()), "{parts:?}");
    assert_eq!(rows_that_lack(parts), [""; 0]);
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

/// A value that the flag may have: of its form, or what its own rules let through.
fn value(name: &str, form: &str) -> &'static str {
    match name {
        "log-format" => "ISO8601",
        "model-control-mode" => "explicit",
        "rate-limit" => "off",
        "trace-level" => "OFF",
        "grpc-infer-response-compression-level" => "none",
        "http-restricted-api" | "grpc-restricted-protocol" => "health:key=value",
        "metrics-config" => "counter_latencies=true",
        "trace-config" => "triton,file=trace.json",
        "backend-config" => "onnxruntime,default-max-batch-size=4",
        "cache-config" => "local,size=1048576",
        "rate-limit-resource" => "R:1:0",
        "host-policy" => "cpu,cpu-cores=0-0",
        _ => match form {
            "integer" => "1",
            "float" => "7.5",
            "boolean" => "true",
            "string" => "text",
            "<integer>-<integer>" => "1-2",
            "<integer>:<integer>" => "0:1",
            "<device_id>:<fraction>" => "0:0.5",
            other => panic!("--{name}: no value is known of the form '{other}'"),
        },
    }
}

#[test]
fn every_flag_of_tritonserver_is_taken() {
    let mut names = Vec::new();
    for (name, form) in tritons_flags() {
        let flag = match form {
            "" => format!("--{name}"),
            _ => format!("--{name}={}", value(name, form)),
        };
        let line = ["nereid", "--model-repository=models", &flag];
        if let Err(error) = nereid::cli::command().try_get_matches_from(line) {
            panic!("{flag} is not taken: {error}");
        }
        names.push(name);
    }
    assert!(names.len() == 90 && names.contains(&"id") && names.contains(&"trace-log-frequency"));
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
