use std::collections::BTreeSet;

use super::{Fault, platform::TENSORRT_PLAN};
use crate::proto::{
    BatchInput, BatchOutput, DataType, ModelConfig, ModelInput, ModelOutput, ModelTensorReshape,
    batch_input, batch_output, model_input::Format,
};

/// Stands for any size in `dims` and `reshape`.
const WILDCARD: i64 = -1;

/// Checks inputs, outputs, and batch inputs and outputs.
pub(in crate::repository) fn check(config: &ModelConfig) -> Result<(), Fault> {
    check_all(config).map_err(|fault| Fault {
        message: format!("{} for {}", fault.message, config.name),
        ..fault
    })
}

fn check_all(config: &ModelConfig) -> Result<(), Fault> {
    for (index, input) in config.input.iter().enumerate() {
        let at = |message: String| Fault::new(format!("input[{index}]"), message);
        check_tensor(&input.into(), config).map_err(at)?;
        if matches!(input.format(), Format::Nhwc | Format::Nchw) && input.dims.len() != 3 {
            return Err(at("model input NHWC/NCHW require 3 dims".to_owned()));
        }
        check_extras(&input.into(), &config.platform).map_err(at)?;
    }
    for (index, output) in config.output.iter().enumerate() {
        let at = |message: String| Fault::new(format!("output[{index}]"), message);
        check_tensor(&output.into(), config).map_err(at)?;
        check_extras(&output.into(), &config.platform).map_err(at)?;
    }
    check_unique("input", config.input.iter().map(|input| &input.name))?;
    check_unique("output", config.output.iter().map(|output| &output.name))?;
    check_batch_tensors(config)
}

/// What inputs and outputs have in common.
struct Tensor<'a> {
    direction: &'static str,
    name: &'a str,
    data_type: DataType,
    dims: &'a [i64],
    reshape: Option<&'a ModelTensorReshape>,
    is_shape_tensor: bool,
    is_non_linear_format: bool,
}

impl<'a> From<&'a ModelInput> for Tensor<'a> {
    fn from(input: &'a ModelInput) -> Self {
        Self {
            direction: "input",
            name: &input.name,
            data_type: input.data_type(),
            dims: &input.dims,
            reshape: input.reshape.as_ref(),
            is_shape_tensor: input.is_shape_tensor,
            is_non_linear_format: input.is_non_linear_format_io,
        }
    }
}

impl<'a> From<&'a ModelOutput> for Tensor<'a> {
    fn from(output: &'a ModelOutput) -> Self {
        Self {
            direction: "output",
            name: &output.name,
            data_type: output.data_type(),
            dims: &output.dims,
            reshape: output.reshape.as_ref(),
            is_shape_tensor: output.is_shape_tensor,
            is_non_linear_format: output.is_non_linear_format_io,
        }
    }
}

fn check_tensor(tensor: &Tensor<'_>, config: &ModelConfig) -> Result<(), String> {
    let direction = tensor.direction;
    if tensor.name.is_empty() {
        return Err(format!("model {direction} must specify 'name'"));
    }
    let fault = |detail: &str| Err(format!("model {direction} '{}' {detail}", tensor.name));
    if tensor.data_type == DataType::TypeInvalid {
        return fault("must specify 'data_type'");
    }
    if tensor.dims.is_empty() {
        return fault("must specify 'dims'");
    }
    if tensor.reshape.is_some_and(|reshape| reshape.shape.is_empty()) && config.max_batch_size == 0
    {
        return fault(
            "cannot have empty reshape for non-batching model as scalar tensors are not supported",
        );
    }
    let is_size = |&dim: &i64| dim >= 1 || dim == WILDCARD;
    if !tensor.dims.iter().all(is_size) {
        return fault(
            "dimension must be integer >= 1, or -1 to indicate a variable-size dimension",
        );
    }
    let Some(reshape) = tensor.reshape else { return Ok(()) };
    if !reshape.shape.iter().all(is_size) {
        return fault(
            "reshape dimensions must be integer >= 1, or -1 to indicate a variable-size dimension",
        );
    }
    match (chunk_sizes(tensor.dims), chunk_sizes(&reshape.shape)) {
        (Some(dims), Some(reshape)) if dims == reshape => Ok(()),
        (Some(dims), Some(reshape))
            if dims.len() > 1 && reshape.len() > 1 && dims.len() != reshape.len() =>
        {
            fault("has different number of variable-size dimensions for dims and reshape")
        }
        (Some(_), Some(_)) => fault("has different size for dims and reshape"),
        _ => fault("has too many elements in dims or reshape"),
    }
}

/// The number of elements between variable-size dimensions: `[2, 4, -1, 6]` gives 8 and 6. A
/// reshape keeps each of them. `None` when a number passes `i64::MAX`.
fn chunk_sizes(dims: &[i64]) -> Option<Vec<i64>> {
    dims.split(|&dim| dim == WILDCARD)
        .map(|chunk| chunk.iter().try_fold(1_i64, |size, &dim| size.checked_mul(dim)))
        .collect()
}

fn check_extras(tensor: &Tensor<'_>, platform: &str) -> Result<(), String> {
    if tensor.is_shape_tensor && platform != TENSORRT_PLAN {
        return Err("shape tensors are only supported for TensorRT platform".to_owned());
    }
    if tensor.is_non_linear_format && platform != TENSORRT_PLAN {
        return Err("Non-linear IO format is only supported for the TensorRT platform".to_owned());
    }
    if tensor.is_non_linear_format && tensor.dims.len() != 3 {
        return Err(format!("Non-linear IO format {} requires 3 dims", tensor.direction));
    }
    Ok(())
}

/// A name given twice would leave one of the two without a way to be asked for.
fn check_unique<'a>(field: &str, names: impl Iterator<Item = &'a String>) -> Result<(), Fault> {
    let mut seen = BTreeSet::new();
    for (index, name) in names.enumerate() {
        if !seen.insert(name) {
            let message = format!("model {field} '{name}' is specified more than once");
            return Err(Fault::new(format!("{field}[{index}]"), message));
        }
    }
    Ok(())
}

fn check_batch_tensors(config: &ModelConfig) -> Result<(), Fault> {
    let inputs: BTreeSet<&str> = config.input.iter().map(|input| input.name.as_str()).collect();
    let outputs: BTreeSet<&str> = config.output.iter().map(|output| output.name.as_str()).collect();
    for (index, batch_input) in config.batch_input.iter().enumerate() {
        check_batch_input(batch_input, &inputs)
            .map_err(|message| Fault::new(format!("batch_input[{index}]"), message))?;
    }
    for (index, batch_output) in config.batch_output.iter().enumerate() {
        check_batch_output(batch_output, &inputs, &outputs)
            .map_err(|message| Fault::new(format!("batch_output[{index}]"), message))?;
    }
    Ok(())
}

fn check_batch_input(tensor: &BatchInput, inputs: &BTreeSet<&str>) -> Result<(), String> {
    let kind = batch_input::Kind::try_from(tensor.kind)
        .map_err(|_| format!("unknown batch input kind '{}'", tensor.kind))?;
    if tensor.source_input.len() != 1 {
        return Err(format!(
            "batch input kind '{}' expects 1 source input, got {}",
            kind.as_str_name(),
            tensor.source_input.len()
        ));
    }
    if !matches!(tensor.data_type(), DataType::TypeInt32 | DataType::TypeFp32) {
        return Err("batch input data type must be TYPE_INT32 or TYPE_FP32".to_owned());
    }
    check_sources(&tensor.source_input, inputs)
}

fn check_batch_output(
    tensor: &BatchOutput,
    inputs: &BTreeSet<&str>,
    outputs: &BTreeSet<&str>,
) -> Result<(), String> {
    let kind = batch_output::Kind::try_from(tensor.kind)
        .map_err(|_| format!("unknown batch output kind '{}'", tensor.kind))?;
    if tensor.source_input.len() != 1 {
        return Err(format!(
            "batch output kind '{}' expects 1 source input, got {}",
            kind.as_str_name(),
            tensor.source_input.len()
        ));
    }
    check_sources(&tensor.source_input, inputs)?;
    let mut seen = BTreeSet::new();
    for target in &tensor.target_name {
        if !outputs.contains(target.as_str()) {
            return Err(format!("unknown target output name '{target}'"));
        }
        if !seen.insert(target) {
            return Err(format!("target output name '{target}' can only be specified once"));
        }
    }
    Ok(())
}

fn check_sources(sources: &[String], inputs: &BTreeSet<&str>) -> Result<(), String> {
    match sources.iter().find(|source| !inputs.contains(source.as_str())) {
        None => Ok(()),
        Some(source) => Err(format!("unknown source input name '{source}'")),
    }
}
