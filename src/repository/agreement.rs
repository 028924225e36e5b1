//! Holding a configuration's tensors against those of the model's own file.

use super::{
    autocomplete::{fed_by_server, find},
    error::Fault,
    source::{ModelIo, ModelIoTensor},
};
use crate::{
    inference::{DataType, Shape},
    proto::{ModelConfig, ModelTensorReshape},
};

/// Checks that every tensor of `config` is in `io`, with the same type and fitting dimensions, and
/// that no input of the model is left without a value.
pub(super) fn check(config: &ModelConfig, io: &ModelIo) -> Result<(), Fault> {
    check_input_count(config, io)?;
    for (index, input) in config.input.iter().enumerate() {
        let at = |message: String| Fault::new(format!("input[{index}]"), message);
        let Some(tensor) = find(&io.inputs, &input.name) else {
            if input.optional {
                continue;
            }
            return Err(at(format!(
                "unexpected inference input '{}', allowed inputs are: {}",
                input.name,
                name_list(&io.inputs)
            )));
        };
        check_type(config, "input", input.data_type(), tensor).map_err(at)?;
        if input.allow_ragged_batch {
            check_ragged(config, tensor).map_err(at)?;
        } else {
            let dims = seen_by_model(&input.dims, input.reshape.as_ref());
            check_dims(config, dims, tensor).map_err(at)?;
        }
    }
    for (index, output) in config.output.iter().enumerate() {
        let at = |message: String| Fault::new(format!("output[{index}]"), message);
        let Some(tensor) = find(&io.outputs, &output.name) else {
            return Err(at(format!(
                "unexpected inference output '{}', allowed outputs are: {}",
                output.name,
                name_list(&io.outputs)
            )));
        };
        check_type(config, "output", output.data_type(), tensor).map_err(at)?;
        let is_scattered =
            config.batch_output.iter().any(|batch| batch.target_name.contains(&output.name));
        if !is_scattered {
            let dims = seen_by_model(&output.dims, output.reshape.as_ref());
            check_dims(config, dims, tensor).map_err(at)?;
        }
    }
    Ok(())
}

fn check_input_count(config: &ModelConfig, io: &ModelIo) -> Result<(), Fault> {
    let fed = fed_by_server(config);
    if let Some(name) = fed.iter().find(|name| find(&io.inputs, name).is_none()) {
        let field = if config.batch_input.iter().any(|batch| batch.target_name.contains(name)) {
            "batch_input"
        } else {
            "sequence_batching"
        };
        return Err(Fault::new(
            field,
            format!(
                "configuration specified sequence control, state or batch input '{name}', but \
                 model does not provide that input"
            ),
        ));
    }
    let by_client = config
        .input
        .iter()
        .filter(|input| !input.optional || find(&io.inputs, &input.name).is_some())
        .filter(|input| !fed.contains(&input.name));
    let expected = by_client.count() + fed.len();
    if expected == io.inputs.len() {
        return Ok(());
    }
    Err(Fault::new(
        "input",
        format!(
            "unable to load model '{}', configuration expects {expected} inputs, model provides {}",
            config.name,
            io.inputs.len()
        ),
    ))
}

fn check_type(
    config: &ModelConfig,
    direction: &str,
    expected: crate::proto::DataType,
    tensor: &ModelIoTensor,
) -> Result<(), String> {
    if DataType::from_config(expected) == Some(tensor.datatype) {
        return Ok(());
    }
    Err(format!(
        "unable to load model '{}', configuration expects datatype {} for {direction} '{}', model \
         provides {}",
        config.name,
        expected.as_str_name(),
        tensor.name,
        tensor.datatype.config_name()
    ))
}

fn check_ragged(config: &ModelConfig, tensor: &ModelIoTensor) -> Result<(), String> {
    if *tensor.dims == [-1] {
        return Ok(());
    }
    Err(format!(
        "unable to load model '{}', configuration expects model provides input with shape [-1] for \
         ragged input '{}', model provides {}",
        config.name, tensor.name, tensor.dims
    ))
}

fn check_dims(config: &ModelConfig, dims: &[i64], tensor: &ModelIoTensor) -> Result<(), String> {
    let (model, name) = (&config.name, &tensor.name);
    if config.max_batch_size == 0 {
        if tensor.dims.is_empty() {
            return if dims.iter().all(|&dim| dim == 1) {
                Ok(())
            } else {
                Err(format!(
                    "unable to load model '{model}', scalar tensor '{name}', should only provide 1 \
                     in the model configuration when the model doesn't support batching. Model \
                     configuration provided: {}.",
                    Shape::from(dims)
                ))
            };
        }
        if tensor.dims.admits(dims) {
            return Ok(());
        }
        return Err(format!(
            "model '{model}', tensor '{name}': the model expects {} dimensions (shape {}) but the \
             model configuration specifies {} dimensions (shape {})",
            tensor.dims.len(),
            tensor.dims,
            dims.len(),
            Shape::from(dims)
        ));
    }
    if tensor.dims.first() != Some(&-1) {
        return Err(format!(
            "model '{model}', tensor '{name}': for the model to support batching the shape should \
             have at least 1 dimension and the first dimension must be -1; but shape expected by \
             the model is {}",
            tensor.dims
        ));
    }
    let full = Shape::from(dims).with_batch(-1);
    if tensor.dims.admits(&full) {
        return Ok(());
    }
    Err(format!(
        "model '{model}', tensor '{name}': the model expects {} dimensions (shape {}) but the \
         model configuration specifies {} dimensions (an initial batch dimension because \
         max_batch_size > 0 followed by the explicit tensor shape, making complete shape {full})",
        tensor.dims.len(),
        tensor.dims,
        full.len()
    ))
}

fn seen_by_model<'a>(dims: &'a [i64], reshape: Option<&'a ModelTensorReshape>) -> &'a [i64] {
    reshape.map_or(dims, |reshape| &reshape.shape)
}

fn name_list(tensors: &[ModelIoTensor]) -> String {
    let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    names.sort_unstable();
    names.join(", ")
}
