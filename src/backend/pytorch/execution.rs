//! Running one batch: inputs are wrapped where they lie, outputs taken where torch has put them.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    elements::datatype_of,
    module::{Input, Module, Output, Outputs, TorchError, share},
    plan::{InputPlan, OutputPlan, Plan},
    table::{KIND_BOOLEAN, KIND_INTEGER, KIND_NUMBER, KIND_STRINGS, KIND_TENSOR},
};
use crate::{
    backend::{Batch, BatchOutputs, BatchTensor},
    inference::{DataType, Shape},
    memory::{BufferPool, Exhausted},
};

/// Why a batch failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(super) enum RunError {
    #[error("PyTorch execute failure: {0}")]
    Torch(#[from] TorchError),
    #[error(transparent)]
    Memory(#[from] Exhausted),
    #[error("input '{missing}' is an argument before '{given}', so it cannot be left out alone")]
    Gap { missing: Arc<str>, given: Arc<str> },
    #[error("input '{input}' stands for one value of type {datatype}: got shape {shape}")]
    NotOneValue { input: Arc<str>, datatype: DataType, shape: Shape },
    #[error(
        "The output {output} in the model configuration refers to an output index which doesn't \
         exist. This model has {count} outputs"
    )]
    NoSuchIndex { output: Arc<str>, count: usize },
    #[error("output tensor '{output}' is not found: forward returned a dictionary with {keys}")]
    NoSuchKey { output: Arc<str>, keys: String },
    #[error("output '{output}' must be of type Tensor or List[str], got {got}.")]
    OutputKind { output: Arc<str>, got: String },
    #[error("output '{output}' is a scalar which is not supported.")]
    Scalar { output: Arc<str> },
    #[error(
        "configuration expects datatype {} for output '{output}', model provides {got}",
        .expected.config_name()
    )]
    OutputType { output: Arc<str>, expected: DataType, got: String },
}

/// Runs one batch.
pub(super) fn run(
    module: &Module,
    plan: &Plan,
    batch: &Batch<'_>,
) -> Result<BatchOutputs, RunError> {
    let outputs = module.forward(arguments(plan, batch)?)?;
    plan.outputs
        .iter()
        .zip(batch.wanted)
        .map(|(plan, &wanted)| wanted.then(|| take(plan, &outputs)).transpose())
        .collect()
}

/// The arguments of a call. What is left out at the end is left to torch, which has a default for it
/// or says that it is missing.
fn arguments<'a>(plan: &'a Plan, batch: &'a Batch<'_>) -> Result<Vec<Input<'a>>, RunError> {
    let given = given(plan, batch.inputs)?.into_iter();
    let inputs = given.filter_map(|(index, tensor)| Some((plan.inputs.get(index)?, tensor)));
    inputs.map(|(input, tensor)| argument(input, tensor, batch.pool)).collect()
}

/// The inputs that are there, by their indices in the plan.
pub(super) fn given<'a>(
    plan: &Plan,
    inputs: &'a [Option<BatchTensor>],
) -> Result<Vec<(usize, &'a BatchTensor)>, RunError> {
    let mut all = Vec::with_capacity(plan.inputs.len());
    let mut left_out = None;
    for (index, input) in plan.inputs.iter().enumerate() {
        let given = inputs.get(input.index).and_then(Option::as_ref);
        match (given, &left_out) {
            (Some(tensor), None) => all.push((index, tensor)),
            (Some(_), Some(missing)) => {
                let (missing, given) = (Arc::clone(missing), input.name.clone());
                return Err(RunError::Gap { missing, given });
            }
            (None, None) if !plan.dictionary => left_out = Some(input.name.clone()),
            (None, _) => {}
        }
    }
    Ok(all)
}

fn argument<'a>(
    plan: &'a InputPlan,
    tensor: &'a BatchTensor,
    pool: &BufferPool,
) -> Result<Input<'a>, RunError> {
    let data = match plan.kind {
        KIND_INTEGER | KIND_NUMBER | KIND_BOOLEAN => one_value(plan, tensor)?,
        // Others may be reading these bytes.
        _ if plan.is_written => {
            let mut own = pool.allocate(tensor.data.len())?;
            own.copy_from_slice(&tensor.data);
            own.freeze()
        }
        _ => tensor.data.clone(),
    };
    Ok(Input::new(&plan.name, plan.kind, plan.datatype, &tensor.shape, data))
}

/// The one element of a tensor, as wide as the table's numbers are.
fn one_value(plan: &InputPlan, tensor: &BatchTensor) -> Result<Bytes, RunError> {
    let wrong = || RunError::NotOneValue {
        input: plan.name.clone(),
        datatype: plan.datatype,
        shape: tensor.shape.clone(),
    };
    let bytes: &[u8] = &tensor.data;
    macro_rules! widened {
        ($from:ty => $to:ty) => {
            bytes.try_into().map(|bytes| <$to>::from(<$from>::from_le_bytes(bytes)).to_le_bytes())
        };
    }
    let word: Result<[u8; 8], _> = match plan.datatype {
        DataType::Bool if bytes.len() == 1 => return Ok(tensor.data.clone()),
        DataType::Int8 => widened!(i8 => i64),
        DataType::Int16 => widened!(i16 => i64),
        DataType::Int32 => widened!(i32 => i64),
        DataType::Uint8 => widened!(u8 => i64),
        DataType::Uint16 => widened!(u16 => i64),
        DataType::Uint32 => widened!(u32 => i64),
        // Torch's integers have a sign; larger ones wrap as they do in torch.
        DataType::Int64 | DataType::Uint64 | DataType::Fp64 => bytes.try_into(),
        DataType::Fp32 => widened!(f32 => f64),
        _ => return Err(wrong()),
    };
    word.map(|word| Bytes::copy_from_slice(&word)).map_err(|_| wrong())
}

fn take(plan: &OutputPlan, outputs: &Arc<Outputs>) -> Result<BatchTensor, RunError> {
    let index = locate(plan, outputs)?;
    let shape = outputs.get(index).map_or_else(Shape::scalar, |output| output.dims().into());
    Ok(BatchTensor { shape, data: share(outputs, index) })
}

/// The index of the result that an output is.
pub(super) fn locate(plan: &OutputPlan, outputs: &Outputs) -> Result<usize, RunError> {
    let index = match outputs.are_dictionary() {
        true => outputs.iter().position(|output| output.name() == *plan.name).ok_or_else(|| {
            let keys: Vec<String> = outputs.iter().map(|output| output.name()).collect();
            RunError::NoSuchKey { output: plan.name.clone(), keys: keys.join(", ") }
        })?,
        false => plan.position,
    };
    let output = outputs
        .get(index)
        .ok_or_else(|| RunError::NoSuchIndex { output: plan.name.clone(), count: outputs.len() })?;
    check_type(plan, &output)?;
    if output.dims().is_empty() {
        return Err(RunError::Scalar { output: plan.name.clone() });
    }
    Ok(index)
}

fn check_type(plan: &OutputPlan, output: &Output<'_>) -> Result<(), RunError> {
    let found = match output.kind() {
        KIND_TENSOR => datatype_of(output.element()),
        KIND_STRINGS => Some(DataType::Bytes),
        _ => {
            let got = output.type_name();
            return Err(RunError::OutputKind { output: plan.name.clone(), got });
        }
    };
    if found == Some(plan.datatype) {
        return Ok(());
    }
    let unknown = || format!("torch's type {}", output.element());
    let got = found.map_or_else(unknown, |found| found.config_name().to_owned());
    Err(RunError::OutputType { output: plan.name.clone(), expected: plan.datatype, got })
}
