//! How a model's folder becomes versions that can be served: `source` is where it lies, `backends` what
//! may run it, `failure` why it is not served.

mod backends;
mod failure;
mod source;

use std::{collections::BTreeMap, sync::Arc};

pub use self::{backends::Backends, failure::LoadFailure, source::Source};
use self::{backends::SCRIPT_RUNTIME, failure::VersionFault};
use super::{
    ensemble::EnsembleSteps,
    registry::Versions,
    sequences::SequenceSetup,
    server::Server,
    version::{LoadedVersion, Outline, VersionSpec},
    warm_up::WarmUp,
};
use crate::{
    backend::{Backend, BackendError},
    inference::Timestamp,
    proto::ModelConfig,
    repository::{AgentChain, Agents, Definition, Draft, Ensemble, Options, Scheduling},
    scheduler::BatchingPolicy,
};

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
