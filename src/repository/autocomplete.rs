//! Completing a configuration from what the model's own file declares.
//!
//! The rules are those of Triton's ONNX Runtime back end, for every back end that can tell. Beyond
//! them, a tensor that the configuration only names gets its type and dimensions, and tensors that
//! the sequence batcher or a batch input feeds are not taken for inputs of the client.

use std::collections::BTreeSet;

use super::{
    error::Fault,
    source::{ModelIo, ModelIoTensor},
};
use crate::{
    inference::Shape,
    proto::{
        DataType, ModelConfig, ModelDynamicBatching, ModelInput, ModelOutput, ModelTensorReshape,
        model_config::SchedulingChoice,
    },
};

/// Fills what `config` leaves out of inputs, outputs, and with them the batch size and the dynamic
/// batcher.
///
/// # Errors
/// The configuration asks for batches of a model that cannot batch.
pub(super) fn complete(
    config: &mut ModelConfig,
    io: &ModelIo,
    default_max_batch_size: u32,
) -> Result<(), Fault> {
    if config.input.is_empty() || config.output.is_empty() {
        complete_batching(config, io, default_max_batch_size)?;
    }
    let has_batch = config.max_batch_size > 0;
    let (fed, kept) = (fed_by_server(config), kept_by_server(config));
    complete_tensors(&mut config.input, &io.inputs, &fed, has_batch);
    complete_tensors(&mut config.output, &io.outputs, &kept, has_batch);
    Ok(())
}

fn complete_batching(
    config: &mut ModelConfig,
    io: &ModelIo,
    default_max_batch_size: u32,
) -> Result<(), Fault> {
    if io.inputs.is_empty() && io.outputs.is_empty() {
        return Ok(());
    }
    let can_batch =
        io.inputs.iter().chain(&io.outputs).all(|tensor| tensor.dims.first() == Some(&-1));
    if !can_batch {
        return if config.max_batch_size == 0 {
            Ok(())
        } else {
            Err(Fault::new(
                "max_batch_size",
                format!(
                    "autofill failed for model '{}': model does not support batching while \
                     non-zero max_batch_size is specified",
                    config.name
                ),
            ))
        };
    }
    if config.max_batch_size == 0 {
        config.max_batch_size = i32::try_from(default_max_batch_size).unwrap_or(i32::MAX);
    }
    if config.max_batch_size > 1 && config.scheduling_choice.is_none() {
        config.scheduling_choice =
            Some(SchedulingChoice::DynamicBatching(ModelDynamicBatching::default()));
    }
    Ok(())
}

/// Model inputs that get their values from the server: sequence controls and states, batch inputs.
pub(super) fn fed_by_server(config: &ModelConfig) -> BTreeSet<String> {
    let mut names: BTreeSet<String> =
        config.batch_input.iter().flat_map(|tensor| tensor.target_name.iter().cloned()).collect();
    if let Some(SchedulingChoice::SequenceBatching(batching)) = &config.scheduling_choice {
        names.extend(batching.control_input.iter().map(|control| control.name.clone()));
        names.extend(batching.state.iter().map(|state| state.input_name.clone()));
    }
    names
}

/// Model outputs that the server keeps as the state of a sequence.
fn kept_by_server(config: &ModelConfig) -> BTreeSet<String> {
    match &config.scheduling_choice {
        Some(SchedulingChoice::SequenceBatching(batching)) => {
            batching.state.iter().map(|state| state.output_name.clone()).collect()
        }
        _ => BTreeSet::new(),
    }
}

pub(super) fn find<'a>(tensors: &'a [ModelIoTensor], name: &str) -> Option<&'a ModelIoTensor> {
    tensors.iter().find(|tensor| tensor.name == name)
}

/// The inputs or the outputs: all that are the client's where the configuration names none, then what
/// it leaves out of each.
fn complete_tensors<T: ConfigTensor>(
    tensors: &mut Vec<T>,
    model: &[ModelIoTensor],
    servers: &BTreeSet<String>,
    has_batch: bool,
) {
    if tensors.is_empty() {
        let clients = model.iter().filter(|tensor| !servers.contains(&tensor.name));
        tensors.extend(clients.map(|tensor| T::named(&tensor.name)));
    }
    for tensor in tensors {
        let Parts { name, data_type, dims, reshape } = tensor.parts();
        let Some(declared) = find(model, name) else { continue };
        if *data_type == DataType::TypeInvalid as i32 {
            *data_type = declared.datatype.to_config() as i32;
        }
        if dims.is_empty() && reshape.is_none() {
            (*dims, *reshape) = config_dims(&declared.dims, has_batch);
        }
    }
}

/// The `dims` of a configuration, which has neither a batch dimension nor scalars: a scalar per row
/// is `[1]` reshaped to nothing.
fn config_dims(model: &Shape, has_batch: bool) -> (Vec<i64>, Option<ModelTensorReshape>) {
    let dims: Vec<i64> = model.iter().skip(usize::from(has_batch)).copied().collect();
    if dims.is_empty() {
        (vec![1], has_batch.then(ModelTensorReshape::default))
    } else {
        (dims, None)
    }
}

/// What inputs and outputs of a configuration have in common.
trait ConfigTensor {
    fn named(name: &str) -> Self;
    fn parts(&mut self) -> Parts<'_>;
}

struct Parts<'a> {
    name: &'a str,
    data_type: &'a mut i32,
    dims: &'a mut Vec<i64>,
    reshape: &'a mut Option<ModelTensorReshape>,
}

impl ConfigTensor for ModelInput {
    fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    fn parts(&mut self) -> Parts<'_> {
        let Self { name, data_type, dims, reshape, .. } = self;
        Parts { name, data_type, dims, reshape }
    }
}

impl ConfigTensor for ModelOutput {
    fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    fn parts(&mut self) -> Parts<'_> {
        let Self { name, data_type, dims, reshape, .. } = self;
        Parts { name, data_type, dims, reshape }
    }
}
