//! Loaded models and their instances.

use std::sync::{Arc, Mutex, PoisonError};

use super::{
    execution,
    library::Library,
    module::{Forward, Module, TorchError, inspect},
    on_device::{Batches, OnDevice},
    plan::Plan,
    settings::Settings,
    table::{KIND_TENSOR, Options},
};
use crate::{
    backend::{
        BackendError, Batch, BatchOutputs, DeviceInstance, Direct, Host, InlineFitness, Instance,
        Model, ModelInstance, ModelSource, Placement, PlacementDevice,
    },
    device::{Device, Devices, Urgency, streams::Runner},
    inference::DataType,
    proto::model_instance_group::Kind,
    repository::Ragged,
};

/// One version of a model.
pub(super) struct TorchModel {
    library: &'static Library,
    devices: Arc<Devices>,
    source: ModelSource,
    settings: Settings,
    plan: Arc<Plan>,
    /// Whether `forward` may keep something from one run to the next.
    is_stateful: bool,
    /// Modules that instances share, by device.
    shared: Mutex<Vec<(PlacementDevice, Arc<Module>)>>,
}

impl TorchModel {
    /// Reads the settings, and the arguments of `forward` out of the file.
    pub fn load(
        library: &'static Library,
        devices: Arc<Devices>,
        source: &ModelSource,
    ) -> Result<Self, BackendError> {
        let settings = Settings::read(source)?;
        let Forward { arguments, is_stateful, .. } = inspect_file(library, source)?;
        let declared: Vec<&str> =
            source.config.input.iter().map(|input| input.name.as_str()).collect();
        let ragged = Ragged::new(&source.config, &source.signature);
        let plan = Arc::new(Plan::new(&source.signature, &ragged, &declared, &arguments)?);
        let (source, shared) = (source.clone(), Mutex::default());
        Ok(Self { library, devices, source, settings, plan, is_stateful, shared })
    }

    /// The module for a further instance: one of its own, with its own state and weights, unless the
    /// configuration has those on one device share one.
    fn module(
        &self,
        device: PlacementDevice,
        options: &Options,
    ) -> Result<Arc<Module>, BackendError> {
        match self.settings.weight_sharing {
            true => self.shared_module(device, options),
            false => self.open(device, options),
        }
    }

    fn shared_module(
        &self,
        device: PlacementDevice,
        options: &Options,
    ) -> Result<Arc<Module>, BackendError> {
        // Held while a module loads, so that two instances do not load one each.
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, module)) = shared.iter().find(|(of, _)| *of == device) {
            return Ok(module.clone());
        }
        let module = self.open(device, options)?;
        shared.push((device, module.clone()));
        Ok(module)
    }

    fn options(&self, device: PlacementDevice) -> Options {
        self.settings.options(device, self.plan.dictionary)
    }

    fn open(
        &self,
        device: PlacementDevice,
        options: &Options,
    ) -> Result<Arc<Module>, BackendError> {
        let module = Module::load(self.library, &self.source.model_path, options, self.is_stateful);
        module.map(Arc::new).map_err(|error| self.refusal(device, &error))
    }

    fn refusal(&self, device: PlacementDevice, error: &TorchError) -> BackendError {
        let place = match device {
            PlacementDevice::Gpu(ordinal) => format!(" on GPU {ordinal}"),
            PlacementDevice::Cpu | PlacementDevice::Model => String::new(),
        };
        load_error(&self.source, &place, error)
    }

    /// Why batches cannot lie in a device's memory, if they cannot.
    fn off_devices(&self, device: PlacementDevice) -> Option<&'static str> {
        let signature = &self.source.signature;
        let mut tensors = signature.inputs.iter().chain(&signature.outputs);
        let has_strings = tensors.any(|spec| spec.datatype == DataType::Bytes);
        if has_strings || self.plan.inputs.iter().any(|input| input.kind != KIND_TENSOR) {
            return Some("not all that goes in and comes out are tensors of numbers");
        }
        let shares = device != PlacementDevice::Cpu && self.settings.weight_sharing;
        shares.then_some("a module that instances share has no stream of its own")
    }

    /// Where a module for a placement is: a device may only stand in for a GPU.
    fn place(&self, placement: &Placement) -> PlacementDevice {
        let PlacementDevice::Gpu(ordinal) = placement.device else { return placement.device };
        let there = self.devices.get(usize::try_from(ordinal).unwrap_or(usize::MAX));
        let stands_in = |there: &Arc<dyn Device>| there.properties().compute_capability.is_none();
        if there.is_ok_and(stands_in) { PlacementDevice::Cpu } else { placement.device }
    }

    /// The compute step of an instance: on a GPU a module of its own, which puts its work on the
    /// instance's stream.
    fn runner(&self, there: &dyn Device, device: PlacementDevice) -> Result<Runner, BackendError> {
        let stream = there.stream(Urgency::Normal);
        let stream =
            stream.map_err(|error| self.refusal(device, &TorchError(error.to_string())))?;
        let options = Options {
            stream: stream.handle().unwrap_or_default(),
            copied_arguments: self.is_stateful,
            ..self.options(device)
        };
        let module = self.module(device, &options)?;
        let (model, plan) = (self.source.name.clone(), self.plan.clone());
        Ok(Runner { stream, model: Box::new(OnDevice { model, module, plan }) })
    }
}

/// What a model's file says of its `forward`.
pub(super) fn inspect_file(
    library: &Library,
    source: &ModelSource,
) -> Result<Forward, BackendError> {
    let (name, path) = (&source.name, &source.model_path);
    if !path.is_file() {
        let shown = path.display();
        return Err(BackendError(format!("unable to find '{shown}' for model '{name}'")));
    }
    inspect(library, path).map_err(|error| load_error(source, "", &error))
}

fn load_error(source: &ModelSource, place: &str, error: &TorchError) -> BackendError {
    BackendError(format!("failed to load model '{}'{place}: {error}", source.name))
}

impl Model for TorchModel {
    fn instance(
        &self,
        placement: &Placement,
        _: &Arc<Host>,
    ) -> Result<ModelInstance, BackendError> {
        if let Some(instance) = self.on_device(placement)? {
            return Ok(ModelInstance::Batches(Box::new(Direct::of(instance)?)));
        }
        let device = self.place(placement);
        let module = self.module(device, &self.options(device))?;
        let (model, plan) = (self.source.name.clone(), self.plan.clone());
        Ok(ModelInstance::Batches(Box::new(TorchInstance { model, module, plan })))
    }

    fn on_device(&self, placement: &Placement) -> Result<Option<DeviceInstance>, BackendError> {
        let PlacementDevice::Gpu(ordinal) = placement.device else { return Ok(None) };
        let device = self.place(placement);
        let (model, instance) = (&self.source.name, &placement.name);
        if let Some(reason) = self.off_devices(device) {
            log::info!(
                target: "pytorch",
                "tensors of instance '{instance}' of model '{model}' stay on the host: {reason}"
            );
            return Ok(None);
        }
        let there = self.devices.get(usize::try_from(ordinal).unwrap_or(usize::MAX));
        let there = there.map_err(|reason| self.refusal(device, &TorchError(reason)))?;
        let runner = self.runner(&**there, device)?;
        let batches = self.source.signature.max_batch_size > 0;
        let model = Arc::new(Batches { plan: self.plan.clone(), batches });
        Ok(Some(DeviceInstance { device: there.clone(), model, runner }))
    }

    /// Instances on every reactor would each have weights of their own, unless they share them; and one
    /// that keeps something would be waited for.
    fn inline_fitness(&self) -> InlineFitness {
        let groups = &self.source.config.instance_group;
        let on_host = groups.iter().all(|group| group.kind() == Kind::Cpu);
        let alone = self.settings.intra_op_threads == 1 && !self.is_stateful;
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
