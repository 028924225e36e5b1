use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use super::{Action, AgentError, AgentModel, AgentSession, Agents};
use crate::{proto::ModelConfig, repository::error::Error};

/// The agents of one load of a model. The order of the protocol is its own affair: who drops it before
/// [`loaded`](Self::loaded) tells the agents that the load failed, who drops it later that the model is
/// gone.
pub struct AgentChain {
    model: String,
    dir: PathBuf,
    links: Mutex<Links>,
}

struct Links {
    /// In the configuration's order.
    all: Vec<Link>,
    stage: Stage,
}

struct Link {
    agent: String,
    session: Box<dyn AgentSession>,
    model: AgentModel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Loading,
    Loaded,
    Unloading,
}

impl AgentChain {
    /// Tells the agents that `config` names that the model in `dir` is about to be loaded, in their
    /// order; `None` when it names none.
    ///
    /// # Errors
    /// When an agent is not there or refuses; those before it are told that the load failed.
    pub fn load(
        agents: &Agents,
        model: &str,
        config: &ModelConfig,
        dir: &Path,
    ) -> Result<Option<Self>, Error> {
        let Some(named) = &config.model_repository_agents else { return Ok(None) };
        let config = Arc::new(config.clone());
        let links = Links { all: Vec::new(), stage: Stage::Loading };
        let mut chain =
            Self { model: model.to_owned(), dir: dir.to_owned(), links: Mutex::new(links) };
        for named in &named.agents {
            let parameters =
                named.parameters.iter().map(|(key, value)| (key.clone(), value.clone()));
            let seen = AgentModel::new(config.clone(), parameters.collect(), chain.dir.clone());
            let loaded = agents.find(&named.name).and_then(|agent| {
                let session = agent.begin(&seen)?;
                let mut link = Link { agent: named.name.clone(), session, model: seen };
                link.act(Action::Load).map(|()| link)
            });
            let link = loaded.map_err(|AgentError { code, message }| Error::Agent {
                model: model.to_owned(),
                agent: named.name.clone(),
                code,
                message,
            })?;
            chain.dir = link.model.latest_location().to_owned();
            chain.links().all.push(link);
        }
        Ok(Some(chain))
    }

    /// The folder that the model is to be loaded from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The model is served.
    pub fn loaded(&self) {
        let mut links = self.links();
        if links.stage == Stage::Loading {
            links.stage = Stage::Loaded;
            links.tell_backwards(Action::LoadComplete, &self.model);
        }
    }

    /// The model is about to be unloaded; to be told of it again changes nothing.
    pub fn unloading(&self) {
        let mut links = self.links();
        if links.stage == Stage::Loaded {
            links.stage = Stage::Unloading;
            links.tell(Action::Unload, &self.model);
        }
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for AgentChain {
    fn drop(&mut self) {
        self.unloading();
        let mut links = self.links();
        let last = match links.stage {
            Stage::Loading => Action::LoadFail,
            Stage::Loaded | Stage::Unloading => Action::UnloadComplete,
        };
        links.tell_backwards(last, &self.model);
    }
}

impl fmt::Debug for AgentChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentChain").field("model", &self.model).finish_non_exhaustive()
    }
}

impl Links {
    fn tell(&mut self, action: Action, model: &str) {
        self.all.iter_mut().for_each(|link| link.tell(action, model));
    }

    fn tell_backwards(&mut self, action: Action, model: &str) {
        self.all.iter_mut().rev().for_each(|link| link.tell(action, model));
    }
}

impl Link {
    fn act(&mut self, action: Action) -> Result<(), AgentError> {
        self.model.enter(action);
        self.session.act(action, &mut self.model)
    }

    fn tell(&mut self, action: Action, model: &str) {
        if let Err(error) = self.act(action) {
            log::error!(
                "repository agent '{}' fails in {action} of '{model}': {error}",
                self.agent
            );
        }
    }
}
