//! What a load and an unload do, on the thread of their own.

use std::sync::Arc;

use super::{Action, ModelControl, lock};
use crate::{
    inference::Error,
    repository::{self, Entry, Fingerprint, ModelId, Overrides, check_model_name},
    serving::{
        load::{Before, LoadFailure, Source},
        server::Versions,
    },
};

impl ModelControl {
    /// Does it. Nothing else is done to models of this name meanwhile.
    pub(super) fn run(
        self: &Arc<Self>,
        name: &str,
        action: Action,
        is_wanted: bool,
    ) -> Result<(), Error> {
        match action {
            Action::Load(overrides) => self.load_named(name, overrides, is_wanted),
            Action::LoadEntry(entry) => {
                let id = entry.id.clone();
                let loaded = self.load_entry(entry, None);
                self.note(&id, is_wanted, loaded)
            }
            Action::Unload => {
                let called = lock(&self.records).called(name);
                called.iter().for_each(|id| self.take_out(id));
                Ok(())
            }
            Action::UnloadOne(id) => {
                self.take_out(&id);
                Ok(())
            }
        }
    }

    fn load_named(
        self: &Arc<Self>,
        name: &str,
        overrides: Overrides,
        is_wanted: bool,
    ) -> Result<(), Error> {
        let unclear = ModelId { name: name.to_owned(), namespace: String::new() };
        if !name.is_empty()
            && let Err(error) = check_model_name(name)
        {
            return Err(Error::malformed(error.to_string()));
        }
        let config = match overrides.config() {
            Ok(config) => config,
            Err(error) => return self.note(&unclear, is_wanted, Err(error.into())),
        };
        if !overrides.files.is_empty() {
            let folder = match overrides.write() {
                Ok(folder) => Arc::new(folder),
                Err(error) => return self.note(&unclear, is_wanted, Err(error.into())),
            };
            drop(overrides);
            let source = Source {
                id: unclear.clone(),
                dir: folder.path().to_owned(),
                config,
                folder: Some(folder),
            };
            let loaded = self.load_source(&source);
            return self.note(&unclear, is_wanted, loaded);
        }
        let found = match self.repository.find(name) {
            Ok(found) => found,
            Err(error) => return self.note(&unclear, is_wanted, Err(error.into())),
        };
        let mut outcome = Ok(());
        for entry in found {
            let id = entry.id.clone();
            let loaded = self.load_entry(entry, config.clone());
            outcome = outcome.and(self.note(&id, is_wanted, loaded));
        }
        outcome
    }

    fn load_entry(
        self: &Arc<Self>,
        entry: Entry,
        config: Option<crate::proto::ModelConfig>,
    ) -> Result<(), LoadFailure> {
        match entry.error {
            Some(error) => Err(error.into()),
            None => {
                self.repository.fetch(&entry)?;
                self.load_source(&Source { id: entry.id, dir: entry.dir, config, folder: None })
            }
        }
    }

    fn load_source(self: &Arc<Self>, source: &Source) -> Result<(), LoadFailure> {
        let id = &source.id;
        let served = self.server.served(id);
        let is_foreign = source.folder.is_some();
        let now = match source.config {
            Some(_) => None,
            None => Some(Fingerprint::of(&source.dir)?),
        };
        let then = lock(&self.records).loaded_as(id).cloned();
        if !served.is_empty() && now.is_some() && now == then {
            log::info!("'{id}' is loaded already and has not changed");
            return Ok(());
        }
        let is_same = |version| match (&now, &then) {
            (Some(now), Some(then)) => now.has_same_version(then, version),
            _ => false,
        };
        let before = Before { versions: &served, is_same: &is_same };
        let began = |versions: &[i64]| lock(&self.records).loading(id, versions);
        match self.loader.load(&self.server, source, &before, began) {
            Ok(versions) => {
                versions.values().flat_map(|it| &it.agents).for_each(|agents| agents.loaded());
                let numbers = versions.keys().copied().collect();
                drop(served);
                let replaced = self.server.replace(id, versions.clone());
                lock(&self.records).loaded(id, &numbers, now, is_foreign);
                for version in numbers {
                    log::info!("successfully loaded '{id}' version {version}");
                }
                self.retire(id, replaced, &versions);
                Ok(())
            }
            Err(failure) => {
                if let LoadFailure::Versions(reasons) = &failure {
                    lock(&self.records).failed(id, reasons, is_foreign);
                }
                Err(failure)
            }
        }
    }

    fn take_out(self: &Arc<Self>, id: &ModelId) {
        let served = self.server.replace(id, Versions::new());
        lock(&self.records).unloaded(id);
        self.retire(id, served, &Versions::new());
        self.tell_readiness();
    }

    /// Keeps books of a load, and makes its failure an answer.
    fn note(
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

fn answer(id: &ModelId, failure: LoadFailure) -> Error {
    let model = id.to_string();
    match failure {
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
        LoadFailure::Versions(reasons) => {
            let failed = reasons.iter().filter_map(|(version, reason)| {
                Some(format!("version {version} is at UNAVAILABLE state: {};", reason.as_ref()?))
            });
            Error::ModelNotLoaded { model, reason: failed.collect() }
        }
    }
}
