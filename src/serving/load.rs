use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock},
    thread,
};

use super::{
    server::Server,
    version::{VersionError, VersionSpec},
    warm_up::{WarmUp, WarmUpError},
};
use crate::{
    backend::{Backend, BackendError},
    inference::Timestamp,
    repository::{self, Definition, Draft, Entry, Options, Scheduling},
    scheduler::BatchingPolicy,
};

/// The back ends that there may be, by name. Each is opened when a model first needs it, because
/// a library costs time and memory.
#[derive(Default)]
pub struct Backends(BTreeMap<&'static str, LazyBackend>);

struct LazyBackend {
    open: Box<OpenBackend>,
    opened: OnceLock<OpenedBackend>,
}

type OpenedBackend = Result<Arc<dyn Backend>, BackendError>;
type OpenBackend = dyn Fn() -> OpenedBackend + Send + Sync;

impl Backends {
    /// Adds the back end `name`, which `open` opens.
    pub fn add(
        &mut self,
        name: &'static str,
        open: impl Fn() -> OpenedBackend + Send + Sync + 'static,
    ) {
        self.0.insert(name, LazyBackend { open: Box::new(open), opened: OnceLock::new() });
    }

    /// The back end `name`, if there is one of that name; it may have failed to open.
    pub fn find(&self, name: &str) -> Option<OpenedBackend> {
        let backend = self.0.get(name)?;
        Some(backend.opened.get_or_init(|| (backend.open)()).clone())
    }

    /// The back ends that have been opened, or failed to.
    pub fn opened(&self) -> impl Iterator<Item = (&'static str, &OpenedBackend)> {
        self.0.iter().filter_map(|(name, backend)| Some((*name, backend.opened.get()?)))
    }

    /// The names of all.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.keys().copied()
    }
}

/// What became of one version of a model, for the table at the start. A model that failed before
/// it had versions is one row.
#[derive(Clone, Debug)]
pub struct ModelStatus {
    /// The model's name.
    pub name: String,
    /// The version, if it came that far.
    pub version: Option<i64>,
    /// Why it is not served, unless it is.
    pub outcome: Result<(), String>,
}

/// Why a model is not served.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("{0}")]
    Repository(#[from] repository::Error),
    #[error("{0}")]
    Backend(#[from] BackendError),
    #[error("{0}")]
    WarmUp(#[from] WarmUpError),
    #[error("{0}")]
    Version(#[from] VersionError),
    #[error("unable to find backend '{name}' for model '{model}': this server has {known}")]
    UnknownBackend { name: String, model: String, known: String },
    #[error("backend '{name}' for model '{model}' cannot be used: {reason}")]
    UnavailableBackend { name: String, model: String, reason: String },
    #[error("model '{model}' wants {feature}, which this server does not offer yet")]
    Unsupported { model: String, feature: &'static str },
}

/// Loads models on `threads` threads, and says what became of each. One that fails keeps none of the
/// others from being served.
pub fn load_all(
    server: &Server,
    entries: Vec<Entry>,
    options: &Arc<Options>,
    backends: &Backends,
    threads: usize,
) -> Vec<ModelStatus> {
    let entries = Mutex::new(entries.into_iter());
    let statuses = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                // What the back ends start for a model inherits this: their threads stay off the
                // reactors' cores.
                server.leave_reactor_cores();
                loop {
                    let Some(entry) = lock(&entries).next() else { return };
                    let loaded = load(server, entry, options, backends);
                    lock(&statuses).extend(loaded);
                }
            });
        }
    });
    let mut statuses = statuses.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    statuses.sort_by(|a, b| (&a.name, a.version).cmp(&(&b.name, b.version)));
    statuses
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn load(
    server: &Server,
    entry: Entry,
    options: &Arc<Options>,
    backends: &Backends,
) -> Vec<ModelStatus> {
    let name = entry.name.clone();
    let failed = |version, error: LoadError| {
        let detail = error.to_string();
        log::error!("failed to load '{name}'{}: {detail}", version_words(version));
        ModelStatus { name: name.clone(), version, outcome: Err(detail) }
    };
    let (definition, backend) = match define(entry, options, backends) {
        Ok(defined) => defined,
        Err(error) => return vec![failed(None, error)],
    };
    let versions = definition.versions.iter().map(|&version| {
        match load_version(server, &definition, backend.as_ref(), version) {
            Ok(()) => {
                log::info!("successfully loaded '{name}' version {version}");
                ModelStatus { name: name.clone(), version: Some(version), outcome: Ok(()) }
            }
            Err(error) => failed(Some(version), error),
        }
    });
    versions.collect()
}

fn version_words(version: Option<i64>) -> String {
    version.map_or_else(String::new, |version| format!(" version {version}"))
}

fn define(
    entry: Entry,
    options: &Arc<Options>,
    backends: &Backends,
) -> Result<(Definition, Arc<dyn Backend>), LoadError> {
    if let Some(error) = entry.error {
        return Err(error.into());
    }
    let draft = Draft::read(&entry.name, &entry.dir, options)?;
    for warning in draft.warnings() {
        log::warn!("{warning}");
    }
    let Some(backend) = draft.backend_name() else {
        return Err(LoadError::Unsupported { model: entry.name, feature: "ensemble scheduling" });
    };
    let backend = find_backend(backends, backend, &entry.name)?;
    let told = match draft.source_for_inspect() {
        Some(source) if options.auto_complete => backend.inspect(&source)?,
        _ => None,
    };
    Ok((draft.complete(told.as_ref())?, backend))
}

fn find_backend(
    backends: &Backends,
    name: &str,
    model: &str,
) -> Result<Arc<dyn Backend>, LoadError> {
    let (owned_name, model) = (name.to_owned(), model.to_owned());
    match backends.find(name) {
        Some(Ok(backend)) => Ok(backend),
        Some(Err(BackendError(reason))) => {
            Err(LoadError::UnavailableBackend { name: owned_name, model, reason })
        }
        None => {
            let known = backends.names().collect::<Vec<_>>().join(", ");
            Err(LoadError::UnknownBackend { name: owned_name, model, known })
        }
    }
}

fn load_version(
    server: &Server,
    definition: &Definition,
    backend: &dyn Backend,
    version: i64,
) -> Result<(), LoadError> {
    let dynamic = match &definition.scheduling {
        Scheduling::Plain => None,
        Scheduling::Dynamic(dynamic) => Some(dynamic.clone()),
        Scheduling::Sequence(_) => {
            let (model, feature) = (definition.name.to_string(), "sequence batching");
            return Err(LoadError::Unsupported { model, feature });
        }
        Scheduling::Ensemble(_) => {
            let (model, feature) = (definition.name.to_string(), "ensemble scheduling");
            return Err(LoadError::Unsupported { model, feature });
        }
    };
    let began = Timestamp::now();
    let warm_ups = WarmUp::read_all(&definition.config, &definition.signature, &definition.dir)?;
    let model = backend.load(&definition.source(version))?;
    let spec = VersionSpec {
        name: definition.name.clone(),
        version,
        config: definition.config.clone(),
        signature: definition.signature.clone(),
        labels: definition.labels.clone(),
        policy: BatchingPolicy { max_batch_size: definition.signature.max_batch_size, dynamic },
        placements: definition.placements.clone(),
        warm_ups,
        model,
        began,
    };
    Ok(server.load(spec)?)
}
