use super::Fault;
use crate::proto::{
    ModelConfig, ModelDynamicBatching, ModelQueuePolicy, model_queue_policy::TimeoutAction,
};

pub(super) fn check(config: &ModelConfig, batching: &ModelDynamicBatching) -> Result<(), Fault> {
    let name = &config.name;
    for (index, &size) in batching.preferred_batch_size.iter().enumerate() {
        let fault = |rule: &str| {
            Err(Fault::new(
                format!("dynamic_batching.preferred_batch_size[{index}]"),
                format!("dynamic batching preferred size must be {rule} for {name}"),
            ))
        };
        if size <= 0 {
            return fault("positive");
        }
        if size > config.max_batch_size {
            return fault("<= max batch size");
        }
    }
    check_priorities(name, batching)?;
    if batching.preserve_ordering {
        check_ordering(name, batching)?;
    }
    Ok(())
}

fn check_priorities(name: &str, batching: &ModelDynamicBatching) -> Result<(), Fault> {
    let levels = batching.priority_levels;
    if levels == 0 {
        return Ok(());
    }
    let in_range = |level: u64| (1..=levels).contains(&level);
    if !in_range(batching.default_priority_level) {
        return Err(Fault::new(
            "dynamic_batching.default_priority_level",
            format!("default priority level must be in range [1, {levels}] for {name}"),
        ));
    }
    if !batching.priority_queue_policy.keys().all(|&level| in_range(level)) {
        return Err(Fault::new(
            "dynamic_batching.priority_queue_policy",
            format!(
                "priority queue policy must have priority level in range [1, {levels}] for {name}"
            ),
        ));
    }
    Ok(())
}

/// Neither priorities nor delayed requests may overtake when order is to be kept.
fn check_ordering(name: &str, batching: &ModelDynamicBatching) -> Result<(), Fault> {
    if batching.priority_levels > 1 {
        return Err(Fault::new(
            "dynamic_batching.priority_levels",
            format!(
                "Only one priority level is allowed when 'preserve_ordering' is true for {name}"
            ),
        ));
    }
    let delays = |policy: &ModelQueuePolicy| {
        policy.default_timeout_microseconds != 0 && policy.timeout_action() == TimeoutAction::Delay
    };
    let fault = |field: &str| {
        Err(Fault::new(
            format!("dynamic_batching.{field}"),
            format!(
                "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is \
                 true for {name}"
            ),
        ))
    };
    if batching.default_queue_policy.as_ref().is_some_and(delays) {
        return fault("default_queue_policy");
    }
    if batching.priority_queue_policy.values().any(delays) {
        return fault("priority_queue_policy");
    }
    Ok(())
}
