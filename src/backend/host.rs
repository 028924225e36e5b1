//! What the server does for its models.

use std::sync::{Arc, OnceLock};

use crate::{
    inference::{Error, InferRequest, InferResponse},
    memory::BufferPool,
    observe::{custom::CustomMetrics, trace::OuterTrace},
    repository::Overrides,
};

/// What an instance may use of the server that it runs in.
pub struct Host {
    /// Memory for outputs.
    pub pool: BufferPool,
    /// The other models.
    pub models: Box<dyn AskModels>,
    /// What models tell of themselves.
    pub metrics: Arc<CustomMetrics>,
    /// What loads and unloads them, once there is such a thing.
    pub control: OnceLock<Box<dyn ControlModels>>,
}

impl Host {
    /// With nobody to load and unload models yet.
    pub fn new(pool: BufferPool, models: Box<dyn AskModels>) -> Self {
        Self { pool, models, metrics: Arc::default(), control: OnceLock::new() }
    }

    /// For models that run without a server around them.
    pub fn without_models(pool: BufferPool) -> Self {
        Self::new(pool, Box::new(NoModels))
    }
}

/// Sends requests to the models of the server, from any thread.
pub trait AskModels: Send + Sync {
    /// Sends a request as a client would: it is admitted, queued, bounded and counted like any other.
    /// Its trace is a part of `trace`, if that is given. Every answer is given to `answer` on a reactor,
    /// which it must not block; what the request still waits for is abandoned when the returned handle
    /// is dropped.
    ///
    /// # Errors
    /// When too much waits already, or the server has stopped. What is wrong with the request itself
    /// comes as its answer.
    fn ask(
        &self,
        request: InferRequest,
        trace: Option<OuterTrace>,
        answer: AnswerTo,
    ) -> Result<Asked, Error>;

    /// Whether a model, or a version of it if one is named, takes requests.
    fn is_ready(&self, model: &str, version: &str) -> bool;

    /// Whether a model gives any number of responses to a request; not, when it is unknown.
    fn is_decoupled(&self, model: &str, version: &str) -> bool;
}

/// Loads and unloads the models of the server, from any thread; `done` is told the outcome, on a
/// reactor.
pub trait ControlModels: Send + Sync {
    /// Loads a model as a client's request would.
    fn load(&self, model: String, overrides: Overrides, done: Done);

    /// Unloads a model as a client's request would; an ensemble also `with_models` that nobody else wants.
    fn unload(&self, model: String, with_models: bool, done: Done);
}

/// Is told the outcome of a load or unload.
pub type Done = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// Takes the answers to a request, in order, up to one that is the last.
pub type AnswerTo = Box<dyn FnMut(Answer) + Send>;

/// One answer to a request.
#[derive(Debug)]
pub struct Answer {
    /// The response; `None` only in the last, when a decoupled model ends without another.
    pub response: Option<Result<InferResponse, Error>>,
    /// Whether no more come.
    pub is_last: bool,
}

/// A request that was sent; dropping it abandons what has not been answered.
#[must_use = "dropping it abandons the request"]
pub struct Asked(Option<Box<dyn FnOnce() + Send>>);

impl Asked {
    /// Abandoned by `abandon`.
    pub fn new(abandon: impl FnOnce() + Send + 'static) -> Self {
        Self(Some(Box::new(abandon)))
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(abandon) = self.0.take() {
            abandon();
        }
    }
}

/// There are none.
struct NoModels;

impl AskModels for NoModels {
    fn ask(
        &self,
        request: InferRequest,
        _: Option<OuterTrace>,
        _: AnswerTo,
    ) -> Result<Asked, Error> {
        Err(Error::UnknownModel { model: request.model_name.into() })
    }

    fn is_ready(&self, _: &str, _: &str) -> bool {
        false
    }

    fn is_decoupled(&self, _: &str, _: &str) -> bool {
        false
    }
}
