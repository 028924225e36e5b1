use std::{
    cell::RefCell,
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use super::{
    ensemble::{EnsembleSteps, NotComposed},
    sequences::{SequenceSetup, SetupError},
    server::{Server, Versions},
    version::{LoadedVersion, Outline, VersionError, VersionSpec},
    warm_up::{WarmUp, WarmUpError},
};
use crate::{
    backend::{Backend, BackendError},
    inference::{Code, Error, Timestamp},
    proto::ModelConfig,
    repository::{
        self, AgentChain, Agents, Definition, Draft, Ensemble, Entry, Fingerprint, ModelId,
        Options, Scheduling, TemporaryFolder, Written,
    },
    scheduler::BatchingPolicy,
};

/// What `runtime` is in the configurations of models that a script runs.
const SCRIPT_RUNTIME: &str = "model.py";

/// The back ends that there may be, by name. Each is opened when a model first needs it, because
/// a library costs time and memory.
#[derive(Default)]
pub struct Backends {
    built_in: BTreeMap<&'static str, LazyBackend>,
    open_script: Option<Box<OpenScript>>,
    /// Scripts that have been opened, by their back ends' names.
    scripts: Mutex<BTreeMap<String, OpenedBackend>>,
}

struct LazyBackend {
    open: Box<OpenBackend>,
    opened: OnceLock<OpenedBackend>,
}

type OpenedBackend = Result<Arc<dyn Backend>, BackendError>;
type OpenBackend = dyn Fn() -> OpenedBackend + Send + Sync;
type OpenScript = dyn Fn(&str) -> Option<OpenedBackend> + Send + Sync;

impl Backends {
    /// Adds the back end `name`, which `open` opens.
    pub fn add(
        &mut self,
        name: &'static str,
        open: impl Fn() -> OpenedBackend + Send + Sync + 'static,
    ) {
        self.built_in.insert(name, LazyBackend { open: Box::new(open), opened: OnceLock::new() });
    }

    /// Adds all back ends that are a script, which `open` opens by name; `None` from it means that there is
    /// none of the name.
    pub fn add_scripts(
        &mut self,
        open: impl Fn(&str) -> Option<OpenedBackend> + Send + Sync + 'static,
    ) {
        self.open_script = Some(Box::new(open));
    }

    /// What runs a model with this configuration, if there is a back end of that name; it may have failed
    /// to open. A script does where the name has no back end of ours, or `runtime` asks for one.
    pub fn find(&self, config: &ModelConfig) -> Option<OpenedBackend> {
        let name = config.backend.as_str();
        let built_in = self.built_in.get(name).filter(|_| config.runtime != SCRIPT_RUNTIME);
        match built_in {
            Some(backend) => Some(backend.opened.get_or_init(|| (backend.open)()).clone()),
            None => self.find_script(name),
        }
    }

    fn find_script(&self, name: &str) -> Option<OpenedBackend> {
        let mut scripts = self.scripts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = scripts.get(name) {
            return Some(opened.clone());
        }
        let opened = self.open_script.as_ref()?(name)?;
        scripts.insert(name.to_owned(), opened.clone());
        Some(opened)
    }

    /// The back ends that have been opened, or failed to, by name.
    pub fn opened(&self) -> Vec<(String, OpenedBackend)> {
        let built_in = self.built_in.iter();
        let built_in = built_in.filter_map(|(name, backend)| {
            Some(((*name).to_owned(), backend.opened.get()?.clone()))
        });
        let scripts = self.scripts.lock().unwrap_or_else(PoisonError::into_inner);
        built_in.chain(scripts.clone()).collect()
    }

    /// Has all that were opened end what they run outside of the server.
    pub fn stop(&self, patience: Duration) {
        for (_, backend) in self.opened() {
            if let Ok(backend) = backend {
                backend.stop(patience);
            }
        }
    }

    /// The names of all.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.built_in.keys().copied()
    }
}

/// Why a version is not served.
#[derive(Clone, Debug, thiserror::Error)]
enum VersionFault {
    #[error("{0}")]
    Repository(#[from] repository::Error),
    #[error("{0}")]
    Backend(#[from] BackendError),
    #[error("{0}")]
    WarmUp(Arc<WarmUpError>),
    #[error("{0}")]
    Version(Arc<VersionError>),
    #[error("{0}")]
    Sequences(Arc<SetupError>),
    #[error(
        "unable to find backend '{name}' for model '{model}': this server has {known}, and there is no \
         {name}/model.py among its back ends"
    )]
    UnknownBackend { name: String, model: String, known: String },
    #[error("backend '{name}' for model '{model}' cannot be used: {reason}")]
    UnavailableBackend { name: String, model: String, reason: String },
    #[error("model '{model}' wants {feature}, which this server does not offer yet")]
    Unsupported { model: String, feature: &'static str },
}

impl VersionFault {
    fn code(&self) -> Code {
        match self {
            Self::Repository(error) => error.code(),
            Self::WarmUp(error) => error.refusal().map_or(Code::Internal, Error::code),
            Self::Version(error) if matches!(**error, VersionError::Limit(_)) => {
                Code::InvalidArgument
            }
            Self::Backend(_)
            | Self::Version(_)
            | Self::Sequences(_)
            | Self::UnavailableBackend { .. } => Code::Internal,
            Self::UnknownBackend { .. } => Code::InvalidArgument,
            Self::Unsupported { .. } => Code::Unsupported,
        }
    }

    /// As the repository's index and the answer to a load say it.
    fn reason(&self) -> String {
        match self {
            // As a client would be told.
            Self::WarmUp(error) if let Some(refusal) = error.refusal() => {
                format!("{}: {refusal}", self.code().words())
            }
            _ => format!("{}: {self}", self.code().words()),
        }
    }

    /// As the log says it.
    fn located(&self) -> String {
        match self {
            Self::Repository(error) => error.located(),
            other => other.to_string(),
        }
    }
}

/// Why a model is not loaded.
#[derive(Clone, Debug)]
pub enum LoadFailure {
    /// It could not be read, or breaks a rule before it comes to versions.
    Unreadable(repository::Error),
    /// Its policy chooses no version.
    NoVersions(repository::Error),
    /// It is an ensemble, and these of its models are not served.
    MissingModels(Vec<String>),
    /// It is an ensemble that cannot be served; the text says why.
    Ensemble(String),
    /// Versions failed. Those that did not are with `None`: a model is loaded whole or not at all.
    Versions(BTreeMap<i64, Option<String>>),
}

impl From<NotComposed> for LoadFailure {
    fn from(why: NotComposed) -> Self {
        match why {
            NotComposed::Missing(models) => Self::MissingModels(models),
            NotComposed::Misfit(reason) => Self::Ensemble(reason),
        }
    }
}

impl From<repository::Error> for LoadFailure {
    fn from(error: repository::Error) -> Self {
        match error {
            repository::Error::NoVersions { .. } => Self::NoVersions(error),
            error => Self::Unreadable(error),
        }
    }
}

/// Where a model is loaded from.
#[derive(Debug)]
pub struct Source {
    /// Which model.
    pub id: ModelId,
    /// Its folder.
    pub dir: PathBuf,
    /// Whether the folder's name is not the model's.
    pub renamed: bool,
    /// The configuration that takes the place of the folder's.
    pub config: Option<ModelConfig>,
    /// The folder, when it is not in a repository.
    pub folder: Option<Arc<TemporaryFolder>>,
    /// The folder's configuration, when it was read ahead, and how the folder was before that.
    read: RefCell<Option<(Fingerprint, Written)>>,
}

impl Source {
    /// The model `id` in a folder that is in no repository.
    pub fn temporary(id: ModelId, folder: TemporaryFolder, config: Option<ModelConfig>) -> Self {
        let dir = folder.path().to_owned();
        let folder = Some(Arc::new(folder));
        Self { id, dir, renamed: false, config, folder, read: RefCell::default() }
    }

    /// The same, with a configuration that takes the place of the folder's if there is one.
    pub fn with(self, config: Option<ModelConfig>) -> Self {
        Self { config, ..self }
    }

    /// What tells whether the folder has changed since it was read.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn fingerprint(&self) -> Result<Fingerprint, repository::Error> {
        match &*self.read.borrow() {
            Some((fingerprint, _)) => Ok(fingerprint.clone()),
            None => Fingerprint::of(&self.dir),
        }
    }

    /// The configuration as somebody wrote it.
    fn written(&self, options: &Options) -> Result<Written, repository::Error> {
        match (&self.config, self.read.take()) {
            (Some(config), _) => Ok(config.clone().into()),
            (None, Some((_, written))) => Ok(written),
            (None, None) => Written::read(&self.dir, options),
        }
    }

    /// The same, if it is that of an ensemble; what is read is kept.
    fn written_ensemble(&self, options: &Options) -> Option<Written> {
        if let Some(config) = &self.config {
            return Some(Written::from(config.clone())).filter(Written::is_ensemble);
        }
        let mut read = self.read.borrow_mut();
        if read.is_none() {
            let fingerprint = Fingerprint::of(&self.dir).ok()?;
            *read = Some((fingerprint, Written::read(&self.dir, options).ok()?));
        }
        read.as_ref().map(|(_, written)| written).filter(|it| it.is_ensemble()).cloned()
    }
}

impl From<Entry> for Source {
    /// A model of a repository that can be read.
    fn from(Entry { id, dir, renamed, .. }: Entry) -> Self {
        Self { id, dir, renamed, config: None, folder: None, read: RefCell::default() }
    }
}

/// What is served of a model that is loaded again, and which versions of it may be served on.
pub struct Before<'a> {
    /// What is served.
    pub versions: &'a Versions,
    /// Whether the files of a version are the same still.
    pub is_same: &'a dyn Fn(i64) -> bool,
}

/// Makes models of folders.
pub struct Loader {
    /// The back ends that there may be.
    pub backends: Backends,
    /// What looks at folders before models are made of them.
    pub agents: Agents,
    /// How models are read.
    pub options: Arc<Options>,
    /// How often a version that failed is tried again.
    pub retries: usize,
}

impl Loader {
    /// Starts the versions that a model's policy chooses, without serving them yet. Tells `began`
    /// which they are. Blocks.
    ///
    /// # Errors
    /// When one version fails; then none is kept.
    pub fn load(
        &self,
        server: &Server,
        source: &Source,
        before: &Before<'_>,
        began: impl FnOnce(&[i64]),
    ) -> Result<Versions, LoadFailure> {
        let options = self.options_for(source);
        let written = source.written(&options)?;
        let (draft, agents) = self.agents.draft(&source.id.name, &source.dir, written, &options)?;
        let agents = agents.map(Arc::new);
        for warning in draft.warnings() {
            log::warn!("{warning}");
        }
        if draft.backend_name().is_none() {
            return self.load_ensemble(server, source, &agents, draft, before, began);
        }
        let numbers = draft.versions().to_vec();
        began(&numbers);
        let defined = self.define(draft);
        let mut versions = Versions::new();
        let mut failures = BTreeMap::new();
        for version in numbers {
            let started = match &defined {
                Ok((definition, backend)) => match reusable(before, definition, version) {
                    Some(kept) if agents.is_none() => Ok(kept),
                    _ => self.start(server, source, &agents, definition, backend.as_ref(), version),
                },
                Err(fault) => Err(fault.clone()),
            };
            match started {
                Ok(started) => {
                    versions.insert(version, started);
                    failures.insert(version, None);
                }
                Err(fault) => {
                    let located = fault.located();
                    log::error!("failed to load '{}' version {version}: {located}", source.id);
                    failures.insert(version, Some(fault.reason()));
                }
            }
        }
        match failures.values().any(Option::is_some) {
            true => Err(LoadFailure::Versions(failures)),
            false => Ok(versions),
        }
    }

    /// The steps of a model that is an ensemble, if it is one and can be read.
    pub fn ensemble(&self, source: &Source) -> Option<Ensemble> {
        let options = self.options_for(source);
        let written = source.written_ensemble(&options)?;
        let draft = Draft::new(&source.id.name, &source.dir, written, &options).ok()?;
        match draft.complete(None).ok()?.scheduling {
            Scheduling::Ensemble(ensemble) => Some(ensemble),
            _ => None,
        }
    }

    fn options_for(&self, source: &Source) -> Arc<Options> {
        match source.renamed {
            false => self.options.clone(),
            true => Arc::new(Options { rename: true, ..(*self.options).clone() }),
        }
    }

    fn load_ensemble(
        &self,
        server: &Server,
        source: &Source,
        agents: &Option<Arc<AgentChain>>,
        draft: Draft,
        before: &Before<'_>,
        began: impl FnOnce(&[i64]),
    ) -> Result<Versions, LoadFailure> {
        let beginning = Timestamp::now();
        let definition = draft.complete(None)?;
        let Scheduling::Ensemble(ensemble) = &definition.scheduling else {
            let reason = format!("'{}' names no back end and is no ensemble", source.id);
            return Err(LoadFailure::Ensemble(reason));
        };
        let steps = EnsembleSteps::compose(server, &source.id, ensemble, &definition.signature)?;
        let steps = Arc::new(steps);
        began(&definition.versions);
        let version = |&version: &i64| {
            let kept = reusable(before, &definition, version);
            let kept = kept.filter(|kept| {
                agents.is_none()
                    && kept.steps.as_ref().is_some_and(|earlier| earlier.are_those_of(&steps))
            });
            let started = || {
                let outline = outline(server, source, agents, &definition, version, beginning);
                server.start_ensemble(outline, steps.clone())
            };
            (version, kept.unwrap_or_else(started))
        };
        Ok(definition.versions.iter().map(version).collect())
    }

    fn define(&self, mut draft: Draft) -> Result<(Definition, Arc<dyn Backend>), VersionFault> {
        let backend = find_backend(&self.backends, draft.config())?;
        if backend.is_script() {
            draft.set_runtime(SCRIPT_RUNTIME);
        }
        let told = match draft.source_for_inspect() {
            Some(source) if self.options.auto_complete => {
                if let Some(completed) = backend.complete(&source)? {
                    draft.take_completed(completed);
                }
                backend.inspect(&source)?
            }
            _ => None,
        };
        Ok((draft.complete(told.as_ref())?, backend))
    }

    fn start(
        &self,
        server: &Server,
        source: &Source,
        agents: &Option<Arc<AgentChain>>,
        definition: &Definition,
        backend: &dyn Backend,
        version: i64,
    ) -> Result<Arc<LoadedVersion>, VersionFault> {
        let mut tries = 0;
        loop {
            match start_version(server, source, agents, definition, backend, version) {
                Err(fault) if tries < self.retries => {
                    tries += 1;
                    log::warn!(
                        "'{}' version {version} failed to load and is tried again ({tries} of {}): \
                         {fault}",
                        source.id,
                        self.retries
                    );
                }
                started => return started,
            }
        }
    }
}

/// The version as it is served, if loading it again would make the same.
fn reusable(
    before: &Before<'_>,
    definition: &Definition,
    version: i64,
) -> Option<Arc<LoadedVersion>> {
    let served = before.versions.get(&version)?;
    let same =
        served.agents.is_none() && served.config == definition.config && (before.is_same)(version);
    same.then(|| served.clone())
}

fn find_backend(
    backends: &Backends,
    config: &ModelConfig,
) -> Result<Arc<dyn Backend>, VersionFault> {
    let (name, model) = (config.backend.clone(), config.name.clone());
    match backends.find(config) {
        Some(Ok(backend)) => Ok(backend),
        Some(Err(BackendError(reason))) => {
            Err(VersionFault::UnavailableBackend { name, model, reason })
        }
        None => {
            let known = backends.names().collect::<Vec<_>>().join(", ");
            Err(VersionFault::UnknownBackend { name, model, known })
        }
    }
}

fn start_version(
    server: &Server,
    source: &Source,
    agents: &Option<Arc<AgentChain>>,
    definition: &Definition,
    backend: &dyn Backend,
    version: i64,
) -> Result<Arc<LoadedVersion>, VersionFault> {
    let dynamic = match &definition.scheduling {
        Scheduling::Plain => None,
        Scheduling::Dynamic(dynamic) => Some(dynamic.clone()),
        Scheduling::Sequence(_) => None,
        Scheduling::Ensemble(_) => {
            let (model, feature) = (definition.name.to_string(), "ensemble scheduling");
            return Err(VersionFault::Unsupported { model, feature });
        }
    };
    let sequences = match &definition.scheduling {
        Scheduling::Sequence(batching) => {
            let setup = SequenceSetup::new(batching, &definition.signature, &definition.dir);
            Some(Arc::new(setup.map_err(|error| VersionFault::Sequences(Arc::new(error)))?))
        }
        _ => None,
    };
    let began = Timestamp::now();
    let warm_ups = WarmUp::read_all(&definition.config, &definition.signature, &definition.dir)
        .map_err(|error| VersionFault::WarmUp(Arc::new(error)))?;
    let model = backend.load(&definition.source(version))?;
    let spec = VersionSpec {
        outline: outline(server, source, agents, definition, version, began),
        allowed_batch_sizes: definition.allowed_batch_sizes.clone(),
        policy: BatchingPolicy { max_batch_size: definition.signature.max_batch_size, dynamic },
        sequences,
        placements: definition.placements.clone(),
        rate_limits: definition.rate_limits.clone(),
        warm_ups,
        model,
    };
    server.start(spec).map_err(|error| VersionFault::Version(Arc::new(error)))
}

fn outline(
    server: &Server,
    source: &Source,
    agents: &Option<Arc<AgentChain>>,
    definition: &Definition,
    version: i64,
    began: Timestamp,
) -> Outline {
    Outline {
        name: definition.name.clone(),
        namespace: source.id.namespace.as_str().into(),
        version,
        config: definition.config.clone(),
        signature: definition.signature.clone(),
        labels: definition.labels.clone(),
        identity: server.identity(&source.id, definition, version),
        began,
        folder: source.folder.clone(),
        agents: agents.clone(),
    }
}
