use super::{Fault, platform};
use crate::{
    proto::{
        ModelConfig, ModelInstanceGroup, model_config::SchedulingChoice, model_instance_group::Kind,
    },
    repository::Options,
};

/// The most instances that one model may have over all groups and GPUs.
const INSTANCES_MAX: u64 = 4096;

/// Checks the instance groups of a normalised configuration.
pub(in crate::repository) fn check(config: &ModelConfig, options: &Options) -> Result<(), Fault> {
    if matches!(config.scheduling_choice, Some(SchedulingChoice::EnsembleScheduling(_))) {
        return Ok(());
    }
    if config.instance_group.is_empty() {
        let message = format!("must specify one or more 'instance group's for {}", config.name);
        return Err(Fault::new("instance_group", message));
    }
    let mut instances = 0_u64;
    for (index, group) in config.instance_group.iter().enumerate() {
        let fault = |field: &str, detail: String| {
            Fault::new(
                format!("instance_group[{index}]{field}"),
                format!("instance group {} of model {} {detail}", group.name, config.name),
            )
        };
        check_devices(group, options).map_err(|detail| fault(".gpus", detail))?;
        check_profiles(group, &config.platform).map_err(|detail| fault(".profile", detail))?;
        let devices = group.gpus.len().max(1) as u64;
        let count = u64::try_from(group.count).unwrap_or(0);
        instances = instances.saturating_add(count.saturating_mul(devices));
        if instances > INSTANCES_MAX {
            let detail = format!(
                "brings the model to {instances} instances, expected at most {INSTANCES_MAX}"
            );
            return Err(fault(".count", detail));
        }
    }
    Ok(())
}

fn check_devices(group: &ModelInstanceGroup, options: &Options) -> Result<(), String> {
    match Kind::try_from(group.kind) {
        Ok(kind @ (Kind::Model | Kind::Cpu)) if !group.gpus.is_empty() => {
            Err(format!("has kind {} but specifies one or more GPUs", kind.as_str_name()))
        }
        Ok(Kind::Model | Kind::Cpu) => Ok(()),
        Ok(Kind::Gpu) => check_gpus(group, options),
        Ok(Kind::Auto) => Err("has unexpected kind KIND_AUTO".to_owned()),
        Err(_) => Err(format!("has unexpected kind {}", group.kind)),
    }
}

fn check_gpus(group: &ModelInstanceGroup, options: &Options) -> Result<(), String> {
    let supported: Vec<i32> = options.supported_gpus().collect();
    if group.gpus.is_empty() {
        return Err(if supported.is_empty() {
            "has kind KIND_GPU but no GPUs are available".to_owned()
        } else {
            "has kind KIND_GPU but specifies no GPUs".to_owned()
        });
    }
    match group.gpus.iter().find(|id| !supported.contains(id)) {
        None => Ok(()),
        Some(id) => {
            let supported: Vec<String> = supported.iter().map(i32::to_string).collect();
            Err(format!(
                "specifies invalid or unsupported gpu id {id}. GPUs with at least the minimum \
                 required CUDA compute compatibility of {:.6} are: {}",
                options.min_compute_capability,
                supported.join(", ")
            ))
        }
    }
}

fn check_profiles(group: &ModelInstanceGroup, platform: &str) -> Result<(), String> {
    if group.profile.is_empty() {
        return Ok(());
    }
    if platform != platform::TENSORRT_PLAN {
        return Err(format!(
            "and platform {platform} specifies profile field which is only supported for TensorRT \
             models"
        ));
    }
    match group.profile.iter().find(|profile| profile.parse::<u32>().is_err()) {
        None => Ok(()),
        Some(profile) => Err(format!(
            "and platform {platform} specifies invalid profile {profile}. The field should contain \
             the string representation of a non-negative integer."
        )),
    }
}
