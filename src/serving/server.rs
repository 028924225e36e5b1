use std::sync::{
    Arc, OnceLock, Weak,
    atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering},
};

use arc_swap::ArcSwap;
use prost::Message as _;

use super::{
    ask::FromInside,
    cache::Caches,
    device_regions::DeviceRegions,
    ensemble::{EnsembleSteps, StepVersion},
    instance_cores::InstanceCores,
    job::Reply,
    lanes::Fleet,
    limiter::Limiter,
    registry::{self, Models, Versions, find, find_model},
    version::{LoadedVersion, Outline, Regrouping, Site, VersionError, VersionSpec},
};
use crate::{
    backend::Host,
    device::Devices,
    inference::{Error, InferRequest},
    memory::{BufferPool, OutputPlaces, Regions},
    observe::{
        MetricsSettings,
        gpu::GpuMetrics,
        trace::{OuterTrace, Tracer},
    },
    repository::{Definition, EnsembleStep, ModelId, content_digest},
    runtime::{ReactorHandle, ReplyReceiver, pin_to, try_current},
    scheduler::ModelIdentity,
};

/// Where the server is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ServerState {
    /// Models are being loaded.
    Starting,
    /// It serves.
    Ready,
    /// It serves, but says that it is not ready, so that clients go elsewhere.
    Leaving,
    /// It answers what it has taken in, and takes in nothing new.
    Stopping,
}

/// The server's name when it is given none. Clients that look for Triton find it.
const NAME: &str = "triton";

/// The models that are loaded, and what they run on.
pub struct Server {
    models: ArcSwap<Models>,
    state: AtomicU8,
    reactors: Vec<ReactorHandle>,
    instance_cores: InstanceCores,
    host: Arc<Host>,
    regions: Regions,
    observers: Observers,
    cache: OnceLock<Arc<Caches>>,
    limiter: OnceLock<Arc<Limiter>>,
    fleet: OnceLock<Arc<Fleet>>,
    device_regions: OnceLock<DeviceRegions>,
    name: OnceLock<String>,
    next_home: AtomicUsize,
    /// Whether a model that should be served is not.
    incomplete: AtomicBool,
    /// Whether a device is lost that models need.
    impaired: AtomicBool,
}

/// What watches the server.
pub struct Observers {
    /// Decides which requests are traced.
    pub tracer: Arc<Tracer>,
    /// What is measured of models, and told of them.
    pub metrics: MetricsSettings,
    /// What the GPUs do, where there are any.
    pub gpus: Option<GpuMetrics>,
}

impl Server {
    /// A server without models.
    pub fn new(
        reactors: &[ReactorHandle],
        instance_cores: InstanceCores,
        pool: BufferPool,
        regions: Regions,
        observers: Observers,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            models: ArcSwap::default(),
            state: AtomicU8::new(ServerState::Starting as u8),
            reactors: reactors.to_vec(),
            instance_cores,
            host: Arc::new(Host::new(pool, Box::new(FromInside(this.clone())))),
            regions,
            observers,
            cache: OnceLock::new(),
            limiter: OnceLock::new(),
            fleet: OnceLock::new(),
            device_regions: OnceLock::new(),
            name: OnceLock::new(),
            next_home: AtomicUsize::new(0),
            incomplete: AtomicBool::new(false),
            impaired: AtomicBool::new(false),
        })
    }

    /// Where the server is in its life.
    pub fn state(&self) -> ServerState {
        match self.state.load(Ordering::Relaxed) {
            0 => ServerState::Starting,
            1 => ServerState::Ready,
            2 => ServerState::Leaving,
            _ => ServerState::Stopping,
        }
    }

    /// Moves on in life.
    pub fn enter(&self, state: ServerState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// Whether clients should send requests: it serves, and no model or device is missing.
    pub fn is_ready(&self) -> bool {
        self.state() == ServerState::Ready
            && !self.incomplete.load(Ordering::Relaxed)
            && !self.impaired.load(Ordering::Relaxed)
    }

    /// Says that a device is lost; then the server is not ready, though it serves on.
    pub fn set_impaired(&self) {
        self.impaired.store(true, Ordering::Relaxed);
    }

    /// Says whether a model that should be served is not; then the server is not ready, though it
    /// serves the others.
    pub fn set_incomplete(&self, incomplete: bool) {
        self.incomplete.store(incomplete, Ordering::Relaxed);
    }

    /// The reactors that it runs on.
    pub fn reactors(&self) -> &[ReactorHandle] {
        &self.reactors
    }

    /// Binds the calling thread, and all that it starts, to the cores of instance threads.
    pub(super) fn leave_reactor_cores(&self) {
        if let Err(error) = pin_to(self.instance_cores.others()) {
            log::warn!(
                "a loading thread cannot be bound to cores {:?}: {error}",
                self.instance_cores.others()
            );
        }
    }

    /// Shared memory that clients have registered.
    pub fn regions(&self) -> &Regions {
        &self.regions
    }

    /// The tensor memory of all models.
    pub fn pool(&self) -> &BufferPool {
        &self.host.pool
    }

    /// What the models may use of the server.
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// What decides which requests are traced.
    pub fn tracer(&self) -> &Tracer {
        &self.observers.tracer
    }

    /// What the GPUs do, where there are any.
    pub fn gpu_metrics(&self) -> Option<&GpuMetrics> {
        self.observers.gpus.as_ref()
    }

    /// What is measured of models, and told of them.
    pub fn metrics(&self) -> &MetricsSettings {
        &self.observers.metrics
    }

    /// Starts a version, which is not served yet. Blocks, so not for reactors.
    ///
    /// # Errors
    /// When the version cannot be started.
    pub(super) fn start(&self, spec: VersionSpec) -> Result<Arc<LoadedVersion>, VersionError> {
        LoadedVersion::start(spec, &self.site())
    }

    /// Makes the instances of `spec` for a version that is served. `None` when it has to be loaded anew for
    /// them. Blocks, so not for reactors.
    ///
    /// # Errors
    /// When an instance cannot be had.
    pub(super) fn regroup(
        &self,
        version: &Arc<LoadedVersion>,
        spec: VersionSpec,
    ) -> Result<Option<Regrouping>, VersionError> {
        version.regroup(spec, &self.site())
    }

    /// Makes a version of an ensemble, which is not served yet.
    pub(super) fn start_ensemble(
        &self,
        outline: Outline,
        steps: Arc<EnsembleSteps>,
    ) -> Arc<LoadedVersion> {
        LoadedVersion::of_steps(outline, steps, &self.site())
    }

    fn site(&self) -> Site<'_> {
        let next = self.next_home.fetch_add(1, Ordering::Relaxed) % self.reactors.len();
        Site {
            reactors: &self.reactors,
            home: &self.reactors[next],
            instance_cores: &self.instance_cores,
            host: &self.host,
            observers: &self.observers,
            cache: self.cache.get(),
            limiter: self.limiter.get(),
            fleet: self.fleet.get(),
        }
    }

    /// Has models that can run on devices do so. To be called before models are started.
    pub fn run_on(&self, fleet: Arc<Fleet>) {
        // Only the first counts, and there is one.
        let _ = self.fleet.set(fleet);
    }

    /// The devices that models run on, if they do.
    pub fn fleet(&self) -> Option<&Arc<Fleet>> {
        self.fleet.get()
    }

    /// The memory of devices that clients have registered.
    pub fn device_regions(&self) -> &DeviceRegions {
        self.device_regions.get_or_init(|| {
            let devices = self.fleet().map(|fleet| fleet.devices().clone());
            DeviceRegions::new(devices.unwrap_or_else(|| Arc::new(Devices::none("no devices"))))
        })
    }

    /// What it says it is called.
    pub fn name(&self) -> &str {
        self.name.get().map_or(NAME, String::as_str)
    }

    /// Gives it another name. To be called before it is asked for it.
    pub fn call_it(&self, name: String) {
        // Only the first counts, and there is one.
        let _ = self.name.set(name);
    }

    /// Keeps the answers of models that want it here. To be called before models are started.
    pub fn keep_answers_in(&self, caches: Arc<Caches>) {
        // Only the first counts, and there is one.
        let _ = self.cache.set(caches);
    }

    /// Makes instances that share resources take turns. To be called before models are started.
    pub fn share_resources_by(&self, limiter: Arc<Limiter>) {
        // Only the first counts, and there is one.
        let _ = self.limiter.set(limiter);
    }

    /// What tells the answers of a version of a model from all others, if its configuration wants them kept
    /// and they can be. On a cache that others share a model is told by what is in its folder, and an
    /// ensemble, whose models may differ elsewhere, is its own.
    pub(super) fn identity(
        &self,
        id: &ModelId,
        definition: &Definition,
        version: i64,
    ) -> Option<ModelIdentity> {
        let caches = self.cache.get()?;
        if !definition.config.response_cache.is_some_and(|cache| cache.enable) {
            return None;
        }
        let by_content = || {
            let digest = match content_digest(&definition.dir, version) {
                Ok(digest) => digest,
                Err(error) => {
                    log::warn!("the answers of '{id}' are not shared: {error}");
                    return None;
                }
            };
            let mut all = definition.config.encode_to_vec();
            all.extend_from_slice(&digest);
            all.extend_from_slice(env!("CARGO_PKG_VERSION").as_bytes());
            Some(all)
        };
        let is_shared = caches.are_shared() && definition.backend_name().is_some();
        let shared = is_shared.then(by_content).flatten();
        let distinction = shared.unwrap_or_else(|| caches.distinction());
        Some(ModelIdentity::new(&id.namespace, &id.name, version, &distinction))
    }

    /// The version that a step of the ensemble `id` runs.
    pub(super) fn step_version(&self, id: &ModelId, step: &EnsembleStep) -> Option<StepVersion> {
        registry::of_step(&self.models.load(), id, step)
    }

    /// Serves these versions of a model from now on, in place of all that were served of it. None
    /// means that the model is gone. Requests that are in flight end with the version that they
    /// began with. Returns what was served.
    pub(super) fn replace(&self, id: &ModelId, versions: Versions) -> Arc<Versions> {
        let versions = Arc::new(versions);
        let mut before = Arc::default();
        self.models.rcu(|models| {
            let (models, replaced) = registry::replaced(models, id, &versions);
            before = replaced;
            models
        });
        before
    }

    /// What is served of a model.
    pub(super) fn served(&self, id: &ModelId) -> Arc<Versions> {
        registry::served(&self.models.load(), id)
    }

    /// Lets go of all models: each ends when its last request has been answered.
    pub fn unload_all(&self) {
        self.models.store(Arc::default());
    }

    /// Takes a request in. The replies come to the reactor that calls, which must be one: one reply,
    /// or any number when the model is decoupled. Outputs that the client wants in `places` may lie there
    /// when the reply comes, or not.
    ///
    /// # Errors
    /// When the model is unknown, the request does not fit it, or too much waits already.
    pub fn infer(
        &self,
        request: InferRequest,
        places: Option<Arc<OutputPlaces>>,
    ) -> Result<ReplyReceiver<Reply>, Error> {
        if self.state() == ServerState::Stopping {
            return Err(Error::Stopping);
        }
        self.begin(request, None, places)
    }

    /// Whether the model gives any number of replies to a request; not, when it is unknown.
    pub fn is_decoupled(&self, model: &str, version: &str) -> bool {
        find(&self.models.load(), model, version).is_ok_and(|version| version.decoupled)
    }

    /// Takes what a request has in, which `endpoint` must answer with one response.
    ///
    /// # Errors
    /// The same, and when the model is decoupled.
    pub fn infer_one(
        &self,
        request: &mut InferRequest,
        places: Option<Arc<OutputPlaces>>,
        endpoint: &'static str,
    ) -> Result<ReplyReceiver<Reply>, Error> {
        if self.state() == ServerState::Stopping {
            return Err(Error::Stopping);
        }
        let models = self.models.load();
        let version = find(&models, &request.model_name, &request.model_version)?;
        if version.decoupled {
            return Err(Error::DecoupledModel { endpoint });
        }
        version.infer_within(request, None, places)
    }

    /// Takes a request in that serves another, which was taken in before: so the server may be
    /// stopping. `trace` is the other's, if it is traced. Like [`infer`](Self::infer) it is called on a reactor, where the replies come.
    ///
    /// # Errors
    /// When the model is unknown, the request does not fit it, or too much waits already.
    pub fn infer_from_inside(
        &self,
        request: InferRequest,
        trace: Option<OuterTrace>,
    ) -> Result<ReplyReceiver<Reply>, Error> {
        self.begin(request, trace, None)
    }

    fn begin(
        &self,
        mut request: InferRequest,
        outer: Option<OuterTrace>,
        places: Option<Arc<OutputPlaces>>,
    ) -> Result<ReplyReceiver<Reply>, Error> {
        let models = self.models.load();
        let version = find(&models, &request.model_name, &request.model_version)?;
        version.infer_within(&mut request, outer, places)
    }

    /// The reactor to take a request of a model's to: the home of the model that it is for or, when that is
    /// served on all or not at all, this one, if this is a reactor, else any in turn.
    pub(super) fn reactor_for(&self, request: &InferRequest) -> &ReactorHandle {
        let version = self.version(&request.model_name, &request.model_version);
        let home = version.ok().and_then(|version| version.only_reactor());
        let next = || self.next_home.fetch_add(1, Ordering::Relaxed) % self.reactors.len();
        let near = || try_current().map_or_else(next, |reactor| reactor.index());
        &self.reactors[home.unwrap_or_else(near)]
    }

    /// The version that a client means by these two; an empty version means the newest.
    ///
    /// # Errors
    /// When there is none.
    pub fn version(&self, model: &str, version: &str) -> Result<Arc<LoadedVersion>, Error> {
        find(&self.models.load(), model, version).cloned()
    }

    /// All versions of a model, the oldest first.
    ///
    /// # Errors
    /// When there is none.
    pub fn versions(&self, model: &str) -> Result<Vec<Arc<LoadedVersion>>, Error> {
        Ok(find_model(&self.models.load(), model)?.values().cloned().collect())
    }

    /// Every version of every model, by name and number.
    pub fn all_versions(&self) -> Vec<Arc<LoadedVersion>> {
        let models = self.models.load();
        let mut all: Vec<_> = models
            .values()
            .flatten()
            .flat_map(|(_, versions)| versions.values())
            .cloned()
            .collect();
        all.sort_by(|a, b| (&a.name, a.version).cmp(&(&b.name, b.version)));
        all
    }
}
