//! A model that is a CUDA kernel: `model.cu`, which NVRTC compiles when the model is loaded, or
//! `model.ptx`, `model.cubin` or `model.fatbin`. The configuration's parameters say how it is
//! launched.
//!
//! `nvrtc` compiles, `launch` reads the parameters, `execution` copies, launches and copies back. This
//! room knows files, tensors and devices. It must not know requests or schedulers.

mod execution;
mod launch;
mod nvrtc;

#[cfg(test)]
mod tests;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use bytes::Bytes;

use self::{execution::OnDevice, launch::LaunchPlan, nvrtc::Nvrtc};
use super::{
    Backend, BackendError, Host, Model, ModelInstance, ModelSource, Placement, PlacementDevice,
};
use crate::{
    device::{Device, KernelSource},
    inference::{DataType, Signature},
};

/// The version of NVRTC that `nereid backend install cuda` brings.
pub const VERSION: &str = "13.0.88";

/// What sources are compiled for when there is no GPU to ask.
const COMPUTE_CAPABILITY: (u32, u32) = (8, 0);

/// The GPUs of this machine, or why there are none.
pub type Devices = Result<Vec<Arc<dyn Device>>, String>;

/// The back end `cuda`.
pub struct Cuda {
    directory: Option<PathBuf>,
    open: Box<dyn Fn() -> Devices + Send + Sync>,
    devices: OnceLock<Devices>,
    compiler: OnceLock<Result<Nvrtc, BackendError>>,
}

impl Cuda {
    /// One that looks for NVRTC in `{directory}/cuda/` and has `devices` open the GPUs, both when a
    /// model first needs them.
    pub fn new(
        directory: Option<PathBuf>,
        devices: impl Fn() -> Devices + Send + Sync + 'static,
    ) -> Self {
        let open = Box::new(devices);
        Self { directory, open, devices: OnceLock::new(), compiler: OnceLock::new() }
    }

    fn devices(&self) -> &Devices {
        self.devices.get_or_init(|| (self.open)())
    }

    fn compiler(&self) -> Result<&Nvrtc, BackendError> {
        let opened = self.compiler.get_or_init(|| Nvrtc::open(self.directory.as_deref()));
        opened.as_ref().map_err(Clone::clone)
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
        let target = self.devices().iter().flatten();
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
        let image = self.image(source, &plan)?;
        let devices = match self.devices() {
            Ok(devices) if !devices.is_empty() => devices.clone(),
            Ok(_) => return Err(no_gpu(source, "no GPU was found")),
            Err(reason) => return Err(no_gpu(source, reason)),
        };
        let kernel =
            KernelSource { name: plan.kernel.as_str().into(), image: Some(image), twin: None };
        let signature = source.signature.clone();
        Ok(Arc::new(Loaded { name: source.name.clone(), kernel, plan, signature, devices }))
    }
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
    signature: Arc<Signature>,
    devices: Vec<Arc<dyn Device>>,
}

impl Model for Loaded {
    fn instance(
        &self,
        placement: &Placement,
        _: &Arc<Host>,
    ) -> Result<ModelInstance, BackendError> {
        let wanted = match placement.device {
            PlacementDevice::Gpu(index) => usize::try_from(index).ok(),
            PlacementDevice::Cpu | PlacementDevice::Model => {
                self.devices.first().map(|device| device.properties().index)
            }
        };
        let device = self.devices.iter().find(|device| Some(device.properties().index) == wanted);
        let device = device.ok_or_else(|| {
            let known: Vec<_> =
                self.devices.iter().map(|device| device.properties().index.to_string()).collect();
            BackendError(format!(
                "instance '{}' of model '{}' is to run on {:?}: there are GPUs {}",
                placement.name,
                self.name,
                placement.device,
                known.join(", ")
            ))
        })?;
        let instance =
            OnDevice::new(device.clone(), &self.kernel, self.plan.clone(), self.signature.clone());
        let instance = instance.map_err(|error| BackendError(error.to_string()))?;
        Ok(ModelInstance::Batches(Box::new(instance)))
    }
}
