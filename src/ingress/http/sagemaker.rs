//! SageMaker's calls for several models. Each comes as a folder on this machine, under a name of SageMaker's
//! making, by which it is listed, asked and removed.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::json;

use super::{
    body,
    response::{Segments, json, refused, with_type},
    route::{Model, Route},
    service::Calls,
};
use crate::{
    inference::{Code, Error, Rope},
    ingress::{describe, restricted::ApiGroup},
    repository::check_model_name,
    runtime::{reply_channel, spawn},
};

/// What SageMaker's users call a model: that is what it is called here too.
const TARGET: &str = "x-amzn-sagemaker-target-model";
/// The status by which SageMaker learns that it should remove another model first.
const NO_ROOM: StatusCode = StatusCode::INSUFFICIENT_STORAGE;

/// The models that came so, by SageMaker's names.
#[derive(Debug, Default)]
pub(super) struct Hosted(Mutex<BTreeMap<String, HostedModel>>);

#[derive(Clone, Debug)]
struct HostedModel {
    /// What it is called here.
    model: String,
    folder: PathBuf,
}

/// What a path below `/models` is about.
#[derive(Debug, PartialEq, Eq)]
enum Target<'a> {
    All,
    Model(&'a str),
    Invocation(&'a str),
}

impl<'a> Target<'a> {
    fn of(path: &'a str) -> Option<Self> {
        let rest = path.strip_prefix("/models")?;
        match rest.split('/').collect::<Vec<_>>()[..] {
            [""] | ["", ""] => Some(Self::All),
            ["", name] => Some(Self::Model(name)),
            ["", name, "invoke"] if !name.is_empty() => Some(Self::Invocation(name)),
            _ => None,
        }
    }
}

impl Hosted {
    /// Answers a call, if it is one of these.
    pub async fn answer(
        self: &Arc<Self>,
        calls: &Calls,
        request: Request<Incoming>,
    ) -> Result<Response<Segments>, Request<Incoming>> {
        let path = request.uri().path().to_owned();
        let Some(target) = Target::of(&path) else { return Err(request) };
        if let (Target::Invocation(name), &Method::POST) = (&target, request.method()) {
            return Ok(self.invoke(calls, name, request).await);
        }
        if let Some(refusal) = calls.restricted(ApiGroup::ModelRepository, request.headers()) {
            return Ok(refusal);
        }
        let answered = match (target, request.method()) {
            (Target::All, &Method::GET) => Ok(self.list(calls)),
            (Target::All, &Method::POST) => self.load(calls, request).await,
            (Target::Model(name), &Method::GET) => Ok(self.tell(name)),
            (Target::Model(name), &Method::DELETE) => self.unload(calls, name).await,
            _ => Ok(empty(StatusCode::METHOD_NOT_ALLOWED)),
        };
        Ok(answered.unwrap_or_else(|error| refusal(&error)))
    }

    fn list(&self, calls: &Calls) -> Response<Segments> {
        let hosted = self.lock();
        let is_ready = |hosted: &HostedModel| {
            describe::is_model_ready(&calls.server, &hosted.model, "").unwrap_or(false)
        };
        let ready = hosted.iter().filter(|(_, hosted)| is_ready(hosted));
        let models: Vec<_> = ready.map(|(name, hosted)| described(name, hosted)).collect();
        json(json!({ "models": models }).to_string().into())
    }

    fn tell(&self, name: &str) -> Response<Segments> {
        match self.lock().get(name) {
            Some(hosted) => json(described(name, hosted).to_string().into()),
            None => empty(StatusCode::NOT_FOUND),
        }
    }

    async fn load(
        self: &Arc<Self>,
        calls: &Calls,
        request: Request<Incoming>,
    ) -> Result<Response<Segments>, Error> {
        let (head, body) = request.into_parts();
        let mut reservation = calls.server.pool().reservation();
        let body = calls.read(&head.headers, body, &mut reservation).await?;
        let Archive { name, folder } = Archive::read(&body)?;
        let model = model_name(&head.headers, &name);
        let coming = HostedModel { model: model.clone(), folder: folder.clone() };
        {
            let mut hosted = self.lock();
            if hosted.contains_key(&name) {
                let detail = format!("model '{name}' is loaded already");
                return Err(Error::AlreadyHosted { detail });
            }
            // From now on it can be removed, whatever becomes of this call.
            hosted.insert(name.clone(), coming);
        }
        log::info!("loading '{model}' for SageMaker, from '{}'", folder.display());
        let (hosted, control) = (self.clone(), calls.control.clone());
        to_the_end(async move {
            match control.host(folder, &model).await {
                Ok(folder) => {
                    hosted.lock().insert(name, HostedModel { model, folder });
                    Ok(())
                }
                Err(error) => {
                    hosted.lock().remove(&name);
                    Err(error)
                }
            }
        })
        .await
    }

    async fn unload(
        self: &Arc<Self>,
        calls: &Calls,
        name: &str,
    ) -> Result<Response<Segments>, Error> {
        let Some(HostedModel { model, .. }) = self.lock().get(name).cloned() else {
            return Ok(empty(StatusCode::NOT_FOUND));
        };
        let (hosted, control, name) = (self.clone(), calls.control.clone(), name.to_owned());
        to_the_end(async move {
            control.expel(&model).await?;
            hosted.lock().remove(&name);
            Ok(())
        })
        .await
    }

    async fn invoke(
        &self,
        calls: &Calls,
        name: &str,
        request: Request<Incoming>,
    ) -> Response<Segments> {
        let Some(HostedModel { model, .. }) = self.lock().get(name).cloned() else {
            return empty(StatusCode::NOT_FOUND);
        };
        let route = Route::Infer(Model { name: model.into(), version: "" });
        let response = calls.dispatch(route, request).await;
        match response.extensions().get::<Error>() {
            Some(error) => refusal(error),
            None => response,
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, HostedModel>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What comes of `work`, which is done to its end also when who asked for it leaves before that: else a model
/// that failed to load later would be taken for loaded.
async fn to_the_end(
    work: impl Future<Output = Result<(), Error>> + 'static,
) -> Result<Response<Segments>, Error> {
    let (reply, mut answer) = reply_channel();
    spawn(&"a load or unload for SageMaker", async move { reply.finish(work.await) });
    let done = answer.receive().await.unwrap_or_else(|| Err(Error::unanswered()));
    done.map(|()| empty(StatusCode::OK))
}

fn described(name: &str, hosted: &HostedModel) -> serde_json::Value {
    json!({ "modelName": name, "modelUrl": hosted.folder.to_string_lossy() })
}

/// What a load asks for.
#[derive(Debug, PartialEq, Eq)]
struct Archive {
    name: String,
    folder: PathBuf,
}

impl Archive {
    fn read(body: &Rope) -> Result<Self, Error> {
        let (mut name, mut folder) = (String::new(), String::new());
        body::members(body, |cursor, member| {
            match member {
                "model_name" => name = body::string(cursor)?,
                "url" => folder = body::string(cursor)?,
                _ => body::skip(cursor)?,
            }
            Ok(())
        })?;
        for (member, value) in [("model_name", &name), ("url", &folder)] {
            if value.is_empty() {
                return Err(Error::malformed(format!("the member '{member}' is missing or empty")));
            }
        }
        Ok(Self { name, folder: Path::new(&folder).to_owned() })
    }
}

fn model_name(headers: &HeaderMap, name: &str) -> String {
    let target = headers.get(TARGET).and_then(|target| target.to_str().ok());
    let target = target.filter(|target| check_model_name(target).is_ok());
    target.unwrap_or(name).to_owned()
}

/// SageMaker knows few statuses.
fn refusal(error: &Error) -> Response<Segments> {
    let mut response = refused(error);
    *response.status_mut() = match error.code() {
        Code::AlreadyExists => StatusCode::CONFLICT,
        _ if lacks_memory(&error.to_string()) => NO_ROOM,
        _ => StatusCode::BAD_REQUEST,
    };
    response
}

/// Whether a back end, or the server itself, says that there was no memory.
fn lacks_memory(text: &str) -> bool {
    const SAID: [&str; 9] = [
        "out of memory",
        "out_of_memory",
        "outofmemory",
        "memoryerror",
        "failed to allocate memory",
        "alloc_failed",
        "not_initialized",
        "no space left on device",
        "out of its budget",
    ];
    let text = text.to_ascii_lowercase();
    SAID.iter().any(|said| text.contains(said))
}

fn empty(status: StatusCode) -> Response<Segments> {
    let mut response = with_type(Segments::one(Bytes::new()), "application/json");
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_sagemakers() {
        for (path, expected) in [
            ("/models", Some(Target::All)),
            ("/models/", Some(Target::All)),
            ("/models/a.b-c", Some(Target::Model("a.b-c"))),
            ("/models/a/invoke", Some(Target::Invocation("a"))),
            ("/models//invoke", None),
            ("/models/a/infer", None),
            ("/models/a/invoke/", None),
            ("/modelsa", None),
            ("/ping", None),
        ] {
            assert_eq!(Target::of(path), expected, "{path}");
        }
    }

    #[test]
    fn a_load_names_a_model_and_a_folder() {
        let read = |body: &'static str| Archive::read(&Rope::from(body.as_bytes().to_vec()));
        let archive = Archive { name: "m".into(), folder: "/x".into() };
        assert_eq!(read(r#"{"model_name":"m","url":"/x","other":[1]}"#), Ok(archive));
        for (body, expected) in [
            (r#"{"url":"/x"}"#, "the member 'model_name' is missing or empty"),
            (r#"{"model_name":"m"}"#, "the member 'url' is missing or empty"),
            (r#"{"model_name":1}"#, "attempt to access JSON non-string as string"),
            ("[]", "attempt to get members for non-object"),
        ] {
            assert_eq!(read(body).unwrap_err().to_string(), expected, "{body}");
        }
    }

    #[test]
    fn a_lack_of_memory_is_told_apart() {
        let status = |detail: &str| refusal(&Error::Backend { detail: detail.into() }).status();
        assert_eq!(status("CUDA out of memory. Tried to allocate"), 507);
        assert_eq!(status("Failed to allocate memory for requested buffer"), 507);
        assert_eq!(status("shapes differ"), 400);
        assert_eq!(refusal(&Error::OutOfBudget { limit: 1 }).status(), 507);
        assert_eq!(refusal(&Error::AlreadyHosted { detail: "x".into() }).status(), 409);
    }
}
