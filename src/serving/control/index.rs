use std::{collections::BTreeMap, sync::Arc};

use super::{ModelControl, lock, records::VersionState};
use crate::{
    inference::Error,
    repository::{self, ModelId},
    runtime::offload,
};

/// A line of the repository's index: a version of a model, or a model without versions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IndexEntry {
    /// The model's name.
    pub name: String,
    /// The version; `None` when it never came that far.
    pub version: Option<i64>,
    /// Where it is in its life; `None` when it was never to be loaded.
    pub state: Option<VersionState>,
    /// Why it is not served; empty when it is.
    pub reason: String,
}

impl ModelControl {
    /// What is in the repositories and what became of it, by name and version; on request only the
    /// versions that are served.
    ///
    /// # Errors
    /// A repository cannot be listed.
    ///
    /// # Panics
    /// On a thread that is not a reactor.
    pub async fn index(self: &Arc<Self>, only_ready: bool) -> Result<Vec<IndexEntry>, Error> {
        let control = self.clone();
        let listed = offload(move || control.list(only_ready)).await;
        listed.unwrap_or_else(|| Err(Error::unanswered()))
    }

    fn list(&self, only_ready: bool) -> Result<Vec<IndexEntry>, Error> {
        let entries = self
            .repository
            .scan()
            .map_err(|error| Error::Internal { detail: error.to_string() })?;
        let records = lock(&self.records);
        let mut models: BTreeMap<ModelId, Option<repository::Error>> =
            entries.into_iter().map(|entry| (entry.id, entry.error)).collect();
        for id in records.live() {
            models.entry(id.clone()).or_default();
        }
        let mut index = Vec::new();
        for (id, error) in models {
            let name = id.name.clone();
            match (error, records.versions(&id).filter(|versions| !versions.is_empty())) {
                (Some(error), _) => index.push(IndexEntry {
                    name,
                    state: Some(VersionState::Unavailable),
                    reason: match error {
                        repository::Error::NotUnique { .. } => {
                            "model appears in two or more repositories".to_owned()
                        }
                        other => other.to_string(),
                    },
                    ..IndexEntry::default()
                }),
                (None, Some(versions)) => {
                    index.extend(versions.iter().map(|(version, (state, reason))| IndexEntry {
                        name: name.clone(),
                        version: Some(*version),
                        state: Some(*state),
                        reason: reason.clone(),
                    }));
                }
                (None, None) => index.push(IndexEntry { name, ..IndexEntry::default() }),
            }
        }
        if only_ready {
            index.retain(|entry| entry.state == Some(VersionState::Ready));
        }
        Ok(index)
    }
}
