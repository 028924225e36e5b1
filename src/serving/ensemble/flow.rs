use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use smallvec::SmallVec;

use super::{
    Account, EnsembleSteps, Step, answer,
    straight::Way,
    tensor::{Tensor, fitted},
};
use crate::{
    inference::{
        Admitted, AdmittedInput, DataType, Error, InferOutput, InferResponse, Rope, Timestamp,
    },
    memory::OutputPlaces,
    observe::BatchTimes,
    runtime::{End, ReplyReceiver, current, spawn},
    scheduler::{Call, EnsembleRun, Progress, ResponseOutputs, StepInputs, TensorIndex},
    serving::{
        batch::Outputs,
        cache, classification,
        execution::RanAlone,
        job::{Job, Keeping, Reply, ResidentTensors},
        shard::AtOnce,
        version::LoadedVersion,
    },
};

/// How often a request may go on before others on the reactor get their turn.
const TURNS_MAX: usize = 64;

/// Takes a request through the ensemble that it is for, on this reactor.
pub fn start(steps: &Arc<EnsembleSteps>, mut job: Job) {
    let mut way = Way::default();
    way.begin(steps, &job.version, &mut job.admitted, job.resident.as_deref());
    go_on(steps, job, way);
}

/// Takes one further that has come so far already.
pub fn go_on(steps: &Arc<EnsembleSteps>, job: Job, way: Way) {
    let mut flow = Flow::new(steps.clone(), job, way);
    if let Poll::Ready(outcome) = flow.poll(&mut Context::from_waker(Waker::noop())) {
        return flow.end(outcome);
    }
    spawn(&"an ensemble", async move {
        let outcome = poll_fn(|cx| flow.poll(cx)).await;
        flow.end(outcome);
    });
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
type Outcome = Result<Option<InferResponse>, Error>;

impl Flow {
    /// Of a request that has come so far on its way.
    fn new(steps: Arc<EnsembleSteps>, mut job: Job, way: Way) -> Self {
        let Way { mut values, done, times, clock } = way;
        // What is to lie on a device is an output like the others.
        if let Some(resident) = job.resident.as_deref() {
            job.admitted.outputs.extend(resident.away());
            job.admitted.outputs.sort_unstable();
        }
        let done = steps.straight.first(done);
        let value = |tensor: TensorIndex| values.get_mut(tensor)?.take();
        let wanted = job.admitted.outputs.iter().map(|&index| usize::from(index));
        let run = EnsembleRun::new(steps.plan.clone(), done, value, wanted);
        let places = steps.lent(&job.version, &job.admitted.outputs, job.output_places());
        let (calls, account) = (SmallVec::new(), None);
        Self { steps, job, run, calls, places, times, account, clock, first: None }
    }

    /// Goes on as far as it can.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        if self.job.reply.is_abandoned() {
            return Poll::Ready(Err(Error::Cancelled));
        }
        for _ in 0..TURNS_MAX {
            let received = match self.begin_calls().and_then(|()| self.receive(cx)) {
                Ok(received) => received,
                Err(error) => {
                    return Poll::Ready(Err(answer::of_this_ensemble(&self.job.version, error)));
                }
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
            let places = self.places.as_ref().filter(|_| self.steps.is_last(call.step));
            let began = self.clock.unwrap_or_else(Timestamp::now);
            if let Some(at_once) = self.step_at_once(&step.version, began) {
                let RanAlone { outcome, times } =
                    at_once.run_alone(&step.version, &admitted, places, began);
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

    /// What runs a request to a step at once, beginning at `began`, unless somebody has to hear of more than
    /// its answer.
    fn step_at_once<'a>(&self, version: &'a LoadedVersion, began: Timestamp) -> Option<AtOnce<'a>> {
        let Job { trace: None, callers: None, deadline, .. } = self.job else { return None };
        deadline.is_none_or(|deadline| began < deadline).then(|| version.at_once())?
    }

    /// Whether tensors may stay on devices: nobody is told what is in them.
    fn may_stay(&self) -> bool {
        !self.job.trace.as_ref().is_some_and(|trace| trace.wants_tensors())
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
                let stuck = Error::EnsembleStuck.in_request(&self.job.id);
                Err(answer::of_this_ensemble(&self.job.version, stuck))
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

    fn response(&mut self, tensors: ResponseOutputs<Tensor>) -> Result<InferResponse, Error> {
        let job = &mut self.job;
        let wanted = &job.admitted.outputs;
        let mut outputs = answer::outputs(&job.version, wanted, tensors, job.keeping());
        if let Some(trace) = &mut job.trace {
            trace.outputs(&outputs);
        }
        if !job.admitted.classes.is_empty() {
            classification::apply(&job.version, &job.admitted, &mut outputs)?;
        }
        Ok(answer::response(&job.version, job.id.clone(), job.sequence.as_deref(), outputs))
    }

    fn send(&mut self, response: InferResponse) -> Result<(), Error> {
        self.first.get_or_insert_with(Timestamp::now);
        self.job.reply.send(Ok(response)).map_err(|unread| Error::UnreadResponses {
            model: self.job.version.name.to_string(),
            limit: unread.limit,
        })
    }

    /// Counts the request and ends its answer. Requests to steps that are not answered are abandoned.
    fn end(self, outcome: Outcome) {
        let Self { mut job, calls, times, account, clock, first, .. } = self;
        drop(calls);
        let reactor = current().index();
        let last = match outcome {
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
        let mut inputs = SmallVec::new();
        inputs.resize_with(signature.inputs.len(), || None);
        let datatypes = signature.inputs.iter().map(|spec| spec.datatype);
        let mut datatypes: SmallVec<[DataType; 4]> = datatypes.collect();
        let mut resident: Option<Box<ResidentTensors>> = None;
        for (&place, value) in self.inputs.iter().zip(values) {
            let (Some(spec), Some(input), Some(of_input)) =
                (signature.inputs.get(place), inputs.get_mut(place), datatypes.get_mut(place))
            else {
                continue;
            };
            let Some(Tensor { datatype, shape, data, batched: was_batched, resides }) = value
            else {
                continue;
            };
            if let Some((there, index)) = resides.zip(u16::try_from(place).ok()) {
                resident.get_or_insert_default().inputs.push((index, *there));
            }
            let shape = fitted(shape, was_batched, &spec.dims, batched);
            (*input, *of_input) = (Some(AdmittedInput { shape, data }), datatype);
        }
        let wanted = SmallVec::from_slice(&self.wanted);
        let mut admitted = signature.admit_in_order(inputs, &datatypes, wanted)?;
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
