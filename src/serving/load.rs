//! How a model's folder becomes versions that can be served: `source` is where it lies, `backends` what
//! may run it, `versions` what is made of each of its versions, `places` how many of them are made at a
//! time, `failure` why it is not served.

mod backends;
mod failure;
mod places;
mod source;
mod versions;

use std::sync::Arc;

pub use self::{
    backends::Backends,
    failure::{LoadFailure, VersionFailure},
    places::Places,
    source::Source,
    versions::Before,
};
use self::{backends::SCRIPT_RUNTIME, failure::VersionFault, versions::Loading};
use super::{ensemble::EnsembleSteps, registry::Versions, server::Server};
use crate::{
    backend::{Backend, BackendError},
    inference::Timestamp,
    proto::ModelConfig,
    repository::{AgentChain, Agents, Definition, Draft, Ensemble, Options, Scheduling},
};

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
    /// Lets so many versions be loaded at a time.
    pub places: Places,
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
            return self.load_ensemble(server, source, agents, draft, before, began);
        }
        let numbers = draft.versions().to_vec();
        began(&numbers);
        let (definition, backend) = match self.define(draft) {
            Ok(defined) => defined,
            Err(fault) => {
                let failures = numbers
                    .into_iter()
                    .map(|version| (version, Some(fault.told(&source.id, version, false))));
                return Err(LoadFailure::Versions(failures.collect()));
            }
        };
        let model = Loading::new(server, source, agents, &definition, before);
        model.load(&*backend, self.retries, &self.places)
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
        agents: Option<Arc<AgentChain>>,
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
        let model = Loading::new(server, source, agents, &definition, before);
        let version = |&version: &i64| {
            let kept = model.as_served(version).filter(|kept| {
                kept.steps.as_ref().is_some_and(|earlier| earlier.are_those_of(&steps))
            });
            let started =
                || server.start_ensemble(model.outline(version, beginning), steps.clone());
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
