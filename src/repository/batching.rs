//! What the configuration says of batches by parameters of this server's own, beside Triton's fields.

use std::time::Duration;

use super::error::Fault;
use crate::proto::{ModelConfig, ModelInput, model_config::SchedulingChoice};

/// With the value `auto` the batcher chooses how long a request waits for others.
const DELAY: &str = "queue_delay";
/// What it must keep then: the 99th percentile of the time from a request's arrival to its answer.
const DELAY_TARGET: &str = "queue_delay_target_p99_us";
/// The sizes that batches may have.
const SIZES: &str = "allowed_batch_sizes";

/// The target of a delay that is chosen while serving, if it is to be.
pub(super) fn delay_target_p99(config: &ModelConfig) -> Result<Option<Duration>, Fault> {
    let target = parameter(config, DELAY_TARGET);
    match parameter(config, DELAY) {
        None if target.is_none() => return Ok(None),
        None => return Err(fault(config, DELAY_TARGET, "needs the parameter 'queue_delay'")),
        Some("auto") => {}
        Some(_) => return Err(fault(config, DELAY, "must be 'auto'")),
    }
    if !matches!(config.scheduling_choice, Some(SchedulingChoice::DynamicBatching(_))) {
        return Err(fault(config, DELAY, "needs 'dynamic_batching'"));
    }
    let target = target
        .ok_or_else(|| fault(config, DELAY, "needs the parameter 'queue_delay_target_p99_us'"))?;
    match target.parse() {
        Ok(target @ 1..) => Ok(Some(Duration::from_micros(target))),
        _ => Err(fault(config, DELAY_TARGET, "must be a number of microseconds above 0")),
    }
}

/// The sizes that batches may have, ascending; empty when they may have any.
pub(super) fn allowed_sizes(config: &ModelConfig) -> Result<Vec<u32>, Fault> {
    let Some(text) = parameter(config, SIZES) else { return Ok(Vec::new()) };
    let fault = |rule: &str| Err(fault(config, SIZES, rule));
    match config.scheduling_choice {
        None | Some(SchedulingChoice::DynamicBatching(_)) => {}
        Some(_) => return fault("is for models without sequences and without steps"),
    }
    let sizes: Result<Vec<u32>, _> = text.split(',').map(|size| size.trim().parse()).collect();
    let ascend = |sizes: &Vec<u32>| sizes.windows(2).all(|pair| pair[0] < pair[1]);
    let Some(sizes) = sizes.ok().filter(ascend).filter(|sizes| sizes.first() != Some(&0)) else {
        return fault("must be sizes above 0 that ascend, such as '1,4,8'");
    };
    if sizes.last().map(|&last| i64::from(last)) != Some(i64::from(config.max_batch_size)) {
        return fault(&format!("must end with 'max_batch_size', {}", config.max_batch_size));
    }
    let is_variable =
        |input: &&ModelInput| input.allow_ragged_batch || input.dims.iter().any(|dim| *dim < 0);
    if let Some(input) = config.input.iter().find(is_variable) {
        return fault(&format!("needs inputs of fixed shape, unlike '{}'", input.name));
    }
    Ok(sizes)
}

fn parameter<'a>(config: &'a ModelConfig, name: &str) -> Option<&'a str> {
    Some(config.parameters.get(name)?.string_value.trim())
}

fn fault(config: &ModelConfig, name: &str, rule: &str) -> Fault {
    Fault::new("parameters", format!("parameter '{name}' {rule} for {}", config.name))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::repository::text;

    fn config(rest: &str) -> ModelConfig {
        let text = format!("name: 'm' max_batch_size: 8 {rest}");
        text::parse(Path::new("f"), &text).unwrap_or_else(|error| panic!("{error}")).config
    }

    fn parameters(given: &[(&str, &str)]) -> String {
        let one = |(name, value): &(&str, &str)| {
            format!("parameters {{ key: '{name}' value {{ string_value: '{value}' }} }} ")
        };
        given.iter().map(one).collect()
    }

    #[test]
    fn a_delay_is_chosen_only_with_a_target() {
        let read = |scheduling: &str, given: &[(&str, &str)]| {
            let config = config(&format!("{scheduling} {}", parameters(given)));
            delay_target_p99(&config).map_err(|fault| fault.message)
        };
        let (dynamic, auto) = ("dynamic_batching { }", ("queue_delay", "auto"));
        let target = |value| ("queue_delay_target_p99_us", value);
        assert_eq!(read(dynamic, &[]), Ok(None));
        let chosen = Ok(Some(Duration::from_micros(2500)));
        assert_eq!(read(dynamic, &[auto, target("2500")]), chosen);
        for (scheduling, given, expected) in [
            (
                dynamic,
                &[target("1")][..],
                "'queue_delay_target_p99_us' needs the parameter 'queue_delay'",
            ),
            (dynamic, &[auto], "'queue_delay' needs the parameter 'queue_delay_target_p99_us'"),
            (dynamic, &[("queue_delay", "5")], "'queue_delay' must be 'auto'"),
            (
                dynamic,
                &[auto, target("0")],
                "'queue_delay_target_p99_us' must be a number of microseconds above 0",
            ),
            (
                dynamic,
                &[auto, target("x")],
                "'queue_delay_target_p99_us' must be a number of microseconds above 0",
            ),
            ("", &[auto, target("1")], "'queue_delay' needs 'dynamic_batching'"),
        ] {
            let expected = format!("parameter {expected} for m");
            assert_eq!(read(scheduling, given), Err(expected), "{given:?}");
        }
    }

    #[test]
    fn allowed_sizes_ascend_to_the_largest_and_need_fixed_shapes() {
        let read = |value: &str, rest: &str| {
            let config =
                config(&format!("{} {rest}", parameters(&[("allowed_batch_sizes", value)])));
            allowed_sizes(&config).map_err(|fault| fault.message)
        };
        let input = |dims: &str| format!("input {{ name: 'x' data_type: TYPE_FP32 {dims} }}");
        assert_eq!(read(" 1, 4,8 ", &input("dims: 3")), Ok(vec![1, 4, 8]));
        assert_eq!(allowed_sizes(&config("")), Ok(Vec::new()));
        let ascend = "must be sizes above 0 that ascend, such as '1,4,8'";
        let fixed = "needs inputs of fixed shape, unlike 'x'";
        for (value, rest, expected) in [
            ("", "", ascend),
            ("4,1,8", "", ascend),
            ("0,8", "", ascend),
            ("4,4,8", "", ascend),
            ("1,x", "", ascend),
            ("1,4", "", "must end with 'max_batch_size', 8"),
            ("8", &input("dims: -1"), fixed),
            ("8", &input("dims: 1 allow_ragged_batch: true"), fixed),
            ("8", "sequence_batching { }", "is for models without sequences and without steps"),
        ] {
            let expected = format!("parameter 'allowed_batch_sizes' {expected} for m");
            assert_eq!(read(value, rest), Err(expected), "{value} {rest}");
        }
    }
}
