//! The rules that a configuration must keep, in Triton's order and with Triton's texts.

mod dynamic;
mod ensemble;
mod instances;
mod metrics;
mod sequence;
mod tensors;
#[cfg(test)]
mod tests;

pub(super) use instances::check as instances;
pub(super) use tensors::check as tensors;

use super::{error::Fault, platform};
use crate::proto::{ModelConfig, model_config::SchedulingChoice};

/// Checks everything but tensors and instance groups, which are known only once completed.
pub(super) fn config(config: &ModelConfig) -> Result<(), Fault> {
    let name = &config.name;
    if name.is_empty() {
        return Err(Fault::new("name", "model configuration must specify 'name'"));
    }
    platform::check_pair(config)?;
    if config.max_batch_size < 0 {
        return Err(Fault::new(
            "max_batch_size",
            format!("'max_batch_size' must be non-negative value for {name}"),
        ));
    }
    if config.version_policy.is_none() {
        return Err(Fault::new("", format!("must specify 'version policy' for {name}")));
    }
    match &config.scheduling_choice {
        Some(SchedulingChoice::DynamicBatching(batching)) => dynamic::check(config, batching)?,
        Some(SchedulingChoice::SequenceBatching(batching)) => sequence::check(config, batching)?,
        Some(SchedulingChoice::EnsembleScheduling(ensemble)) => ensemble::check(config, ensemble)?,
        None => {}
    }
    let is_ensemble =
        matches!(config.scheduling_choice, Some(SchedulingChoice::EnsembleScheduling(_)));
    if config.platform == platform::ENSEMBLE && !is_ensemble {
        return Err(Fault::new(
            "platform",
            format!(
                "ensemble scheduling must be set for ensemble {name} whose platform is ensemble"
            ),
        ));
    }
    if config.model_transaction_policy.is_some_and(|policy| policy.decoupled) && caches(config) {
        return Err(Fault::new(
            "response_cache",
            format!(
                "Response Cache does not currently support model {name} with 'decoupled' \
                 transaction policy. Please disable the response cache."
            ),
        ));
    }
    metrics::check(config)
}

fn caches(config: &ModelConfig) -> bool {
    config.response_cache.is_some_and(|cache| cache.enable)
}
