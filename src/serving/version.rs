mod regroup;
mod start;

use std::{any::Any, mem, ops::Deref, sync::Arc, time::Duration};

use compact_str::CompactString;

pub use self::{
    regroup::Regrouping,
    start::{Outline, Site, VersionError, VersionSpec},
};
use super::{
    answer_order::{AnswerTicket, End},
    batch::Outputs,
    cache::VersionCache,
    device_regions::DeviceTensors,
    ensemble::{self, Account, Asked, EnsembleSteps, Way},
    execution::{Executed, RanAlone},
    job::{Job, Reply, ResidentTensors},
    lanes::{Fleet, ResidentInput},
    sequences::{Ran, SequenceShardHandle},
    shard::{AtOnce, ShardHandle},
};
use crate::{
    backend::{Host, Model, Placement},
    device::Device,
    inference::{
        Admitted, AdmittedInput, Callers, Error, InferRequest, InferResponse, Parameters, Timestamp,
    },
    memory::OutputPlaces,
    observe::{
        ModelStatistics,
        trace::{Event, ModelTracer, OuterTrace, Trace, TracedTensor},
    },
    repository::{Ragged, RateLimit},
    runtime::{Full, PerReactor, ReactorHandle, ReplyReceiver, reply_channel},
};

/// A version of a model that is being served. Whoever holds it keeps it loaded; its queues and
/// instances live on reactors and threads, and end when the last request has been answered.
///
/// A version that goes on with other [`Member`]s is a copy of itself, which shares its queues.
#[derive(Clone)]
pub struct LoadedVersion {
    outline: Outline,
    /// What was counted of it.
    pub statistics: Arc<ModelStatistics>,
    /// How long it took to load.
    pub load_time: Duration,
    /// Whether a request gets any number of replies instead of one.
    pub decoupled: bool,
    pub(super) host: Arc<Host>,
    /// Whether its instances take requests instead of batches.
    pub(super) takes_requests: bool,
    /// How requests of different shapes share a batch.
    pub(super) ragged: Ragged,
    /// The sizes that its batches may have, ascending; empty for any.
    pub(super) allowed_batch_sizes: Vec<u32>,
    /// What goes first on a device: smaller than others.
    pub(super) device_priority: u32,
    tracer: Arc<ModelTracer>,
    /// What runs it; nothing, if it is an ensemble.
    model: Option<Arc<dyn Model>>,
    /// Its instances; none, if it is an ensemble.
    members: Arc<[Member]>,
    /// The number of the next instance. One that has left may still have sequences, so none is given twice.
    next_member: u32,
    /// The device whose memory its tensors may lie in.
    resident_on: Option<usize>,
    /// Whether states of its sequences stay on the devices of their instances.
    pub(super) keeps_states: bool,
    /// Who is to hear that one of them is lost.
    fleet: Option<Arc<Fleet>>,
    home: ReactorHandle,
    runs_on: RunsOn,
    /// One on every reactor when the model runs inline, else one at home.
    queues: Arc<PerReactor<Queue>>,
    /// Where its answers are kept, if they are.
    pub(super) cache: Option<VersionCache>,
    /// What runs instead, if it is an ensemble, which has no instances and no queue.
    pub(super) steps: Option<Arc<EnsembleSteps>>,
}

/// One instance of a version, by what tells it from others.
#[derive(Clone)]
struct Member {
    /// Its number among all that the version ever had.
    number: u32,
    placement: Placement,
    rate_limit: RateLimit,
    /// Where it runs, if it is on a device.
    device: Option<Arc<dyn Device>>,
}

/// What the instances of a version run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RunsOn {
    /// All reactors; an ensemble does too.
    Reactors,
    /// Threads of their own, at whose home there is one queue.
    Threads,
    /// Lanes of devices.
    Lanes,
}

/// A reactor's queue of a version, and the instances that it feeds.
enum Queue {
    Batches(ShardHandle),
    Sequences(SequenceShardHandle),
}

impl Queue {
    fn submit(&self, job: Job) {
        match self {
            Self::Batches(shard) => shard.submit(job),
            Self::Sequences(shard) => shard.submit(job),
        }
    }
}

impl Deref for LoadedVersion {
    type Target = Outline;

    /// What is known of it, as what it has.
    fn deref(&self) -> &Outline {
        &self.outline
    }
}

impl LoadedVersion {
    /// Bytes of the host's memory that its model takes, where that is known.
    pub fn memory_bytes(&self) -> Option<u64> {
        self.model.as_ref()?.memory_bytes()
    }

    /// Whether the model would answer now.
    pub fn is_ready(&self) -> bool {
        match &self.steps {
            None => {
                let mut devices = self.devices().peekable();
                let is_anywhere = devices.peek().is_none();
                (is_anywhere || devices.any(|device| device.lost().is_none()))
                    && self.model.as_ref().is_some_and(|model| model.is_ready())
            }
            Some(steps) => steps.are_ready(),
        }
    }

    /// Whether this is `other`, perhaps with other instances.
    pub(super) fn is_same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.queues, &other.queues)
    }

    /// Whether nobody else has this version or shares its queues.
    pub(super) fn is_last(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) == 1 && Arc::strong_count(&self.queues) == 1
    }

    /// The devices that its instances run on, if they do.
    fn devices(&self) -> impl Iterator<Item = &Arc<dyn Device>> {
        self.members.iter().filter_map(|member| member.device.as_ref())
    }

    /// How many requests can run at a time.
    fn instances(&self) -> usize {
        match self.steps {
            // Any number are on their way through what has no instances.
            Some(_) => usize::MAX,
            None => self.members.len(),
        }
    }

    /// What runs it; nothing, if it is an ensemble.
    pub(super) fn model(&self) -> Option<&Arc<dyn Model>> {
        self.model.as_ref()
    }

    /// Takes what a request has in, as a part of what `outer` traces if that is given; outputs may be written
    /// to `places`. The answer comes to the reactor that calls, which must be one.
    ///
    /// # Errors
    /// When the request does not fit the model, or too much waits already.
    pub(super) fn infer_within(
        self: &Arc<Self>,
        request: &mut InferRequest,
        outer: Option<OuterTrace>,
        places: Option<Arc<OutputPlaces>>,
    ) -> Result<ReplyReceiver<Reply>, Error> {
        let arrived = Timestamp::now();
        self.refuse_callers(request.callers.as_deref())?;
        let on_device = request.on_device.take();
        let mut admitted = self.signature.admit(request)?;
        let resident = on_device.map(|it| self.resident(&it, &mut admitted)).transpose()?;
        let mut trace = match &outer {
            None => self.tracer.begin(&self.name, self.version, &request.id, request.trace_parent),
            Some(outer) => Some(self.trace_within(outer, &request.id)),
        };
        if let Some((trace, wire)) = trace.as_mut().zip(request.wire.take()) {
            trace.came_by(wire);
        }
        let (mut way, mut on_the_way) = (Way::default(), None);
        if trace.is_none()
            && resident.is_none()
            && admitted.classes.is_empty()
            && request.deadline.is_none_or(|deadline| deadline > arrived)
        {
            if let Some(at_once) = self.at_once() {
                let RanAlone { outcome, .. } =
                    at_once.run_alone(self, &admitted, places.as_ref(), arrived);
                let id = mem::take(&mut request.id);
                let reply = outcome.map(|outputs| self.response(id, outputs));
                return Ok(ReplyReceiver::answered(reply));
            }
            if let Some(steps) = self.steps.as_ref().filter(|_| self.cache.is_none())
                && request.callers.is_none()
            {
                on_the_way = Some(steps);
                way.begin(steps, self, &mut admitted, None);
                let asked = Asked {
                    version: self,
                    admitted: &admitted,
                    id: &request.id,
                    sequence: request.sequence.as_deref(),
                    places: places.as_ref(),
                    deadline: request.deadline,
                };
                if let Some(reply) = way.go(steps, &asked, arrived) {
                    return Ok(ReplyReceiver::answered(reply));
                }
            }
        }
        let (reply, answer) = reply_channel();
        let job = Job {
            trace,
            id: mem::take(&mut request.id),
            parameters: mem::take(&mut request.parameters),
            sequence: request.sequence.take(),
            callers: request.callers.take(),
            priority: request.priority,
            queue_timeout: request.queue_timeout,
            deadline: request.deadline,
            places,
            inputs_may_change: request.inputs_may_change,
            resident: resident.map(Box::new),
            ..Job::new(self.clone(), admitted, arrived, reply)
        };
        match on_the_way {
            Some(steps) => ensemble::go_on(steps, job, way),
            None => self.take_in(job),
        }
        Ok(answer)
    }

    /// Takes a request in that a step of an ensemble makes: it has these tensors, and all else of `whole`,
    /// the request to the ensemble. Called on a reactor, where the answer comes.
    ///
    /// # Errors
    /// When too much waits already.
    pub(super) fn infer_step(
        self: &Arc<Self>,
        admitted: Admitted,
        whole: &Job,
        places: Option<Arc<OutputPlaces>>,
        resident: Option<Box<ResidentTensors>>,
        account: Arc<Account>,
    ) -> Result<ReplyReceiver<Reply>, Error> {
        let arrived = Timestamp::now();
        self.refuse_callers(whole.callers.as_deref())?;
        let outer = whole.trace.as_ref().map(|trace| trace.as_outer());
        let (reply, answer) = reply_channel();
        let job = Job {
            trace: outer.map(|outer| self.trace_within(&outer, &whole.id)),
            id: whole.id.clone(),
            parameters: whole.parameters.clone(),
            sequence: whole.sequence.clone(),
            callers: whole.callers.clone(),
            priority: whole.priority,
            queue_timeout: whole.queue_timeout,
            deadline: whole.deadline,
            places,
            inputs_may_change: whole.inputs_may_change,
            resident,
            account: Some(account),
            ..Job::new(self.clone(), admitted, arrived, reply)
        };
        self.take_in(job);
        Ok(answer)
    }

    /// What runs a request by itself, here and now. `None` when it has to be taken in: where answers are
    /// kept, or when something is in its way.
    pub(super) fn at_once(&self) -> Option<AtOnce<'_>> {
        match self.queues.get() {
            Some(Queue::Batches(shard)) if self.cache.is_none() => shard.at_once(self),
            _ => None,
        }
    }

    /// The answer to the request `id`.
    pub(super) fn response(&self, id: CompactString, outputs: Outputs) -> InferResponse {
        InferResponse {
            model_name: self.name.clone(),
            model_version: self.version,
            id,
            parameters: Parameters::default(),
            outputs,
        }
    }

    /// Refuses a request that its callers wait for in all instances that could run it.
    fn refuse_callers(&self, callers: Option<&Callers>) -> Result<(), Error> {
        match callers.map(|callers| callers.waiting(&self.name, self.version)) {
            Some(waiting) if waiting >= self.instances() => Err(Error::WaitsForItself {
                model: self.name.to_string(),
                instances: self.instances(),
            }),
            _ => Ok(()),
        }
    }

    fn trace_within(&self, outer: &OuterTrace, id: &CompactString) -> Box<Trace> {
        self.tracer.begin_within(outer, &self.name, self.version, id)
    }

    fn take_in(&self, mut job: Job) {
        if let Some(trace) = &mut job.trace {
            trace.at(Event::RequestStart, job.arrived);
            trace.at(Event::QueueStart, Timestamp::now());
            self.trace_inputs(trace, &job.admitted);
        }
        match &self.cache {
            Some(cache) if !job.inputs_may_change && job.sequence.is_none() => cache.look_up(job),
            _ => self.schedule(job),
        }
    }

    /// The device whose memory an input of its requests may lie in, if there is one.
    pub fn takes_on(&self, input: usize) -> Option<usize> {
        match &self.steps {
            Some(steps) => steps.take_on(input),
            None => self.resident_on,
        }
    }

    /// The device whose memory an output of its requests may be put to, if there is one.
    pub fn puts_on(&self, output: usize) -> Option<usize> {
        match &self.steps {
            _ if self.cache.is_some() => None,
            Some(steps) => steps.put_on(output),
            None => self.resident_on,
        }
    }

    /// Takes up what of a request lies on a device. Outputs that are to go there are no longer among
    /// those that come back.
    fn resident(
        &self,
        given: &Arc<dyn Any + Send + Sync>,
        admitted: &mut Admitted,
    ) -> Result<ResidentTensors, Error> {
        let mut resident = ResidentTensors::default();
        let Some(DeviceTensors { inputs, outputs }) = given.downcast_ref() else {
            return Ok(resident);
        };
        let elsewhere = || {
            // It was there when the request was taken in, and has been loaded anew since.
            let (model, reason) = (self.name.to_string(), "it runs elsewhere now".to_owned());
            Error::ModelUnavailable { model, reason }
        };
        for (name, view) in inputs {
            let Some(index) = self.signature.input(name) else { continue };
            if self.takes_on(index) != Some(view.device()) {
                return Err(elsewhere());
            }
            let input = ResidentInput::of_client(view.slice().clone());
            resident.inputs.extend(u16::try_from(index).ok().map(|index| (index, input)));
        }
        for (name, view) in outputs {
            let Some(index) = self.signature.output(name) else { continue };
            if self.puts_on(index) != Some(view.device()) {
                return Err(elsewhere());
            }
            let place = view.slice().clone();
            resident.outputs.extend(u16::try_from(index).ok().map(|index| (index, place)));
        }
        let goes = |index: &u16| resident.outputs.iter().any(|(output, _)| output == index);
        admitted.outputs.retain(|index| !goes(index));
        Ok(resident)
    }

    /// The same between steps of ensembles: answers that are kept are found by inputs that lie on the host.
    pub(super) fn takes_between_steps_on(&self, input: usize) -> Option<usize> {
        self.takes_on(input).filter(|_| self.cache.is_none())
    }

    /// The device whose memory output `output` may stay in between steps of ensembles.
    pub(super) fn keeps_between_steps_on(&self, output: usize) -> Option<usize> {
        match &self.steps {
            _ if self.cache.is_some() => None,
            // Of several responses each would have its own.
            Some(steps) => steps.keep_on(output).filter(|_| !self.decoupled),
            None => self.resident_on,
        }
    }

    /// Whether tensors of its requests may stay on a device for requests to come.
    pub fn keeps_tensors(&self) -> bool {
        self.keeps_states || (self.resident_on.is_some() && self.cache.is_none())
    }

    /// Whether its answers are kept in the response cache.
    pub fn is_cached(&self) -> bool {
        self.cache.is_some()
    }

    /// Hands a request to what runs it.
    pub(super) fn schedule(&self, job: Job) {
        match (&self.steps, self.queues.get()) {
            (Some(steps), _) => ensemble::start(steps, job),
            (None, Some(queue)) => queue.submit(job),
            (None, None) => self.send_home(job),
        }
    }

    fn trace_inputs(&self, trace: &mut Trace, admitted: &Admitted) {
        if !trace.wants_tensors() {
            return;
        }
        for (spec, input) in self.signature.inputs.iter().zip(&admitted.inputs) {
            // What lies on a device is not brought here for this.
            if let Some(AdmittedInput { shape, data }) = input
                && !data.is_absent()
            {
                trace.input(TracedTensor {
                    name: spec.name.clone(),
                    datatype: spec.datatype,
                    shape: shape.clone(),
                    data: data.clone(),
                });
            }
        }
    }

    fn send_home(&self, job: Job) {
        let message = Box::new(move || {
            let version = job.version.clone();
            match version.queues.get() {
                Some(queue) => queue.submit(job),
                None if version.home.is_current() => {
                    job.reply.finish(Err(Error::Unloading { model: version.name.to_string() }));
                }
                None => job.reply.finish(Err(Error::QueueFull)),
            }
        });
        match self.home.try_send(message) {
            Ok(()) => {}
            // Run here it says that it was refused.
            Err(Full::Full(message)) => message(),
            Err(Full::Closed(_)) => {
                log::debug!("a request came after its model's reactor had ended");
            }
        }
    }

    /// The number of the reactor that all requests go to, unless they go to all.
    pub(super) fn only_reactor(&self) -> Option<usize> {
        (self.runs_on != RunsOn::Reactors).then(|| self.home.index())
    }

    /// Takes back a batch that an instance thread has run. Runs at home.
    pub(super) fn executed(&self, executed: Executed) {
        self.heed_loss(&executed);
        if let Some(Queue::Batches(shard)) = self.queues.get() {
            shard.finished(executed);
        }
    }

    /// After a batch that failed looks whether that is because a device is lost.
    fn heed_loss(&self, executed: &Executed) {
        if let Some(fleet) = &self.fleet
            && executed.took().is_none()
        {
            let lost = self.devices().filter_map(|device| device.lost());
            lost.for_each(|error| fleet.heed(&error));
        }
    }

    /// Queues a request that its model wants to run again. Runs at home.
    pub(super) fn run_again(&self, job: Job) {
        if let Some(Queue::Sequences(shard)) = self.queues.get() {
            shard.run_again(job);
        }
    }

    /// Ends an answer when all before it have ended. Runs at home.
    pub(super) fn end_in_order(&self, ticket: &AnswerTicket, end: End) {
        match self.queues.get() {
            Some(Queue::Batches(shard)) => shard.end_in_order(ticket, end),
            Some(Queue::Sequences(shard)) => shard.end_in_order(ticket, Some(end)),
            None => end(),
        }
    }

    /// Takes back a batch of sequences that their instance has run. Runs at home.
    pub(super) fn ran(&self, ran: Ran) {
        self.heed_loss(&ran.executed);
        if let Some(Queue::Sequences(shard)) = self.queues.get() {
            shard.finished(ran);
        }
    }
}
