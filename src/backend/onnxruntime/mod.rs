//! ONNX Runtime as a back end, over its C API: one session per model version serves all instances on
//! the host, since `Run` may be called from many threads at once and the weights would otherwise be
//! there once per instance.
//!
//! This room knows the library, model files, tensors and memory. It must not know requests,
//! schedulers or wire formats. The library is opened at run time (`library`); what the
//! configuration asks of a session is read by `settings` and applied by `options`; `plan` ties a
//! model's signature to the tensors of its file; `execution` runs a batch on the host, `on_device`
//! where a lane has it.

mod execution;
mod handle;
mod library;
mod model;
mod on_device;
mod options;
mod plan;
mod session;
mod settings;
mod strings;

#[cfg(test)]
mod tests;

use std::{path::Path, sync::Arc};

use self::{
    library::Runtime,
    model::{OnnxModel, inspect_file, place_to_inspect},
    settings::SessionSettings,
};
use super::{Backend, BackendError, Model, ModelIo, ModelSource};
use crate::device::Devices;

/// The version of ONNX Runtime that this back end is made for, which
/// `nereid backend install onnxruntime` brings.
pub const VERSION: &str = "1.31.1";

/// The environment variable that, set to `1`, lets another version be used.
pub const ANY_VERSION: &str = "NEREID_ONNXRUNTIME_ANY_VERSION";

/// The back end `onnxruntime`.
pub struct OnnxRuntime {
    runtime: &'static Runtime,
    devices: Arc<Devices>,
}

/// Whether the library in `{directory}/onnxruntime/` brings what runs models on GPUs.
pub fn has_cuda(directory: &Path) -> bool {
    directory.join("onnxruntime/libonnxruntime_providers_cuda.so").is_file()
}

impl OnnxRuntime {
    /// Opens the library in `{directory}/onnxruntime/`. A library once open stays so until the
    /// process ends; opening it again gives the same one.
    ///
    /// # Errors
    /// When there is no library, it cannot be opened or it is not of [`VERSION`]; the message names
    /// the command that installs it.
    pub fn open(directory: &Path) -> Result<Self, BackendError> {
        let devices = Arc::new(Devices::none("models were given no devices to run on"));
        Runtime::open(&directory.join("onnxruntime")).map(|runtime| Self { runtime, devices })
    }

    /// The same, with devices that models can run on.
    pub fn on(self, devices: Arc<Devices>) -> Self {
        Self { devices, ..self }
    }
}

impl Backend for OnnxRuntime {
    fn name(&self) -> &'static str {
        "onnxruntime"
    }

    fn version(&self) -> String {
        self.runtime.version.clone()
    }

    fn default_model_filename(&self) -> Option<&'static str> {
        Some("model.onnx")
    }

    fn inspect(&self, source: &ModelSource) -> Result<Option<ModelIo>, BackendError> {
        let settings = SessionSettings::read(source)?;
        let place = place_to_inspect(&source.config, &self.devices);
        inspect_file(self.runtime, source, &settings, place).map(Some)
    }

    fn load(&self, source: &ModelSource) -> Result<Arc<dyn Model>, BackendError> {
        Ok(Arc::new(OnnxModel::load(self.runtime, self.devices.clone(), source)?))
    }
}
