//! A model that is a CUDA kernel: `model.cu`, which NVRTC compiles when the model is loaded, or
//! `model.ptx`, `model.cubin` or `model.fatbin`. The configuration's parameters say how it is
//! launched.
//!
//! `nvrtc` compiles, `launch` reads the parameters, `execution` lays batches out and launches; on a
//! device of the host `on_host` stands in for NVRTC. This room knows files, tensors and devices. It
//! must not know requests or schedulers.

mod execution;
mod launch;
mod nvrtc;
mod on_host;

#[cfg(test)]
mod tests;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use bytes::Bytes;

use self::{
    execution::{Batches, OnDevice},
    launch::LaunchPlan,
    nvrtc::Nvrtc,
};
use super::{
    Backend, BackendError, DeviceInstance, Direct, Host, Model, ModelInstance, ModelSource,
    Placement, PlacementDevice,
};
use crate::{
    device::{Device, Devices, KernelSource, Twin, streams::Runner},
    inference::{DataType, Signature},
};

/// The version of NVRTC that `nereid backend install cuda` brings.
pub const VERSION: &str = "13.0.88";

/// What sources are compiled for when there is no GPU to ask.
const COMPUTE_CAPABILITY: (u32, u32) = (8, 0);

/// The back end `cuda`.
pub struct Cuda {
    directory: Option<PathBuf>,
    devices: Arc<Devices>,
    compiler: OnceLock<Result<Nvrtc, BackendError>>,
}

impl Cuda {
    /// One whose models run on `devices`, and that looks for NVRTC in `{directory}/cuda/` when a model
    /// first needs it.
    pub fn new(directory: Option<PathBuf>, devices: Arc<Devices>) -> Self {
        Self { directory, devices, compiler: OnceLock::new() }
    }

    fn compiler(&self) -> Result<&Nvrtc, BackendError> {
        let opened = self.compiler.get_or_init(|| Nvrtc::open(self.directory.as_deref()));
        opened.as_ref().map_err(Clone::clone)
    }

    /// Whether its models run on devices of the host.
    fn is_on_host(&self) -> bool {
        let devices = self.devices.all().unwrap_or_default();
        devices.first().is_some_and(|device| device.properties().compute_capability.is_none())
    }

    /// The model's code for GPUs: what its file holds, or what its source compiles to.
    fn image(&self, source: &ModelSource, plan: &LaunchPlan) -> Result<Bytes, BackendError> {
        let path = &source.model_path;
        let content = fs::read(path).map_err(|error| {
            BackendError(format!("'{}' cannot be read: {error}", path.display()))
        })?;
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("cu") => {}
            Some("ptx") => return Ok(with_zero(content)),
            Some("cubin" | "fatbin") => return Ok(content.into()),
            _ => {
                return Err(BackendError(format!(
                    "the file of model '{}' must end in .cu, .ptx, .cubin or .fatbin, got '{}'",
                    source.name,
                    path.display()
                )));
            }
        }
        let text = String::from_utf8(content)
            .map_err(|_| BackendError(format!("'{}' is not text", path.display())))?;
        let compiler = self.compiler()?;
        let target = self.devices.all().unwrap_or_default().iter();
        // The least of what there is: PTX for it runs on all.
        let target = target.filter_map(|device| device.properties().compute_capability).min();
        let image = compiler.compile(
            &file_name(path),
            &text,
            target.unwrap_or(COMPUTE_CAPABILITY),
            &plan.options,
        )?;
        Ok(image.into())
    }
}

/// PTX as the driver wants it.
fn with_zero(mut text: Vec<u8>) -> Bytes {
    if text.last() != Some(&0) {
        text.push(0);
    }
    text.into()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl Backend for Cuda {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn version(&self) -> String {
        match self.compiler.get() {
            Some(Ok(compiler)) => format!("NVRTC {}", compiler.version()),
            _ => env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    fn default_model_filename(&self) -> Option<&'static str> {
        Some("model.cu")
    }

    fn load(&self, source: &ModelSource) -> Result<Arc<dyn Model>, BackendError> {
        let plan = LaunchPlan::read(&source.config.parameters, &source.signature)
            .map_err(|fault| BackendError(format!("model '{}': {fault}", source.name)))?;
        check(&source.signature)?;
        let name = plan.kernel.as_str().into();
        let kernel = match self.is_on_host() {
            true => KernelSource { name, image: None, twin: Some(twin(source, &plan)?) },
            false => KernelSource { name, image: Some(self.image(source, &plan)?), twin: None },
        };
        self.devices.all().map_err(|reason| no_gpu(source, reason))?;
        let batches = Arc::new(Batches(source.signature.clone()));
        let (name, devices) = (source.name.clone(), self.devices.clone());
        Ok(Arc::new(Loaded { name, kernel, plan, batches, devices }))
    }
}

/// A source as a device of the host runs it.
fn twin(source: &ModelSource, plan: &LaunchPlan) -> Result<Twin, BackendError> {
    let path = &source.model_path;
    if path.extension().is_none_or(|extension| extension != "cu") {
        return Err(BackendError(format!(
            "model '{}' is to run on a device of the host, which takes sources: expected a file \
             that ends in .cu, got '{}'",
            source.name,
            path.display()
        )));
    }
    on_host::twin(path, plan)
}

fn no_gpu(source: &ModelSource, reason: &str) -> BackendError {
    BackendError(format!(
        "model '{}' of back end 'cuda' needs a GPU to run on: {reason}",
        source.name
    ))
}

/// Whether the shapes of all outputs can be told before the kernel runs.
fn check(signature: &Signature) -> Result<(), BackendError> {
    let mut tensors = signature.inputs.iter().chain(&signature.outputs);
    if let Some(strings) = tensors.find(|spec| spec.datatype == DataType::Bytes) {
        return Err(BackendError(format!(
            "tensor '{}' of model '{}' is of TYPE_STRING, which kernels do not take",
            strings.name, signature.model
        )));
    }
    for output in &signature.outputs {
        let dims = execution::dims(output);
        let is_known =
            dims.is_fixed() || signature.inputs.iter().any(|input| execution::dims(input) == dims);
        if !is_known {
            return Err(BackendError(format!(
                "output '{}' of model '{}' has the shape {dims}: expected fixed dimensions, or those \
                 of an input, whose shape it then has",
                output.name, signature.model
            )));
        }
    }
    Ok(())
}

/// A kernel that is ready for every GPU.
struct Loaded {
    name: Arc<str>,
    kernel: KernelSource,
    plan: LaunchPlan,
    batches: Arc<Batches>,
    devices: Arc<Devices>,
}

impl Model for Loaded {
    fn instance(
        &self,
        placement: &Placement,
        _: &Arc<Host>,
    ) -> Result<ModelInstance, BackendError> {
        Ok(ModelInstance::Batches(Box::new(Direct::of(self.place(placement)?)?)))
    }

    fn on_device(&self, placement: &Placement) -> Result<Option<DeviceInstance>, BackendError> {
        self.place(placement).map(Some)
    }
}

impl Loaded {
    fn place(&self, placement: &Placement) -> Result<DeviceInstance, BackendError> {
        let device = self.device(placement).map_err(|reason| {
            BackendError(format!(
                "instance '{}' of model '{}' cannot run on {:?}: {reason}",
                placement.name, self.name, placement.device
            ))
        })?;
        let (plan, signature) = (self.plan.clone(), self.batches.0.clone());
        let loaded = OnDevice::load(&**device, &self.kernel, plan, signature);
        let runner = loaded.and_then(|loaded| Runner::open(&**device, Box::new(loaded)));
        let runner = runner.map_err(|error| BackendError(error.to_string()))?;
        Ok(DeviceInstance { device: device.clone(), model: self.batches.clone(), runner })
    }

    /// A kernel runs on a device even where the configuration says the host.
    fn device(&self, placement: &Placement) -> Result<&Arc<dyn Device>, String> {
        match placement.device {
            PlacementDevice::Gpu(number) => {
                self.devices.get(usize::try_from(number).unwrap_or(usize::MAX))
            }
            PlacementDevice::Cpu | PlacementDevice::Model => {
                self.devices.all()?.first().ok_or_else(|| "there is no device".to_owned())
            }
        }
    }
}
