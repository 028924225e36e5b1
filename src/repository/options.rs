use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, LazyLock},
};

use super::error::Error;

/// The setting of `--backend-config` that overrides [`Options::default_max_batch_size`].
const DEFAULT_MAX_BATCH_SIZE: &str = "default-max-batch-size";

/// What the server's flags and machine say about reading models.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether a configuration may be partial or absent; off with `--disable-auto-complete-config`.
    pub auto_complete: bool,
    /// `--model-config-name`: prefer `configs/<name>.pbtxt` to `config.pbtxt`.
    pub config_name: Option<String>,
    /// Whether the configuration's name gives way to the folder's, as for a repository that is
    /// registered with a mapping of names; otherwise a difference is an error.
    pub rename: bool,
    /// The largest batch of a model that can batch and whose configuration does not say.
    pub default_max_batch_size: u32,
    /// The GPUs of the machine.
    pub gpus: Gpus,
    /// The back ends whose models run on GPUs where there are any and the configuration leaves it open.
    pub gpu_backends: Vec<&'static str>,
    /// `--min-supported-compute-capability`.
    pub min_compute_capability: f64,
    /// The settings of `--backend-config` by back end; those under the empty name hold for all.
    pub backend_settings: BTreeMap<String, Arc<BTreeMap<String, String>>>,
}

/// A GPU of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its CUDA ordinal.
    pub ordinal: i32,
    /// Its compute capability, such as `(9, 0)`; none of a device that only stands in for a GPU.
    pub compute_capability: Option<(u32, u32)>,
}

/// GPUs that are looked for when the first model asks for them: that takes time, which a machine whose
/// models do not should not pay.
#[derive(Clone)]
pub struct Gpus(Arc<Found>);

type Found = LazyLock<Vec<Gpu>, Box<dyn FnOnce() -> Vec<Gpu> + Send>>;

impl Gpus {
    /// Those that `find` finds.
    pub fn new(find: impl FnOnce() -> Vec<Gpu> + Send + 'static) -> Self {
        Self(Arc::new(LazyLock::new(Box::new(find))))
    }
}

impl From<Vec<Gpu>> for Gpus {
    fn from(gpus: Vec<Gpu>) -> Self {
        Self::new(move || gpus)
    }
}

impl fmt::Debug for Gpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gpus")
    }
}

impl Default for Options {
    /// Triton's defaults, on a machine without GPUs.
    fn default() -> Self {
        Self {
            auto_complete: true,
            config_name: None,
            rename: false,
            default_max_batch_size: 4,
            gpus: Vec::new().into(),
            gpu_backends: vec!["onnxruntime", "pytorch", "cuda", "ops"],
            min_compute_capability: 6.0,
            backend_settings: BTreeMap::new(),
        }
    }
}

impl Options {
    /// The ordinals of the GPUs that are new enough.
    pub(super) fn supported_gpus(&self) -> impl Iterator<Item = i32> {
        let is_supported = |gpu: &&Gpu| {
            gpu.compute_capability.is_none_or(|(major, minor)| {
                f64::from(major) + f64::from(minor) / 10.0 >= self.min_compute_capability
            })
        };
        self.gpus.0.iter().filter(is_supported).map(|gpu| gpu.ordinal)
    }

    /// The compute capability of a GPU as `cc_model_filenames` spells it.
    pub(super) fn compute_capability(&self, ordinal: i32) -> Option<String> {
        let gpu = self.gpus.0.iter().find(|gpu| gpu.ordinal == ordinal)?;
        gpu.compute_capability.map(|(major, minor)| format!("{major}.{minor}"))
    }

    /// What `--backend-config` says for a back end.
    pub fn settings(&self, backend: &str) -> Arc<BTreeMap<String, String>> {
        self.backend_settings.get(backend).cloned().unwrap_or_default()
    }

    pub(super) fn default_max_batch_size(&self, backend: &str) -> Result<u32, Error> {
        let settings = [backend, ""].into_iter().filter_map(|name| self.backend_settings.get(name));
        let Some(value) = settings.filter_map(|all| all.get(DEFAULT_MAX_BATCH_SIZE)).next() else {
            return Ok(self.default_max_batch_size);
        };
        value.parse().map_err(|_| {
            Error::invalid(format!(
                "backend setting '{DEFAULT_MAX_BATCH_SIZE}' of '{backend}' is '{value}', \
                 expected a number of rows"
            ))
        })
    }
}
