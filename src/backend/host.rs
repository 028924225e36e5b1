//! What the server does for its models.

use crate::{
    inference::{Error, InferRequest, InferResponse},
    memory::BufferPool,
};

/// What an instance may use of the server that it runs in.
pub struct Host {
    /// Memory for outputs.
    pub pool: BufferPool,
    /// The other models.
    pub models: Box<dyn AskModels>,
}

impl Host {
    /// For models that run without a server around them.
    pub fn without_models(pool: BufferPool) -> Self {
        Self { pool, models: Box::new(NoModels) }
    }
}

/// Sends requests to the models of the server, from any thread.
pub trait AskModels: Send + Sync {
    /// Sends a request as a client would: it is admitted, queued, bounded and counted like any other.
    /// Every answer is given to `answer` on a reactor, which it must not block; what the request
    /// still waits for is abandoned when the returned handle is dropped.
    ///
    /// # Errors
    /// When too much waits already, or the server has stopped. What is wrong with the request itself
    /// comes as its answer.
    fn ask(&self, request: InferRequest, answer: AnswerTo) -> Result<Asked, Error>;
}

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
    fn ask(&self, request: InferRequest, _: AnswerTo) -> Result<Asked, Error> {
        Err(Error::UnknownModel { model: request.model_name.into() })
    }
}
