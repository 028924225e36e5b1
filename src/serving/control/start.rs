use std::{
    collections::BTreeMap,
    sync::{Arc, mpsc},
};

use super::{Action, ModelControl, Task, lock, records::VersionState};
use crate::{
    inference::Error,
    repository::{self, ModelId, Overrides},
};

/// What is loaded at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Startup {
    /// All that the repositories have.
    All,
    /// These.
    Named(Vec<String>),
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

impl ModelControl {
    /// Loads what is wanted at the start, waits for it, and says what became of each model. One that
    /// fails keeps none of the others from being served.
    ///
    /// # Errors
    /// A repository cannot be listed.
    pub fn start(
        self: &Arc<Self>,
        wanted: &Startup,
    ) -> Result<Vec<ModelStatus>, repository::Error> {
        // Also in order to find out at once that a repository is not there.
        let entries = self.repository.scan()?;
        let outcomes = match wanted {
            Startup::All => self.load_entries(entries, Vec::new()),
            Startup::Named(names) => {
                let load = |name: &String| (name.clone(), Action::Load(Overrides::default()));
                self.run_all(names.iter().map(load).collect(), true)
            }
        };
        let mut failures: BTreeMap<String, String> = BTreeMap::new();
        for (name, outcome) in outcomes {
            if let Err(error) = outcome {
                failures.insert(name, error.to_string());
            }
        }
        Ok(self.statuses(failures))
    }

    /// Gives these tasks, each with its model's name, to the threads, and waits for all outcomes.
    pub(super) fn run_all(
        self: &Arc<Self>,
        tasks: Vec<(String, Action)>,
        is_wanted: bool,
    ) -> Vec<(String, Result<(), Error>)> {
        let (report, outcomes) = mpsc::channel();
        for (name, action) in tasks {
            let (report, model) = (report.clone(), name.clone());
            let done = Box::new(move |outcome| {
                // Whoever waits for this does so until all have reported.
                let _ = report.send((model, outcome));
            });
            self.submit(&name, Task { action, is_wanted, done });
        }
        drop(report);
        outcomes.into_iter().collect()
    }

    fn statuses(&self, mut failures: BTreeMap<String, String>) -> Vec<ModelStatus> {
        let records = lock(&self.records);
        let mut statuses = Vec::new();
        for id in records.all().cloned().collect::<Vec<ModelId>>() {
            for (version, (state, reason)) in records.versions(&id).into_iter().flatten() {
                failures.remove(&id.name);
                statuses.push(ModelStatus {
                    name: id.to_string(),
                    version: Some(*version),
                    outcome: match state {
                        VersionState::Ready => Ok(()),
                        _ => Err(reason.clone()),
                    },
                });
            }
        }
        statuses.extend(failures.into_iter().map(|(name, reason)| ModelStatus {
            name,
            version: None,
            outcome: Err(reason),
        }));
        statuses.sort_by(|a, b| (&a.name, a.version).cmp(&(&b.name, b.version)));
        statuses
    }
}
