//! A partial configuration, completed by what a TorchScript file tells: how many arguments `forward`
//! takes, their names, and the types of those that are no tensors; how many results it gives. Of a
//! tensor it tells neither type nor shape, so what is then missing is an error that names it.

use super::{
    module::{Argument, Forward},
    table::{KIND_BOOLEAN, KIND_DICTIONARY, KIND_INTEGER, KIND_NUMBER, KIND_STRINGS, KIND_TENSOR},
};
use crate::{
    backend::BackendError,
    proto::{DataType, ModelConfig, ModelInput, ModelOutput},
};

/// Whether a configuration says all of its tensors.
pub(super) fn is_complete(config: &ModelConfig) -> bool {
    let input = |it: &ModelInput| is_told(&it.name, it.data_type, &it.dims);
    let output = |it: &ModelOutput| is_told(&it.name, it.data_type, &it.dims);
    let are_there = !config.input.is_empty() && !config.output.is_empty();
    are_there && config.input.iter().all(input) && config.output.iter().all(output)
}

fn is_told(name: &str, data_type: i32, dims: &[i64]) -> bool {
    !name.is_empty() && data_type != DataType::TypeInvalid as i32 && !dims.is_empty()
}

/// Completes the configuration `given`.
///
/// # Errors
/// When something is missing that the file does not tell either.
pub(super) fn complete(
    given: &ModelConfig,
    forward: &Forward,
) -> Result<ModelConfig, BackendError> {
    let mut config = given.clone();
    let mut missing = Vec::new();
    let is_dictionary = |argument: &Argument| argument.kind == KIND_DICTIONARY;
    let arguments = match forward.arguments.iter().any(is_dictionary) {
        // Its keys are not in the file.
        true => &[][..],
        false => &forward.arguments,
    };
    if config.input.is_empty() {
        let needed = arguments.iter().filter(|argument| !argument.has_default);
        config.input.extend(needed.map(|_| ModelInput::default()));
    }
    if config.input.is_empty() {
        missing.push("'input'".to_owned());
    }
    for (index, input) in config.input.iter_mut().enumerate() {
        let named = arguments.iter().find(|argument| argument.name == input.name);
        let argument = named.or_else(|| arguments.get(index));
        if let Some(argument) = argument.filter(|_| input.name.is_empty()) {
            input.name.clone_from(&argument.name);
        }
        let kind = argument.map_or(KIND_TENSOR, |argument| argument.kind);
        fill(kind, &mut input.data_type, &mut input.dims);
        missing.extend(left_open("input", index, &input.name, input.data_type, &input.dims));
    }
    if config.output.is_empty() {
        config.output.extend(forward.results.iter().enumerate().map(|(index, _)| {
            let name = format!("OUTPUT__{index}");
            ModelOutput { name, ..ModelOutput::default() }
        }));
    }
    if config.output.is_empty() {
        missing.push("'output'".to_owned());
    }
    for (index, output) in config.output.iter_mut().enumerate() {
        let kind = forward.results.get(index).copied().unwrap_or(KIND_TENSOR);
        fill(kind, &mut output.data_type, &mut output.dims);
        missing.extend(left_open("output", index, &output.name, output.data_type, &output.dims));
    }
    if missing.is_empty() {
        return Ok(config);
    }
    let list: Vec<String> = forward
        .arguments
        .iter()
        .map(|Argument { name, type_name, .. }| format!("{name}: {type_name}"))
        .collect();
    Err(BackendError(format!(
        "unable to complete the configuration of model '{}': expected {}; the file tells no more than \
         forward({})",
        config.name,
        missing.join(", "),
        list.join(", ")
    )))
}

/// The type and dimensions of what is no tensor.
fn fill(kind: u32, data_type: &mut i32, dims: &mut Vec<i64>) {
    let (known, size) = match kind {
        KIND_INTEGER => (DataType::TypeInt64, 1),
        KIND_NUMBER => (DataType::TypeFp64, 1),
        KIND_BOOLEAN => (DataType::TypeBool, 1),
        KIND_STRINGS => (DataType::TypeString, -1),
        _ => return,
    };
    if *data_type == DataType::TypeInvalid as i32 {
        *data_type = known as i32;
    }
    if dims.is_empty() {
        dims.push(size);
    }
}

/// What a tensor of the configuration lacks.
fn left_open(side: &str, index: usize, name: &str, data_type: i32, dims: &[i64]) -> Option<String> {
    let fields = [
        ("'name'", name.is_empty()),
        ("'data_type'", data_type == DataType::TypeInvalid as i32),
        ("'dims'", dims.is_empty()),
    ];
    let lacks: Vec<&str> =
        fields.into_iter().filter_map(|(field, lacks)| lacks.then_some(field)).collect();
    let which =
        if name.is_empty() { format!("{side} {index}") } else { format!("{side} '{name}'") };
    (!lacks.is_empty()).then(|| format!("{} of {which}", lacks.join(" and ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argument(name: &str, kind: u32) -> Argument {
        let type_name = if kind == KIND_TENSOR { "Tensor" } else { "other" }.to_owned();
        let (has_default, is_written) = (false, false);
        Argument { name: name.to_owned(), type_name, kind, has_default, is_written }
    }

    fn forward(arguments: Vec<Argument>, results: Vec<u32>) -> Forward {
        Forward { arguments, results, is_stateful: false }
    }

    #[test]
    fn what_is_no_tensor_is_known_by_itself() {
        let kinds = [KIND_INTEGER, KIND_NUMBER, KIND_BOOLEAN, KIND_STRINGS];
        let arguments = kinds.iter().map(|&kind| argument(&format!("a{kind}"), kind)).collect();
        let done =
            complete(&ModelConfig::default(), &forward(arguments, vec![KIND_STRINGS])).unwrap();
        let told: Vec<(&str, DataType, &[i64])> =
            done.input.iter().map(|it| (&*it.name, it.data_type(), &*it.dims)).collect();
        let expected: [(&str, DataType, &[i64]); 4] = [
            ("a4", DataType::TypeInt64, &[1]),
            ("a5", DataType::TypeFp64, &[1]),
            ("a6", DataType::TypeBool, &[1]),
            ("a2", DataType::TypeString, &[-1]),
        ];
        assert_eq!(told, expected);
        assert_eq!(done.output[0].name, "OUTPUT__0");
        assert!(is_complete(&done));
    }

    #[test]
    fn names_come_from_forward_and_what_nobody_tells_is_named() {
        let two = || vec![argument("a", KIND_TENSOR), argument("b", KIND_TENSOR)];
        let mut config = ModelConfig { name: "m".to_owned(), ..ModelConfig::default() };
        let told = |name: &str| ModelInput {
            name: name.to_owned(),
            data_type: DataType::TypeFp32 as i32,
            dims: vec![2],
            ..ModelInput::default()
        };
        config.input = vec![told(""), ModelInput { dims: Vec::new(), ..told("b") }];
        let error = complete(&config, &forward(two(), vec![KIND_TENSOR; 2])).err().unwrap().0;
        assert_eq!(
            error,
            "unable to complete the configuration of model 'm': expected 'dims' of input 'b', \
             'data_type' and 'dims' of output 'OUTPUT__0', 'data_type' and 'dims' of output \
             'OUTPUT__1'; the file tells no more than forward(a: Tensor, b: Tensor)"
        );
        config.input = vec![told(""), told("b")];
        let data_type = DataType::TypeFp32 as i32;
        let output =
            ModelOutput { name: "y".to_owned(), data_type, dims: vec![1], ..Default::default() };
        config.output = vec![output];
        let done = complete(&config, &forward(two(), Vec::new())).unwrap();
        assert_eq!((&*done.input[0].name, &*done.input[1].name), ("a", "b"));
        let keys = forward(vec![argument("x", KIND_DICTIONARY)], Vec::new());
        let error = complete(&ModelConfig::default(), &keys).err().unwrap().0;
        assert!(error.contains("expected 'input', 'output'; "), "{error}");
    }
}
