//! Completing a configuration from what the model's own file declares.
//!
//! The rules are those of Triton's ONNX Runtime back end, for every back end that can tell. Beyond
//! them, a tensor that the configuration only names gets its type and dimensions, and tensors that
//! the sequence batcher or a batch input feeds are not taken for inputs of the client.

use std::collections::BTreeSet;

use super::error::Fault;
use crate::{
    backend::{ModelIo, ModelIoTensor},
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
    if config.input.is_empty() {
        let fed = fed_by_server(config);
        let clients = io.inputs.iter().filter(|tensor| !fed.contains(tensor.name.as_str()));
        config.input = clients.map(|tensor| input(tensor, has_batch)).collect();
    }
    if config.output.is_empty() {
        let kept = kept_by_server(config);
        let clients = io.outputs.iter().filter(|tensor| !kept.contains(tensor.name.as_str()));
        config.output = clients.map(|tensor| output(tensor, has_batch)).collect();
    }
    for known in &mut config.input {
        let Some(tensor) = find(&io.inputs, &known.name) else { continue };
        let model = input(tensor, has_batch);
        fill(
            &mut known.data_type,
            &mut known.dims,
            &mut known.reshape,
            model.data_type,
            model.dims,
            model.reshape,
        );
    }
    for known in &mut config.output {
        let Some(tensor) = find(&io.outputs, &known.name) else { continue };
        let model = output(tensor, has_batch);
        fill(
            &mut known.data_type,
            &mut known.dims,
            &mut known.reshape,
            model.data_type,
            model.dims,
            model.reshape,
        );
    }
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

fn input(tensor: &ModelIoTensor, has_batch: bool) -> ModelInput {
    let (dims, reshape) = config_dims(&tensor.dims, has_batch);
    let name = tensor.name.clone();
    let data_type = tensor.datatype.to_config() as i32;
    ModelInput { name, data_type, dims, reshape, ..ModelInput::default() }
}

fn output(tensor: &ModelIoTensor, has_batch: bool) -> ModelOutput {
    let (dims, reshape) = config_dims(&tensor.dims, has_batch);
    let name = tensor.name.clone();
    let data_type = tensor.datatype.to_config() as i32;
    ModelOutput { name, data_type, dims, reshape, ..ModelOutput::default() }
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

fn fill(
    data_type: &mut i32,
    dims: &mut Vec<i64>,
    reshape: &mut Option<ModelTensorReshape>,
    model_data_type: i32,
    model_dims: Vec<i64>,
    model_reshape: Option<ModelTensorReshape>,
) {
    if *data_type == DataType::TypeInvalid as i32 {
        *data_type = model_data_type;
    }
    if dims.is_empty() && reshape.is_none() {
        *dims = model_dims;
        *reshape = model_reshape;
    }
}
