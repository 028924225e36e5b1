//! What it takes for a version to be served, and how it comes to be.

use std::{
    io,
    sync::{Arc, mpsc},
};

use super::{LoadedVersion, Member, Queue, RunsOn};
use crate::{
    backend::{
        BackendError, DeviceInstance, Direct, Host, Model, ModelInstance, Placement,
        PlacementDevice,
    },
    device::DeviceError,
    inference::{AdmittedInput, Signature, Timestamp},
    observe::ModelStatistics,
    proto,
    repository::{AgentChain, Labels, Ragged, RateLimit, TemporaryFolder},
    runtime::{PerReactor, ReactorHandle},
    scheduler::{BatchingPolicy, LimitError, ModelIdentity},
    serving::{
        cache::{Caches, VersionCache},
        ensemble::EnsembleSteps,
        inline::{self, Pace},
        instance_cores::InstanceCores,
        instance_thread::{InstanceThreads, NoThread, PlacedInstance},
        lanes::{Fleet, OpenLanes, TooFull},
        limiter::{Limiter, Seat},
        sequences::{Instances, NewInstances, SequenceSetup, SequenceShard},
        server::Observers,
        shard::{Executor, InlineInstance, Shard},
        warm_up::{WarmUp, WarmUpError},
    },
};

/// What is known of a version before anything is made to run it.
#[derive(Clone)]
pub struct Outline {
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
    /// What tells its answers from those of others, if they are to be kept.
    pub identity: Option<ModelIdentity>,
    /// When loading it began.
    pub began: Timestamp,
    /// Its folder, when it is not in a repository; kept as long as the version, whose back end may still
    /// read from it.
    pub folder: Option<Arc<TemporaryFolder>>,
    /// The agents that look after its folder, told of the end of the model when no version of it is left.
    pub agents: Option<Arc<AgentChain>>,
}

/// Everything that a version of a model needs to be served.
pub struct VersionSpec {
    /// What is known of it.
    pub outline: Outline,
    /// How its requests are put together.
    pub policy: BatchingPolicy,
    /// The sizes that its batches may have, ascending; empty for any.
    pub allowed_batch_sizes: Vec<u32>,
    /// How its requests form sequences, if they do.
    pub sequences: Option<Arc<SequenceSetup>>,
    /// Where its instances run.
    pub placements: Vec<Placement>,
    /// How each of them takes turns with others.
    pub rate_limits: Vec<RateLimit>,
    /// What each instance is run with before it serves.
    pub warm_ups: Vec<WarmUp>,
    /// What runs it.
    pub model: Arc<dyn Model>,
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
    /// Where answers are kept, if they are.
    pub cache: Option<&'a Arc<Caches>>,
    /// What makes instances take turns, if anything does.
    pub limiter: Option<&'a Arc<Limiter>>,
    /// The devices' lanes, if models can run on devices.
    pub fleet: Option<&'a Arc<Fleet>>,
}

/// Why a version could not be started.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// The back end gave no instance.
    #[error("{0}")]
    Backend(#[from] BackendError),
    /// A device gave no lanes.
    #[error("{0}")]
    Device(#[from] DeviceError),
    /// A device is too full.
    #[error("{0}")]
    Full(#[from] TooFull),
    /// The system gave no thread.
    #[error("cannot start the thread of instance '{name}': {source}")]
    Thread {
        /// The instance.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// An instance could never have its turn.
    #[error("{0}")]
    Limit(#[from] LimitError),
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
    /// The instances that it is to have, before they are anywhere.
    pub(super) fn members(&self) -> Vec<Member> {
        let limits =
            self.rate_limits.iter().cloned().chain(std::iter::repeat(RateLimit::default()));
        let all = (0..).zip(self.placements.iter().cloned().zip(limits));
        all.map(|(number, (placement, rate_limit))| Member {
            number,
            placement,
            rate_limit,
            device: None,
        })
        .collect()
    }

    /// Whether what it wants can be had of instances that take requests one by one.
    fn check_requests_suit(&self) -> Result<(), BackendError> {
        let model = &self.outline.name;
        if self.sequences.as_ref().is_some_and(|setup| setup.has_states()) {
            log::warn!(
                "model '{model}': its back end takes single requests and gives no state back: as in \
                 Triton, every request is given the states that a sequence begins with"
            );
        }
        if self.allowed_batch_sizes.is_empty() {
            return Ok(());
        }
        let detail = format!(
            "the back end of model '{model}' takes single requests: it cannot fill batches up to \
             'allowed_batch_sizes'"
        );
        Err(BackendError(detail))
    }

    /// The lanes of the instances of `members`, warmed up, if all run on devices and nothing but the
    /// devices decides whose turn it is. Instances of sequences have lanes of their own each, for a sequence
    /// stays with its instance; all others share theirs.
    pub(super) fn lanes(
        &self,
        members: &[Member],
        takes_turns: bool,
        ragged: &Ragged,
        site: &Site<'_>,
    ) -> Result<Option<Vec<OpenLanes>>, VersionError> {
        let Some(fleet) = site.fleet else { return Ok(None) };
        for member in members {
            fleet.check_room(&self.outline.name, member.placement.device)?;
        }
        if takes_turns {
            return Ok(None);
        }
        let on_devices = members.iter().map(|member| self.model.on_device(&member.placement));
        let on_devices: Option<Vec<DeviceInstance>> = on_devices.collect::<Result<_, _>>()?;
        let Some(mut instances) = on_devices.filter(|instances| !instances.is_empty()) else {
            return Ok(None);
        };
        // Rows that belong to nobody hold no file that could be made ready.
        let are_prepared = !instances.iter().all(|instance| instance.model.prepared().is_empty());
        let have_fillers = self.sequences.is_some() || !self.allowed_batch_sizes.is_empty();
        if are_prepared && have_fillers {
            return Ok(None);
        }
        let (signature, hidden) = self.tensors();
        for instance in instances.iter_mut().filter(|_| !self.warm_ups.is_empty()) {
            let mut lent = Direct::with(instance)?;
            for warm_up in &self.warm_ups {
                warm_up.run_on(signature, ragged, &hidden, &mut lent, site.host)?;
            }
        }
        let Outline { name, config, .. } = &self.outline;
        let cuda = config.optimization.as_ref().and_then(|it| it.cuda.as_ref());
        let graphs = cuda.is_some_and(|cuda| cuda.graphs);
        Ok(Some(match self.sequences {
            Some(_) => fleet.open_apart(name, graphs, instances)?,
            None => vec![fleet.open(name, graphs, instances)?],
        }))
    }

    /// The tensors that its instances see, and what of them does not come from clients, for one row.
    fn tensors(&self) -> (&Arc<Signature>, Vec<AdmittedInput>) {
        match &self.sequences {
            Some(setup) => (&setup.signature, setup.warm_up_inputs()),
            None => (&self.outline.signature, Vec::new()),
        }
    }

    /// Makes the instance of `member` and warms it up. With a `seat` it takes turns with others.
    pub(super) fn instance(
        &self,
        member: &Member,
        seat: Option<Seat>,
        ragged: &Ragged,
        site: &Site<'_>,
    ) -> Result<PlacedInstance, VersionError> {
        let (placement, host) = (&member.placement, site.host);
        let mut instance = self.model.instance(placement, host)?;
        let (signature, hidden) = self.tensors();
        for warm_up in &self.warm_ups {
            warm_up.run(signature, ragged, &hidden, &mut instance, host)?;
        }
        Ok(PlacedInstance {
            name: placement.name.clone(),
            cores: site.instance_cores.of(&placement.host_policy).to_vec(),
            seat,
            instance,
        })
    }
}

impl Member {
    /// Its place among those that share resources, if it needs any.
    ///
    /// # Errors
    /// When it could never have its turn.
    pub(super) fn seat(&self, site: &Site<'_>) -> Result<Option<Seat>, LimitError> {
        let RateLimit { resources, priority } = &self.rate_limit;
        let Some(limiter) = site.limiter.filter(|_| !resources.is_empty()) else { return Ok(None) };
        let device = match self.placement.device {
            PlacementDevice::Gpu(id) => id,
            // As Triton has it, the host has what the first device has.
            PlacementDevice::Cpu | PlacementDevice::Model => 0,
        };
        limiter.join(resources, *priority, device).map(Some)
    }

    /// Whether it is to run on a device or on certain processors, and so not on those of reactors.
    pub(super) fn is_placed(&self, site: &Site<'_>) -> bool {
        let Placement { device, host_policy, .. } = &self.placement;
        matches!(device, PlacementDevice::Gpu(_))
            || site.instance_cores.wanted(host_policy).is_some()
    }
}

impl LoadedVersion {
    /// Makes the instances and starts queues for them. Blocks, so not for reactors.
    ///
    /// # Errors
    /// When an instance or its thread cannot be had.
    pub fn start(spec: VersionSpec, site: &Site<'_>) -> Result<Arc<Self>, VersionError> {
        let Outline { config, signature, .. } = &spec.outline;
        let ragged = Ragged::new(config, signature);
        let mut members = spec.members();
        let seats = members.iter().map(|member| member.seat(site));
        let seats: Vec<Option<Seat>> = seats.collect::<Result<_, _>>()?;
        let takes_turns = seats.iter().any(Option::is_some);
        let lanes = spec.lanes(&members, takes_turns, &ragged, site)?;
        let mut instances = Vec::new();
        for (member, seat) in members.iter().zip(seats).filter(|_| lanes.is_none()) {
            instances.push(spec.instance(member, seat, &ragged, site)?);
        }
        let runs_inline = !takes_turns
            && spec.sequences.is_none()
            && !members.iter().any(|member| member.is_placed(site))
            && inline::suits(&spec, &mut instances, &site.host.pool);
        let first_lanes = lanes.iter().flatten().next();
        let home = first_lanes.map_or(site.home, OpenLanes::home).clone();
        // What is not served on a reactor takes no memory there.
        let is_cached = site.cache.is_some() && spec.outline.identity.is_some();
        let is_everywhere = runs_inline || is_cached;
        let is_served = |reactor: &ReactorHandle| is_everywhere || reactor.index() == home.index();
        let served = site.reactors.iter().map(is_served);
        let takes_requests = instances
            .first()
            .is_some_and(|placed| matches!(placed.instance, ModelInstance::Requests(_)));
        if takes_requests {
            spec.check_requests_suit()?;
        }
        let devices = match &lanes {
            Some(lanes) => lanes.iter().flat_map(OpenLanes::devices).cloned().map(Some).collect(),
            None => instances.iter().map(|it| it.instance.device().cloned()).collect::<Vec<_>>(),
        };
        for (member, device) in members.iter_mut().zip(devices) {
            member.device = device;
        }
        let first = members.first().cloned();
        let version = Arc::new(Self {
            decoupled: config.model_transaction_policy.is_some_and(|policy| policy.decoupled),
            takes_requests,
            ragged: ragged.clone(),
            allowed_batch_sizes: spec.allowed_batch_sizes.clone(),
            device_priority: device_priority(config),
            model: Some(spec.model.clone()),
            next_member: members.iter().map(|member| member.number + 1).max().unwrap_or(0),
            members: members.into(),
            resident_on: first_lanes
                .filter(|_| spec.sequences.is_none())
                .filter(|_| ragged.is_empty() && spec.allowed_batch_sizes.is_empty())
                .and_then(OpenLanes::resident_on),
            keeps_states: spec.sequences.as_ref().is_some_and(|setup| setup.can_reside())
                && ragged.is_empty()
                && first_lanes.is_some_and(|lanes| lanes.resident_on().is_some()),
            fleet: site.fleet.cloned(),
            home: home.clone(),
            runs_on: match (&lanes, runs_inline) {
                (Some(_), _) => RunsOn::Lanes,
                (None, true) => RunsOn::Reactors,
                (None, false) => RunsOn::Threads,
            },
            ..Self::of_outline(spec.outline.clone(), site, served)
        });
        if runs_inline {
            let pace = Pace::of(spec.model.inline_fitness());
            let mut instances = instances.into_iter();
            for reactor in site.reactors {
                let placed = match (instances.next(), &first) {
                    (Some(made), _) => made,
                    (None, Some(member)) => spec.instance(member, None, &ragged, site)?,
                    (None, None) => break,
                };
                let instance = InlineInstance { placed, pace: pace.clone() };
                let policy = spec.policy.clone();
                version.place(reactor, move || {
                    Queue::Batches(Shard::start(policy, Executor::Inline(Some(instance))))
                })?;
            }
        } else if let Some(setup) = spec.sequences {
            let instances = match lanes {
                Some(lanes) => NewInstances::InLanes(lanes),
                None => NewInstances::OnThreads(Instances::start(0, instances, &setup, &home)?),
            };
            version.place(&home, || {
                Queue::Sequences(SequenceShard::start(setup, instances.at_home(0)))
            })?;
        } else if let Some(lanes) = lanes.into_iter().flatten().next() {
            version.place(&home, || {
                Queue::Batches(Shard::start(spec.policy, Executor::Lanes(lanes.start())))
            })?;
        } else {
            let threads = InstanceThreads::start(instances, &home)?;
            version.place(&home, || {
                Queue::Batches(Shard::start(spec.policy, Executor::Threads(threads)))
            })?;
        }
        Ok(version)
    }

    /// An ensemble of `steps`, which is served wherever its requests come in.
    pub fn of_steps(outline: Outline, steps: Arc<EnsembleSteps>, site: &Site<'_>) -> Arc<Self> {
        let served = site.reactors.iter().map(|_| true);
        Arc::new(Self {
            decoupled: steps.are_decoupled(),
            steps: Some(steps),
            ..Self::of_outline(outline, site, served)
        })
    }

    /// A version that nothing runs yet, counted on the reactors where it is `served`.
    fn of_outline(outline: Outline, site: &Site<'_>, served: impl Iterator<Item = bool>) -> Self {
        let plan = site.observers.metrics.plan(&outline.config);
        let statistics = ModelStatistics::new(served, outline.signature.max_batch_size, &plan);
        Self {
            tracer: site.observers.tracer.of_model(&outline.name),
            statistics: Arc::new(statistics),
            load_time: Timestamp::now() - outline.began,
            decoupled: false,
            host: site.host.clone(),
            takes_requests: false,
            ragged: Ragged::default(),
            allowed_batch_sizes: Vec::new(),
            device_priority: 0,
            model: None,
            members: Arc::default(),
            next_member: 0,
            resident_on: None,
            keeps_states: false,
            fleet: None,
            home: site.home.clone(),
            runs_on: RunsOn::Reactors,
            queues: Arc::new(PerReactor::new(site.reactors)),
            cache: site
                .cache
                .zip(outline.identity.clone())
                .map(|(caches, identity)| VersionCache::new(caches.clone(), identity)),
            steps: None,
            outline,
        }
    }

    /// Starts a queue on `reactor` and waits until it is there.
    fn place(
        self: &Arc<Self>,
        reactor: &ReactorHandle,
        start: impl FnOnce() -> Queue + Send + 'static,
    ) -> Result<(), VersionError> {
        self.on(reactor, |version| version.queues.set(start()))
    }

    /// Does something to it on `reactor` and waits until it is done.
    pub(super) fn on(
        self: &Arc<Self>,
        reactor: &ReactorHandle,
        work: impl FnOnce(&Self) + Send + 'static,
    ) -> Result<(), VersionError> {
        let (report, done) = mpsc::channel();
        let version = self.clone();
        let message = Box::new(move || {
            work(&version);
            drop(version);
            let _ = report.send(());
        });
        reactor.send(message).map_err(|_| VersionError::Stopped)?;
        done.recv().map_err(|mpsc::RecvError| VersionError::Stopped)
    }
}

/// What goes first on a device by a model's `optimization.priority`.
fn device_priority(config: &proto::ModelConfig) -> u32 {
    use proto::model_optimization_policy::ModelPriority;
    let optimization = config.optimization.as_ref();
    match optimization.map(proto::ModelOptimizationPolicy::priority) {
        Some(ModelPriority::PriorityMax) => 0,
        Some(ModelPriority::PriorityMin) => 2,
        Some(ModelPriority::PriorityDefault) | None => 1,
    }
}
