//! The answers of models that take requests: each goes to its client as it comes, is checked, traced
//! and counted.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{
    answer_order::AnswerTicket,
    batch, cache, classification,
    execution::Began,
    job::{self, Job, Reply},
};
use crate::{
    backend::{ModelRequest, ModelResponse, Respond, Responder, ResponseError},
    inference::{Error, InferResponse, Timestamp},
    observe::{BatchTimes, ResponseKind, trace::Event},
    runtime::{ReactorHandle, Unread},
};

/// Makes requests of jobs, for a run that begins at `began`. What is counted is counted on `home`.
pub fn requests(jobs: Vec<Job>, home: &ReactorHandle, began: &Arc<Began>) -> Vec<ModelRequest> {
    jobs.into_iter().map(|job| request(job, home.clone(), began.clone())).collect()
}

fn request(mut job: Job, home: ReactorHandle, began: Arc<Began>) -> ModelRequest {
    let mut tensors = job.admitted.clone();
    batch::reshape(&job.version.signature, &mut tensors);
    let (parameters, sequence, callers, progress) = match &mut job.turn {
        // It may have to run once more as it came.
        Some(turn) => {
            let progress = std::mem::take(&mut turn.progress);
            (job.parameters.clone(), job.sequence.clone(), job.callers.clone(), progress)
        }
        // The job keeps what it needs for the answer.
        None => {
            job.admitted.inputs = SmallVec::new();
            let parameters = std::mem::take(&mut job.parameters);
            (parameters, job.sequence.take(), job.callers.take(), Progress::default())
        }
    };
    ModelRequest {
        id: job.id.clone(),
        tensors,
        parameters,
        sequence,
        callers,
        priority: job.priority,
        queue_timeout: job.queue_timeout,
        deadline: job.deadline,
        trace: job.trace.as_ref().map(|trace| trace.as_outer()),
        responder: Responder::new(Box::new(JobResponder {
            job,
            home,
            began,
            previous: None,
            held: Vec::new(),
            progress,
            only: None,
        })),
    }
}

/// A job whose model answers it.
struct JobResponder {
    job: Job,
    home: ReactorHandle,
    began: Arc<Began>,
    /// When the response before was sent.
    previous: Option<Timestamp>,
    /// Responses that wait for the answers before this one.
    held: Vec<Reply>,
    progress: Progress,
    /// The response of a model that is not decoupled, until it ends the answer.
    only: Option<Reply>,
}

/// How far the answer to a request has come.
#[derive(Default)]
pub struct Progress {
    /// When the first response was sent.
    first: Option<Timestamp>,
    /// How many were.
    sent: usize,
    /// Why the request has failed though the answer goes on.
    failure: Option<Error>,
}

/// How a request was answered.
struct Answered {
    began: Timestamp,
    first: Timestamp,
    now: Timestamp,
    failure: Option<Error>,
}

impl Respond for JobResponder {
    fn send(&mut self, response: Result<ModelResponse, ResponseError>) {
        let reply = self.reply(response);
        if self.job.version.decoupled {
            self.count(&reply);
            if let Err(error) = &reply {
                self.progress.failure.get_or_insert(error.clone());
            }
            match self.job.ticket.as_ref().is_none_or(AnswerTicket::is_next) {
                true => self.pass_on(Some(reply)),
                false => self.held.push(reply),
            }
        } else if self.only.is_none() {
            self.only = Some(reply);
        } else {
            let model = &self.job.version.name;
            log::error!("model '{model}' is not decoupled, but gave a second response: it is lost");
        }
    }

    fn finish(mut self: Box<Self>, last: Option<Result<ModelResponse, ResponseError>>) {
        if let Some(last) = last {
            if self.job.version.decoupled {
                let reply = self.reply(last);
                self.count(&reply);
                return self.end(Some(reply));
            }
            self.send(last);
        }
        match self.only.take() {
            Some(reply) => self.end(Some(reply)),
            None if self.job.version.decoupled => {
                self.note(ResponseKind::Empty);
                self.end(None);
            }
            None => {
                let detail =
                    format!("model '{}' ended a request without a response", self.job.version.name);
                self.end(Some(Err(Error::Internal { detail })));
            }
        }
    }

    fn drop_unfinished(mut self: Box<Self>) {
        match self.only.take() {
            Some(reply) => self.end(Some(reply)),
            None => {
                let model = &self.job.version.name;
                let detail =
                    format!("model '{model}' let go of a request that it had not answered");
                self.end(Some(Err(Error::Internal { detail })));
            }
        }
    }

    fn run_again(mut self: Box<Self>) {
        if let Some(reply) = self.only.take() {
            return self.end(Some(reply));
        }
        if self.job.turn.is_none() {
            let detail = format!(
                "model '{}' released a request to be scheduled again, which it can only with \
                 sequence_batching {{ iterative_sequence: true }}",
                self.job.version.name
            );
            return self.end(Some(Err(Error::Unsupported { detail })));
        }
        let Self { mut job, home, progress, .. } = *self;
        if let Some(turn) = &mut job.turn {
            turn.progress = progress;
        }
        let again = move || job.version.clone().run_again(job);
        if home.send(Box::new(again)).is_err() {
            log::debug!("a request was to run again after its reactor had ended");
        }
    }

    fn is_cancelled(&self) -> bool {
        self.job.reply.is_abandoned()
            || matches!(self.progress.failure, Some(Error::UnreadResponses { .. }))
    }
}

impl JobResponder {
    fn reply(&mut self, response: Result<ModelResponse, ResponseError>) -> Reply {
        let ModelResponse { outputs, parameters } =
            response.map_err(|error| Error::Model { code: error.code, detail: error.message })?;
        let Job { version, admitted, trace, .. } = &mut self.job;
        let signature = &version.signature;
        let mut kept: batch::Outputs = SmallVec::new();
        for tensor in outputs {
            if admitted.outputs.contains(&tensor.output) {
                kept.push(batch::response_output(signature, tensor)?);
            }
        }
        if let Some(trace) = trace {
            trace.outputs(&kept);
        }
        if !admitted.classes.is_empty() {
            classification::apply(version, admitted, &mut kept)?;
        }
        Ok(InferResponse {
            model_name: version.name.clone(),
            model_version: version.version,
            id: self.job.id.clone(),
            parameters,
            outputs: kept,
        })
    }

    /// Sends what was held back, and then `reply`.
    fn pass_on(&mut self, reply: Option<Reply>) {
        for reply in std::mem::take(&mut self.held).into_iter().chain(reply) {
            if let Err(Unread { limit }) = self.job.reply.send(reply) {
                let model = self.job.version.name.to_string();
                self.progress.failure = Some(Error::UnreadResponses { model, limit });
            }
        }
    }

    /// Counts a response of a decoupled model.
    fn count(&mut self, reply: &Reply) {
        let kind = match reply {
            _ if self.job.reply.is_abandoned() => ResponseKind::Cancelled,
            Ok(response) if response.outputs.is_empty() => ResponseKind::Empty,
            Ok(_) => ResponseKind::Success,
            Err(_) => ResponseKind::Failure,
        };
        self.note(kind);
    }

    fn note(&mut self, kind: ResponseKind) {
        let now = Timestamp::now();
        let since = self.previous.replace(now).unwrap_or_else(|| self.began.at());
        self.job.version.statistics.responded(self.progress.sent, kind, now - since);
        self.progress.first.get_or_insert(now);
        self.progress.sent += 1;
    }

    /// Counts the request and ends its answer, at home, with a last reply or without one.
    fn end(mut self: Box<Self>, last: Option<Reply>) {
        let now = Timestamp::now();
        let home = self.home.clone();
        let began = self.began.at();
        let ended = move || {
            let (ticket, version) = (self.job.ticket.take(), self.job.version.clone());
            let end = move || {
                self.pass_on(None);
                let Self { job, home, progress, .. } = *self;
                let Progress { first, failure, .. } = progress;
                let first = first.unwrap_or(now);
                job.end(home.index(), Answered { began, first, now, failure }, last);
            };
            match ticket {
                None => end(),
                Some(ticket) => version.end_in_order(&ticket, Box::new(end)),
            }
        };
        if home.is_current() {
            return ended();
        }
        if home.send(Box::new(ended)).is_err() {
            log::debug!("an answer came after its reactor had ended");
        }
    }
}

impl Job {
    /// Counts a request that its model answered itself, and ends the answer. Runs on reactor `reactor`.
    fn end(mut self, reactor: usize, answered: Answered, last: Option<Reply>) {
        let Answered { began, first, now, failure } = answered;
        // A client that is behind does not get what would come last.
        let behind = failure.clone().filter(|it| matches!(it, Error::UnreadResponses { .. }));
        let last = match (behind, last) {
            (Some(error), _) | (None, Some(Err(error))) => return self.fail(reactor, error),
            (None, last) => last,
        };
        if let Some(Ok(response)) = &last
            && self.admitted.classes.is_empty()
        {
            cache::keep(&mut self, &response.outputs, &response.parameters, reactor);
        }
        let statistics = &self.version.statistics;
        let total = now - self.arrived;
        match failure {
            Some(error) => statistics.failed(reactor, job::kind(&error), total),
            None => {
                let (queued, first) = (began - self.arrived, first - self.arrived);
                if let Some(account) = &self.account {
                    let compute_infer = now - began;
                    account.add(queued, BatchTimes { compute_infer, ..BatchTimes::default() });
                }
                statistics.succeeded(reactor, total, queued, first);
            }
        }
        if let Some(mut trace) = self.trace.take() {
            for (event, when) in [
                (Event::ComputeStart, began),
                (Event::ComputeInputEnd, began),
                (Event::ComputeOutputStart, now),
                (Event::ComputeEnd, now),
            ] {
                trace.at(event, when);
            }
            trace.answered(now);
        }
        match last {
            Some(last) => self.reply.finish(last),
            None => self.reply.close(),
        }
    }
}
