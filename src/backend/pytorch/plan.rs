//! How the tensors of a signature meet the arguments and results of `forward`, by Triton's
//! conventions, settled once per version.

use std::sync::Arc;

use super::{
    elements::element_of,
    module::Argument,
    table::{
        KIND_BOOLEAN, KIND_DICTIONARY, KIND_INTEGER, KIND_NUMBER, KIND_OTHER, KIND_STRINGS,
        KIND_TENSOR,
    },
};
use crate::{
    backend::BackendError,
    inference::{DataType, Shape, Signature, TensorSpec},
    repository::Ragged,
};

#[derive(Debug)]
pub(super) struct Plan {
    /// Whether the inputs are the entries of a dictionary, which is the only argument.
    pub dictionary: bool,
    /// The inputs in the order of the arguments.
    pub inputs: Vec<InputPlan>,
    /// The outputs in the order of the signature.
    pub outputs: Vec<OutputPlan>,
}

/// One input of the signature.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InputPlan {
    /// Its index in the signature; behind those of the signature come the batch inputs.
    pub index: usize,
    pub name: Arc<str>,
    pub datatype: DataType,
    /// What `forward` takes: one of the table's `KIND_…`.
    pub kind: u32,
    /// Whether `forward` may write into the tensor, which must then be its own.
    pub is_written: bool,
}

/// One output of the signature.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OutputPlan {
    pub name: Arc<str>,
    pub datatype: DataType,
    /// Its place among the results, unless they are a dictionary.
    pub position: usize,
    /// Its dimensions as `forward` gives them, without those of the batch, where the configuration
    /// leaves none open.
    pub dims: Option<Shape>,
}

impl OutputPlan {
    /// The size of this output with a shape; none where it has no fixed size, or one that is too large.
    pub fn bytes(&self, shape: &Shape) -> Option<usize> {
        let count = usize::try_from(shape.element_count()?).ok()?;
        count.checked_mul(self.datatype.size()?)
    }
}

impl Plan {
    /// `declared` are the names in the configuration's list of inputs: of those alone depends by what
    /// convention they are told apart, while others, such as a sequence's controls, follow.
    ///
    /// # Errors
    /// When an input has no argument or an argument no input, when their types do not fit, or when
    /// `forward` takes what no request can hold.
    pub fn new(
        signature: &Signature,
        ragged: &Ragged,
        declared: &[&str],
        arguments: &[Argument],
    ) -> Result<Self, BackendError> {
        let told = ragged.batch_inputs.iter().map(|input| &input.spec);
        let specs: Vec<&TensorSpec> = signature.inputs.iter().chain(told).collect();
        let of_signature = signature.inputs.iter().map(|spec| ("input", spec));
        let of_signature =
            of_signature.chain(signature.outputs.iter().map(|spec| ("output", spec)));
        for (side, spec) in of_signature {
            check_strings(signature, side, spec)?;
        }
        let outputs = output_plans(signature, ragged);
        if let [argument @ Argument { kind: KIND_DICTIONARY, .. }] = arguments {
            let inputs = specs.into_iter().enumerate();
            let inputs = inputs
                .map(|(index, spec)| {
                    input_plan(
                        signature,
                        index,
                        spec,
                        &Argument { kind: KIND_TENSOR, ..argument.clone() },
                    )
                })
                .collect::<Result<_, _>>()?;
            return Ok(Self { dictionary: true, inputs, outputs });
        }
        let positions = positions(signature, &specs, declared, arguments)?;
        let mut by_position: Vec<_> =
            positions.into_iter().zip(specs.iter().copied()).enumerate().collect();
        by_position.sort_by_key(|(_, (position, _))| *position);
        let mut inputs = Vec::with_capacity(by_position.len());
        for (expected, (index, (position, spec))) in by_position.into_iter().enumerate() {
            let Some(argument) = arguments.get(position).filter(|_| position == expected) else {
                return Err(count_error(signature, &specs, arguments));
            };
            inputs.push(input_plan(signature, index, spec, argument)?);
        }
        let left = arguments.get(inputs.len()..).unwrap_or_default();
        if left.iter().any(|argument| !argument.has_default) {
            return Err(count_error(signature, &specs, arguments));
        }
        Ok(Self { dictionary: false, inputs, outputs })
    }
}

/// Triton's words, and what `forward` takes.
fn count_error(
    signature: &Signature,
    specs: &[&TensorSpec],
    arguments: &[Argument],
) -> BackendError {
    let list: Vec<String> = arguments
        .iter()
        .map(|Argument { name, type_name, .. }| format!("{name}: {type_name}"))
        .collect();
    let names: Vec<&str> = specs.iter().map(|spec| &*spec.name).collect();
    BackendError(format!(
        "unable to load model '{}', configuration expects {} inputs, model provides {}: \
         the inputs {} do not fit forward({})",
        signature.model,
        names.len(),
        arguments.len(),
        names.join(", "),
        list.join(", ")
    ))
}

/// The argument that each input of the signature is.
fn positions(
    signature: &Signature,
    inputs: &[&TensorSpec],
    declared: &[&str],
    arguments: &[Argument],
) -> Result<Vec<usize>, BackendError> {
    let by_name = |name: &str| arguments.iter().position(|argument| argument.name == name);
    if declared.iter().all(|name| by_name(name).is_some()) {
        // Of what is not declared, some may keep to the other convention.
        let found = inputs.iter().map(|spec| by_name(&spec.name).or_else(|| index_in(&spec.name)));
        return found
            .collect::<Option<_>>()
            .ok_or_else(|| count_error(signature, inputs, arguments));
    }
    if declared.iter().all(|name| index_in(name).is_some()) {
        let found = inputs.iter().map(|spec| index_in(&spec.name).or_else(|| by_name(&spec.name)));
        return found
            .collect::<Option<_>>()
            .ok_or_else(|| count_error(signature, inputs, arguments));
    }
    if arguments.len() > 1 {
        log::warn!(
            target: "pytorch",
            "the inputs of model '{}' have neither the names of forward's arguments nor names of \
             the form <name>__<index>, so they are taken in their order in the configuration",
            signature.model
        );
    }
    Ok((0..inputs.len()).collect())
}

/// The index in a name of the form `<name>__<index>`.
fn index_in(name: &str) -> Option<usize> {
    let (_, index) = name.split_once("__")?;
    let digits = !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| index.parse().ok()).flatten()
}

fn input_plan(
    signature: &Signature,
    index: usize,
    spec: &TensorSpec,
    argument: &Argument,
) -> Result<InputPlan, BackendError> {
    let (model, name, type_name) = (&signature.model, &argument.name, &argument.type_name);
    if argument.kind == KIND_DICTIONARY {
        return Err(BackendError(format!(
            "unable to load model '{model}': argument '{name}' of forward is a {type_name} beside \
             others; only a single input of type Dict(str, Tensor) is supported"
        )));
    }
    if argument.kind == KIND_OTHER {
        return Err(BackendError(format!(
            "unable to load model '{model}': an input of type '{type_name}' was detected in the \
             model, argument '{name}' of forward, which no request can hold"
        )));
    }
    let fits = match spec.datatype {
        DataType::Bytes => argument.kind == KIND_STRINGS,
        DataType::Bool => matches!(argument.kind, KIND_TENSOR | KIND_BOOLEAN),
        DataType::Fp16 | DataType::Bf16 => argument.kind == KIND_TENSOR,
        DataType::Fp32 | DataType::Fp64 => matches!(argument.kind, KIND_TENSOR | KIND_NUMBER),
        _ => matches!(argument.kind, KIND_TENSOR | KIND_INTEGER),
    };
    if !fits {
        return Err(BackendError(format!(
            "unable to load model '{model}', configuration expects datatype {} for input '{}', \
             argument '{name}' of forward is of type '{type_name}'",
            spec.datatype.config_name(),
            spec.name
        )));
    }
    Ok(InputPlan {
        index,
        name: spec.name.clone(),
        datatype: spec.datatype,
        kind: argument.kind,
        is_written: argument.is_written,
    })
}

fn output_plans(signature: &Signature, ragged: &Ragged) -> Vec<OutputPlan> {
    let outputs = &signature.outputs;
    let indexed: Option<Vec<usize>> = outputs.iter().map(|spec| index_in(&spec.name)).collect();
    let positions = indexed.unwrap_or_else(|| (0..outputs.len()).collect());
    let plan = |(index, (spec, position)): (usize, (&TensorSpec, usize))| {
        let dims = spec.reshape.as_ref().unwrap_or(&spec.dims);
        let is_known = dims.is_fixed() && ragged.output(index).is_none();
        OutputPlan {
            name: spec.name.clone(),
            datatype: spec.datatype,
            position,
            dims: is_known.then(|| dims.clone()),
        }
    };
    outputs.iter().zip(positions).enumerate().map(plan).collect()
}

/// A list of strings has one dimension.
fn check_strings(signature: &Signature, side: &str, spec: &TensorSpec) -> Result<(), BackendError> {
    let own = spec.reshape.as_ref().unwrap_or(&spec.dims).len();
    let rank = own + usize::from(signature.max_batch_size > 0);
    if element_of(spec.datatype).is_some() || rank <= 1 {
        return Ok(());
    }
    Err(BackendError(format!(
        "Triton only supports 1 dimensional List of String as {side} for '{}' for model '{}'",
        spec.name, signature.model
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argument(name: &str, kind: u32) -> Argument {
        Argument {
            name: name.to_owned(),
            type_name: ["object", "Tensor", "List[str]", "Dict[str, Tensor]"]
                .get(kind as usize)
                .map_or("int", |name| name)
                .to_owned(),
            kind,
            has_default: false,
            is_written: false,
        }
    }

    fn signature(inputs: &[&str], outputs: &[&str]) -> Signature {
        let specs = |names: &[&str]| {
            let spec = |name: &&str| TensorSpec::new(name, DataType::Fp32, [1].into());
            names.iter().map(spec).collect()
        };
        Signature {
            model: "m".into(),
            max_batch_size: 0,
            inputs: specs(inputs),
            outputs: specs(outputs),
        }
    }

    fn order(
        inputs: &[&str],
        declared: &[&str],
        arguments: &[Argument],
    ) -> Result<Vec<usize>, String> {
        let plan = Plan::new(&signature(inputs, &["y"]), &Ragged::default(), declared, arguments);
        plan.map(|plan| plan.inputs.iter().map(|input| input.index).collect())
            .map_err(|error| error.0)
    }

    #[test]
    fn inputs_find_their_arguments_by_name_by_index_or_by_order() {
        let arguments = [argument("a", KIND_TENSOR), argument("b", KIND_TENSOR)];
        let cases: [(&[&str], &[usize]); 5] = [
            (&["a", "b"], &[0, 1]),
            (&["b", "a"], &[1, 0]),
            (&["X__1", "Y__0"], &[1, 0]),
            // One name that follows neither convention makes all count by their order.
            (&["b", "other"], &[0, 1]),
            (&["X__1", "Y__x"], &[0, 1]),
        ];
        for (inputs, expected) in cases {
            assert_eq!(order(inputs, inputs, &arguments).as_deref(), Ok(expected), "{inputs:?}");
        }
    }

    #[test]
    fn what_is_not_declared_keeps_to_either_convention() {
        let arguments = [argument("a", KIND_TENSOR), argument("start", KIND_TENSOR)];
        for control in ["start", "START__1"] {
            assert_eq!(order(&["a", control], &["a"], &arguments), Ok(vec![0, 1]));
            assert_eq!(order(&["X__0", control], &["X__0"], &arguments), Ok(vec![0, 1]));
        }
        assert!(order(&["a", "other"], &["a"], &arguments).is_err());
    }

    #[test]
    fn what_has_a_default_may_be_left_out_behind_the_rest() {
        let mut arguments = [argument("a", KIND_TENSOR), argument("b", KIND_OTHER)];
        let error = order(&["a"], &["a"], &arguments).unwrap_err();
        assert!(error.contains("expects 1 inputs, model provides 2"), "{error}");
        arguments[1].has_default = true;
        assert_eq!(order(&["a"], &["a"], &arguments), Ok(vec![0]));
        arguments[0].has_default = true;
        assert!(order(&["X__1"], &["X__1"], &arguments).is_err());
    }

    #[test]
    fn indices_must_be_those_of_the_arguments() {
        let arguments = [argument("a", KIND_TENSOR), argument("b", KIND_TENSOR)];
        for inputs in [["X__0", "Y__0"], ["X__0", "Y__2"], ["X__0", "Y__99999999999999999999"]] {
            let error = order(&inputs, &inputs, &arguments[..1]).unwrap_err();
            assert!(error.contains("forward(a: Tensor)"), "{error}");
        }
        let error = order(&["X__0", "Y__2"], &["X__0", "Y__2"], &arguments).unwrap_err();
        assert!(error.contains("X__0, Y__2 do not fit forward(a: Tensor, b: Tensor)"), "{error}");
    }

    #[test]
    fn the_entries_of_a_dictionary_are_the_inputs() {
        let only = [argument("x", KIND_DICTIONARY)];
        let plan =
            Plan::new(&signature(&["b", "a"], &["y"]), &Ragged::default(), &["b", "a"], &only)
                .unwrap();
        assert!(plan.dictionary);
        let names: Vec<&str> = plan.inputs.iter().map(|input| &*input.name).collect();
        assert_eq!(names, ["b", "a"]);
        let beside = [argument("x", KIND_DICTIONARY), argument("y", KIND_TENSOR)];
        let error = order(&["x", "y"], &["x", "y"], &beside).unwrap_err();
        assert!(error.contains("only a single input of type Dict(str, Tensor)"), "{error}");
    }

    #[test]
    fn types_must_fit() {
        for (datatype, kind, fits) in [
            (DataType::Fp32, KIND_NUMBER, true),
            (DataType::Int64, KIND_INTEGER, true),
            (DataType::Int64, KIND_NUMBER, false),
            (DataType::Bool, KIND_BOOLEAN, true),
            (DataType::Bytes, KIND_STRINGS, true),
            (DataType::Bytes, KIND_TENSOR, false),
            (DataType::Fp32, KIND_STRINGS, false),
            (DataType::Fp32, KIND_OTHER, false),
        ] {
            let mut signature = signature(&["x"], &["y"]);
            signature.inputs[0].datatype = datatype;
            let plan = Plan::new(&signature, &Ragged::default(), &["x"], &[argument("x", kind)]);
            assert_eq!(plan.is_ok(), fits, "{datatype} {kind} {plan:?}");
        }
    }

    #[test]
    fn strings_have_one_dimension() {
        let mut signature = signature(&["x"], &["y"]);
        signature.inputs[0].datatype = DataType::Bytes;
        let only = [argument("x", KIND_STRINGS)];
        assert!(Plan::new(&signature, &Ragged::default(), &["x"], &only).is_ok());
        signature.max_batch_size = 4;
        let error = Plan::new(&signature, &Ragged::default(), &["x"], &only).unwrap_err().0;
        assert!(error.contains("1 dimensional List of String as input for 'x'"), "{error}");
    }

    #[test]
    fn outputs_go_by_their_index_or_by_their_order() {
        for (outputs, expected) in [(["Y__1", "Z__0"], [1, 0]), (["Y__1", "Z"], [0, 1])] {
            let plans = output_plans(&signature(&["x"], &outputs), &Ragged::default());
            let positions: Vec<usize> = plans.iter().map(|plan| plan.position).collect();
            assert_eq!(positions, expected);
        }
    }
}
