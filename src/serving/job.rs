use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use compact_str::CompactString;
use smallvec::SmallVec;

use super::{
    answer_order::AnswerTicket,
    batch::Outputs,
    cache::{self, CacheSlot},
    classification,
    ensemble::Account,
    lanes::ResidentInput,
    sequences::Turn,
    version::LoadedVersion,
};
use crate::{
    device::DeviceSlice,
    inference::{Admitted, Callers, Error, InferResponse, Parameters, Rope, Sequence, Timestamp},
    memory::OutputPlaces,
    observe::{
        BatchTimes, Failure,
        trace::{Event, Trace},
    },
    runtime::ReplySender,
    scheduler::{Queued, Sequenced},
};

/// What comes back for a request: one of these or, of a decoupled model, any number.
pub type Reply = Result<InferResponse, Error>;

/// A request on its way through a model: admitted, queued, batched, answered.
pub struct Job {
    /// Keeps the version loaded until the answer is out.
    pub version: Arc<LoadedVersion>,
    pub id: CompactString,
    pub admitted: Admitted,
    pub parameters: Parameters,
    pub sequence: Option<Box<Sequence>>,
    pub callers: Option<Arc<Callers>>,
    pub priority: u64,
    pub queue_timeout: Option<Duration>,
    pub deadline: Option<Timestamp>,
    /// Where its client wants the outputs, if not in the answer.
    pub places: Option<Arc<OutputPlaces>>,
    /// Whether a client can still change the bytes of an input, or of what a step made of one.
    pub inputs_may_change: bool,
    pub arrived: Timestamp,
    pub reply: ReplySender<Reply>,
    /// What is noted of it, if it is traced.
    pub trace: Option<Box<Trace>>,
    /// Where its answer is to be kept.
    pub cache_slot: Option<CacheSlot>,
    /// Where its times are added up, if it is a step of an ensemble.
    pub account: Option<Arc<Account>>,
    /// What lets it run again, or tells which sequence its run is for.
    pub turn: Option<Turn>,
    /// Its place among answers that keep the order of the requests, if its model answers it itself.
    pub ticket: Option<AnswerTicket>,
    /// Its place in its batch, if that may run in several parts.
    pub place: u32,
    /// What of it lies on the device that its model runs on.
    pub resident: Option<Box<ResidentTensors>>,
}

/// Tensors of a request that lie on a device, by their numbers in the signature.
#[derive(Default)]
pub struct ResidentTensors {
    /// Inputs.
    pub inputs: SmallVec<[(u16, ResidentInput); 1]>,
    /// Inputs that are brought there from the host, to those of other requests of its batch.
    pub brought: SmallVec<[(u16, Rope); 1]>,
    /// Where outputs are to go, of those that are asked for.
    pub outputs: SmallVec<[(u16, DeviceSlice); 1]>,
    /// What may be left there for who asks for it on the same device: steps of an ensemble, or the next
    /// request of its sequence.
    pub keeping: Option<Arc<Keeping>>,
}

/// Outputs of a request that may stay on the device for the requests behind it, by their numbers in the
/// signature, and those that have.
pub struct Keeping(SmallVec<[(u16, OnceLock<ResidentInput>); 2]>);

impl Keeping {
    /// Of these outputs, none of which has.
    pub fn new(outputs: &[u16]) -> Self {
        Self(outputs.iter().map(|&index| (index, OnceLock::new())).collect())
    }

    /// Which they are.
    pub fn outputs(&self) -> impl Iterator<Item = u16> {
        self.0.iter().map(|(index, _)| *index)
    }

    /// Notes where an output lies, if it is one of them.
    pub fn stays(&self, index: usize, tensor: ResidentInput) {
        let mut outputs = self.0.iter();
        if let Some((_, place)) = outputs.find(|(number, _)| usize::from(*number) == index) {
            place.get_or_init(|| tensor);
        }
    }

    /// Where an output lies, if it has stayed.
    pub fn stayed(&self, index: usize) -> Option<&ResidentInput> {
        self.0.iter().find(|(number, _)| usize::from(*number) == index)?.1.get()
    }
}

impl ResidentTensors {
    /// Where an input lies, if it does.
    pub fn input(&self, index: u16) -> Option<&ResidentInput> {
        self.inputs.iter().find(|(number, _)| *number == index).map(|(_, input)| input)
    }

    /// Where an output is to go, if it has a place there.
    pub fn place(&self, index: usize) -> Option<&DeviceSlice> {
        self.outputs
            .iter()
            .find(|(number, _)| usize::from(*number) == index)
            .map(|(_, place)| place)
    }

    /// The outputs that are to lie on the device.
    pub fn away(&self) -> impl Iterator<Item = u16> {
        let kept = self.keeping.iter().flat_map(|keeping| keeping.outputs());
        self.outputs.iter().map(|(index, _)| *index).chain(kept)
    }

    /// Whether the same tensors of two requests lie on a device, so that they can share a batch.
    fn are_those_of(one: Option<&Self>, other: Option<&Self>) -> bool {
        let numbers = |it: Option<&Self>| -> SmallVec<[(bool, u16); 4]> {
            let inputs = it.into_iter().flat_map(|it| &it.inputs).map(|(index, _)| (true, *index));
            let outputs =
                it.into_iter().flat_map(|it| &it.outputs).map(|(index, _)| (false, *index));
            let mut numbers: SmallVec<_> = inputs.chain(outputs).collect();
            numbers.sort_unstable();
            numbers
        };
        match (one, other) {
            (None, None) => true,
            (one, other) => numbers(one) == numbers(other),
        }
    }
}

impl Job {
    /// A request that says nothing beside its tensors.
    pub fn new(
        version: Arc<LoadedVersion>,
        admitted: Admitted,
        arrived: Timestamp,
        reply: ReplySender<Reply>,
    ) -> Self {
        Self {
            version,
            id: CompactString::default(),
            admitted,
            parameters: Parameters::default(),
            sequence: None,
            callers: None,
            priority: 0,
            queue_timeout: None,
            deadline: None,
            places: None,
            inputs_may_change: false,
            arrived,
            reply,
            trace: None,
            cache_slot: None,
            account: None,
            turn: None,
            ticket: None,
            place: 0,
            resident: None,
        }
    }

    /// What of its outputs may stay on the device that its model runs on.
    pub fn keeping(&self) -> Option<&Keeping> {
        self.resident.as_ref()?.keeping.as_deref()
    }

    /// Where its outputs may be written. Not there, if they are also kept, told or made classes of: the
    /// client could change them before that.
    pub fn output_places(&self) -> Option<&Arc<OutputPlaces>> {
        let is_traced = self.trace.as_ref().is_some_and(|trace| trace.wants_tensors());
        let is_read = is_traced || self.cache_slot.is_some() || !self.admitted.classes.is_empty();
        self.places.as_ref().filter(|_| !is_read)
    }

    /// Answers with the outputs of a run that began at `began`, and counts it, now, at `now`. Runs on
    /// reactor `reactor`.
    pub fn answer(
        mut self,
        mut outputs: Outputs,
        began: Timestamp,
        times: BatchTimes,
        reactor: usize,
        now: Timestamp,
    ) {
        if self.cache_slot.is_some() {
            cache::keep(&mut self, &outputs, &Parameters::default(), reactor);
        }
        if let Some(trace) = &mut self.trace {
            trace.outputs(&outputs);
        }
        let version = &self.version;
        if !self.admitted.classes.is_empty()
            && let Err(error) = classification::apply(version, &self.admitted, &mut outputs)
        {
            return self.fail(reactor, error);
        }
        let (queued, total) = (began - self.arrived, now - self.arrived);
        if let Some(account) = &self.account {
            account.add(queued, times);
        }
        version.statistics.succeeded(reactor, total, queued, total);
        if let Some(mut trace) = self.trace {
            note_run(&mut trace, began, times);
            trace.answered(now);
        }
        let response = version.response(self.id, outputs);
        self.reply.finish(Ok(response));
    }

    /// Answers with a failure and counts it. Runs on reactor `reactor`.
    pub fn fail(self, reactor: usize, error: Error) {
        let now = Timestamp::now();
        self.version.statistics.failed(reactor, kind(&error), now - self.arrived);
        if let Some(mut trace) = self.trace {
            trace.at(Event::RequestEnd, now);
            trace.finish();
        }
        self.reply.finish(Err(error));
    }

    /// Answers a request that the scheduler does not take, which counts as none.
    pub fn refuse(self, error: Error) {
        if let Some(mut trace) = self.trace {
            trace.at(Event::RequestEnd, Timestamp::now());
            trace.finish();
        }
        self.reply.finish(Err(error));
    }
}

/// Notes how a request ran.
fn note_run(trace: &mut Trace, began: Timestamp, times: BatchTimes) {
    let assembled = began + times.compute_input;
    let ran = assembled + times.compute_infer;
    trace.at(Event::ComputeStart, began);
    trace.at(Event::ComputeInputEnd, assembled);
    trace.at(Event::ComputeOutputStart, ran);
    trace.at(Event::ComputeEnd, ran + times.compute_output);
}

/// What the metrics call a failure.
pub fn kind(error: &Error) -> Failure {
    match error {
        Error::InRequest { error, .. } => kind(error),
        Error::QueueFull | Error::TimeoutExpired | Error::DeadlineExpired => Failure::Rejected,
        Error::Cancelled | Error::SequenceLeft { .. } => Failure::Cancelled,
        Error::InEnsemble { error, .. } => kind(error),
        Error::Backend { .. } | Error::Model { .. } | Error::ModelUnavailable { .. } => {
            Failure::Backend
        }
        _ => Failure::Other,
    }
}

impl Sequenced for Job {
    fn sequence(&self) -> Option<&Sequence> {
        self.sequence.as_deref()
    }
}

impl Queued for Job {
    fn rows(&self) -> u32 {
        self.admitted.batch_size
    }

    fn fits_with(&self, other: &Self) -> bool {
        let batched = self.version.signature.max_batch_size > 0;
        let mut pairs = self.admitted.inputs.iter().zip(&other.admitted.inputs).enumerate();
        batched
            && ResidentTensors::are_those_of(self.resident.as_deref(), other.resident.as_deref())
            && pairs.all(|(index, pair)| match pair {
                (Some(_), Some(_)) if self.version.ragged.input(index) => true,
                (Some(mine), Some(theirs)) => mine.shape.get(1..) == theirs.shape.get(1..),
                (None, None) => true,
                _ => false,
            })
    }

    fn priority(&self) -> u64 {
        self.priority
    }

    fn queue_timeout(&self) -> Option<Duration> {
        self.queue_timeout
    }

    fn deadline(&self) -> Option<Timestamp> {
        self.deadline
    }

    fn is_cancelled(&self) -> bool {
        self.reply.is_abandoned()
    }
}
