use std::{collections::BTreeMap, panic::resume_unwind, sync::Arc, thread};

use super::{
    failure::{LoadFailure, VersionFault},
    places::Places,
    source::Source,
};
use crate::{
    backend::{Backend, Model},
    inference::Timestamp,
    proto::ModelConfig,
    repository::{AgentChain, Definition, ModelId, Scheduling, TemporaryFolder},
    scheduler::BatchingPolicy,
    serving::{
        registry::Versions,
        sequences::SequenceSetup,
        server::Server,
        version::{LoadedVersion, Outline, Regrouping, VersionError, VersionSpec},
        warm_up::WarmUp,
    },
};

/// What is served of a model that is loaded again, and which versions of it may be served on.
pub struct Before<'a> {
    /// What is served.
    pub versions: &'a Versions,
    /// Whether the files of a version are the same still.
    pub is_same: &'a (dyn Fn(i64) -> bool + Sync),
}

/// A model whose versions are being loaded.
pub(super) struct Loading<'a> {
    server: &'a Server,
    id: &'a ModelId,
    folder: &'a Option<Arc<TemporaryFolder>>,
    agents: Option<Arc<AgentChain>>,
    definition: &'a Definition,
    before: &'a Before<'a>,
}

/// A version that could be served.
enum Ready {
    /// As it is: it was served before, or is new.
    Whole(Arc<LoadedVersion>),
    /// Once its instances have taken their places.
    Regrouping(Regrouping),
}

impl Ready {
    fn commit(self) -> Result<Arc<LoadedVersion>, VersionError> {
        match self {
            Self::Whole(version) => Ok(version),
            Self::Regrouping(regrouping) => regrouping.commit(),
        }
    }
}

impl<'a> Loading<'a> {
    pub fn new(
        server: &'a Server,
        source: &'a Source,
        agents: Option<Arc<AgentChain>>,
        definition: &'a Definition,
        before: &'a Before<'a>,
    ) -> Self {
        Self { server, id: &source.id, folder: &source.folder, agents, definition, before }
    }

    /// Loads all versions, each in one of `places`.
    ///
    /// # Errors
    /// When one fails; then everything is as it was.
    pub fn load(
        &self,
        backend: &dyn Backend,
        retries: usize,
        places: &Places,
    ) -> Result<Versions, LoadFailure> {
        let load = |version| places.with(|| self.load_with_retries(backend, retries, version));
        let all = match *self.definition.versions {
            [version] => vec![(version, load(version))],
            ref versions => thread::scope(|threads| {
                let load = &load;
                let started =
                    versions.iter().map(|&version| (version, threads.spawn(move || load(version))));
                let started: Vec<_> = started.collect();
                let ended = started.into_iter().map(|(version, thread)| {
                    (version, thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
                });
                ended.collect()
            }),
        };
        let (mut ready, mut failures) = (BTreeMap::new(), BTreeMap::new());
        for (version, outcome) in all {
            let failure = match outcome {
                Ok(one) => {
                    ready.insert(version, one);
                    None
                }
                Err(fault) => {
                    let is_served = self.regroupable(version).is_some();
                    Some(fault.told(self.id, version, is_served))
                }
            };
            failures.insert(version, failure);
        }
        if failures.values().any(Option::is_some) {
            return Err(LoadFailure::Versions(failures));
        }
        let mut versions = Versions::new();
        for (version, ready) in ready {
            let committed = ready.commit().map_err(|error| {
                let fault = VersionFault::Version(Arc::new(error));
                LoadFailure::Versions([(version, Some(fault.told(self.id, version, true)))].into())
            })?;
            versions.insert(version, committed);
        }
        Ok(versions)
    }

    fn load_with_retries(
        &self,
        backend: &dyn Backend,
        retries: usize,
        version: i64,
    ) -> Result<Ready, VersionFault> {
        let mut tries = 0;
        loop {
            match self.load_one(backend, version) {
                Err(fault) if tries < retries => {
                    tries += 1;
                    log::warn!(
                        "'{}' version {version} failed to load and is tried again ({tries} of \
                         {retries}): {fault}",
                        self.id,
                    );
                }
                loaded => return loaded,
            }
        }
    }

    fn load_one(&self, backend: &dyn Backend, version: i64) -> Result<Ready, VersionFault> {
        if let Some(served) = self.as_served(version) {
            return Ok(Ready::Whole(served));
        }
        let began = Timestamp::now();
        let failed = |error| VersionFault::Version(Arc::new(error));
        if let Some((served, model)) = self.regroupable(version) {
            let spec = self.spec(version, began, || Ok(model.clone()))?;
            if let Some(regrouping) = self.server.regroup(served, spec).map_err(failed)? {
                return Ok(Ready::Regrouping(regrouping));
            }
        }
        let model = || Ok(backend.load(&self.definition.source(version))?);
        let started = self.server.start(self.spec(version, began, model)?).map_err(failed)?;
        Ok(Ready::Whole(started))
    }

    /// The version as it is served, if loading it again would make the same.
    pub fn as_served(&self, version: i64) -> Option<Arc<LoadedVersion>> {
        let served = self.unchanged(version)?;
        (served.config == self.definition.config).then(|| served.clone())
    }

    /// The version as it is served and its model, if nothing but the instances that it is to have tells
    /// it from what loading it again would make.
    fn regroupable(&self, version: i64) -> Option<(&Arc<LoadedVersion>, &Arc<dyn Model>)> {
        let served = self.unchanged(version)?;
        let config = &*self.definition.config;
        // The GPU that a model runs on may choose its file.
        let is_alike = *served.config != *config
            && config.cc_model_filenames.is_empty()
            && but_for_instances(&served.config) == but_for_instances(config);
        served.model().filter(|_| is_alike).map(|model| (served, model))
    }

    /// The version as it is served, if its files are the same still.
    fn unchanged(&self, version: i64) -> Option<&Arc<LoadedVersion>> {
        let served = self.before.versions.get(&version)?;
        let are_unseen = self.agents.is_none() && served.agents.is_none();
        (are_unseen && (self.before.is_same)(version)).then_some(served)
    }

    fn spec(
        &self,
        version: i64,
        began: Timestamp,
        model: impl FnOnce() -> Result<Arc<dyn Model>, VersionFault>,
    ) -> Result<VersionSpec, VersionFault> {
        let Definition { config, signature, dir, .. } = self.definition;
        let (dynamic, sequences) = match &self.definition.scheduling {
            Scheduling::Plain => (None, None),
            Scheduling::Dynamic(dynamic) => (Some(dynamic.clone()), None),
            Scheduling::Sequence(batching) => {
                let setup = SequenceSetup::new(batching, signature, dir);
                (None, Some(setup.map_err(|error| VersionFault::Sequences(Arc::new(error)))?))
            }
            Scheduling::Ensemble(_) => {
                let (model, feature) = (self.definition.name.to_string(), "ensemble scheduling");
                return Err(VersionFault::Unsupported { model, feature });
            }
        };
        let warm_ups = WarmUp::read_all(config, signature, dir)
            .map_err(|error| VersionFault::WarmUp(Arc::new(error)))?;
        Ok(VersionSpec {
            outline: self.outline(version, began),
            allowed_batch_sizes: self.definition.allowed_batch_sizes.clone(),
            policy: BatchingPolicy { max_batch_size: signature.max_batch_size, dynamic },
            sequences: sequences.map(Arc::new),
            placements: self.definition.placements.clone(),
            rate_limits: self.definition.rate_limits.clone(),
            warm_ups,
            model: model()?,
        })
    }

    pub fn outline(&self, version: i64, began: Timestamp) -> Outline {
        let definition = self.definition;
        Outline {
            name: definition.name.clone(),
            namespace: self.id.namespace.as_str().into(),
            version,
            config: definition.config.clone(),
            signature: definition.signature.clone(),
            labels: definition.labels.clone(),
            identity: self.server.identity(self.id, definition, version),
            began,
            folder: self.folder.clone(),
            agents: self.agents.clone(),
        }
    }
}

/// A configuration without what can change while its model stays loaded. Which versions are served is not
/// a version's concern.
fn but_for_instances(config: &ModelConfig) -> ModelConfig {
    ModelConfig { instance_group: Vec::new(), version_policy: None, ..config.clone() }
}
