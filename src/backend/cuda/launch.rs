//! How a model's kernel is launched: what the parameters of its configuration say.

use std::collections::BTreeMap;

use crate::{inference::Signature, proto::ModelParameter};

/// The parameters that this back end reads.
const KNOWN: [&str; 7] =
    ["kernel", "block", "grid", "threads", "shared_bytes", "arguments", "options"];
const BLOCK: u32 = 256;
/// What CUDA allows in a block.
const THREADS_MAX: u32 = 1024;

/// A kernel's launch.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LaunchPlan {
    /// The function's name.
    pub kernel: String,
    /// Threads of a block.
    pub block: [u32; 3],
    pub grid: Grid,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// In the order of the kernel's parameters.
    pub arguments: Vec<Source>,
    /// For the compiler.
    pub options: Vec<String>,
}

/// How many blocks there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grid {
    Fixed([u32; 3]),
    /// A thread for each element of a tensor.
    Over(Tensor),
}

/// A tensor of the signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tensor {
    Input(usize),
    Output(usize),
}

/// Where an argument comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Source {
    /// A pointer to the elements.
    Pointer(Tensor),
    /// The number of elements, all rows together: `unsigned long long`.
    Count(Tensor),
    /// The number of rows of the batch: `unsigned int`.
    Rows,
    /// An `int` of the configuration.
    Int(i32),
    /// A `float` of the configuration.
    Float(f32),
}

impl LaunchPlan {
    /// Reads a model's parameters.
    ///
    /// # Errors
    /// Names the parameter, what was expected and what came.
    pub fn read(
        parameters: &BTreeMap<String, ModelParameter>,
        signature: &Signature,
    ) -> Result<Self, String> {
        if let Some(unknown) = parameters.keys().find(|name| !KNOWN.contains(&name.as_str())) {
            return Err(format!(
                "parameter '{unknown}' is not known; there are '{}'",
                KNOWN.join("', '")
            ));
        }
        let text = |name: &str| parameters.get(name).map(|it| it.string_value.trim());
        let kernel = text("kernel").filter(|name| !name.is_empty()).ok_or(
            "parameter 'kernel' is missing: expected the name of the function to launch".to_owned(),
        )?;
        let block = text("block").map_or(Ok([BLOCK, 1, 1]), |text| dimensions("block", text))?;
        let threads = block.iter().try_fold(1_u32, |threads, &dim| threads.checked_mul(dim));
        if threads.is_none_or(|threads| threads > THREADS_MAX) {
            return Err(format!(
                "parameter 'block': expected at most {THREADS_MAX} threads, got {block:?}"
            ));
        }
        let grid = match (text("grid"), text("threads")) {
            (Some(_), Some(_)) => {
                return Err("expected either parameter 'grid' or 'threads', got both".to_owned());
            }
            (Some(grid), None) => Grid::Fixed(dimensions("grid", grid)?),
            (None, Some(name)) => Grid::Over(
                Tensor::find(name, signature)
                    .ok_or_else(|| format!("parameter 'threads': no tensor '{name}'"))?,
            ),
            (None, None) if signature.outputs.is_empty() => {
                return Err("parameter 'grid' is missing: there is no output".to_owned());
            }
            (None, None) => Grid::Over(Tensor::Output(0)),
        };
        if matches!(grid, Grid::Over(_)) && block[1..] != [1, 1] {
            return Err(
                "parameter 'block': expected one dimension, unless 'grid' is given".to_owned()
            );
        }
        let shared_bytes = text("shared_bytes").map_or(Ok(0), |text| {
            text.parse().map_err(|_| {
                format!("parameter 'shared_bytes': expected a number of bytes, got '{text}'")
            })
        })?;
        let arguments = match text("arguments") {
            Some(text) => listed(text)
                .map(|argument| Source::read(argument, signature))
                .collect::<Result<_, _>>()?,
            None => all_tensors(signature),
        };
        let options = text("options").map(|text| listed(text).map(str::to_owned).collect());
        Ok(Self {
            kernel: kernel.to_owned(),
            block,
            grid,
            shared_bytes,
            arguments,
            options: options.unwrap_or_default(),
        })
    }
}

/// Inputs, outputs, and how many elements the first output has.
fn all_tensors(signature: &Signature) -> Vec<Source> {
    let inputs = (0..signature.inputs.len()).map(Tensor::Input);
    let outputs = (0..signature.outputs.len()).map(Tensor::Output);
    let pointers = inputs.chain(outputs).map(Source::Pointer);
    pointers.chain([Source::Count(Tensor::Output(0))]).collect()
}

impl Tensor {
    fn find(name: &str, signature: &Signature) -> Option<Self> {
        let input = signature.input(name);
        let output = || signature.output(name);
        input.map(Self::Input).or_else(|| output().map(Self::Output))
    }
}

impl Source {
    fn read(text: &str, signature: &Signature) -> Result<Self, String> {
        if let Some(tensor) = Tensor::find(text, signature) {
            return Ok(Self::Pointer(tensor));
        }
        let counted = text.strip_prefix("count(").and_then(|rest| rest.strip_suffix(')'));
        if let Some(tensor) = counted.and_then(|name| Tensor::find(name.trim(), signature)) {
            return Ok(Self::Count(tensor));
        }
        if text == "rows" {
            return Ok(Self::Rows);
        }
        if let Ok(number) = text.parse() {
            return Ok(Self::Int(number));
        }
        text.parse().map(Self::Float).map_err(|_| {
            format!(
                "parameter 'arguments': expected the name of a tensor, count(NAME), rows or a \
                 number, got '{text}'"
            )
        })
    }
}

fn listed(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

fn dimensions(name: &str, text: &str) -> Result<[u32; 3], String> {
    let mut dimensions = [1; 3];
    let numbers: Vec<Option<u32>> =
        text.split(',').map(|part| part.trim().parse().ok().filter(|&number| number > 0)).collect();
    if numbers.len() > 3 || numbers.contains(&None) {
        return Err(format!("parameter '{name}': expected one to three numbers, got '{text}'"));
    }
    for (dimension, number) in dimensions.iter_mut().zip(numbers.into_iter().flatten()) {
        *dimension = number;
    }
    Ok(dimensions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::{DataType, Shape, TensorSpec};

    fn read(parameters: &[(&str, &str)]) -> Result<LaunchPlan, String> {
        let spec = |name| TensorSpec::new(name, DataType::Fp32, Shape::from([4]));
        let signature = Signature {
            model: "m".into(),
            max_batch_size: 8,
            inputs: vec![spec("X"), spec("Y")],
            outputs: vec![spec("Z")],
        };
        let parameters = parameters.iter().map(|(name, value)| {
            let value = ModelParameter { string_value: (*value).to_owned() };
            ((*name).to_owned(), value)
        });
        LaunchPlan::read(&parameters.collect(), &signature)
    }

    #[test]
    fn without_more_a_thread_makes_an_element_of_the_first_output() {
        let plan = read(&[("kernel", "add")]).unwrap();
        let pointers = [Tensor::Input(0), Tensor::Input(1), Tensor::Output(0)].map(Source::Pointer);
        assert_eq!(plan.block, [256, 1, 1]);
        assert_eq!(plan.grid, Grid::Over(Tensor::Output(0)));
        assert_eq!(plan.arguments[..3], pointers);
        assert_eq!(plan.arguments[3], Source::Count(Tensor::Output(0)));
    }

    #[test]
    fn arguments_and_shape_can_be_said() {
        let plan = read(&[
            ("kernel", "k"),
            ("block", "16, 16"),
            ("grid", "4,2"),
            ("shared_bytes", "1024"),
            ("arguments", "Z, count(X), rows, 3, -0.5"),
            ("options", "--use_fast_math, -DN=4"),
        ])
        .unwrap();
        assert_eq!((plan.block, plan.grid), ([16, 16, 1], Grid::Fixed([4, 2, 1])));
        assert_eq!(plan.shared_bytes, 1024);
        let expected = [
            Source::Pointer(Tensor::Output(0)),
            Source::Count(Tensor::Input(0)),
            Source::Rows,
            Source::Int(3),
            Source::Float(-0.5),
        ];
        assert_eq!(plan.arguments, expected);
        assert_eq!(plan.options, ["--use_fast_math", "-DN=4"]);
    }

    #[test]
    fn what_cannot_be_launched_is_refused() {
        let kernel = ("kernel", "k");
        for (parameters, expected) in [
            (&[][..], "parameter 'kernel' is missing"),
            (&[kernel, ("blocks", "1")], "parameter 'blocks' is not known"),
            (
                &[kernel, ("block", "0")],
                "parameter 'block': expected one to three numbers, got '0'",
            ),
            (&[kernel, ("block", "64,64")], "expected at most 1024 threads, got [64, 64, 1]"),
            (&[kernel, ("block", "16,16")], "expected one dimension, unless 'grid' is given"),
            (&[kernel, ("grid", "1"), ("threads", "X")], "either parameter 'grid' or 'threads'"),
            (&[kernel, ("threads", "Q")], "parameter 'threads': no tensor 'Q'"),
            (&[kernel, ("shared_bytes", "-1")], "expected a number of bytes, got '-1'"),
            (&[kernel, ("arguments", "X, Q")], "expected the name of a tensor, count(NAME), rows"),
        ] {
            let error = read(parameters).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
