//! Loaded models and their instances.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use ort_sys::GraphOptimizationLevel;

use super::{
    execution::Execution,
    library::Runtime,
    on_device::{Batches, OnDevice},
    plan::Plan,
    session::{Device, OnStream, Port, Session},
    settings::SessionSettings,
};
use crate::{
    backend::{
        BackendError, Batch, BatchOutputs, DeviceInstance, Direct, Host, InlineFitness, Instance,
        Model, ModelInstance, ModelIo, ModelIoTensor, ModelSource, Placement, PlacementDevice,
    },
    device::{self, Devices, Urgency, streams::Runner},
    inference::DataType,
    proto::{ModelConfig, model_instance_group::Kind},
    repository::Ragged,
};

/// One version of a model: its settings, and a session per device.
pub(super) struct OnnxModel {
    runtime: &'static Runtime,
    devices: Arc<Devices>,
    source: ModelSource,
    settings: SessionSettings,
    /// Sessions that instances to come can use; few, so a list.
    sessions: Mutex<Vec<(Device, Arc<Execution>)>>,
}

impl OnnxModel {
    /// Reads the settings and, unless all instances are to be on GPUs, opens the file on the host.
    pub fn load(
        runtime: &'static Runtime,
        devices: Arc<Devices>,
        source: &ModelSource,
    ) -> Result<Self, BackendError> {
        let settings = SessionSettings::read(source)?;
        let groups = &source.config.instance_group;
        let all_on_gpu = !groups.is_empty() && groups.iter().all(|group| group.kind() == Kind::Gpu);
        if source.settings.get("enable-global-threadpool").is_some_and(|value| value == "1") {
            log::warn!(
                target: "onnxruntime",
                "setting 'enable-global-threadpool' has no effect: sessions have pools of their own"
            );
        }
        let (source, sessions) = (source.clone(), Mutex::default());
        let model = Self { runtime, devices, source, settings, sessions };
        if !all_on_gpu {
            let execution = model.open(Device::Host, None)?;
            let sessions = model.sessions.lock();
            sessions.unwrap_or_else(PoisonError::into_inner).push((Device::Host, execution));
        }
        Ok(model)
    }

    fn open(
        &self,
        device: Device,
        on_stream: Option<OnStream>,
    ) -> Result<Arc<Execution>, BackendError> {
        let session = open_session(self.runtime, &self.source, &self.settings, device, on_stream)?;
        // What sequences and batch inputs add is not the client's to give.
        let config = &self.source.config;
        let all_inputs = config.batch_input.is_empty()
            && !matches!(
                config.scheduling_choice,
                Some(crate::proto::model_config::SchedulingChoice::SequenceBatching(_))
            );
        let signature = &self.source.signature;
        let ragged = Ragged::new(config, signature);
        let plan = Plan::new(signature, &ragged, &session.inputs, &session.outputs, all_inputs)?;
        Ok(Arc::new(Execution::new(session, plan)))
    }

    /// The session for a further instance on a device. On the host one serves them all, so that the
    /// weights are there once; on a GPU, where a session is what can overlap with another, each
    /// instance has its own as in Triton. The model's configuration can ask for either.
    pub fn execution(&self, device: Device) -> Result<Arc<Execution>, BackendError> {
        // Held while a session opens, so that two instances do not open one each.
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = self.settings.shared.unwrap_or(device == Device::Host);
        let found = sessions.iter().position(|(of, _)| *of == device);
        match found {
            Some(index) if shared => {
                if let Some((_, execution)) = sessions.get(index) {
                    return Ok(execution.clone());
                }
            }
            Some(index) => return Ok(sessions.swap_remove(index).1),
            None => {}
        }
        let execution = self.open(device, None)?;
        if shared {
            sessions.push((device, execution.clone()));
        }
        Ok(execution)
    }

    /// Why batches cannot be bound in a device's memory, if they cannot.
    fn off_devices(&self, device: Device) -> Option<&'static str> {
        let signature = &self.source.signature;
        let mut tensors = signature.inputs.iter().chain(&signature.outputs);
        if tensors.any(|spec| spec.datatype == DataType::Bytes) {
            return Some("strings lie on the host");
        }
        let shares = device != Device::Host && self.settings.shared == Some(true);
        shares.then_some("a session that instances share has no stream of its own")
    }

    /// The compute step of an instance: on a GPU a session of its own, which puts its work on the
    /// instance's stream.
    fn runner(
        &self,
        there: &dyn device::Device,
        device: Device,
    ) -> Result<(Arc<Execution>, Runner), BackendError> {
        let refused = |error: String| BackendError(self.failed(device, &error));
        let stream = there.stream(Urgency::Normal).map_err(|error| refused(error.to_string()))?;
        let (execution, memory, graphs) = match (device, stream.handle()) {
            (Device::Gpu(ordinal), Some(handle)) => {
                let memory = self.runtime.memory_of_gpu(ordinal);
                let memory = memory.map_err(|error| refused(error.to_string()))?;
                let graphs = self.wants_graphs();
                let execution = self.open(device, Some(OnStream { handle, graphs }))?;
                (execution, Some(memory), graphs)
            }
            _ => (self.execution(Device::Host)?, None, false),
        };
        let model = OnDevice::new(self.source.name.clone(), execution.clone(), memory, graphs);
        Ok((execution, Runner { stream, model: Box::new(model) }))
    }

    fn wants_graphs(&self) -> bool {
        let optimization = self.source.config.optimization.as_ref();
        optimization.and_then(|it| it.cuda.as_ref()).is_some_and(|cuda| cuda.graphs)
    }

    fn failed(&self, device: Device, error: &str) -> String {
        failed(&self.source.name, device, error)
    }
}

impl Model for OnnxModel {
    fn instance(
        &self,
        placement: &Placement,
        _: &Arc<Host>,
    ) -> Result<ModelInstance, BackendError> {
        if let Some(instance) = self.on_device(placement)? {
            return Ok(ModelInstance::Batches(Box::new(Direct::of(instance)?)));
        }
        let device = match placement.device {
            PlacementDevice::Cpu | PlacementDevice::Model => Device::Host,
            PlacementDevice::Gpu(ordinal) => on(&self.devices, ordinal),
        };
        let execution = self.execution(device)?;
        let model = self.source.name.clone();
        Ok(ModelInstance::Batches(Box::new(OnnxInstance { model, execution })))
    }

    fn on_device(&self, placement: &Placement) -> Result<Option<DeviceInstance>, BackendError> {
        let PlacementDevice::Gpu(ordinal) = placement.device else { return Ok(None) };
        let device = on(&self.devices, ordinal);
        let (model, instance) = (&self.source.name, &placement.name);
        if let Some(reason) = self.off_devices(device) {
            log::info!(
                "tensors of instance '{instance}' of model '{model}' stay on the host: {reason}"
            );
            return Ok(None);
        }
        if device != Device::Host {
            let offered = self.runtime.check_offers("CUDA");
            offered.map_err(|error| BackendError(self.failed(device, &error.to_string())))?;
        }
        let there = self.devices.get(usize::try_from(ordinal).unwrap_or(usize::MAX));
        let there = there.map_err(|reason| BackendError(self.failed(device, &reason)))?;
        let (execution, runner) = self.runner(&**there, device)?;
        let model = Arc::new(Batches(execution.plan().clone()));
        Ok(Some(DeviceInstance { device: there.clone(), model, runner }))
    }

    fn inline_fitness(&self) -> InlineFitness {
        let alone = self.settings.runs_on_one_thread()
            && !self.settings.any_gpu
            && self.settings.host_providers.is_empty();
        if alone { InlineFitness::IfFast } else { InlineFitness::Never }
    }
}

struct OnnxInstance {
    model: Arc<str>,
    execution: Arc<Execution>,
}

impl Instance for OnnxInstance {
    fn execute(&mut self, batch: &Batch<'_>) -> Result<BatchOutputs, BackendError> {
        self.execution
            .run(batch)
            .map_err(|error| BackendError(format!("model '{}': {error}", self.model)))
    }
}

/// Reads the tensors that a model file declares. The file is opened for this alone, so nothing in it
/// is optimised.
pub(super) fn inspect_file(
    runtime: &'static Runtime,
    source: &ModelSource,
    settings: &SessionSettings,
    device: Device,
) -> Result<ModelIo, BackendError> {
    let settings = SessionSettings {
        optimization: GraphOptimizationLevel::ORT_DISABLE_ALL,
        ..settings.clone()
    };
    let session = open_session(runtime, source, &settings, device, None)?;
    let tensors = |ports: &[Port]| -> Result<Vec<ModelIoTensor>, BackendError> {
        ports
            .iter()
            .map(|port| {
                let tensor = port.tensor.as_ref().map_err(|why| {
                    BackendError(format!("failed to load model '{}': {why}", source.name))
                })?;
                Ok(ModelIoTensor {
                    name: port.name.clone(),
                    datatype: tensor.datatype,
                    dims: tensor.shape(),
                })
            })
            .collect()
    };
    Ok(ModelIo { inputs: tensors(&session.inputs)?, outputs: tensors(&session.outputs)? })
}

/// The device to inspect a model on: some models run on no other than they ask for.
pub(super) fn place_to_inspect(config: &ModelConfig, devices: &Devices) -> Device {
    let on_gpu = config.instance_group.iter().find(|group| group.kind() == Kind::Gpu);
    on_gpu.map_or(Device::Host, |group| on(devices, group.gpus.first().copied().unwrap_or(0)))
}

/// Where a session for the device of a number runs: a device may only stand in for a GPU.
fn on(devices: &Devices, ordinal: i32) -> Device {
    let there = devices.get(usize::try_from(ordinal).unwrap_or(usize::MAX));
    let stands_in =
        |there: &Arc<dyn device::Device>| there.properties().compute_capability.is_none();
    match there.is_ok_and(stands_in) {
        true => Device::Host,
        false => Device::Gpu(ordinal),
    }
}

fn failed(name: &str, device: Device, error: &str) -> String {
    let place = match device {
        Device::Host => String::new(),
        Device::Gpu(ordinal) => format!(" on GPU {ordinal}"),
    };
    format!("failed to load model '{name}'{place}: {error}")
}

fn open_session(
    runtime: &'static Runtime,
    source: &ModelSource,
    settings: &SessionSettings,
    device: Device,
    on_stream: Option<OnStream>,
) -> Result<Session, BackendError> {
    let name = &source.name;
    let path = model_file(source);
    let refused = |what: &str| {
        let shown = path.display();
        Err(BackendError(format!("unable to {what} '{shown}' for model '{name}'")))
    };
    match path.metadata() {
        Ok(found) if found.is_file() => {}
        // Opening a named pipe would wait for a writer.
        Ok(_) => return refused("read what is no regular file,"),
        Err(_) => return refused("find"),
    }
    // Registering custom operators is not safe beside another session's (onnxruntime issue 27089).
    static CUSTOM_OPERATORS: Mutex<()> = Mutex::new(());
    let _guard = (!settings.custom_op_libraries.is_empty())
        .then(|| CUSTOM_OPERATORS.lock().unwrap_or_else(PoisonError::into_inner));
    Session::open(runtime, name, &path, settings, device, on_stream)
        .map_err(|error| BackendError(failed(name, device, &error.to_string())))
}

/// The model file; a folder in its place holds it as `model.onnx`, beside external weights.
fn model_file(source: &ModelSource) -> PathBuf {
    match source.model_path.is_dir() {
        true => source.model_path.join("model.onnx"),
        false => source.model_path.clone(),
    }
}
