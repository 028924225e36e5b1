//! `docs/src/compatibility.md` speaks of every call and every route of the protocol, and of each in
//! one of three words.

const PAGE: &str = include_str!("../docs/src/compatibility.md");
const PROTOS: [&str; 2] =
    [include_str!("../proto/grpc_service.proto"), include_str!("../proto/health.proto")];
const CONFIG: &str = include_str!("../proto/model_config.proto");
const STATES: [&str; 3] = ["yes", "partly", "later"];

/// Triton's routes, as its sources have them.
const ROUTES: [&str; 26] = [
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
];

/// The rows of the page's tables: the first cell, without its quotes, and the second.
fn rows() -> Vec<(String, &'static str)> {
    PAGE.lines()
        .filter_map(|line| line.strip_prefix('|')?.strip_suffix('|'))
        .filter(|row| !row.starts_with("---") && !row.starts_with(" ---"))
        .filter_map(|row| {
            let mut cells = row.split('|').map(str::trim);
            Some((cells.next()?.replace('`', ""), cells.next()?))
        })
        .filter(|(_, state)| *state != "state")
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
