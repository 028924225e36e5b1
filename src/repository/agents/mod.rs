//! Repository agents: what may look at a model's folder before the model is loaded, put another folder
//! in its place, and is told what becomes of the model.
//!
//! An [`Agent`] is found by the name that `model_repository_agents` gives; those of a model make an
//! [`AgentChain`], which calls them in the order of the protocol. The trait has what Triton's C
//! interface for agents has: begin and end of a model are the making and the dropping of an
//! [`AgentSession`], and what an agent may ask and do is on [`AgentModel`].
//!
//! This room may use the protocol's messages and the rest of the repository. It must not know when models
//! are loaded, or what runs them.

mod chain;
mod checksum;
mod decrypt;
mod model;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, path::Path, sync::Arc};

pub use self::{chain::AgentChain, model::AgentModel};
use super::{
    draft::{Draft, Written},
    error::Error,
    options::Options,
};
use crate::inference::Code;

/// What an agent is told. A model's life is `Load`, `LoadComplete`, `Unload`, `UnloadComplete`, or
/// `Load` and `LoadFail`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The model is about to be loaded; only now may its folder be replaced.
    Load,
    /// The model is served.
    LoadComplete,
    /// The model is not served.
    LoadFail,
    /// The model is about to be unloaded.
    Unload,
    /// The model is gone.
    UnloadComplete,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Load => "TRITONREPOAGENT_ACTION_LOAD",
            Self::LoadComplete => "TRITONREPOAGENT_ACTION_LOAD_COMPLETE",
            Self::LoadFail => "TRITONREPOAGENT_ACTION_LOAD_FAIL",
            Self::Unload => "TRITONREPOAGENT_ACTION_UNLOAD",
            Self::UnloadComplete => "TRITONREPOAGENT_ACTION_UNLOAD_COMPLETE",
        })
    }
}

/// Why an agent could not do what it was told.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct AgentError {
    /// The kind of failure.
    pub code: Code,
    /// What to tell the operator.
    pub message: String,
}

impl AgentError {
    fn invalid(message: impl Into<String>) -> Self {
        Self { code: Code::InvalidArgument, message: message.into() }
    }
}

/// A repository agent. One serves all models that name it.
pub trait Agent: Send + Sync {
    /// Begins to look after a model.
    ///
    /// # Errors
    /// When it cannot; the model is then not loaded.
    fn begin(&self, model: &AgentModel) -> Result<Box<dyn AgentSession>, AgentError>;
}

/// What an agent keeps for one model, from before its load to after its unload. To drop it ends its
/// care for the model.
pub trait AgentSession: Send {
    /// Does its part of what happens to the model.
    ///
    /// # Errors
    /// One in [`Action::Load`] keeps the model from being loaded; any other is logged.
    fn act(&mut self, action: Action, model: &mut AgentModel) -> Result<(), AgentError>;
}

/// The agents that there are, by name.
pub struct Agents(BTreeMap<String, Arc<dyn Agent>>);

impl Agents {
    /// Those that come with the server: `checksum` and `decrypt`.
    pub fn built_in() -> Self {
        let mut agents = Self(BTreeMap::new());
        agents.add("checksum", Arc::new(checksum::Checksum));
        agents.add("decrypt", Arc::new(decrypt::Decrypt));
        agents
    }

    /// Adds the agent `name`.
    pub fn add(&mut self, name: &str, agent: Arc<dyn Agent>) {
        self.0.insert(name.to_owned(), agent);
    }

    /// Lets the agents that a model's configuration, as `written`, names look at its folder `dir`, and
    /// takes the model as they leave it. A configuration that was given counts; else the one that counts is
    /// in the folder that they leave.
    ///
    /// # Errors
    /// An agent refuses, or the configuration cannot be read or breaks a rule; no version is there to
    /// serve.
    pub fn draft(
        &self,
        name: &str,
        dir: &Path,
        written: Written,
        options: &Arc<Options>,
    ) -> Result<(Draft, Option<AgentChain>), Error> {
        let Some(chain) = AgentChain::load(self, name, written.config(), dir)? else {
            return Ok((Draft::new(name, dir, written, options)?, None));
        };
        let written = match written.is_given {
            false => Written::read(chain.dir(), options)?,
            true => written,
        };
        Ok((Draft::new(name, chain.dir(), written, options)?, Some(chain)))
    }

    fn find(&self, name: &str) -> Result<&Arc<dyn Agent>, AgentError> {
        self.0.get(name).ok_or_else(|| {
            let known = self.0.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            AgentError::invalid(format!("there is no such agent; this server has {known}"))
        })
    }
}
