//! What a load and an unload do, on the thread of their own.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    Action, ModelControl, Ran, lock,
    records::{LoadedAs, VersionState},
};
use crate::{
    inference::Error,
    repository::{self, ModelId, Overrides, check_model_name},
    serving::{
        load::{Before, LoadFailure, Source, VersionFailure},
        registry::Versions,
    },
};

impl ModelControl {
    /// Does it. Nothing else is done to models of this name meanwhile.
    pub(super) fn run(self: &Arc<Self>, name: &str, action: Action, is_wanted: bool) -> Ran {
        match action {
            Action::Load(overrides) => self.load_named(name, overrides, is_wanted, true),
            Action::LoadForEnsemble => {
                self.load_named(name, Overrides::default(), is_wanted, false)
            }
            Action::LoadSource(source) => {
                lock(&self.dependencies).asked_for(&source.id);
                lock(&self.dependencies).wants_nothing(&source.id);
                let loaded = self.load_source(&source);
                self.ran(name, self.note(&source.id, is_wanted, loaded))
            }
            Action::Fail(id, error) => {
                lock(&self.dependencies).asked_for(&id);
                self.ran(name, self.note(&id, is_wanted, Err(error.into())))
            }
            Action::LoadEnsemble(source, failures) => {
                let loaded = self.load_ensemble(&source, &failures);
                self.ran(name, self.note(&source.id, is_wanted, loaded))
            }
            Action::Recheck(id) => self.recheck(&id),
            Action::Unload { with_models } => self.unload_named(name, with_models),
            Action::UnloadOne(id) => {
                lock(&self.dependencies).wants_nothing(&id);
                lock(&self.dependencies).let_go(&id);
                self.take_out(&id);
                self.ran(name, Ok(()))
            }
            Action::UnloadOrphan => {
                let called = lock(&self.records).called(name);
                let is_orphan = |id: &&ModelId| lock(&self.dependencies).is_orphan(id);
                match called.iter().filter(is_orphan).count() == called.len() {
                    true => self.unload_named(name, true),
                    false => Ran::done(Ok(())),
                }
            }
        }
    }

    fn load_named(
        self: &Arc<Self>,
        name: &str,
        overrides: Overrides,
        is_wanted: bool,
        is_asked_for: bool,
    ) -> Ran {
        let sources = match self.sources(name, overrides) {
            Ok(sources) => sources,
            Err(Refusal::Request(error)) => return Ran::done(Err(error)),
            Err(Refusal::Model(failure)) => {
                let unclear = ModelId { name: name.to_owned(), namespace: String::new() };
                return self.ran(name, self.note(&unclear, is_wanted, Err(failure)));
            }
        };
        let mut outcome = Ok(());
        let mut ensembles = Vec::new();
        for source in sources {
            if is_asked_for {
                lock(&self.dependencies).asked_for(&source.id);
            }
            if let Some(ensemble) = self.loader.ensemble(&source) {
                if let Err(failure) = self.check_circles(&source.id, &ensemble) {
                    outcome = outcome.and(self.note(&source.id, is_wanted, Err(failure)));
                    continue;
                }
                ensembles.push((source, ensemble));
                continue;
            }
            lock(&self.dependencies).wants_nothing(&source.id);
            let loaded = self.load_source(&source);
            outcome = outcome.and(self.note(&source.id, is_wanted, loaded));
        }
        Ran { ensembles, ..self.ran(name, outcome) }
    }

    /// What a load request means: the folders of all models of the name, or what came with the request.
    fn sources(&self, name: &str, overrides: Overrides) -> Result<Vec<Source>, Refusal> {
        if !name.is_empty()
            && let Err(error) = check_model_name(name)
        {
            return Err(Refusal::Request(Error::malformed(error.to_string())));
        }
        let config = overrides.config()?;
        if !overrides.files.is_empty() {
            let folder = overrides.write()?;
            let id = ModelId { name: name.to_owned(), namespace: String::new() };
            return Ok(vec![Source::temporary(id, folder, config)]);
        }
        let found = self.repository.find(name)?.into_iter();
        found
            .map(|entry| match entry.error {
                Some(error) => Err(error.into()),
                None => {
                    self.repository.fetch(&entry)?;
                    Ok(Source::from(entry).with(config.clone()))
                }
            })
            .collect()
    }

    fn unload_named(self: &Arc<Self>, name: &str, with_models: bool) -> Ran {
        let called = lock(&self.records).called(name);
        let mut models = BTreeSet::new();
        for id in &called {
            let mut dependencies = lock(&self.dependencies);
            models.append(&mut dependencies.models(id));
            dependencies.wants_nothing(id);
            dependencies.let_go(id);
            drop(dependencies);
            self.take_out(id);
        }
        // One that could not be served is not in the records.
        let unclear = ModelId { name: name.to_owned(), namespace: String::new() };
        lock(&self.dependencies).wants_nothing(&unclear);
        let orphans = if with_models { models.into_iter().collect() } else { Vec::new() };
        Ran { orphans, ..self.ran(name, Ok(())) }
    }

    pub(super) fn load_source(self: &Arc<Self>, source: &Source) -> Result<(), LoadFailure> {
        let id = &source.id;
        let served = self.server.served(id);
        let is_foreign = source.folder.is_some();
        let now = LoadedAs { files: source.fingerprint()?, is_configured: source.config.is_some() };
        let then = lock(&self.records).loaded_as(id).cloned();
        let is_unchanged = !now.is_configured && then.as_ref() == Some(&now);
        if !served.is_empty() && is_unchanged && !self.is_outdated(id) {
            log::info!("'{id}' is loaded already and has not changed");
            return Ok(());
        }
        let is_same = |version| {
            then.as_ref().is_some_and(|then| now.files.has_same_version(&then.files, version))
        };
        let before = Before { versions: &served, is_same: &is_same };
        let began = |versions: &[i64]| lock(&self.records).loading(id, versions);
        match self.loader.load(&self.server, source, &before, began) {
            Ok(versions) => {
                versions.values().flat_map(|it| &it.agents).for_each(|agents| agents.loaded());
                let numbers = versions.keys().copied().collect();
                drop(served);
                let replaced = self.server.replace(id, versions.clone());
                lock(&self.records).loaded(id, &numbers, Some(now), is_foreign);
                for version in numbers {
                    log::info!("successfully loaded '{id}' version {version}");
                }
                self.retire(id, replaced, &versions);
                Ok(())
            }
            Err(failure) => {
                if let LoadFailure::Versions(failures) = &failure {
                    lock(&self.records).failed(id, failures, is_foreign);
                }
                Err(failure)
            }
        }
    }

    pub(super) fn take_out(self: &Arc<Self>, id: &ModelId) {
        let served = self.server.replace(id, Versions::new());
        lock(&self.records).unloaded(id);
        self.retire(id, served, &Versions::new());
        self.tell_readiness();
    }

    /// Keeps books of a load, and makes its failure an answer.
    pub(super) fn note(
        &self,
        id: &ModelId,
        is_wanted: bool,
        loaded: Result<(), LoadFailure>,
    ) -> Result<(), Error> {
        let is_served = !self.server.served(id).is_empty();
        if is_wanted || is_served {
            lock(&self.records).wanted(id, is_served);
        }
        self.tell_readiness();
        loaded.map_err(|failure| answer(id, failure))
    }

    fn tell_readiness(&self) {
        let incomplete = lock(&self.records).is_incomplete();
        self.server.set_incomplete(incomplete && self.settings.strict_readiness);
    }
}

/// Why a load request is not even tried, or a model is not loaded.
enum Refusal {
    Request(Error),
    Model(LoadFailure),
}

impl From<repository::Error> for Refusal {
    fn from(error: repository::Error) -> Self {
        Self::Model(error.into())
    }
}

fn answer(id: &ModelId, failure: LoadFailure) -> Error {
    let model = id.to_string();
    match failure {
        LoadFailure::MissingModels(models) => {
            let reason = format!("these of its models are not served: {}", models.join(", "));
            Error::ModelNotLoaded { model, reason }
        }
        LoadFailure::Ensemble(reason) => {
            log::error!("failed to load '{id}': {reason}");
            Error::ModelNotLoaded { model, reason }
        }
        LoadFailure::Unreadable(error) => {
            log::error!("failed to load '{id}': {}", error.located());
            let reason = match error {
                repository::Error::UnknownModel { .. } => None,
                repository::Error::BadModelName { ref name } if name.is_empty() => None,
                repository::Error::BadOverride { .. } => {
                    return Error::malformed(error.to_string());
                }
                other => Some(other.located()),
            };
            Error::ModelNotPolled { model, reason }
        }
        LoadFailure::NoVersions(error) => {
            log::error!("failed to load '{id}': {}", error.located());
            Error::ModelNotLoaded { model, reason: error.to_string() }
        }
        LoadFailure::Versions(failures) => {
            let failed = failures.iter().filter_map(|(version, failure)| {
                let VersionFailure { reason, is_served } = failure.as_ref()?;
                let state =
                    if *is_served { VersionState::Ready } else { VersionState::Unavailable };
                Some(format!("version {version} is at {} state: {reason};", state.name()))
            });
            Error::ModelNotLoaded { model, reason: failed.collect() }
        }
    }
}
