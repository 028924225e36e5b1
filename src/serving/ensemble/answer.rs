//! What a request to an ensemble is answered.

use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use super::tensor::{Tensor, fitted};
use crate::{
    inference::{
        CorrelationId, Error, InferOutput, InferResponse, Parameter, Parameters, Timestamp,
    },
    observe::BatchTimes,
    runtime::current,
    serving::{cache, classification, job::Job},
};

/// How a request has ended.
pub struct Ended {
    /// With its last response, or after it.
    pub outcome: Result<Option<InferResponse>, Error>,
    /// How long its steps waited.
    pub queued: Duration,
    /// What they took.
    pub times: BatchTimes,
    /// When the first response was sent, if that is not the one that it ended with.
    pub first: Option<Timestamp>,
    /// The time, if it is known.
    pub now: Option<Timestamp>,
}

/// A response of these tensors: the outputs that the request wants, in the order of the signature.
pub fn response(
    job: &mut Job,
    tensors: impl IntoIterator<Item = Option<Tensor>>,
) -> Result<InferResponse, Error> {
    let parameters = parameters(job);
    let signature = &job.version.signature;
    let batched = signature.max_batch_size > 0;
    let mut outputs: SmallVec<[InferOutput; 2]> = SmallVec::new();
    for (&index, tensor) in job.admitted.outputs.iter().zip(tensors) {
        let (Some(spec), Some(tensor)) = (signature.outputs.get(usize::from(index)), tensor) else {
            continue;
        };
        let data = match (tensor.resides, job.keeping()) {
            (Some(there), Some(keeping)) => {
                keeping.stays(usize::from(index), *there);
                Bytes::new()
            }
            _ => tensor.data.into_bytes(),
        };
        outputs.push(InferOutput {
            name: spec.name.clone(),
            datatype: tensor.datatype,
            shape: fitted(tensor.shape, tensor.batched, &spec.dims, batched),
            data,
        });
    }
    if let Some(trace) = &mut job.trace {
        trace.outputs(&outputs);
    }
    if !job.admitted.classes.is_empty() {
        classification::apply(&job.version, &job.admitted, &mut outputs)?;
    }
    Ok(InferResponse {
        model_name: job.version.name.clone(),
        model_version: job.version.version,
        id: job.id.clone(),
        parameters,
        outputs,
    })
}

/// Triton gives these with an ensemble's response and with no other.
fn parameters(job: &Job) -> Parameters {
    let sequence = job.sequence.as_deref();
    let id = match sequence.map(|sequence| &sequence.id) {
        Some(CorrelationId::Text(text)) => Parameter::String(text.clone()),
        Some(CorrelationId::Number(number)) => Parameter::Int(number.cast_signed()),
        None => Parameter::Int(0),
    };
    let flag = |is_set: Option<bool>| Parameter::Bool(is_set.unwrap_or(false));
    Parameters::from([
        ("sequence_id", id),
        ("sequence_start", flag(sequence.map(|sequence| sequence.start))),
        ("sequence_end", flag(sequence.map(|sequence| sequence.end))),
    ])
}

/// What an error of a step is to the client of the ensemble.
pub fn of_this_ensemble(job: &Job, error: Error) -> Error {
    Error::InEnsemble { ensemble: job.version.name.to_string(), error: Box::new(error) }
}

/// Counts a request and ends its answer.
pub fn end(mut job: Job, ended: Ended) {
    let Ended { outcome, queued, times, first, now } = ended;
    let reactor = current().index();
    let last = match outcome {
        Ok(last) => last,
        Err(error) => return job.fail(reactor, error),
    };
    let now = now.unwrap_or_else(Timestamp::now);
    let statistics = &job.version.statistics;
    statistics.executed(reactor, (job.admitted.batch_size, 0), 1, times, now);
    let first = first.unwrap_or(now) - job.arrived;
    statistics.succeeded(reactor, now - job.arrived, queued, first);
    if let Some(response) = &last
        && job.admitted.classes.is_empty()
    {
        cache::keep(&mut job, &response.outputs, &response.parameters, reactor);
    }
    if let Some(outer) = &job.account {
        outer.add(queued, times);
    }
    if let Some(trace) = job.trace.take() {
        trace.answered(now);
    }
    match last {
        Some(response) => job.reply.finish(Ok(response)),
        None => job.reply.close(),
    }
}
