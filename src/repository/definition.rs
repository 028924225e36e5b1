use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use super::{
    labels::Labels,
    scheduling::{RateLimit, Resource, Scheduling},
    source::{ModelSource, Placement, PlacementDevice},
};
use crate::{
    inference::{DataType, Shape, Signature, TensorSpec},
    proto::{ModelConfig, ModelTensorReshape, model_instance_group::Kind},
};

/// A model as it is to be served.
#[derive(Clone, Debug)]
pub struct Definition {
    /// Its name.
    pub name: Arc<str>,
    /// Its folder.
    pub dir: PathBuf,
    /// The complete configuration, as the protocols echo it.
    pub config: Arc<ModelConfig>,
    /// What it takes and gives.
    pub signature: Arc<Signature>,
    /// The versions to serve, ascending.
    pub versions: Vec<i64>,
    /// The names of classes, for outputs that have them.
    pub labels: Arc<Labels>,
    /// Where its instances run, in the order in which they are made: one of each device before a
    /// second of any; passive instances are left out, because nothing calls them. Empty for an
    /// ensemble.
    pub placements: Vec<Placement>,
    /// How each of `placements` takes turns with other instances.
    pub rate_limits: Vec<RateLimit>,
    /// How its requests are scheduled.
    pub scheduling: Scheduling,
    /// The sizes that its batches may have, ascending; empty for any.
    pub allowed_batch_sizes: Vec<u32>,
    /// Settings of its back end.
    pub(super) settings: Arc<BTreeMap<String, String>>,
    /// The compute capability that chooses the model's file, when it runs on a GPU.
    pub(super) compute_capability: Option<String>,
}

impl Definition {
    /// The name of the back end; `None` for an ensemble.
    pub fn backend_name(&self) -> Option<&str> {
        Some(self.config.backend.as_str()).filter(|name| !name.is_empty())
    }

    /// What the back end is told of one version.
    pub fn source(&self, version: i64) -> ModelSource {
        let version_dir = self.dir.join(version.to_string());
        ModelSource {
            name: self.name.clone(),
            version,
            model_dir: self.dir.clone(),
            model_path: model_path(
                &self.config,
                version_dir.clone(),
                self.compute_capability.as_deref(),
            ),
            version_dir,
            config: self.config.clone(),
            signature: match &self.scheduling {
                Scheduling::Sequence(batching) => {
                    Arc::new(batching.model_signature(&self.signature))
                }
                _ => self.signature.clone(),
            },
            settings: self.settings.clone(),
        }
    }
}

/// The model's file in `version_dir`; the folder itself when nothing names a file.
pub(super) fn model_path(
    config: &ModelConfig,
    version_dir: PathBuf,
    compute_capability: Option<&str>,
) -> PathBuf {
    let file = compute_capability
        .and_then(|capability| config.cc_model_filenames.get(capability))
        .unwrap_or(&config.default_model_filename);
    if file.is_empty() { version_dir } else { version_dir.join(file) }
}

/// The tensors of a validated configuration; `None` if one has no valid type.
pub(super) fn signature(config: &ModelConfig) -> Option<Signature> {
    let reshaped = |reshape: &Option<ModelTensorReshape>| {
        reshape.as_ref().map(|reshape| Shape::from(reshape.shape.as_slice()))
    };
    let inputs = config.input.iter().map(|input| {
        Some(TensorSpec {
            name: input.name.as_str().into(),
            datatype: DataType::from_config(input.data_type())?,
            dims: Shape::from(input.dims.as_slice()),
            reshape: reshaped(&input.reshape),
            optional: input.optional,
        })
    });
    let outputs = config.output.iter().map(|output| {
        Some(TensorSpec {
            name: output.name.as_str().into(),
            datatype: DataType::from_config(output.data_type())?,
            dims: Shape::from(output.dims.as_slice()),
            reshape: reshaped(&output.reshape),
            optional: false,
        })
    });
    Some(Signature {
        model: config.name.as_str().into(),
        max_batch_size: u32::try_from(config.max_batch_size).ok()?,
        inputs: inputs.collect::<Option<_>>()?,
        outputs: outputs.collect::<Option<_>>()?,
    })
}

/// How the instances of a normalised configuration take turns, in the order of [`placements`].
pub(super) fn rate_limits(config: &ModelConfig) -> Vec<RateLimit> {
    let groups = config.instance_group.iter().filter(|group| !group.passive);
    groups
        .flat_map(|group| {
            let limiter = group.rate_limiter.as_ref();
            let resources = limiter.map_or(&[][..], |limiter| &limiter.resources).iter();
            let resources = resources.map(|resource| Resource {
                name: resource.name.clone(),
                global: resource.global,
                count: resource.count,
            });
            let limit = RateLimit {
                resources: resources.collect(),
                priority: limiter.map_or(0, |limiter| limiter.priority),
            };
            let devices = if group.kind() == Kind::Gpu { group.gpus.len() } else { 1 };
            let instances = usize::try_from(group.count).unwrap_or(0).saturating_mul(devices);
            std::iter::repeat_n(limit, instances)
        })
        .collect()
}

/// The instances of a normalised configuration.
pub(super) fn placements(config: &ModelConfig) -> Vec<Placement> {
    let groups = config.instance_group.iter().filter(|group| !group.passive);
    groups
        .flat_map(|group| {
            let devices: Vec<PlacementDevice> = match group.kind() {
                Kind::Gpu => group.gpus.iter().map(|&id| PlacementDevice::Gpu(id)).collect(),
                Kind::Model => vec![PlacementDevice::Model],
                Kind::Cpu | Kind::Auto => vec![PlacementDevice::Cpu],
            };
            let rounds = (0..group.count).flat_map(move |_| devices.clone());
            rounds.enumerate().map(|(index, device)| Placement {
                name: format!("{}_{index}", group.name),
                device,
                host_policy: match (group.host_policy.as_str(), device) {
                    ("", PlacementDevice::Cpu) => "cpu".to_owned(),
                    ("", PlacementDevice::Gpu(id)) => format!("gpu_{id}"),
                    ("", PlacementDevice::Model) => "model".to_owned(),
                    (named, _) => named.to_owned(),
                },
            })
        })
        .collect()
}
