//! Filling what a configuration leaves to the server, so that the echo of it says what is in force.

use std::cell::LazyCell;

use super::Options;
use crate::proto::{
    ModelConfig, ModelInstanceGroup, ModelVersionPolicy,
    model_config::SchedulingChoice,
    model_instance_group::Kind,
    model_optimization_policy::PinnedMemoryBuffer,
    model_sequence_batching::StrategyChoice,
    model_version_policy::{Latest, PolicyChoice},
};

/// How long a sequence may be idle when the configuration does not say.
const SEQUENCE_IDLE_DEFAULT_US: u64 = 1_000_000;

/// Fills everything but instance groups.
pub(super) fn config(config: &mut ModelConfig) {
    config.version_policy.get_or_insert(ModelVersionPolicy {
        policy_choice: Some(PolicyChoice::Latest(Latest { num_versions: 1 })),
    });
    let prefer_largest = |sizes: &mut Vec<i32>| {
        if sizes.is_empty() && config.max_batch_size > 0 {
            sizes.push(config.max_batch_size);
        }
    };
    match &mut config.scheduling_choice {
        Some(SchedulingChoice::DynamicBatching(batching)) => {
            prefer_largest(&mut batching.preferred_batch_size);
        }
        Some(SchedulingChoice::SequenceBatching(batching)) => {
            if batching.max_sequence_idle_microseconds == 0 {
                batching.max_sequence_idle_microseconds = SEQUENCE_IDLE_DEFAULT_US;
            }
            if let Some(StrategyChoice::Oldest(oldest)) = &mut batching.strategy_choice {
                prefer_largest(&mut oldest.preferred_batch_size);
            }
        }
        Some(SchedulingChoice::EnsembleScheduling(_)) => {
            config.model_transaction_policy.get_or_insert_default();
            return;
        }
        None => {}
    }
    let optimization = config.optimization.get_or_insert_default();
    let pinned = PinnedMemoryBuffer { enable: true };
    optimization.input_pinned_memory.get_or_insert(pinned);
    optimization.output_pinned_memory.get_or_insert(pinned);
}

/// Gives every instance group a name, a kind, a count and, on GPUs, the GPUs.
pub(super) fn instance_groups(config: &mut ModelConfig, options: &Options) {
    if matches!(config.scheduling_choice, Some(SchedulingChoice::EnsembleScheduling(_))) {
        return;
    }
    if config.instance_group.is_empty() {
        let name = config.name.clone();
        config.instance_group.push(ModelInstanceGroup { name, ..ModelInstanceGroup::default() });
    }
    // Looked for only by models that have to do with them.
    let supported = LazyCell::new(|| options.supported_gpus().collect::<Vec<i32>>());
    let takes_gpus = options.gpu_backends.contains(&config.backend.as_str());
    for (index, group) in config.instance_group.iter_mut().enumerate() {
        if group.name.is_empty() {
            group.name = format!("{}_{index}", config.name);
        }
        if group.kind == Kind::Auto as i32 {
            let fits = takes_gpus
                && !supported.is_empty()
                && group.gpus.iter().all(|id| supported.contains(id));
            group.set_kind(if fits { Kind::Gpu } else { Kind::Cpu });
        }
        if group.count < 1 {
            group.count = default_count(&config.backend, group.kind());
        }
        if group.kind == Kind::Gpu as i32 && group.gpus.is_empty() {
            group.gpus.extend(&*supported);
        }
    }
}

/// Triton's own defaults: these two back ends leave cores idle with a single instance.
fn default_count(backend: &str, kind: Kind) -> i32 {
    match (backend, kind) {
        ("onnxruntime" | "tensorflow", Kind::Cpu) => 2,
        _ => 1,
    }
}
