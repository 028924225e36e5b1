use std::{
    io,
    sync::{Arc, mpsc},
    time::Duration,
};

use super::{
    execution::Executed,
    inline::{self, Pace},
    instance_cores::InstanceCores,
    instance_thread::{InstanceThreads, NoThread, PlacedInstance},
    job::{Job, Reply},
    server::Observers,
    shard::{Executor, InlineInstance, Shard, ShardHandle},
    warm_up::{WarmUp, WarmUpError},
};
use crate::{
    backend::{BackendError, Host, Model, ModelInstance, Placement},
    inference::{Admitted, AdmittedInput, Error, InferRequest, Signature, Timestamp},
    observe::{
        ModelStatistics,
        trace::{Event, ModelTracer, Trace, TracedTensor},
    },
    proto,
    repository::{AgentChain, Labels, Ragged, TemporaryFolder},
    runtime::{Full, PerReactor, ReactorHandle, ReplyReceiver, reply_channel},
    scheduler::BatchingPolicy,
};

/// Everything that a version of a model needs to be served.
pub struct VersionSpec {
    /// The model's name.
    pub name: Arc<str>,
    /// The repository that it is from, where names are not unique; else empty.
    pub namespace: Arc<str>,
    /// The version.
    pub version: i64,
    /// Its configuration, complete.
    pub config: Arc<proto::ModelConfig>,
    /// Its tensors.
    pub signature: Arc<Signature>,
    /// The names of classes, for outputs that have them.
    pub labels: Arc<Labels>,
    /// How its requests are put together.
    pub policy: BatchingPolicy,
    /// Where its instances run.
    pub placements: Vec<Placement>,
    /// What each instance is run with before it serves.
    pub warm_ups: Vec<WarmUp>,
    /// What runs it.
    pub model: Arc<dyn Model>,
    /// When loading it began.
    pub began: Timestamp,
    /// Its folder, when it is not in a repository.
    pub folder: Option<Arc<TemporaryFolder>>,
    /// The agents that look after its folder.
    pub agents: Option<Arc<AgentChain>>,
}

/// A version of a model that is being served. Whoever holds it keeps it loaded; its queues and
/// instances live on reactors and threads, and end when the last request has been answered.
pub struct LoadedVersion {
    /// The model's name.
    pub name: Arc<str>,
    /// The repository that it is from, where names are not unique; else empty.
    pub namespace: Arc<str>,
    /// The version.
    pub version: i64,
    /// Its configuration, complete.
    pub config: Arc<proto::ModelConfig>,
    /// Its tensors.
    pub signature: Arc<Signature>,
    /// The names of classes, for outputs that have them.
    pub labels: Arc<Labels>,
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
    tracer: Arc<ModelTracer>,
    model: Arc<dyn Model>,
    instances: usize,
    /// Kept as long as the version, whose back end may still read from it.
    _folder: Option<Arc<TemporaryFolder>>,
    /// Told of the end of the model when no version of it is left.
    pub(super) agents: Option<Arc<AgentChain>>,
    home: ReactorHandle,
    runs_inline: bool,
    /// One on every reactor when the model runs inline, else one at home.
    shards: PerReactor<ShardHandle>,
}

/// What versions of models are started on.
pub struct Site<'a> {
    /// All reactors.
    pub reactors: &'a [ReactorHandle],
    /// The one that is to own the queue of a model that does not run inline.
    pub home: &'a ReactorHandle,
    /// Where instance threads run.
    pub instance_cores: &'a InstanceCores,
    /// What instances may use: tensor memory, other models.
    pub host: &'a Arc<Host>,
    /// What watches them.
    pub observers: &'a Observers,
}

/// Why a version could not be started.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// The back end gave no instance.
    #[error("{0}")]
    Backend(#[from] BackendError),
    /// The system gave no thread.
    #[error("cannot start the thread of instance '{name}': {source}")]
    Thread {
        /// The instance.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// An instance could not be warmed up.
    #[error("{0}")]
    WarmUp(#[from] WarmUpError),
    /// The server is stopping.
    #[error("the reactors have ended")]
    Stopped,
}

impl From<NoThread> for VersionError {
    fn from(NoThread { name, source }: NoThread) -> Self {
        Self::Thread { name, source }
    }
}

impl VersionSpec {
    /// Makes an instance and warms it up.
    fn instance(
        &self,
        placement: &Placement,
        ragged: &Ragged,
        host: &Arc<Host>,
    ) -> Result<ModelInstance, VersionError> {
        let mut instance = self.model.instance(placement, host)?;
        for warm_up in &self.warm_ups {
            warm_up.run(&self.signature, ragged, &mut instance, host)?;
        }
        Ok(instance)
    }
}

impl LoadedVersion {
    /// Makes the instances and starts queues for them. Blocks, so not for reactors.
    ///
    /// # Errors
    /// When an instance or its thread cannot be had.
    pub fn start(spec: VersionSpec, site: &Site<'_>) -> Result<Arc<Self>, VersionError> {
        let ragged = Ragged::new(&spec.config, &spec.signature);
        let mut instances = Vec::new();
        for placement in &spec.placements {
            instances.push(PlacedInstance {
                name: placement.name.clone(),
                cores: site.instance_cores.of(&placement.host_policy).to_vec(),
                instance: spec.instance(placement, &ragged, site.host)?,
            });
        }
        // Who wants an instance on certain processors does not want it on those of reactors.
        let is_placed =
            |placement: &Placement| site.instance_cores.wanted(&placement.host_policy).is_some();
        let runs_inline = !spec.placements.iter().any(is_placed)
            && inline::suits(&spec, &mut instances, &site.host.pool);
        // What is not served on a reactor takes no memory there.
        let home = site.home.index();
        let served = site.reactors.iter().map(|reactor| runs_inline || reactor.index() == home);
        let takes_requests = instances
            .first()
            .is_some_and(|placed| matches!(placed.instance, ModelInstance::Requests(_)));
        let plan = site.observers.metrics.plan(&spec.config);
        let statistics = ModelStatistics::new(served, spec.signature.max_batch_size, &plan);
        let version = Arc::new(Self {
            name: spec.name.clone(),
            namespace: spec.namespace.clone(),
            version: spec.version,
            config: spec.config.clone(),
            signature: spec.signature.clone(),
            labels: spec.labels.clone(),
            statistics: Arc::new(statistics),
            load_time: Timestamp::now() - spec.began,
            decoupled: spec.config.model_transaction_policy.is_some_and(|policy| policy.decoupled),
            host: site.host.clone(),
            takes_requests,
            ragged: ragged.clone(),
            tracer: site.observers.tracer.of_model(&spec.name),
            model: spec.model.clone(),
            instances: spec.placements.len(),
            _folder: spec.folder.clone(),
            agents: spec.agents.clone(),
            home: site.home.clone(),
            runs_inline,
            shards: PerReactor::new(site.reactors),
        });
        if runs_inline {
            let pace = Pace::of(spec.model.inline_fitness());
            let mut instances = instances.into_iter();
            for reactor in site.reactors {
                let placed = match (instances.next(), spec.placements.first()) {
                    (Some(made), _) => made,
                    (None, Some(placement)) => PlacedInstance {
                        name: placement.name.clone(),
                        cores: site.instance_cores.others().to_vec(),
                        instance: spec.instance(placement, &ragged, site.host)?,
                    },
                    (None, None) => break,
                };
                let instance = InlineInstance { placed, pace: pace.clone() };
                version.place(reactor, spec.policy.clone(), Executor::Inline(Some(instance)))?;
            }
        } else {
            let threads = InstanceThreads::start(instances, site.home)?;
            version.place(site.home, spec.policy, Executor::Threads(threads))?;
        }
        Ok(version)
    }

    /// Whether the model would answer now.
    pub fn is_ready(&self) -> bool {
        self.model.is_ready()
    }

    /// Starts a shard on `reactor` and waits until it is there.
    fn place(
        self: &Arc<Self>,
        reactor: &ReactorHandle,
        policy: BatchingPolicy,
        executor: Executor,
    ) -> Result<(), VersionError> {
        let (report, placed) = mpsc::channel();
        let version = self.clone();
        let message = Box::new(move || {
            version.shards.set(Shard::start(policy, executor));
            drop(version);
            let _ = report.send(());
        });
        reactor.send(message).map_err(|_| VersionError::Stopped)?;
        placed.recv().map_err(|mpsc::RecvError| VersionError::Stopped)
    }

    /// Takes a request in. The answer comes to the reactor that calls, which must be one.
    ///
    /// # Errors
    /// When the request does not fit the model, or too much waits already.
    pub fn infer(
        self: &Arc<Self>,
        mut request: InferRequest,
    ) -> Result<ReplyReceiver<Reply>, Error> {
        let arrived = Timestamp::now();
        if let Some(callers) = &request.callers
            && callers.waiting(&self.name, self.version) >= self.instances
        {
            let model = self.name.to_string();
            return Err(Error::WaitsForItself { model, instances: self.instances });
        }
        let admitted = self.signature.admit(&mut request)?;
        let (reply, answer) = reply_channel();
        let mut trace = self.tracer.begin(&self.name, self.version, &request.id);
        if let Some(trace) = &mut trace {
            trace.at(Event::RequestStart, arrived);
            trace.at(Event::QueueStart, Timestamp::now());
            self.trace_inputs(trace, &admitted);
        }
        let job = Job {
            version: self.clone(),
            trace,
            id: request.id,
            admitted,
            parameters: request.parameters,
            sequence: request.sequence,
            callers: request.callers,
            priority: request.priority,
            queue_timeout: request.queue_timeout,
            deadline: request.deadline,
            arrived,
            reply,
        };
        match self.shards.get() {
            Some(shard) => shard.submit(job),
            None => self.send_home(job)?,
        }
        Ok(answer)
    }

    fn trace_inputs(&self, trace: &mut Trace, admitted: &Admitted) {
        if !trace.wants_tensors() {
            return;
        }
        for (spec, input) in self.signature.inputs.iter().zip(&admitted.inputs) {
            if let Some(AdmittedInput { shape, data }) = input {
                trace.input(TracedTensor {
                    name: spec.name.clone(),
                    datatype: spec.datatype,
                    shape: shape.clone(),
                    data: data.clone(),
                });
            }
        }
    }

    fn send_home(&self, job: Job) -> Result<(), Error> {
        let message = Box::new(move || {
            let version = job.version.clone();
            match version.shards.get() {
                Some(shard) => shard.submit(job),
                None => job.reply.finish(Err(Error::Unloading { model: version.name.to_string() })),
            }
        });
        self.home.try_send(message).map_err(|refused| match refused {
            Full::Full(_) => Error::QueueFull,
            Full::Closed(_) => Error::Stopping,
        })
    }

    /// The number of the reactor that all requests go to, unless they go to all.
    pub(super) fn only_reactor(&self) -> Option<usize> {
        (!self.runs_inline).then(|| self.home.index())
    }

    /// Takes back a batch that an instance thread has run. Runs at home.
    pub(super) fn executed(&self, executed: Executed) {
        if let Some(shard) = self.shards.get() {
            shard.finished(executed);
        }
    }
}
