//! TorchScript modules as a back end, through a library of ours that links libtorch
//! (`backends/pytorch/`), so that the server itself neither links nor needs it.
//!
//! This room knows that library's functions, model files, tensors and memory. It must not know
//! requests, schedulers or wire formats. `table` is what both sides agree on; `library` finds and opens
//! the library, `module` wraps its functions; `settings` reads what the configuration asks for,
//! `completion` completes one; `plan` ties a model's signature to the arguments of its `forward`;
//! `execution` runs a batch on the host, `on_device` where a lane has it.

mod completion;
mod elements;
mod execution;
mod library;
mod model;
mod module;
mod on_device;
mod plan;
mod settings;
mod table;

use std::{path::Path, sync::Arc};

use self::{
    library::Library,
    model::{TorchModel, inspect_file},
};
use super::{Backend, BackendError, Model, ModelSource};
use crate::{device::Devices, proto::ModelConfig};

/// The version of PyTorch that this back end is made for, which `nereid backend install pytorch`
/// brings.
pub const VERSION: &str = "2.11.0";

/// The library that links libtorch, in the back end's folder.
pub const BRIDGE: &str = "libnereid_pytorch.so";

/// The command that builds it, in the folder of Nereid's source.
pub const BUILD: &str = "make backend-pytorch";

/// A file in the back end's folder that names an installation of torch elsewhere.
pub const INSTALLATION: &str = "LIBTORCH";

/// The back end `pytorch`.
pub struct PyTorch {
    library: &'static Library,
    devices: Arc<Devices>,
}

/// Whether the libraries of `{directory}/pytorch/` bring what runs models on GPUs.
pub fn has_cuda(directory: &Path) -> bool {
    library::torch_libraries(&directory.join("pytorch"))
        .is_ok_and(|libraries| libraries.join("libtorch_cuda.so").is_file())
}

impl PyTorch {
    /// Opens the libraries in `{directory}/pytorch/`. Once open they stay so until the process ends;
    /// opening them again gives the same ones.
    ///
    /// # Errors
    /// When a library is missing, cannot be opened or is not of [`VERSION`]; the message names the
    /// command that installs it.
    pub fn open(directory: &Path) -> Result<Self, BackendError> {
        let devices = Arc::new(Devices::none("models were given no devices to run on"));
        Library::open(&directory.join("pytorch")).map(|library| Self { library, devices })
    }

    /// The same, with devices that models can run on.
    pub fn on(self, devices: Arc<Devices>) -> Self {
        Self { devices, ..self }
    }
}

impl Backend for PyTorch {
    fn name(&self) -> &'static str {
        "pytorch"
    }

    fn version(&self) -> String {
        self.library.version.clone()
    }

    fn default_model_filename(&self) -> Option<&'static str> {
        Some("model.pt")
    }

    fn complete(&self, source: &ModelSource) -> Result<Option<ModelConfig>, BackendError> {
        if completion::is_complete(&source.config) {
            return Ok(None);
        }
        let forward = inspect_file(self.library, source)?;
        completion::complete(&source.config, &forward).map(Some)
    }

    fn load(&self, source: &ModelSource) -> Result<Arc<dyn Model>, BackendError> {
        Ok(Arc::new(TorchModel::load(self.library, self.devices.clone(), source)?))
    }
}
