//! The endpoints that SageMaker and Vertex AI send requests to: one model's inference on a port and paths
//! of theirs, and SageMaker's calls for several models. Their proxies keep no header of Triton's, so that the
//! content type of requests tells where binary data begins, and SageMaker's that of responses too.

use std::{env, sync::Arc};

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;

use super::{
    connection::carry,
    metrics_port::metrics,
    response::{Segments, method_not_allowed, refused, with_type},
    route::{self, Model, Route},
    sagemaker::Hosted,
    service::{BinaryTypes, Calls, HttpSettings},
};
use crate::{inference::Error, runtime::TcpStream, serving::ModelControl};

const SAGEMAKER_BINARY: &str = "application/vnd.sagemaker-triton.binary+json;json-header-size=";
const VERTEX_BINARY: &str = "application/vnd.vertex-ai-triton.binary+json;json-header-size=";
/// Names the call that a request to Vertex AI's path is meant for.
const REDIRECT: &str = "x-vertex-ai-triton-redirect";

/// What is served on a cloud's port.
#[derive(Debug)]
pub struct Cloud {
    binary: BinaryTypes,
    health: String,
    predict: String,
    kind: Kind,
    redirects: bool,
    /// The models that come and go by calls of the cloud's own, where it has such.
    hosted: Option<Arc<Hosted>>,
    /// The model of its requests; `None` for the only one that is loaded.
    model: Option<String>,
}

/// What a request to the path for predictions is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Infer,
    Generate,
    GenerateStream,
}

/// The environment lacks what the cloud sets, or has something else.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloudError {
    /// A variable is missing.
    #[error("{variable} is not defined for {what} endpoint")]
    Missing {
        /// The variable.
        variable: &'static str,
        /// Whose endpoint.
        what: &'static str,
    },
    /// SageMaker's kind of inference is none.
    #[error(
        "SAGEMAKER_TRITON_INFERENCE_TYPE is '{got}', expected infer, generate or generate_stream"
    )]
    InferenceType {
        /// What it is.
        got: String,
    },
}

impl Cloud {
    /// SageMaker's, for the model that the environment names.
    ///
    /// # Errors
    /// The environment names a kind of inference that there is not.
    pub fn sagemaker() -> Result<Self, CloudError> {
        Self::sagemaker_of(|name| env::var(name).ok())
    }

    fn sagemaker_of(variable: impl Fn(&str) -> Option<String>) -> Result<Self, CloudError> {
        let model = variable("SAGEMAKER_TRITON_DEFAULT_MODEL_NAME");
        let kind = variable("SAGEMAKER_TRITON_INFERENCE_TYPE").filter(|kind| !kind.is_empty());
        let kind = match kind.as_deref() {
            None | Some("infer") => Kind::Infer,
            Some("generate") => Kind::Generate,
            Some("generate_stream") => Kind::GenerateStream,
            Some(got) => return Err(CloudError::InferenceType { got: got.to_owned() }),
        };
        Ok(Self {
            binary: BinaryTypes {
                requests: Some(SAGEMAKER_BINARY),
                responses: Some(SAGEMAKER_BINARY),
            },
            health: "/ping".to_owned(),
            predict: "/invocations".to_owned(),
            kind,
            redirects: false,
            hosted: Some(Arc::default()),
            model: model.filter(|model| !model.is_empty()),
        })
    }

    /// Vertex AI's, on the paths that the environment names.
    ///
    /// # Errors
    /// The environment names none.
    pub fn vertex_ai(model: Option<String>) -> Result<Self, CloudError> {
        Self::vertex_ai_of(model, |name| env::var(name).ok())
    }

    fn vertex_ai_of(
        model: Option<String>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, CloudError> {
        let path = |name: &'static str| {
            let missing = CloudError::Missing { variable: name, what: "Vertex AI" };
            variable(name).filter(|path| !path.is_empty()).ok_or(missing)
        };
        Ok(Self {
            binary: BinaryTypes { requests: Some(VERTEX_BINARY), responses: None },
            predict: path("AIP_PREDICT_ROUTE")?,
            health: path("AIP_HEALTH_ROUTE")?,
            kind: Kind::Infer,
            redirects: true,
            hosted: None,
            model,
        })
    }
}

/// Serves a connection of a cloud's port until it ends.
pub async fn serve_cloud(
    stream: TcpStream,
    control: Arc<ModelControl>,
    settings: Arc<HttpSettings>,
    cloud: Arc<Cloud>,
) {
    let pause_max = settings.pause_max;
    let calls = Arc::new(Calls::new(control, settings, cloud.binary));
    carry(stream, pause_max, move |request| {
        let (calls, cloud) = (calls.clone(), cloud.clone());
        async move { answer(&calls, &cloud, request).await }
    })
    .await;
}

async fn answer(calls: &Calls, cloud: &Cloud, request: Request<Incoming>) -> Response<Segments> {
    let path = request.uri().path();
    if path == cloud.health {
        return match *request.method() {
            Method::GET => calls.dispatch(Route::ServerReady, request).await,
            _ => method_not_allowed("GET"),
        };
    }
    if path != cloud.predict {
        return match &cloud.hosted {
            Some(hosted) => hosted.answer(calls, request).await,
            None => Err(request),
        }
        .unwrap_or_else(|_| empty(StatusCode::BAD_REQUEST));
    }
    if *request.method() != Method::POST {
        return method_not_allowed("POST");
    }
    let redirect = request.headers().get(REDIRECT).filter(|_| cloud.redirects).cloned();
    if let Some(redirect) = redirect {
        let path = format!("/{}", redirect.to_str().unwrap_or_default());
        return match redirected(&path) {
            _ if path == "/metrics" => metrics(&calls.control).await,
            Some(route) => calls.dispatch(route, request).await,
            None => empty(StatusCode::BAD_REQUEST),
        };
    }
    let name = match model_name(calls, cloud) {
        Ok(name) => name,
        Err(error) => return refused(&error),
    };
    let model = Model { name: name.into(), version: "" };
    let route = match cloud.kind {
        Kind::Infer => Route::Infer(model),
        Kind::Generate => Route::Generate(model),
        Kind::GenerateStream => Route::GenerateStream(model),
    };
    calls.dispatch(route, request).await
}

/// The call that a redirection means, by whichever method it has. Those that change how the server logs and
/// traces are not reached so.
fn redirected(path: &str) -> Option<Route<'_>> {
    let route = route::route(&Method::GET, path).or_else(|_| route::route(&Method::POST, path));
    route.ok().filter(|route| {
        let is_open = !matches!(route, Route::Logging(_) | Route::Trace { .. });
        is_open && !matches!(route, Route::Generate(_) | Route::GenerateStream(_))
    })
}

fn model_name(calls: &Calls, cloud: &Cloud) -> Result<String, Error> {
    if let Some(model) = &cloud.model {
        return Ok(model.clone());
    }
    let versions = calls.server.all_versions();
    match versions.as_slice() {
        [first, others @ ..] if others.iter().all(|other| other.name == first.name) => {
            Ok(first.name.to_string())
        }
        _ => Err(Error::malformed(
            "Expect the model repository contains only a single model if default model is not \
             specified",
        )),
    }
}

fn empty(status: StatusCode) -> Response<Segments> {
    let mut response = with_type(Segments::default(), "text/plain");
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables<'a>(set: &'a [(&str, &str)]) -> impl Fn(&str) -> Option<String> + 'a {
        move |name| set.iter().find(|(known, _)| *known == name).map(|(_, it)| it.to_string())
    }

    #[test]
    fn the_environment_says_what_is_served() {
        let plain = Cloud::sagemaker_of(variables(&[])).unwrap();
        assert_eq!((plain.kind, plain.model), (Kind::Infer, None));
        let set = [
            ("SAGEMAKER_TRITON_DEFAULT_MODEL_NAME", "m"),
            ("SAGEMAKER_TRITON_INFERENCE_TYPE", "generate_stream"),
        ];
        let streams = Cloud::sagemaker_of(variables(&set)).unwrap();
        assert_eq!((streams.kind, streams.model.as_deref()), (Kind::GenerateStream, Some("m")));
        let error = Cloud::sagemaker_of(variables(&[("SAGEMAKER_TRITON_INFERENCE_TYPE", "x")]));
        assert!(error.unwrap_err().to_string().contains("is 'x', expected infer"));
        let set = [("AIP_PREDICT_ROUTE", "/p"), ("AIP_HEALTH_ROUTE", "/h")];
        let vertex = Cloud::vertex_ai_of(None, variables(&set)).unwrap();
        assert_eq!((&*vertex.predict, &*vertex.health), ("/p", "/h"));
        let error = Cloud::vertex_ai_of(None, variables(&set[..1])).unwrap_err();
        assert_eq!(error.to_string(), "AIP_HEALTH_ROUTE is not defined for Vertex AI endpoint");
    }

    #[test]
    fn redirections_lead_to_the_protocols_calls() {
        assert_eq!(redirected("/v2"), Some(Route::ServerMetadata));
        let model = || Model { name: "m".into(), version: "" };
        assert_eq!(redirected("/v2/models/m/infer"), Some(Route::Infer(model())));
        assert_eq!(redirected("/v2/models/m/config"), Some(Route::ModelConfig(model())));
        for path in ["/v2/logging", "/v2/trace/setting", "/v2/models/m/generate", "/", "//v2"] {
            assert_eq!(redirected(path), None, "{path}");
        }
    }
}
