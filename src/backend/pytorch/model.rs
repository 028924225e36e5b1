//! Loaded models and their instances.

use std::sync::{Arc, Mutex, PoisonError};

use super::{
    execution,
    library::Library,
    module::{Module, inspect},
    plan::Plan,
    settings::Settings,
};
use crate::{
    backend::{
        BackendError, Batch, BatchOutputs, Host, InlineFitness, Instance, Model, ModelInstance,
        ModelSource, Placement, PlacementDevice,
    },
    proto::model_instance_group::Kind,
    repository::Ragged,
};

/// One version of a model.
pub(super) struct TorchModel {
    library: &'static Library,
    source: ModelSource,
    settings: Settings,
    plan: Arc<Plan>,
    /// Modules that instances share, by device.
    shared: Mutex<Vec<(PlacementDevice, Arc<Module>)>>,
}

impl TorchModel {
    /// Reads the settings, and the arguments of `forward` out of the file.
    pub fn load(library: &'static Library, source: &ModelSource) -> Result<Self, BackendError> {
        let settings = Settings::read(source)?;
        let (name, path) = (&source.name, &source.model_path);
        if !path.is_file() {
            return Err(BackendError(format!(
                "unable to find '{}' for model '{name}'",
                path.display()
            )));
        }
        let arguments = inspect(library, path).map_err(|error| load_error(source, "", &error))?;
        let declared: Vec<&str> =
            source.config.input.iter().map(|input| input.name.as_str()).collect();
        let ragged = Ragged::new(&source.config, &source.signature);
        let plan = Arc::new(Plan::new(&source.signature, &ragged, &declared, &arguments)?);
        Ok(Self { library, source: source.clone(), settings, plan, shared: Mutex::default() })
    }

    /// The module for a further instance: one of its own, with its own state and weights, unless the
    /// configuration has those on one device share one.
    fn module(&self, device: PlacementDevice) -> Result<Arc<Module>, BackendError> {
        if !self.settings.weight_sharing {
            return self.open(device);
        }
        // Held while a module loads, so that two instances do not load one each.
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, module)) = shared.iter().find(|(of, _)| *of == device) {
            return Ok(module.clone());
        }
        let module = self.open(device)?;
        shared.push((device, module.clone()));
        Ok(module)
    }

    fn open(&self, device: PlacementDevice) -> Result<Arc<Module>, BackendError> {
        let options = self.settings.options(device, self.plan.dictionary);
        let module = Module::load(self.library, &self.source.model_path, &options);
        let place = match device {
            PlacementDevice::Gpu(ordinal) => format!(" on GPU {ordinal}"),
            PlacementDevice::Cpu | PlacementDevice::Model => String::new(),
        };
        module.map(Arc::new).map_err(|error| load_error(&self.source, &place, &error))
    }
}

fn load_error(
    source: &ModelSource,
    place: &str,
    error: &super::module::TorchError,
) -> BackendError {
    BackendError(format!("failed to load model '{}'{place}: {error}", source.name))
}

impl Model for TorchModel {
    fn instance(
        &self,
        placement: &Placement,
        _: &Arc<Host>,
    ) -> Result<ModelInstance, BackendError> {
        let module = self.module(placement.device)?;
        let (model, plan) = (self.source.name.clone(), self.plan.clone());
        Ok(ModelInstance::Batches(Box::new(TorchInstance { model, module, plan })))
    }

    /// A module may keep something from one call to the next, which instances on every reactor would
    /// each do for themselves; only where instances share it anyway does that make no difference.
    fn inline_fitness(&self) -> InlineFitness {
        let groups = &self.source.config.instance_group;
        let on_host = groups.iter().all(|group| group.kind() == Kind::Cpu);
        let alone = self.settings.intra_op_threads == 1;
        match self.settings.weight_sharing && on_host && alone {
            true => InlineFitness::IfFast,
            false => InlineFitness::Never,
        }
    }
}

struct TorchInstance {
    model: Arc<str>,
    module: Arc<Module>,
    plan: Arc<Plan>,
}

impl Instance for TorchInstance {
    fn execute(&mut self, batch: &Batch<'_>) -> Result<BatchOutputs, BackendError> {
        execution::run(&self.module, &self.plan, batch)
            .map_err(|error| BackendError(format!("model '{}': {error}", self.model)))
    }
}
