//! What the back ends are told of a model, and what they tell of its file.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use crate::{
    inference::{DataType, Shape, Signature},
    proto::ModelConfig,
};

/// Everything a back end is told about one version of a model.
#[derive(Clone, Debug)]
pub struct ModelSource {
    /// The model's name.
    pub name: Arc<str>,
    /// The version.
    pub version: i64,
    /// The folder of the model, which holds `config.pbtxt` and the version folders.
    pub model_dir: PathBuf,
    /// The folder of this version.
    pub version_dir: PathBuf,
    /// The model file or folder inside it.
    pub model_path: PathBuf,
    /// The configuration; partial when the source is given to [`Backend::inspect`](crate::backend::Backend::inspect).
    pub config: Arc<ModelConfig>,
    /// The tensors, those of the server's own making behind those of clients; empty when the source is given to [`Backend::inspect`](crate::backend::Backend::inspect).
    pub signature: Arc<Signature>,
    /// Settings of `--backend-config` for this back end.
    pub settings: Arc<BTreeMap<String, String>>,
}

/// Where an instance runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Its name: `{group}_{index}`.
    pub name: String,
    /// The device.
    pub device: PlacementDevice,
    /// What the operator calls the processors that it runs on.
    pub host_policy: String,
}

/// The device of a [`Placement`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlacementDevice {
    /// The host's processors.
    Cpu,
    /// A GPU by its CUDA ordinal.
    Gpu(i32),
    /// The model file decides.
    Model,
}

/// The tensors that a model's own file declares.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelIo {
    /// Inputs in the file's order.
    pub inputs: Vec<ModelIoTensor>,
    /// Outputs in the file's order.
    pub outputs: Vec<ModelIoTensor>,
}

/// One tensor of a [`ModelIo`].
#[derive(Clone, Debug, PartialEq)]
pub struct ModelIoTensor {
    /// The tensor's name.
    pub name: String,
    /// Its element type.
    pub datatype: DataType,
    /// All its dimensions, a batch dimension included if it has one; `-1` for an unknown size.
    pub dims: Shape,
}
