use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Action, AgentError};
use crate::{inference::Code, proto::ModelConfig, repository::temporary::TemporaryFolder};

/// A model as one of its agents sees it.
pub struct AgentModel {
    config: Arc<ModelConfig>,
    parameters: Vec<(String, String)>,
    location: PathBuf,
    acting: Option<Action>,
    acquired: Option<TemporaryFolder>,
    replacement: Option<PathBuf>,
}

impl AgentModel {
    pub(super) fn new(
        config: Arc<ModelConfig>,
        parameters: Vec<(String, String)>,
        location: PathBuf,
    ) -> Self {
        Self { config, parameters, location, acting: None, acquired: None, replacement: None }
    }

    /// The configuration that names the agent, as it was read: nothing is completed.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The agent's parameters for this model, by name.
    pub fn parameters(&self) -> &[(String, String)] {
        &self.parameters
    }

    /// The value of a parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The model's folder, as the agents before this one left it. It is not to be written to.
    pub fn location(&self) -> &Path {
        &self.location
    }

    /// A folder to write to, readable by the server's user only. It is gone when the agent's care for the
    /// model ends. Asked for again, it is the same.
    ///
    /// # Errors
    /// The system does not allow one.
    pub fn acquire_location(&mut self) -> Result<&Path, AgentError> {
        let folder = match self.acquired.take() {
            Some(folder) => folder,
            None => TemporaryFolder::create()
                .map_err(|error| AgentError { code: Code::Internal, message: error.to_string() })?,
        };
        Ok(self.acquired.insert(folder).path())
    }

    /// Has the model loaded from `folder`.
    ///
    /// # Errors
    /// Outside [`Action::Load`].
    pub fn replace_location(&mut self, folder: PathBuf) -> Result<(), AgentError> {
        match self.acting {
            Some(Action::Load) => {
                self.replacement = Some(folder);
                Ok(())
            }
            Some(action) => Err(AgentError::invalid(format!(
                "location can only be updated during {}, current action type is {action}",
                Action::Load
            ))),
            None => Err(AgentError::invalid(format!(
                "location can only be updated during {}",
                Action::Load
            ))),
        }
    }

    /// The folder to go on with.
    pub(super) fn latest_location(&self) -> &Path {
        self.replacement.as_deref().unwrap_or(&self.location)
    }

    pub(super) fn enter(&mut self, action: Action) {
        self.acting = Some(action);
    }
}
