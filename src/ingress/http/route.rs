//! Which call a method and a path mean.
//!
//! The paths are Triton's: nothing may follow them, not even a slash, and a version is digits. Names
//! in a path may be percent-encoded, as `tritonclient` sends them.

use std::borrow::Cow;

use http::{Method, StatusCode};
use percent_encoding::percent_decode_str;

use crate::ingress::restricted::ApiGroup;

/// A call.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Route<'a> {
    ServerMetadata,
    ServerLive,
    ServerReady,
    /// The statistics of all models.
    AllStatistics,
    ModelMetadata(Model<'a>),
    ModelReady(Model<'a>),
    ModelConfig(Model<'a>),
    ModelStatistics(Model<'a>),
    Infer(Model<'a>),
    Generate(Model<'a>),
    GenerateStream(Model<'a>),
    RepositoryIndex {
        /// Empty for all repositories.
        repository: Cow<'a, str>,
    },
    RepositoryLoad {
        /// Empty for any repository.
        repository: Cow<'a, str>,
        model: Cow<'a, str>,
    },
    RepositoryUnload {
        /// Empty for any repository.
        repository: Cow<'a, str>,
        model: Cow<'a, str>,
    },
    SharedMemory {
        kind: SharedMemoryKind,
        action: SharedMemoryAction,
        /// Empty for all regions.
        region: Cow<'a, str>,
    },
    /// The trace settings of a model, or of the server if there is no name.
    Trace {
        model: Option<Cow<'a, str>>,
        access: Access,
    },
    Logging(Access),
}

impl Route<'_> {
    /// The group by which the call can be restricted.
    pub fn group(&self) -> ApiGroup {
        match self {
            Self::ServerLive | Self::ServerReady | Self::ModelReady(_) => ApiGroup::Health,
            Self::ServerMetadata | Self::ModelMetadata(_) => ApiGroup::Metadata,
            Self::Infer(_) | Self::Generate(_) | Self::GenerateStream(_) => ApiGroup::Inference,
            Self::SharedMemory { .. } => ApiGroup::SharedMemory,
            Self::ModelConfig(_) => ApiGroup::ModelConfig,
            Self::RepositoryIndex { .. }
            | Self::RepositoryLoad { .. }
            | Self::RepositoryUnload { .. } => ApiGroup::ModelRepository,
            Self::AllStatistics | Self::ModelStatistics(_) => ApiGroup::Statistics,
            Self::Trace { .. } => ApiGroup::Trace,
            Self::Logging(_) => ApiGroup::Logging,
        }
    }
}

/// The model that a call is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model<'a> {
    /// Its name.
    pub name: Cow<'a, str>,
    /// The version, in digits; empty leaves the choice to the server.
    pub version: &'a str,
}

/// Whose shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SharedMemoryKind {
    System,
    Cuda,
}

/// What to do with a region of shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SharedMemoryAction {
    Status,
    Register,
    Unregister,
}

/// Whether settings are asked for or changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Access {
    Read,
    Write,
}

/// Why there is no call; the message is the answer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The path means nothing.
    #[error("Not Found")]
    NotFound,
    /// The path means something, but not with this method.
    #[error("Method Not Allowed")]
    MethodNotAllowed {
        /// The value for the header `Allow`.
        allow: &'static str,
    },
}

impl RouteError {
    /// The answer's status.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
        }
    }
}

/// Finds the call for a method and a path, which is without its query.
///
/// # Errors
/// When there is none.
pub fn route<'a>(method: &Method, path: &'a str) -> Result<Route<'a>, RouteError> {
    let mut rest = Some(path.strip_prefix('/').ok_or(RouteError::NotFound)?);
    // No path has more: `v2/repository/{repository}/models/{model}/load` and
    // `v2/models/{model}/versions/{version}/trace/setting` come close.
    const SEGMENTS_MAX: usize = 8;
    let mut buffer = [""; SEGMENTS_MAX];
    let mut count = 0;
    while let Some(path) = rest {
        // Segments are too short for what `split` does to find their ends.
        let end = path.bytes().position(|byte| byte == b'/').unwrap_or(path.len());
        let (segment, behind) = path.split_at(end);
        *buffer.get_mut(count).ok_or(RouteError::NotFound)? = segment;
        count += 1;
        rest = behind.get(1..);
    }
    match buffer.get(..count).unwrap_or_default() {
        ["v2"] => get(method, Route::ServerMetadata),
        ["v2", "health", "live"] => get(method, Route::ServerLive),
        ["v2", "health", "ready"] => get(method, Route::ServerReady),
        ["v2", "models", "stats"] => get(method, Route::AllStatistics),
        ["v2", "logging"] => access(method).map(Route::Logging),
        ["v2", "trace", "setting"] => Ok(Route::Trace { model: None, access: access(method)? }),
        ["v2", "models", model, "trace", "setting"] => {
            let model = Some(name(model)?);
            Ok(Route::Trace { model, access: access(method)? })
        }
        ["v2", "models", model, "versions", version, call @ ..] if is_version(version) => {
            model_route(method, model, version, call)
        }
        ["v2", "models", model, call @ ..] => model_route(method, model, "", call),
        ["v2", "repository", rest @ ..] => repository_route(method, rest),
        ["v2", "systemsharedmemory", rest @ ..] => {
            shared_memory_route(method, SharedMemoryKind::System, rest)
        }
        ["v2", "cudasharedmemory", rest @ ..] => {
            shared_memory_route(method, SharedMemoryKind::Cuda, rest)
        }
        _ => Err(RouteError::NotFound),
    }
}

fn model_route<'a>(
    method: &Method,
    model: &'a str,
    version: &'a str,
    call: &[&str],
) -> Result<Route<'a>, RouteError> {
    let model = Model { name: name(model)?, version };
    match call {
        [] => get(method, Route::ModelMetadata(model)),
        ["ready"] => get(method, Route::ModelReady(model)),
        ["config"] => get(method, Route::ModelConfig(model)),
        ["stats"] => get(method, Route::ModelStatistics(model)),
        ["infer"] => post(method, Route::Infer(model)),
        ["generate"] => post(method, Route::Generate(model)),
        ["generate_stream"] => post(method, Route::GenerateStream(model)),
        _ => Err(RouteError::NotFound),
    }
}

fn repository_route<'a>(method: &Method, rest: &[&'a str]) -> Result<Route<'a>, RouteError> {
    let (repository, rest) = match rest {
        ["index"] | ["models", _, "load" | "unload"] => (Cow::Borrowed(""), rest),
        [repository, rest @ ..] => (name(repository)?, rest),
        [] => return Err(RouteError::NotFound),
    };
    match rest {
        ["index"] => post(method, Route::RepositoryIndex { repository }),
        ["models", model, "load"] => {
            post(method, Route::RepositoryLoad { repository, model: name(model)? })
        }
        ["models", model, "unload"] => {
            post(method, Route::RepositoryUnload { repository, model: name(model)? })
        }
        _ => Err(RouteError::NotFound),
    }
}

fn shared_memory_route<'a>(
    method: &Method,
    kind: SharedMemoryKind,
    rest: &[&'a str],
) -> Result<Route<'a>, RouteError> {
    let (region, action) = match rest {
        ["region", region, action] => (name(region)?, *action),
        [action] => (Cow::Borrowed(""), *action),
        _ => return Err(RouteError::NotFound),
    };
    let call = |action| Route::SharedMemory { kind, action, region: region.clone() };
    match action {
        "status" => get(method, call(SharedMemoryAction::Status)),
        "register" => post(method, call(SharedMemoryAction::Register)),
        "unregister" => post(method, call(SharedMemoryAction::Unregister)),
        _ => Err(RouteError::NotFound),
    }
}

fn get<'a>(method: &Method, route: Route<'a>) -> Result<Route<'a>, RouteError> {
    match *method {
        Method::GET => Ok(route),
        _ => Err(RouteError::MethodNotAllowed { allow: "GET" }),
    }
}

fn post<'a>(method: &Method, route: Route<'a>) -> Result<Route<'a>, RouteError> {
    match *method {
        Method::POST => Ok(route),
        _ => Err(RouteError::MethodNotAllowed { allow: "POST" }),
    }
}

fn access(method: &Method) -> Result<Access, RouteError> {
    match *method {
        Method::GET => Ok(Access::Read),
        Method::POST => Ok(Access::Write),
        _ => Err(RouteError::MethodNotAllowed { allow: "GET, POST" }),
    }
}

/// The name that a segment encodes; an escape that is none stands for itself.
fn name(segment: &str) -> Result<Cow<'_, str>, RouteError> {
    if segment.is_empty() {
        return Err(RouteError::NotFound);
    }
    percent_decode_str(segment).decode_utf8().map_err(|_| RouteError::NotFound)
}

fn is_version(segment: &str) -> bool {
    !segment.is_empty() && segment.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn model<'a>(name: &'a str, version: &'a str) -> Model<'a> {
        Model { name: name.into(), version }
    }

    fn shared_memory(
        kind: SharedMemoryKind,
        action: SharedMemoryAction,
        region: &str,
    ) -> Route<'_> {
        Route::SharedMemory { kind, action, region: region.into() }
    }

    #[test]
    fn every_path_of_the_protocol_leads_to_its_call() {
        use SharedMemoryAction::{Register, Status, Unregister};
        use SharedMemoryKind::{Cuda, System};
        let get = Method::GET;
        let post = Method::POST;
        let repository = |name: &'static str| Cow::Borrowed(name);
        for (method, path, expected) in [
            (&get, "/v2", Route::ServerMetadata),
            (&get, "/v2/health/live", Route::ServerLive),
            (&get, "/v2/health/ready", Route::ServerReady),
            (&get, "/v2/models/stats", Route::AllStatistics),
            (&get, "/v2/models/m", Route::ModelMetadata(model("m", ""))),
            (&get, "/v2/models/m/versions/3", Route::ModelMetadata(model("m", "3"))),
            (&get, "/v2/models/versions", Route::ModelMetadata(model("versions", ""))),
            (&get, "/v2/models/m/ready", Route::ModelReady(model("m", ""))),
            (&get, "/v2/models/m/versions/12/ready", Route::ModelReady(model("m", "12"))),
            (&get, "/v2/models/m/config", Route::ModelConfig(model("m", ""))),
            (&get, "/v2/models/m/versions/1/config", Route::ModelConfig(model("m", "1"))),
            (&get, "/v2/models/m/stats", Route::ModelStatistics(model("m", ""))),
            (&get, "/v2/models/stats/stats", Route::ModelStatistics(model("stats", ""))),
            (&get, "/v2/models/m/versions/1/stats", Route::ModelStatistics(model("m", "1"))),
            (&post, "/v2/models/m/infer", Route::Infer(model("m", ""))),
            (&post, "/v2/models/m/versions/1/infer", Route::Infer(model("m", "1"))),
            (&post, "/v2/models/infer/infer", Route::Infer(model("infer", ""))),
            (&post, "/v2/models/m/generate", Route::Generate(model("m", ""))),
            (&post, "/v2/models/m/versions/1/generate", Route::Generate(model("m", "1"))),
            (&post, "/v2/models/m/generate_stream", Route::GenerateStream(model("m", ""))),
            (&post, "/v2/models/my%20m%2Fodel/infer", Route::Infer(model("my m/odel", ""))),
            (&post, "/v2/models/%C3%BC+%zz/infer", Route::Infer(model("ü+%zz", ""))),
            (&post, "/v2/models/a.b-c_d:e/infer", Route::Infer(model("a.b-c_d:e", ""))),
            (&post, "/v2/repository/index", Route::RepositoryIndex { repository: repository("") }),
            (
                &post,
                "/v2/repository/r/index",
                Route::RepositoryIndex { repository: repository("r") },
            ),
            (
                &post,
                "/v2/repository/models/m/load",
                Route::RepositoryLoad { repository: repository(""), model: "m".into() },
            ),
            (
                &post,
                "/v2/repository/r/models/m/load",
                Route::RepositoryLoad { repository: repository("r"), model: "m".into() },
            ),
            (
                &post,
                "/v2/repository/models/index",
                Route::RepositoryIndex { repository: repository("models") },
            ),
            (
                &post,
                "/v2/repository/models/models/m/unload",
                Route::RepositoryUnload { repository: repository("models"), model: "m".into() },
            ),
            (
                &post,
                "/v2/repository/models/m%20x/unload",
                Route::RepositoryUnload { repository: repository(""), model: "m x".into() },
            ),
            (&get, "/v2/systemsharedmemory/status", shared_memory(System, Status, "")),
            (&get, "/v2/systemsharedmemory/region/r/status", shared_memory(System, Status, "r")),
            (
                &post,
                "/v2/systemsharedmemory/region/r/register",
                shared_memory(System, Register, "r"),
            ),
            (&post, "/v2/systemsharedmemory/unregister", shared_memory(System, Unregister, "")),
            (&get, "/v2/cudasharedmemory/status", shared_memory(Cuda, Status, "")),
            (&post, "/v2/cudasharedmemory/region/r/register", shared_memory(Cuda, Register, "r")),
            (
                &post,
                "/v2/cudasharedmemory/region/r/unregister",
                shared_memory(Cuda, Unregister, "r"),
            ),
            (&get, "/v2/trace/setting", Route::Trace { model: None, access: Access::Read }),
            (&post, "/v2/trace/setting", Route::Trace { model: None, access: Access::Write }),
            (
                &get,
                "/v2/models/m/trace/setting",
                Route::Trace { model: Some("m".into()), access: Access::Read },
            ),
            (&get, "/v2/logging", Route::Logging(Access::Read)),
            (&post, "/v2/logging", Route::Logging(Access::Write)),
        ] {
            assert_eq!(route(method, path), Ok(expected), "{method} {path}");
        }
    }

    #[test]
    fn a_path_that_is_not_of_the_protocol_is_not_found() {
        for path in [
            "",
            "/",
            "v2",
            "*",
            "/v1/models/m",
            "/v2/",
            "/v2/health",
            "/v2/health/live/",
            "/v2/health/alive",
            "/v2/models",
            "/v2/models/",
            "/v2/models//infer",
            "/v2/models/m/",
            "/v2/models/m/infer/",
            "/v2/models/m/predict",
            "/v2/models/m/versions",
            "/v2/models/m/versions/",
            "/v2/models/m/versions/x/infer",
            "/v2/models/m/versions/-1/infer",
            "/v2/models/m/versions/1/trace/setting",
            "/v2/models/%ff/infer",
            "/v2/repository",
            "/v2/repository/index/x",
            "/v2/repository//index",
            "/v2/repository/models//load",
            "/v2/repository/models/m/reload",
            "/v2/systemsharedmemory",
            "/v2/systemsharedmemory/region//register",
            "/v2/systemsharedmemory/region/r/erase",
            "/v2/trace",
            "/v2/logging/x",
            "/a/b/c/d/e/f/g/h/i/j",
        ] {
            assert_eq!(route(&Method::GET, path), Err(RouteError::NotFound), "{path}");
        }
    }

    #[test]
    fn a_wrong_method_is_told_the_right_ones() {
        for (method, path, allow) in [
            (Method::POST, "/v2", "GET"),
            (Method::HEAD, "/v2/health/live", "GET"),
            (Method::PUT, "/v2/models/m/config", "GET"),
            (Method::GET, "/v2/models/m/infer", "POST"),
            (Method::GET, "/v2/models/m/generate", "POST"),
            (Method::GET, "/v2/repository/index", "POST"),
            (Method::GET, "/v2/cudasharedmemory/unregister", "POST"),
            (Method::POST, "/v2/cudasharedmemory/status", "GET"),
            (Method::DELETE, "/v2/logging", "GET, POST"),
            (Method::PATCH, "/v2/models/m/trace/setting", "GET, POST"),
        ] {
            let error = route(&method, path).unwrap_err();
            assert_eq!(error, RouteError::MethodNotAllowed { allow }, "{method} {path}");
            assert_eq!(error.status(), 405);
            assert_eq!(error.to_string(), "Method Not Allowed");
        }
    }

    proptest! {
        #[test]
        fn any_path_is_answered(path in "(/?(v2|models|versions|[0-9]|repository|region|%[0-9a-f]{2}|.){0,3}){0,9}") {
            let _ = route(&Method::GET, &path);
            let _ = route(&Method::POST, &path);
        }

        #[test]
        fn a_model_name_survives_encoding(name in "\\PC{1,12}") {
            let encoded = percent_encoding::utf8_percent_encode(
                &name,
                percent_encoding::NON_ALPHANUMERIC,
            );
            let path = format!("/v2/models/{encoded}/infer");
            prop_assert_eq!(route(&Method::POST, &path), Ok(Route::Infer(model(&name, ""))));
        }
    }
}
