use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use smallvec::SmallVec;

use super::{Account, EnsembleSteps, Step};
use crate::{
    inference::{
        Admitted, AdmittedInput, CorrelationId, DataType, Error, InferOutput, InferResponse,
        Parameter, Parameters, Rope, Shape, Timestamp,
    },
    memory::OutputPlaces,
    observe::BatchTimes,
    runtime::{End, ReplyReceiver, current, spawn},
    scheduler::{Call, EnsembleRun, Progress, ResponseOutputs, StepInputs},
    serving::{
        batch::Outputs,
        cache, classification,
        execution::{Alone, RanAlone},
        job::{Job, Keeping, Reply, ResidentTensors},
        lanes::ResidentInput,
    },
};

/// How often a request may go on before others on the reactor get their turn.
const TURNS_MAX: usize = 64;

/// Takes a request through the ensemble that it is for, on this reactor; at once, if no step has to wait.
pub fn start(steps: Arc<EnsembleSteps>, job: Job) {
    let mut flow = Flow::new(steps, job);
    if let Poll::Ready(ended) = flow.poll(&mut Context::from_waker(Waker::noop())) {
        return flow.end(ended);
    }
    spawn(&"an ensemble", async move {
        let ended = poll_fn(|cx| flow.poll(cx)).await;
        flow.end(ended);
    });
}

/// A tensor between steps, shared and not copied.
#[derive(Clone)]
struct Tensor {
    datatype: DataType,
    shape: Shape,
    data: Rope,
    /// Whether its first dimension is the batch.
    batched: bool,
    /// Where it lies, if it has stayed on the device of the steps that take it; then `data` is absent.
    resides: Option<Box<ResidentInput>>,
}

/// A request on its way through the steps.
struct Flow {
    steps: Arc<EnsembleSteps>,
    job: Job,
    run: EnsembleRun<Tensor>,
    calls: SmallVec<[OpenCall; 2]>,
    /// Where the last step may write its outputs.
    places: Option<Arc<OutputPlaces>>,
    /// What the steps took that ran at once, and what adds up the times of the others, if there are any.
    times: BatchTimes,
    account: Option<Arc<Account>>,
    /// The time, if a step has just ended that ran at once.
    clock: Option<Timestamp>,
    /// When the first response was sent.
    first: Option<Timestamp>,
}

struct OpenCall {
    call: Call,
    replies: ReplyReceiver<Reply>,
    /// The outputs that may stay on the step's device.
    keeping: Option<Arc<Keeping>>,
}

/// How a request ended: with its last response, or after it.
type Ended = Result<Option<InferResponse>, Error>;

impl Flow {
    fn new(steps: Arc<EnsembleSteps>, mut job: Job) -> Self {
        let inputs = std::mem::take(&mut job.admitted.inputs);
        // What is to lie on a device is an output like the others.
        if let Some(resident) = job.resident.as_deref() {
            job.admitted.outputs.extend(resident.away());
            job.admitted.outputs.sort_unstable();
        }
        let signature = &job.version.signature;
        let batched = signature.max_batch_size > 0;
        let inputs = inputs.into_iter().zip(&signature.inputs).zip(0..);
        let inputs = inputs.map(|((input, spec), index)| {
            let AdmittedInput { shape, data } = input?;
            let resides = job.resident.as_ref().and_then(|it| it.input(index)).cloned();
            let resides = resides.map(Box::new);
            Some(Tensor { datatype: spec.datatype, shape, data, batched, resides })
        });
        let wanted = job.admitted.outputs.iter().map(|&index| usize::from(index));
        let run = EnsembleRun::new(steps.plan.clone(), inputs, wanted);
        let places = lent(&steps, &job);
        let (calls, times) = (SmallVec::new(), BatchTimes::default());
        Self { steps, job, run, calls, places, times, account: None, clock: None, first: None }
    }

    /// Goes on as far as it can.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        if self.job.reply.is_abandoned() {
            return Poll::Ready(Err(Error::Cancelled));
        }
        for _ in 0..TURNS_MAX {
            let received = match self.begin_calls().and_then(|()| self.receive(cx)) {
                Ok(received) => received,
                Err(error) => return Poll::Ready(Err(self.of_this_ensemble(error))),
            };
            match self.respond() {
                Ok(Poll::Pending) if received => {}
                Ok(Poll::Pending) => {
                    let abandoned = self.job.reply.poll_abandoned(cx);
                    return abandoned.map(|()| Err(Error::Cancelled));
                }
                Ok(Poll::Ready(last)) => return Poll::Ready(Ok(last)),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Begins the calls that can begin. Those that need not wait for anything are answered by that.
    fn begin_calls(&mut self) -> Result<(), Error> {
        self.clock = None;
        while let Some((call, inputs)) = self.run.next_call() {
            let Some(step) = self.steps.steps.get(call.step) else { continue };
            let admitted = step.admit(inputs, self.may_stay(), self.job.resident.as_deref());
            let (admitted, resident) = admitted.map_err(|error| error.in_request(&self.job.id))?;
            let is_last = self.steps.last.as_ref().is_some_and(|last| last.index == call.step);
            let places = self.places.as_ref().filter(|_| is_last);
            let alone = Alone { version: &step.version, request: &admitted, places };
            let began = self.clock.unwrap_or_else(Timestamp::now);
            if let Some(RanAlone { outcome, times }) = self.run_alone(&alone, began) {
                self.times = self.times + times;
                self.clock = Some(began + times.total());
                answered(&mut self.run, step, call, outcome?, None);
                self.run.ended(call);
                continue;
            }
            let account = self.account.get_or_insert_default().clone();
            let keeping = resident.as_ref().and_then(|it| it.keeping.clone());
            let (version, places) = (&step.version, places.cloned());
            let replies = version.infer_step(admitted, &self.job, places, resident, account)?;
            self.calls.push(OpenCall { call, replies, keeping });
        }
        Ok(())
    }

    /// Whether tensors may stay on devices: nobody is told what is in them.
    fn may_stay(&self) -> bool {
        !self.job.trace.as_ref().is_some_and(|trace| trace.wants_tensors())
    }

    /// Runs a call's request at once, unless somebody has to hear of more than its answer.
    fn run_alone(&self, alone: &Alone<'_>, began: Timestamp) -> Option<RanAlone> {
        let Job { trace: None, callers: None, deadline, .. } = self.job else { return None };
        let is_in_time = deadline.is_none_or(|deadline| began < deadline);
        is_in_time.then(|| alone.version.run_alone(alone, began))?
    }

    /// Takes in what steps have answered; whether there was anything.
    fn receive(&mut self, cx: &mut Context<'_>) -> Result<bool, Error> {
        let Self { calls, run, steps, .. } = self;
        let mut any = false;
        let mut at = 0;
        while let Some(OpenCall { call, replies, keeping }) = calls.get_mut(at) {
            if run.is_behind(*call) {
                at += 1;
                continue;
            }
            match replies.poll_receive(cx) {
                Poll::Pending => at += 1,
                Poll::Ready(Some(reply)) => {
                    any = true;
                    let outputs = reply?.outputs;
                    if let Some(step) = steps.steps.get(call.step) {
                        answered(run, step, *call, outputs, keeping.as_deref());
                    }
                }
                Poll::Ready(None) if replies.end() == Some(End::Dropped) => {
                    return Err(Error::unanswered());
                }
                Poll::Ready(None) => {
                    any = true;
                    run.ended(*call);
                    calls.swap_remove(at);
                }
            }
        }
        Ok(any)
    }

    /// Sends what is complete, save the last response, which comes back when there is nothing left to do.
    fn respond(&mut self) -> Result<Poll<Option<InferResponse>>, Error> {
        let mut held: Option<InferResponse> = None;
        while let Some(outputs) = self.run.next_response() {
            let response = self.response(outputs)?;
            if let Some(earlier) = held.replace(response) {
                self.send(earlier)?;
            }
        }
        match self.run.progress() {
            Progress::Done => Ok(Poll::Ready(held)),
            Progress::Stuck => {
                Err(self.of_this_ensemble(Error::EnsembleStuck.in_request(&self.job.id)))
            }
            // Of one that answers once, this is the answer.
            Progress::Going if held.is_some() && !self.job.version.decoupled => {
                Ok(Poll::Ready(held))
            }
            Progress::Going => {
                if let Some(response) = held {
                    self.send(response)?;
                }
                Ok(Poll::Pending)
            }
        }
    }

    fn send(&mut self, response: InferResponse) -> Result<(), Error> {
        self.first.get_or_insert_with(Timestamp::now);
        self.job.reply.send(Ok(response)).map_err(|unread| Error::UnreadResponses {
            model: self.job.version.name.to_string(),
            limit: unread.limit,
        })
    }

    fn response(&mut self, tensors: ResponseOutputs<Tensor>) -> Result<InferResponse, Error> {
        let parameters = self.parameters();
        let job = &mut self.job;
        let signature = &job.version.signature;
        let batched = signature.max_batch_size > 0;
        let mut outputs: SmallVec<[InferOutput; 2]> = SmallVec::new();
        for (&index, tensor) in job.admitted.outputs.iter().zip(tensors) {
            let (Some(spec), Some(tensor)) = (signature.outputs.get(usize::from(index)), tensor)
            else {
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
    fn parameters(&self) -> Parameters {
        let sequence = self.job.sequence.as_deref();
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

    fn of_this_ensemble(&self, error: Error) -> Error {
        Error::InEnsemble { ensemble: self.job.version.name.to_string(), error: Box::new(error) }
    }

    /// Counts the request and ends its answer. Requests to steps that are not answered are abandoned.
    fn end(self, ended: Ended) {
        let Self { mut job, calls, times, account, clock, first, .. } = self;
        drop(calls);
        let reactor = current().index();
        let last = match ended {
            Ok(last) => last,
            Err(error) => return job.fail(reactor, error),
        };
        let now = clock.unwrap_or_else(Timestamp::now);
        let (queued, others) = account.map(|account| account.sums()).unwrap_or_default();
        let times = times + others;
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
}

/// Takes in what a step has answered to a call.
fn answered(
    run: &mut EnsembleRun<Tensor>,
    step: &Step,
    call: Call,
    mut outputs: Outputs,
    keeping: Option<&Keeping>,
) {
    let signature = &step.version.signature;
    let batched = signature.max_batch_size > 0;
    let stayed = |name: &str| {
        let keeping = keeping?;
        keeping.stayed(signature.output(name)?)
    };
    run.answered(call, |name| {
        let at = outputs.iter().position(|output| *output.name == *name)?;
        let InferOutput { datatype, shape, data, .. } = outputs.swap_remove(at);
        let resides = stayed(name).cloned().map(Box::new);
        let data = match &resides {
            Some(there) => Rope::absent(there.len()),
            None => data.into(),
        };
        Some(Tensor { datatype, shape, data, batched, resides })
    });
}

impl Step {
    /// What its model is asked, of the values of the step's inputs, and what of it lies on its device, where
    /// outputs may stay too if they `may_stay` anywhere. `whole` is what of the ensemble's request lies there.
    fn admit(
        &self,
        values: StepInputs<Tensor>,
        may_stay: bool,
        whole: Option<&ResidentTensors>,
    ) -> Result<(Admitted, Option<Box<ResidentTensors>>), Error> {
        let signature = &self.version.signature;
        let batched = signature.max_batch_size > 0;
        let mut given = SmallVec::new();
        given.resize_with(signature.inputs.len(), || None);
        let mut resident: Option<Box<ResidentTensors>> = None;
        for (&place, value) in self.inputs.iter().zip(values) {
            let (Some(spec), Some(given)) = (signature.inputs.get(place), given.get_mut(place))
            else {
                continue;
            };
            *given =
                value.map(|Tensor { datatype, shape, data, batched: was_batched, resides }| {
                    if let Some((there, index)) = resides.zip(u16::try_from(place).ok()) {
                        resident.get_or_insert_default().inputs.push((index, *there));
                    }
                    let shape = fitted(shape, was_batched, &spec.dims, batched);
                    (datatype, AdmittedInput { shape, data })
                });
        }
        let mut admitted = signature.admit_in_order(given, self.wanted.clone())?;
        for placed in &self.placed {
            let place = whole.and_then(|whole| whole.place(placed.of_ensemble));
            if let Some(place) = place {
                admitted.outputs.retain(|index| *index != placed.output);
                resident.get_or_insert_default().outputs.push((placed.output, place.clone()));
            }
        }
        let kept = whole.and_then(|whole| whole.keeping.as_deref());
        let passed = self.passed.iter().filter(|passed| {
            kept.is_some_and(|kept| kept.outputs().any(|it| usize::from(it) == passed.of_ensemble))
        });
        let mut staying = self.resident.clone();
        staying.extend(passed.map(|passed| passed.output));
        if may_stay && !staying.is_empty() {
            admitted.outputs.retain(|index| !staying.contains(index));
            let keeping = Arc::new(Keeping::new(&staying));
            resident.get_or_insert_default().keeping = Some(keeping);
        }
        Ok((admitted, resident))
    }
}

/// The places for the outputs of a request to an ensemble, by the names that its last step has for them.
fn lent(steps: &EnsembleSteps, job: &Job) -> Option<Arc<OutputPlaces>> {
    let (last, places) = steps.last.as_ref().zip(job.output_places())?;
    let names = last.outputs.iter().filter_map(|(name, output)| {
        let is_wanted = job.admitted.outputs.iter().any(|wanted| usize::from(*wanted) == *output);
        let spec = job.version.signature.outputs.get(*output).filter(|_| is_wanted)?;
        Some(((&**name).into(), (&*spec.name).into()))
    });
    Some(Arc::new(places.renamed(names.collect())))
}

/// A shape that has or has not a batch dimension, as a model wants it that has the other kind: a batch of
/// one loses the dimension, or gets it.
fn fitted(shape: Shape, was_batched: bool, dims: &Shape, batched: bool) -> Shape {
    match (was_batched, batched) {
        (false, true) if dims.admits(&shape) => shape.with_batch(1),
        (true, false) => match shape.split_first() {
            Some((1, own)) if dims.admits(own) => own.into(),
            _ => shape,
        },
        _ => shape,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_of_one_goes_between_models_with_and_without_batches() {
        for (shape, was_batched, dims, batched, expected) in [
            (&[3][..], false, &[-1][..], true, &[1, 3][..]),
            (&[2, 3], false, &[3], true, &[2, 3]),
            (&[1, 3], true, &[3], false, &[3]),
            (&[2, 3], true, &[3], false, &[2, 3]),
            (&[1, 3], true, &[1, 3], false, &[1, 3]),
            (&[1, 3], true, &[3], true, &[1, 3]),
            (&[3], false, &[3], false, &[3]),
            (&[], true, &[], false, &[]),
        ] {
            let got = fitted(shape.into(), was_batched, &dims.into(), batched);
            assert_eq!(&got[..], expected, "{shape:?} for {dims:?}");
        }
    }
}
