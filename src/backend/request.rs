//! Instances that take requests instead of whole batches, and answer each by itself: what a model
//! needs that gives any number of responses, or that looks at more of a request than its tensors.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use compact_str::CompactString;
use smallvec::SmallVec;

use super::{BackendError, Host};
use crate::{
    device::Device,
    inference::{Admitted, Callers, Code, DataType, Parameters, Sequence, Shape, Timestamp},
    observe::trace::OuterTrace,
    runtime::ReactorHandle,
};

/// One place where a model runs that answers requests itself.
pub trait RequestInstance: Send {
    /// Takes the requests that the scheduler put together. The instance is free for the next when this
    /// returns, whether or not all of them have been answered: a [`Responder`] may live on, and may
    /// go to any thread.
    ///
    /// Where [`Model::inline_fitness`](super::Model::inline_fitness) is `Always` this runs on a
    /// reactor and must not block; else on a thread of the instance's own.
    fn execute(&mut self, requests: Vec<ModelRequest>, host: &Host);

    /// Runs batches one after the other, as [`Self::execute`] would run each, and tells the end of each,
    /// in order. An instance that knows of the next before the first has ended need not sleep between
    /// them.
    fn execute_series(
        &mut self,
        series: Vec<Vec<ModelRequest>>,
        host: &Host,
        ended: &mut dyn FnMut(),
    ) {
        for requests in series {
            self.execute(requests, host);
            ended();
        }
    }

    /// Has the reactor `home` hear the instance from now on, if it runs elsewhere and can be heard there.
    /// Returns what begins batches on that reactor, without the instance's thread.
    fn attach(&mut self, _home: &ReactorHandle) -> Option<Arc<dyn NearInstance>> {
        None
    }

    /// The device that it cannot run without, where the server knows of it.
    fn device(&self) -> Option<&Arc<dyn Device>> {
        None
    }
}

/// The part of an instance that its home reactor uses itself. Nothing of it waits.
pub trait NearInstance: Send + Sync {
    /// Whether a batch with inputs of these sizes in bytes can begin without waiting.
    fn takes(&self, inputs: &mut dyn Iterator<Item = usize>) -> bool;

    /// Batches that it has and that have not ended.
    fn running(&self) -> usize;

    /// Takes the requests of a batch that it [takes](Self::takes), to be run after those before it. They
    /// go on their way with the next [`Self::flush`].
    fn begin(&self, requests: Vec<ModelRequest>, batch: Box<dyn NearBatch>);

    /// Sends what has been taken.
    fn flush(&self);
}

/// What is told of a batch that a [`NearInstance`] has, never from inside of [`NearInstance::begin`].
pub trait NearBatch: Send {
    /// The batch before it has ended.
    fn begins(&self);

    /// It has run.
    fn ended(self: Box<Self>);
}

/// A request as a model sees it.
pub struct ModelRequest {
    /// The client's name for it; may be empty.
    pub id: CompactString,
    /// Its tensors, held against the model's signature. The shapes are those that the model sees;
    /// elements lie where they arrived, perhaps in several pieces.
    pub tensors: Admitted,
    /// Parameters of the client's own making.
    pub parameters: Parameters,
    /// The sequence that it belongs to, if it names one.
    pub sequence: Option<Box<Sequence>>,
    /// The models that wait for it, when it comes from inside the server.
    pub callers: Option<Arc<Callers>>,
    /// 0 leaves the choice to the model; 1 is the most urgent.
    pub priority: u64,
    /// How long it was allowed to wait in the queue, by the client's `timeout` parameter.
    pub queue_timeout: Option<Duration>,
    /// When the client stops waiting for the answer.
    pub deadline: Option<Timestamp>,
    /// The trace that it is noted in, if it is.
    pub trace: Option<OuterTrace>,
    /// The way to answer it.
    pub responder: Responder,
}

/// Answers one request: with exactly one response or, for a decoupled model, with any number.
///
/// Dropped without an end, it tells the client that the model let go of the request.
pub struct Responder(Option<Box<dyn Respond>>);

/// What a [`Responder`] does; the server implements it.
pub trait Respond: Send {
    /// Sends a response that others may follow.
    fn send(&mut self, response: Result<ModelResponse, ResponseError>);

    /// Ends the answer, with a last response or without one.
    fn finish(self: Box<Self>, last: Option<Result<ModelResponse, ResponseError>>);

    /// Ends the answer because the responder was dropped.
    fn drop_unfinished(self: Box<Self>);

    /// Has the scheduler run the request again; where it cannot, the request is let go of.
    fn run_again(self: Box<Self>) {
        self.drop_unfinished();
    }

    /// Whether nobody waits for the answer any more.
    fn is_cancelled(&self) -> bool;
}

impl Responder {
    /// One that does what `respond` does.
    pub fn new(respond: Box<dyn Respond>) -> Self {
        Self(Some(respond))
    }

    /// Sends a response that others may follow. A model that is not decoupled has only one: what comes
    /// after the first is dropped, and the log says so.
    pub fn send(&mut self, response: Result<ModelResponse, ResponseError>) {
        if let Some(respond) = &mut self.0 {
            respond.send(response);
        }
    }

    /// Sends the last response.
    pub fn finish(mut self, last: Result<ModelResponse, ResponseError>) {
        if let Some(respond) = self.0.take() {
            respond.finish(Some(last));
        }
    }

    /// Ends the answer after the responses that were sent, if any were.
    pub fn close(mut self) {
        if let Some(respond) = self.0.take() {
            respond.finish(None);
        }
    }

    /// Has the scheduler run the request again, as it came. To be asked for before `execute` returns. A
    /// request whose model has no iterative sequences fails.
    pub fn run_again(mut self) {
        if let Some(respond) = self.0.take() {
            respond.run_again();
        }
    }

    /// Whether nobody waits for the answer any more: the client cancelled, left, or does not read. What
    /// is sent is then dropped; the answer must still be ended.
    pub fn is_cancelled(&self) -> bool {
        self.0.as_ref().is_none_or(|respond| respond.is_cancelled())
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if let Some(respond) = self.0.take() {
            respond.drop_unfinished();
        }
    }
}

/// One response of a model.
#[derive(Clone, Debug, Default)]
pub struct ModelResponse {
    /// Its tensors, in any order. Those that the request did not ask for are left out of the answer.
    pub outputs: SmallVec<[ResponseTensor; 2]>,
    /// Parameters of the response.
    pub parameters: Parameters,
}

/// One tensor of a [`ModelResponse`].
#[derive(Clone, Debug)]
pub struct ResponseTensor {
    /// Which output of the signature.
    pub output: u16,
    /// Its element type.
    pub datatype: DataType,
    /// Its shape as the model sees it, the batch dimension included.
    pub shape: Shape,
    /// Its elements, little-endian and row-major, strings length-prefixed; they keep the memory that
    /// they lie in.
    pub data: Bytes,
}

/// Why a model could not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseError {
    /// The protocol's code for it.
    pub code: Code,
    /// What the client reads.
    pub message: String,
}

impl From<BackendError> for ResponseError {
    fn from(BackendError(message): BackendError) -> Self {
        Self { code: Code::Internal, message }
    }
}
