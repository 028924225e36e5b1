//! What a model's configuration asks of its module: a pure reading, by the parameter names and
//! defaults of Triton's PyTorch back end except where a field says otherwise.

use super::table::{self, Options, Switch};
use crate::backend::{BackendError, ModelSource, PlacementDevice, parameters::Parameters};

/// The settings of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub inference_mode: bool,
    pub optimized_execution: bool,
    pub cache_cleaning: bool,
    /// Whether instances on one device share one module.
    pub weight_sharing: bool,
    pub tensor_fuser: Option<bool>,
    pub jit_profiling: Option<bool>,
    pub jit_executor: Option<bool>,
    pub cudnn: bool,
    /// Threads that share the work of one operator; 0 leaves the choice to torch. Unlike Triton's, it
    /// is per model and the default is 1: instances, not threads inside them, use the cores.
    pub intra_op_threads: i32,
    /// Threads of the whole process for the forked tasks of modules; 0 leaves the choice to torch.
    pub inter_op_threads: i32,
}

impl Settings {
    pub fn read(source: &ModelSource) -> Result<Self, BackendError> {
        let parameters = Parameters::of("pytorch", source);
        let flag = |name: &str| parameters.boolean(name);
        let settings = Self {
            inference_mode: flag("INFERENCE_MODE")?.unwrap_or(true),
            optimized_execution: !flag("DISABLE_OPTIMIZED_EXECUTION")?.unwrap_or(false),
            cache_cleaning: flag("ENABLE_CACHE_CLEANING")?.unwrap_or(false),
            weight_sharing: flag("ENABLE_WEIGHT_SHARING")?.unwrap_or(false),
            tensor_fuser: flag("ENABLE_TENSOR_FUSER")?,
            jit_profiling: flag("ENABLE_JIT_PROFILING")?,
            jit_executor: flag("ENABLE_JIT_EXECUTOR")?,
            cudnn: !flag("DISABLE_CUDNN")?.unwrap_or(false),
            intra_op_threads: parameters.thread_count("INTRA_OP_THREAD_COUNT")?.unwrap_or(1),
            inter_op_threads: parameters.thread_count("INTER_OP_THREAD_COUNT")?.unwrap_or(0),
        };
        for name in ["ENABLE_NVFUSER"] {
            if parameters.text(name).is_some() {
                let model = &source.name;
                log::warn!(target: "pytorch", "parameter '{name}' of model '{model}' has no effect");
            }
        }
        Ok(settings)
    }

    /// As the library takes them, for an instance on `device`.
    pub fn options(&self, device: PlacementDevice, dictionary: bool) -> Options {
        let switch = |given: Option<bool>| -> Switch {
            given.map_or(table::UNCHANGED, |on| if on { table::ON } else { table::OFF })
        };
        Options {
            device: match device {
                PlacementDevice::Cpu => table::HOST,
                PlacementDevice::Gpu(ordinal) => ordinal,
                PlacementDevice::Model => table::AS_SAVED,
            },
            stream: 0,
            copied_arguments: false,
            dictionary,
            inference_mode: self.inference_mode,
            optimized_execution: self.optimized_execution,
            cache_cleaning: self.cache_cleaning,
            intra_op_threads: self.intra_op_threads,
            inter_op_threads: self.inter_op_threads,
            tensor_fuser: switch(self.tensor_fuser),
            jit_profiling: switch(self.jit_profiling),
            jit_executor: switch(self.jit_executor),
            // A switch of the whole process, so a model that does not mind it must set it too.
            cudnn: switch(Some(self.cudnn)),
        }
    }
}
