//! What a model's configuration and the server's settings ask of a session: a pure reading, by the
//! parameter names and defaults of Triton's ONNX Runtime back end except where a field says
//! otherwise.

use std::{collections::BTreeMap, path::PathBuf};

use ort_sys::GraphOptimizationLevel;

use crate::{
    backend::{BackendError, ModelSource, parameters::Parameters},
    proto::{
        ModelConfig, model_instance_group::Kind,
        model_optimization_policy::execution_accelerators::Accelerator,
    },
};

/// ONNX Runtime's idle threads spin unless told otherwise, which takes the cores from the reactors.
const QUIET: [&str; 2] = ["session.intra_op.allow_spinning", "session.inter_op.allow_spinning"];

/// The settings of a session.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SessionSettings {
    pub optimization: GraphOptimizationLevel,
    /// Whether independent nodes run at the same time.
    pub parallel: bool,
    /// Threads that share the work of one node, the calling one included; 0 leaves the choice to
    /// ONNX Runtime. Unlike Triton's the default is 1: instances, not threads inside them, use the
    /// cores, and a session without a thread pool can run on a reactor.
    pub intra_op_threads: i32,
    /// Threads that share the nodes when `parallel`; 0 leaves the choice to ONNX Runtime.
    pub inter_op_threads: i32,
    pub memory_arena: Option<bool>,
    pub memory_pattern: Option<bool>,
    /// Entries of ONNX Runtime's own session configuration. Triton passes on just one of them; here
    /// any parameter whose name begins with `session.` is one.
    pub entries: BTreeMap<String, String>,
    /// The devices, such as `cpu:0;gpu:0`, whose unused arena memory is given back after each run.
    pub arena_shrinkage: Option<String>,
    /// Whether instances on one device share a session, if the model says so.
    pub shared: Option<bool>,
    pub custom_op_libraries: Vec<PathBuf>,
    /// Execution providers for an instance on the host, most preferred first.
    pub host_providers: Vec<Provider>,
    /// Execution providers for an instance on a GPU, most preferred first; the last is CUDA.
    pub gpu_providers: Vec<Provider>,
    /// Whether any instance group asks for a GPU.
    pub any_gpu: bool,
}

/// An execution provider and its options, by ONNX Runtime's names.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Provider {
    pub kind: ProviderKind,
    pub options: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProviderKind {
    Cuda,
    TensorRt,
    OpenVino,
}

impl ProviderKind {
    /// ONNX Runtime's name for it, without the suffix `ExecutionProvider`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cuda => "CUDA",
            Self::TensorRt => "Tensorrt",
            Self::OpenVino => "OpenVINO",
        }
    }
}

impl SessionSettings {
    pub fn read(source: &ModelSource) -> Result<Self, BackendError> {
        let parameters = Parameters::of("onnxruntime", source);
        let config = &source.config;
        let parallel = match parameters.integer("execution_mode")? {
            None | Some(0) => false,
            Some(1) => true,
            Some(other) => {
                return Err(parameters.bad("execution_mode", "0 or 1", &other.to_string()));
            }
        };
        Ok(Self {
            optimization: optimization_level(config),
            parallel,
            intra_op_threads: parameters.thread_count("intra_op_thread_count")?.unwrap_or(1),
            inter_op_threads: parameters.thread_count("inter_op_thread_count")?.unwrap_or(0),
            memory_arena: parameters.boolean("enable_mem_arena")?,
            memory_pattern: parameters.boolean("enable_mem_pattern")?,
            entries: entries(config),
            arena_shrinkage: parameters
                .text("memory.enable_memory_arena_shrinkage")
                .map(Into::into),
            shared: parameters.boolean("share_session_between_instances")?,
            custom_op_libraries: custom_op_libraries(source),
            host_providers: host_providers(source)?,
            gpu_providers: gpu_providers(&parameters)?,
            any_gpu: config.instance_group.iter().any(|group| group.kind() == Kind::Gpu),
        })
    }

    /// Whether a run uses the calling thread only.
    pub fn runs_on_one_thread(&self) -> bool {
        self.intra_op_threads == 1 && !self.parallel
    }
}

fn optimization_level(config: &ModelConfig) -> GraphOptimizationLevel {
    let graph = config.optimization.as_ref().and_then(|optimization| optimization.graph.as_ref());
    match graph.map_or(0, |graph| graph.level) {
        -1 => GraphOptimizationLevel::ORT_ENABLE_BASIC,
        1 => GraphOptimizationLevel::ORT_ENABLE_EXTENDED,
        2 => GraphOptimizationLevel::ORT_DISABLE_ALL,
        _ => GraphOptimizationLevel::ORT_ENABLE_ALL,
    }
}

fn entries(config: &ModelConfig) -> BTreeMap<String, String> {
    let mut entries: BTreeMap<String, String> =
        QUIET.iter().map(|&key| (key.to_owned(), "0".to_owned())).collect();
    let given = config.parameters.iter().filter(|(key, _)| key.starts_with("session."));
    entries.extend(given.map(|(key, value)| (key.clone(), value.string_value.clone())));
    entries
}

fn custom_op_libraries(source: &ModelSource) -> Vec<PathBuf> {
    let named = source.config.model_operations.iter().flat_map(|ops| &ops.op_library_filename);
    named
        .map(|name| {
            let beside = source.model_dir.join(name);
            if beside.exists() { beside } else { PathBuf::from(name) }
        })
        .collect()
}

fn host_providers(source: &ModelSource) -> Result<Vec<Provider>, BackendError> {
    let mut providers = Vec::new();
    for accelerator in accelerators(&source.config, |all| &all.cpu_execution_accelerator) {
        match accelerator.name.as_str() {
            "openvino" => {
                let mut options = accelerator.parameters.clone();
                options.entry("device_type".to_owned()).or_insert_with(|| "CPU".to_owned());
                providers.push(Provider { kind: ProviderKind::OpenVino, options });
            }
            other => return Err(unknown_accelerator(source, other)),
        }
    }
    Ok(providers)
}

fn gpu_providers(parameters: &Parameters<'_>) -> Result<Vec<Provider>, BackendError> {
    let source = parameters.source;
    let mut providers = Vec::new();
    let mut cuda = BTreeMap::new();
    for accelerator in accelerators(&source.config, |all| &all.gpu_execution_accelerator) {
        match accelerator.name.as_str() {
            "cuda" => cuda.extend(accelerator.parameters.clone()),
            "tensorrt" => providers.push(Provider {
                kind: ProviderKind::TensorRt,
                options: tensorrt_options(source, &accelerator.parameters)?,
            }),
            other => return Err(unknown_accelerator(source, other)),
        }
    }
    // Parameters of the model that Triton has deprecated in favour of those of the accelerator.
    for (name, choices) in [
        ("cudnn_conv_algo_search", &["EXHAUSTIVE", "HEURISTIC", "DEFAULT"][..]),
        ("arena_extend_strategy", &["kNextPowerOfTwo", "kSameAsRequested"][..]),
    ] {
        let Some(choice) = parameters.integer(name)? else { continue };
        let value =
            usize::try_from(choice).ok().and_then(|index| choices.get(index)).ok_or_else(|| {
                parameters.bad(name, &format!("0 to {}", choices.len() - 1), &choice.to_string())
            })?;
        cuda.insert(name.to_owned(), (*value).to_owned());
    }
    for name in ["gpu_mem_limit", "do_copy_in_default_stream"] {
        if let Some(value) = parameters.text(name) {
            cuda.insert(name.to_owned(), value.to_owned());
        }
    }
    providers.push(Provider { kind: ProviderKind::Cuda, options: cuda });
    Ok(providers)
}

/// The options of TensorRT: Triton has names of its own for some.
fn tensorrt_options(
    source: &ModelSource,
    parameters: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, BackendError> {
    let mut options = BTreeMap::new();
    for (key, value) in parameters {
        let (key, value) = match key.as_str() {
            "precision_mode" => match value.as_str() {
                "FP32" => continue,
                "FP16" => ("trt_fp16_enable", "1"),
                "BF16" => ("trt_bf16_enable", "1"),
                "INT8" => ("trt_int8_enable", "1"),
                other => {
                    return Err(BackendError(format!(
                        "unsupported precision mode '{other}' is requested by model '{}'",
                        source.name
                    )));
                }
            },
            "max_workspace_size_bytes" => ("trt_max_workspace_size", value.as_str()),
            "int8_calibration_table_name" => ("trt_int8_calibration_table_name", value.as_str()),
            "int8_use_native_calibration_table" => {
                ("trt_int8_use_native_calibration_table", value.as_str())
            }
            key if key.starts_with("trt_") => (key, value.as_str()),
            other => {
                return Err(BackendError(format!(
                    "unknown parameter '{other}' is provided for TensorRT Execution Accelerator \
                     by model '{}'",
                    source.name
                )));
            }
        };
        options.insert(key.to_owned(), value.to_owned());
    }
    Ok(options)
}

fn accelerators(
    config: &ModelConfig,
    kind: impl Fn(&crate::proto::model_optimization_policy::ExecutionAccelerators) -> &Vec<Accelerator>,
) -> &[Accelerator] {
    config
        .optimization
        .as_ref()
        .and_then(|optimization| optimization.execution_accelerators.as_ref())
        .map_or(&[], |all| kind(all))
}

fn unknown_accelerator(source: &ModelSource, name: &str) -> BackendError {
    BackendError(format!(
        "unknown Execution Accelerator '{name}' is requested by model '{}'",
        source.name
    ))
}
