//! Models that come with a folder of their own and go with it, for a platform that puts archives on this
//! machine and asks for the model in one.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{ControlMode, ModelControl, lock, records::VersionState};
use crate::{
    inference::{Code, Error},
    repository::{self, Overrides},
    runtime::{offload, sleep},
};

/// How long requests that a model has when it goes are waited for.
const PATIENCE: Duration = Duration::from_secs(350);
/// How often is looked whether it has ended.
const PAUSE: Duration = Duration::from_millis(20);

impl ModelControl {
    /// Registers the folder `at` and loads the model in it, or the ensemble with its models, under `name`.
    /// Returns the folder that is registered: `at`, or the one that it is in when `at` is the model's own.
    ///
    /// # Errors
    /// When the server does not take such requests, the folder or the name is taken already, or the model
    /// cannot be loaded; then nothing is registered.
    ///
    /// # Panics
    /// On a thread that is not a reactor.
    pub async fn host(self: &Arc<Self>, at: PathBuf, name: &str) -> Result<PathBuf, Error> {
        if self.settings.mode != ControlMode::Explicit {
            return Err(Error::NoModelControl);
        }
        let (control, named) = (self.clone(), name.to_owned());
        let register = move || control.repository.register(&at, &named, &control.loader.options);
        let registered = offload(register).await.ok_or_else(Error::unanswered)?;
        let root = registered.map_err(refusal)?;
        match self.load(name, Overrides::default()).await {
            Ok(()) => Ok(root),
            Err(error) => {
                self.repository.unregister(name);
                Err(error)
            }
        }
    }

    /// Takes a model that was hosted out of service, with the models of an ensemble, waits until its requests
    /// are answered, and forgets its folder.
    ///
    /// # Errors
    /// When the server does not take such requests.
    ///
    /// # Panics
    /// On a thread that is not a reactor.
    pub async fn expel(self: &Arc<Self>, name: &str) -> Result<(), Error> {
        self.unload(name, true).await?;
        let until = Instant::now() + PATIENCE;
        while self.is_ending(name) && Instant::now() < until {
            sleep(PAUSE).await;
        }
        self.repository.unregister(name);
        Ok(())
    }

    fn is_ending(&self, name: &str) -> bool {
        let records = lock(&self.records);
        let versions = records.called(name).into_iter().filter_map(|id| records.versions(&id));
        versions.flatten().any(|(_, (state, _))| *state == VersionState::Unloading)
    }
}

fn refusal(error: repository::Error) -> Error {
    let detail = error.to_string();
    match error.code() {
        Code::AlreadyExists => Error::AlreadyHosted { detail },
        _ => Error::malformed(detail),
    }
}
