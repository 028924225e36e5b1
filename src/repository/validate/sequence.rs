use std::collections::BTreeSet;

use super::{Fault, caches};
use crate::proto::{
    DataType, ModelConfig, ModelSequenceBatching,
    model_sequence_batching::{Control, StrategyChoice, control::Kind},
};

const FIELD: &str = "sequence_batching";

pub(super) fn check(config: &ModelConfig, batching: &ModelSequenceBatching) -> Result<(), Fault> {
    let name = &config.name;
    if caches(config) {
        return Err(Fault::new(
            "response_cache",
            format!(
                "Response Cache does not currently support model {name} with sequence batching \
                 scheduler. Please disable the response cache."
            ),
        ));
    }
    check_control_tensors(name, batching)?;
    for kind in [
        Kind::ControlSequenceStart,
        Kind::ControlSequenceEnd,
        Kind::ControlSequenceReady,
        Kind::ControlSequenceCorrid,
    ] {
        check_kind(name, batching, kind)?;
    }
    match &batching.strategy_choice {
        Some(StrategyChoice::Oldest(oldest)) => {
            for (index, &size) in oldest.preferred_batch_size.iter().enumerate() {
                let fault = |rule: &str| {
                    Err(Fault::new(
                        format!("{FIELD}.oldest.preferred_batch_size[{index}]"),
                        format!("sequence batching preferred batch size must be {rule} for {name}"),
                    ))
                };
                if size <= 0 {
                    return fault("positive");
                }
                if size > config.max_batch_size {
                    return fault("<= max batch size");
                }
            }
            Ok(())
        }
        Some(StrategyChoice::Direct(direct))
            if !(0.0..=1.0).contains(&direct.minimum_slot_utilization) =>
        {
            Err(Fault::new(
                format!("{FIELD}.direct.minimum_slot_utilization"),
                format!(
                    "sequence batching minimum slot utilization must be in range (0.0, 1.0] for \
                     {name}"
                ),
            ))
        }
        _ => Ok(()),
    }
}

fn check_control_tensors(name: &str, batching: &ModelSequenceBatching) -> Result<(), Fault> {
    let mut seen = BTreeSet::new();
    for (index, input) in batching.control_input.iter().enumerate() {
        let field = format!("{FIELD}.control_input[{index}]");
        if input.name.is_empty() {
            let message = format!("sequence batching control tensor must have a name for {name}");
            return Err(Fault::new(field, message));
        }
        if !seen.insert(&input.name) {
            return Err(Fault::new(
                field,
                format!(
                    "sequence batching control tensor '{}' is specified for multiple control kinds \
                     for {name}",
                    input.name
                ),
            ));
        }
    }
    Ok(())
}

/// Checks the controls of one kind: at most one, and of the right values.
fn check_kind(name: &str, batching: &ModelSequenceBatching, kind: Kind) -> Result<(), Fault> {
    let kind_name = kind.as_str_name();
    let mut seen = false;
    for (index, input) in batching.control_input.iter().enumerate() {
        for (inner, control) in input.control.iter().enumerate() {
            if control.kind != kind as i32 {
                continue;
            }
            let field = format!("{FIELD}.control_input[{index}].control[{inner}]");
            if seen {
                return Err(Fault::new(
                    field,
                    format!("sequence batching specifies multiple {kind_name} tensors for {name}"),
                ));
            }
            seen = true;
            let checked = if kind == Kind::ControlSequenceCorrid {
                check_correlation_id(name, control)
            } else {
                check_flag(name, control, kind_name)
            };
            checked.map_err(|message| Fault::new(field, message))?;
        }
    }
    Ok(())
}

fn check_flag(name: &str, control: &Control, kind: &str) -> Result<(), String> {
    let lengths = [
        ("int32_false_true", control.int32_false_true.len()),
        ("fp32_false_true", control.fp32_false_true.len()),
        ("bool_false_true", control.bool_false_true.len()),
    ];
    let mut given = lengths.iter().filter(|(_, length)| *length > 0);
    match (given.next(), given.next()) {
        (None, _) => Err(format!(
            "sequence batching must specify either 'int32_false_true', 'fp32_false_true' or \
             'bool_false_true' for {kind} for {name}"
        )),
        (Some(_), Some(_)) => Err(format!(
            "sequence batching specifies more than one from 'int32_false_true', 'fp32_false_true' \
             and 'bool_false_true' for {kind} for {name}"
        )),
        (Some((_, 2)), None) => Ok(()),
        (Some((field, _)), None) => Err(format!(
            "sequence batching control '{field}' must have exactly 2 entries for {kind} for {name}"
        )),
    }
}

fn check_correlation_id(name: &str, control: &Control) -> Result<(), String> {
    let kind = Kind::ControlSequenceCorrid.as_str_name();
    let has_values = !control.int32_false_true.is_empty()
        || !control.fp32_false_true.is_empty()
        || !control.bool_false_true.is_empty();
    if has_values {
        return Err(format!(
            "sequence batching must not specify either 'int32_false_true', 'fp32_false_true' or \
             'bool_false_true' for {kind} for {name}"
        ));
    }
    match control.data_type() {
        DataType::TypeUint64
        | DataType::TypeInt64
        | DataType::TypeUint32
        | DataType::TypeInt32
        | DataType::TypeString => Ok(()),
        _ => Err(format!(
            "unexpected data type for control {kind} for {name}. Allowed data types are \
             TYPE_UINT64, TYPE_INT64, TYPE_UINT32, TYPE_INT32 and TYPE_STRING"
        )),
    }
}
