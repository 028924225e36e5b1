//! Ensembles are loaded after their models, and looked at again whenever one of those changes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    thread,
};

use super::{Action, Done, ModelControl, Task, dependencies::in_order, lock};
use crate::{
    inference::Error,
    repository::{Ensemble, EnsembleStep, Entry, ModelId, returns_to},
    serving::load::{LoadFailure, Source},
};

/// Models whose files are fetched from object stores at a time.
const FETCHES_AT_ONCE: usize = 8;

/// Why models could not be loaded, by their names.
pub type Failures = BTreeMap<String, Error>;

/// What came of a task, and what there is to do because of it before its end is told.
pub struct Ran {
    pub outcome: Result<(), Error>,
    /// Ensembles that are to be loaded once their models are.
    pub ensembles: Vec<(Source, Ensemble)>,
    /// Ensembles that may be served otherwise now, or not any more.
    pub dependents: Vec<ModelId>,
    /// Models that nobody may want any more.
    pub orphans: Vec<String>,
}

impl Ran {
    /// There is nothing more to do.
    pub fn done(outcome: Result<(), Error>) -> Self {
        Self { outcome, ensembles: Vec::new(), dependents: Vec::new(), orphans: Vec::new() }
    }
}

impl ModelControl {
    /// Something was done to the models of this name.
    pub(super) fn ran(&self, name: &str, outcome: Result<(), Error>) -> Ran {
        let dependents = lock(&self.dependencies).of(name);
        Ran { dependents, ..Ran::done(outcome) }
    }

    /// Does what a task leaves to do, then tells its end.
    pub(super) fn follow_up(self: &Arc<Self>, name: &str, ran: Ran, is_wanted: bool, done: Done) {
        let Ran { outcome, ensembles, dependents, orphans } = ran;
        let mut next: Vec<(String, Action)> = Vec::new();
        next.extend(dependents.into_iter().map(|id| (id.name.clone(), Action::Recheck(id))));
        next.extend(orphans.into_iter().map(|name| (name, Action::UnloadOrphan)));
        let control = self.clone();
        let name = name.to_owned();
        // What comes of looking at others again is in the log.
        self.run_then(next, move |_| {
            control.load_ensembles(&name, outcome, ensembles, is_wanted, done);
        });
    }

    /// Loads the models of the first of `ensembles`, then itself, and so on with the others.
    fn load_ensembles(
        self: &Arc<Self>,
        name: &str,
        outcome: Result<(), Error>,
        mut ensembles: Vec<(Source, Ensemble)>,
        is_wanted: bool,
        done: Done,
    ) {
        let Some((source, ensemble)) = ensembles.pop() else { return done(outcome) };
        let models = ensemble.steps.iter().map(|step| step.model.clone());
        let mut models: Vec<_> = models.map(|model| (model, Action::LoadForEnsemble)).collect();
        models.sort_by(|(a, _), (b, _)| a.cmp(b));
        models.dedup_by(|(a, _), (b, _)| a == b);
        let (control, name) = (self.clone(), name.to_owned());
        self.run_then(models, move |outcomes| {
            let failures = outcomes.into_iter().filter_map(|(name, it)| Some((name, it.err()?)));
            let action = Action::LoadEnsemble(Box::new(source), failures.collect());
            let (after, again) = (control.clone(), name.clone());
            let done: Done = Box::new(move |loaded| {
                after.load_ensembles(&again, outcome.and(loaded), ensembles, is_wanted, done);
            });
            control.submit(&name, Task { action, is_wanted, done });
        });
    }

    /// Gives these tasks to the threads, and calls `then` with all outcomes, on the thread that has the
    /// last.
    fn run_then(
        self: &Arc<Self>,
        tasks: Vec<(String, Action)>,
        then: impl FnOnce(Vec<(String, Result<(), Error>)>) + Send + 'static,
    ) {
        if tasks.is_empty() {
            return then(Vec::new());
        }
        let left = tasks.len();
        let waiting = Arc::new(Mutex::new((left, Vec::new(), Some(then))));
        for (name, action) in tasks {
            let (waiting, model) = (waiting.clone(), name.clone());
            let done: Done = Box::new(move |outcome| {
                let mut waiting = lock(&waiting);
                let (left, outcomes, then) = &mut *waiting;
                outcomes.push((model, outcome));
                *left -= 1;
                if *left == 0
                    && let Some(then) = then.take()
                {
                    let outcomes = std::mem::take(outcomes);
                    drop(waiting);
                    then(outcomes);
                }
            });
            self.submit(&name, Task { action, is_wanted: false, done });
        }
    }

    /// Loads what is in repositories that are served whole, ensembles after what they may depend on, and
    /// does `others` with the first. Blocks until all is done.
    pub(super) fn load_entries(
        self: &Arc<Self>,
        entries: Vec<Entry>,
        others: Vec<(String, Action)>,
    ) -> Vec<(String, Result<(), Error>)> {
        let mut first = others;
        let mut ensembles = BTreeMap::new();
        for entry in self.fetched(entries) {
            let name = entry.id.name.clone();
            if let Some(error) = entry.error {
                first.push((name, Action::Fail(entry.id, error)));
                continue;
            }
            let source = Source::from(entry);
            match self.loader.ensemble(&source) {
                None => first.push((name, Action::LoadSource(Box::new(source)))),
                Some(ensemble) => {
                    lock(&self.dependencies).asked_for(&source.id);
                    let of_name: &mut Vec<_> = ensembles.entry(name).or_default();
                    of_name.push((ensemble, source));
                }
            }
        }
        let wants = ensembles.iter().map(|(name, sources)| {
            let steps = sources.iter().flat_map(|(ensemble, _)| &ensemble.steps);
            (name.clone(), steps.map(|step| step.model.clone()).collect())
        });
        let groups = in_order(wants.collect());
        let mut outcomes = self.run_all(first, true);
        for group in groups {
            let failures: Failures = outcomes
                .iter()
                .filter_map(|(name, outcome)| Some((name.clone(), outcome.clone().err()?)))
                .collect();
            let tasks = group.into_iter().flat_map(|name| {
                let sources = ensembles.remove(&name).unwrap_or_default();
                sources.into_iter().map(move |(_, source)| (name.clone(), source))
            });
            let tasks = tasks.map(|(name, source)| {
                (name, Action::LoadEnsemble(Box::new(source), failures.clone()))
            });
            outcomes.extend(self.run_all(tasks.collect(), true));
        }
        outcomes
    }

    /// The entries, their folders as they are in object stores.
    fn fetched(&self, mut entries: Vec<Entry>) -> Vec<Entry> {
        for some in entries.chunks_mut(FETCHES_AT_ONCE) {
            thread::scope(|threads| {
                for entry in some.iter_mut().filter(|entry| entry.error.is_none()) {
                    threads.spawn(move || entry.error = self.repository.fetch(entry).err());
                }
            });
        }
        entries
    }

    /// Loads an ensemble with its models as they are served now.
    pub(super) fn load_ensemble(
        self: &Arc<Self>,
        source: &Source,
        failures: &Failures,
    ) -> Result<(), LoadFailure> {
        let Some(ensemble) = self.loader.ensemble(source) else { return self.load_source(source) };
        lock(&self.dependencies).wants(&source.id, &ensemble);
        let loaded = self
            .check_circles(&source.id, &ensemble)
            .and_then(|()| self.load_source(source))
            .map_err(|failure| self.explained(&source.id, failure, failures));
        if loaded.is_err() && self.is_outdated(&source.id) {
            self.take_out(&source.id);
        }
        loaded
    }

    /// Loads an ensemble again that one of whose models has changed.
    pub(super) fn recheck(self: &Arc<Self>, id: &ModelId) -> Ran {
        let is_served = !self.server.served(id).is_empty();
        if is_served && !self.is_outdated(id) {
            return Ran::done(Ok(()));
        }
        let found = self.repository.find(&id.name).unwrap_or_default();
        let Some(entry) = found.into_iter().find(|entry| entry.id == *id && entry.error.is_none())
        else {
            if is_served {
                self.take_out(id);
                return self.ran(&id.name, Ok(()));
            }
            return Ran::done(Ok(()));
        };
        // One that was loaded with a configuration of the client's keeps it.
        let served = self.server.served(id);
        let is_given = lock(&self.records).loaded_as(id).is_some_and(|it| it.is_configured);
        let given = served.values().next().filter(|_| is_given);
        let config = given.map(|version| (*version.config).clone());
        drop(served);
        let source = Source::from(entry).with(config);
        match self.load_ensemble(&source, &Failures::new()) {
            Ok(()) => {
                let outcome = self.note(id, false, Ok(()));
                self.ran(&id.name, outcome)
            }
            Err(LoadFailure::Ensemble(reason)) => {
                log::info!("'{id}' cannot be served: {reason}");
                // Where nothing has changed the others need not look, else ensembles in a circle would
                // do so for ever.
                if is_served { self.ran(&id.name, Ok(())) } else { Ran::done(Ok(())) }
            }
            Err(failure) => Ran::done(self.note(id, false, Err(failure))),
        }
    }

    /// Whether a served ensemble runs a model that is not served any more, or has a newer version.
    pub(super) fn is_outdated(&self, id: &ModelId) -> bool {
        let served = self.server.served(id);
        let steps = served.values().filter_map(|version| version.steps.as_ref());
        steps.into_iter().any(|steps| !steps.are_current(&self.server, id))
    }

    pub(super) fn check_circles(
        &self,
        id: &ModelId,
        ensemble: &Ensemble,
    ) -> Result<(), LoadFailure> {
        let inner = |step: &EnsembleStep| {
            let found = self.repository.find(&step.model).ok()?;
            let entry = found.into_iter().find(|entry| entry.error.is_none())?;
            self.loader.ensemble(&Source::from(entry))
        };
        match returns_to(&id.name, ensemble, inner) {
            None => Ok(()),
            Some(through) => Err(LoadFailure::Ensemble(format!(
                "circular dependency between ensembles: {id} -> ... -> {through} -> {id}"
            ))),
        }
    }

    /// Says of models that are not served why, as far as it is known.
    fn explained(&self, id: &ModelId, failure: LoadFailure, failures: &Failures) -> LoadFailure {
        let LoadFailure::MissingModels(missing) = failure else { return failure };
        let known = missing.iter().find_map(|model| match failures.get(model)? {
            Error::ModelNotLoaded { reason, .. } => Some((model, reason.trim_end())),
            _ => None,
        });
        LoadFailure::Ensemble(match known {
            Some((model, reason)) if lock(&self.dependencies).is_ensemble(model) => format!(
                "ensemble '{id}' depends on '{model}' which is not valid. Model '{model}' failed with \
                 error: {reason}"
            ),
            Some((model, reason)) => format!(
                "ensemble '{id}' depends on '{model}' which has no loaded version. Model '{model}' \
                 loading failed with error: {reason}"
            ),
            None => format!(
                "ensemble {id} contains models that are not available or ambiguous: {}",
                missing.join(", ")
            ),
        })
    }
}
