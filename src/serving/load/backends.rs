use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use crate::{
    backend::{Backend, BackendError},
    proto::ModelConfig,
};

/// What `runtime` is in the configurations of models that a script runs.
pub(super) const SCRIPT_RUNTIME: &str = "model.py";

/// The back ends that there may be, by name. Each is opened when a model first needs it, because
/// a library costs time and memory.
#[derive(Default)]
pub struct Backends {
    built_in: BTreeMap<&'static str, LazyBackend>,
    open_script: Option<Box<OpenScript>>,
    /// Scripts that have been opened, by their back ends' names.
    scripts: Mutex<BTreeMap<String, OpenedBackend>>,
}

struct LazyBackend {
    open: Box<OpenBackend>,
    opened: OnceLock<OpenedBackend>,
}

type OpenedBackend = Result<Arc<dyn Backend>, BackendError>;
type OpenBackend = dyn Fn() -> OpenedBackend + Send + Sync;
type OpenScript = dyn Fn(&str) -> Option<OpenedBackend> + Send + Sync;

impl Backends {
    /// Adds the back end `name`, which `open` opens.
    pub fn add(
        &mut self,
        name: &'static str,
        open: impl Fn() -> OpenedBackend + Send + Sync + 'static,
    ) {
        self.built_in.insert(name, LazyBackend { open: Box::new(open), opened: OnceLock::new() });
    }

    /// Adds all back ends that are a script, which `open` opens by name; `None` from it means that there is
    /// none of the name.
    pub fn add_scripts(
        &mut self,
        open: impl Fn(&str) -> Option<OpenedBackend> + Send + Sync + 'static,
    ) {
        self.open_script = Some(Box::new(open));
    }

    /// What runs a model with this configuration, if there is a back end of that name; it may have failed
    /// to open. A script does where the name has no back end of ours, or `runtime` asks for one.
    pub fn find(&self, config: &ModelConfig) -> Option<OpenedBackend> {
        let name = config.backend.as_str();
        let built_in = self.built_in.get(name).filter(|_| config.runtime != SCRIPT_RUNTIME);
        match built_in {
            Some(backend) => Some(backend.opened.get_or_init(|| (backend.open)()).clone()),
            None => self.find_script(name),
        }
    }

    fn find_script(&self, name: &str) -> Option<OpenedBackend> {
        let mut scripts = self.scripts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = scripts.get(name) {
            return Some(opened.clone());
        }
        let opened = self.open_script.as_ref()?(name)?;
        scripts.insert(name.to_owned(), opened.clone());
        Some(opened)
    }

    /// The back ends that have been opened, or failed to, by name.
    pub fn opened(&self) -> Vec<(String, OpenedBackend)> {
        let built_in = self.built_in.iter();
        let built_in = built_in.filter_map(|(name, backend)| {
            Some(((*name).to_owned(), backend.opened.get()?.clone()))
        });
        let scripts = self.scripts.lock().unwrap_or_else(PoisonError::into_inner);
        built_in.chain(scripts.clone()).collect()
    }

    /// Has all that were opened end what they run outside of the server.
    pub fn stop(&self, patience: Duration) {
        for (_, backend) in self.opened() {
            if let Ok(backend) = backend {
                backend.stop(patience);
            }
        }
    }

    /// The names of all.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.built_in.keys().copied()
    }
}
