//! What became of each model, for those who ask and for the next load, without threads.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    repository::{Fingerprint, ModelId},
    serving::load::VersionFailure,
};

/// Why a version that was served is not served any more.
const UNLOADED: &str = "unloaded";

/// Where a version of a model is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionState {
    /// It is being loaded.
    Loading,
    /// It takes requests.
    Ready,
    /// It takes no more requests and answers those that it has.
    Unloading,
    /// It failed to load, or is unloaded.
    Unavailable,
}

impl VersionState {
    /// Triton's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loading => "LOADING",
            Self::Ready => "READY",
            Self::Unloading => "UNLOADING",
            Self::Unavailable => "UNAVAILABLE",
        }
    }
}

/// What a model was loaded from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedAs {
    /// How its folder was then.
    pub files: Fingerprint,
    /// Whether a client gave a configuration in place of the folder's.
    pub is_configured: bool,
}

/// The state of each version, and why it is not served.
pub type VersionStates = BTreeMap<i64, (VersionState, String)>;

/// All models that were ever to be loaded.
#[derive(Default)]
pub struct Records {
    models: BTreeMap<ModelId, Record>,
    /// Models that should be served and are not.
    missing: BTreeSet<ModelId>,
}

#[derive(Default)]
struct Record {
    versions: VersionStates,
    /// What is served of it was loaded from this; `None` when nothing is served.
    loaded_as: Option<LoadedAs>,
    /// Whether its files came with the request that loaded it.
    is_foreign: bool,
}

impl Record {
    fn is_live(&self) -> bool {
        self.versions.values().any(|(state, _)| *state != VersionState::Unavailable)
    }
}

impl Records {
    /// These versions are being loaded. One that is served goes on meanwhile.
    pub fn loading(&mut self, id: &ModelId, versions: &[i64]) {
        let record = self.models.entry(id.clone()).or_default();
        for &version in versions {
            let state = record.versions.entry(version);
            let state = state.or_insert((VersionState::Loading, String::new()));
            if state.0 != VersionState::Ready {
                *state = (VersionState::Loading, String::new());
            }
        }
    }

    /// Exactly these versions are served now.
    pub fn loaded(
        &mut self,
        id: &ModelId,
        versions: &BTreeSet<i64>,
        loaded_as: Option<LoadedAs>,
        is_foreign: bool,
    ) {
        let record = self.models.entry(id.clone()).or_default();
        record.loaded_as = loaded_as;
        record.is_foreign = is_foreign;
        for (version, state) in &mut record.versions {
            if state.0 == VersionState::Ready && !versions.contains(version) {
                state.0 = VersionState::Unloading;
            }
        }
        for &version in versions {
            record.versions.insert(version, (VersionState::Ready, String::new()));
        }
    }

    /// A load failed, of these versions for these reasons; those without one were given up because
    /// of the others. What was served still is.
    pub fn failed(
        &mut self,
        id: &ModelId,
        failures: &BTreeMap<i64, Option<VersionFailure>>,
        is_foreign: bool,
    ) {
        let record = self.models.entry(id.clone()).or_default();
        for (&version, failure) in failures {
            let reason = failure.as_ref().map_or(UNLOADED, |failure| &failure.reason).to_owned();
            match record.versions.get_mut(&version) {
                // As in Triton the index says it of one that is served on, if its instances are why.
                Some((VersionState::Ready, said)) => {
                    if failure.as_ref().is_some_and(|failure| failure.is_served) {
                        *said = reason;
                    }
                }
                _ => _ = record.versions.insert(version, (VersionState::Unavailable, reason)),
            }
        }
        if is_foreign {
            self.forget_unless_live(id);
        }
    }

    /// A load ended before it came to versions, or panicked in one.
    pub fn gave_up(&mut self, id: &ModelId, reason: &str) {
        let Some(record) = self.models.get_mut(id) else { return };
        for state in record.versions.values_mut() {
            if state.0 == VersionState::Loading {
                *state = (VersionState::Unavailable, reason.to_owned());
            }
        }
    }

    /// Nothing of the model is served any more.
    pub fn unloaded(&mut self, id: &ModelId) {
        self.missing.remove(id);
        let Some(record) = self.models.get_mut(id) else { return };
        record.loaded_as = None;
        for state in record.versions.values_mut() {
            if state.0 == VersionState::Ready {
                state.0 = VersionState::Unloading;
            }
        }
    }

    /// The last request of a version that is not served any more has been answered.
    pub fn ended(&mut self, id: &ModelId, version: i64) {
        let Some(record) = self.models.get_mut(id) else { return };
        if let Some(state) = record.versions.get_mut(&version)
            && state.0 == VersionState::Unloading
        {
            *state = (VersionState::Unavailable, UNLOADED.to_owned());
        }
        if record.is_foreign {
            self.forget_unless_live(id);
        }
    }

    /// No folder speaks of a model that came with a request, and clients could invent names without
    /// end.
    fn forget_unless_live(&mut self, id: &ModelId) {
        if self.models.get(id).is_some_and(|record| !record.is_live()) {
            self.models.remove(id);
        }
    }

    /// Notes whether a model that should be served is.
    pub fn wanted(&mut self, id: &ModelId, is_served: bool) {
        if is_served {
            self.missing.remove(id);
        } else {
            self.missing.insert(id.clone());
        }
    }

    /// Whether a model that should be served is not.
    pub fn is_incomplete(&self) -> bool {
        !self.missing.is_empty()
    }

    /// What the model was loaded from that is served.
    pub fn loaded_as(&self, id: &ModelId) -> Option<&LoadedAs> {
        self.models.get(id)?.loaded_as.as_ref()
    }

    /// The versions of a model; none when it never came that far.
    pub fn versions(&self, id: &ModelId) -> Option<&VersionStates> {
        Some(&self.models.get(id)?.versions)
    }

    /// The models of this name that were loaded, or were to be.
    pub fn called(&self, name: &str) -> Vec<ModelId> {
        self.models.keys().filter(|id| id.name == name).cloned().collect()
    }

    /// All models that were ever to be loaded.
    pub fn all(&self) -> impl Iterator<Item = &ModelId> {
        self.models.keys()
    }

    /// The models of which a version is served, is to be or was just now.
    pub fn live(&self) -> impl Iterator<Item = &ModelId> {
        self.models.iter().filter(|(_, record)| record.is_live()).map(|(id, _)| id)
    }
}

#[cfg(test)]
mod tests {
    use super::{VersionState::*, *};

    fn id() -> ModelId {
        ModelId { name: "m".into(), namespace: String::new() }
    }

    fn states(records: &Records) -> Vec<(i64, VersionState, &str)> {
        let versions = records.versions(&id()).into_iter().flatten();
        versions.map(|(version, (state, reason))| (*version, *state, reason.as_str())).collect()
    }

    fn failure(reason: &str, is_served: bool) -> Option<VersionFailure> {
        Some(VersionFailure { reason: reason.to_owned(), is_served })
    }

    fn loaded(records: &mut Records, versions: &[i64]) {
        records.loading(&id(), versions);
        records.loaded(&id(), &versions.iter().copied().collect(), None, false);
    }

    #[test]
    fn a_model_is_loaded_changes_its_versions_and_is_unloaded() {
        let mut records = Records::default();
        records.loading(&id(), &[1]);
        assert_eq!(states(&records), [(1, Loading, "")]);
        loaded(&mut records, &[1]);
        assert_eq!(states(&records), [(1, Ready, "")]);
        records.loading(&id(), &[1, 2]);
        assert_eq!(states(&records), [(1, Ready, ""), (2, Loading, "")]);
        records.loaded(&id(), &[2].into(), None, false);
        assert_eq!(states(&records), [(1, Unloading, ""), (2, Ready, "")]);
        records.ended(&id(), 1);
        assert_eq!(states(&records), [(1, Unavailable, "unloaded"), (2, Ready, "")]);
        records.unloaded(&id());
        assert_eq!(states(&records), [(1, Unavailable, "unloaded"), (2, Unloading, "")]);
        assert_eq!(records.live().count(), 1);
        records.ended(&id(), 2);
        assert_eq!(states(&records)[1], (2, Unavailable, "unloaded"));
        assert_eq!(records.live().count(), 0);
    }

    #[test]
    fn what_is_served_outlives_a_failed_load() {
        let mut records = Records::default();
        loaded(&mut records, &[1]);
        records.loading(&id(), &[1, 2, 3]);
        let failures = [(1, failure("worse", false)), (2, failure("bad", false)), (3, None)].into();
        records.failed(&id(), &failures, false);
        let expected = [(1, Ready, ""), (2, Unavailable, "bad"), (3, Unavailable, "unloaded")];
        assert_eq!(states(&records), expected);
        records.failed(&id(), &[(1, failure("no instance", true))].into(), false);
        assert_eq!(states(&records)[0], (1, Ready, "no instance"));
        // The next one may go well.
        loaded(&mut records, &[1, 2, 3]);
        assert_eq!(states(&records), [(1, Ready, ""), (2, Ready, ""), (3, Ready, "")]);
    }

    #[test]
    fn an_old_copy_that_ends_late_changes_nothing() {
        let mut records = Records::default();
        loaded(&mut records, &[1]);
        records.unloaded(&id());
        loaded(&mut records, &[1]);
        records.ended(&id(), 1);
        assert_eq!(states(&records), [(1, Ready, "")]);
    }

    #[test]
    fn a_model_that_came_with_a_request_is_forgotten() {
        let mut records = Records::default();
        records.loading(&id(), &[1]);
        records.loaded(&id(), &[1].into(), None, true);
        records.unloaded(&id());
        records.ended(&id(), 1);
        assert_eq!(records.called("m"), []);
        records.loading(&id(), &[1]);
        records.failed(&id(), &[(1, failure("bad", false))].into(), true);
        assert_eq!(records.called("m"), []);
    }

    #[test]
    fn what_should_be_served_and_is_not_is_missing() {
        let mut records = Records::default();
        records.wanted(&id(), false);
        assert!(records.is_incomplete());
        records.wanted(&id(), true);
        assert!(!records.is_incomplete());
        records.wanted(&id(), false);
        records.unloaded(&id());
        assert!(!records.is_incomplete());
    }

    #[test]
    fn a_load_that_panicked_does_not_stay_loading() {
        let mut records = Records::default();
        loaded(&mut records, &[1]);
        records.loading(&id(), &[1, 2]);
        records.gave_up(&id(), "panic");
        assert_eq!(states(&records), [(1, Ready, ""), (2, Unavailable, "panic")]);
    }
}
