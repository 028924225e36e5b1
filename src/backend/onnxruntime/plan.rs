//! How the tensors of a signature meet those of the model file, settled once per session: names and
//! types as the C API wants them, and which sizes of outputs are known before a run.

use std::{
    ffi::CString,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use ort_sys::ONNXTensorElementDataType as Element;

use super::session::{Extent, Port, PortTensor, element_of};
use crate::{
    backend::{BackendError, BatchTensor},
    inference::{DataType, Shape, Signature, TensorSpec},
    repository::Ragged,
};

pub(super) struct Plan {
    /// Those of the signature, then the batch inputs.
    pub inputs: Vec<InputPlan>,
    pub outputs: Vec<OutputPlan>,
    /// Whether sizes that do not stand in the file have proved wrong, so that only ONNX Runtime
    /// should allocate what depends on them.
    guesses_fail: AtomicBool,
}

/// One input of the signature.
pub(super) struct InputPlan {
    pub tensor: TensorPlan,
    /// Whether the file wants a scalar; configurations, which cannot say so, give it `[1]`.
    pub scalar: bool,
}

/// One output of the signature.
pub(super) struct OutputPlan {
    pub tensor: TensorPlan,
    /// Where each dimension's size is found before a run; `None` when one of them is not.
    pub sizes: Option<Vec<Size>>,
    /// The shape to give a scalar: that of the configuration.
    pub scalar: Option<Shape>,
    /// The input that the graph hands out as this output, which has its name. ONNX Runtime neither
    /// copies it into memory given for the output nor owns what it returns, so it is not asked.
    pub echo: Option<usize>,
}

pub(super) struct TensorPlan {
    pub name: CString,
    pub label: Arc<str>,
    pub datatype: DataType,
    pub element: Element,
}

/// Where a size is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    Fixed(i64),
    Rows,
    Of { input: usize, axis: usize },
}

impl Plan {
    /// # Errors
    /// When a tensor of the signature is not in the file or differs in type or shape, or when the
    /// file has an input that the signature lacks and `all_inputs` must be there.
    pub fn new(
        signature: &Signature,
        ragged: &Ragged,
        inputs: &[Port],
        outputs: &[Port],
        all_inputs: bool,
    ) -> Result<Self, BackendError> {
        let matching = Matching { signature };
        let mut input_plans = Vec::with_capacity(signature.inputs.len());
        let mut input_tensors = Vec::with_capacity(signature.inputs.len());
        let told = ragged.batch_inputs.iter().map(|input| &input.spec);
        for (index, spec) in signature.inputs.iter().chain(told).enumerate() {
            let port = matching.find("input", spec, inputs)?;
            let is_given = index < signature.inputs.len();
            match ragged.input(index) {
                true => matching.check_joined(spec, port)?,
                false if is_given => matching.check_shape(spec, port)?,
                false => {}
            }
            input_plans.push(InputPlan { tensor: tensor_plan(spec)?, scalar: is_scalar(port) });
            input_tensors.push(port);
        }
        if all_inputs && inputs.len() > signature.inputs.len() {
            return Err(BackendError(format!(
                "unable to load model '{}', configuration expects {} inputs, model provides {}",
                signature.model,
                signature.inputs.len(),
                inputs.len()
            )));
        }
        let mut output_plans = Vec::with_capacity(signature.outputs.len());
        for (index, spec) in signature.outputs.iter().enumerate() {
            let port = matching.find("output", spec, outputs)?;
            // What is scattered need not begin with the rows.
            let is_scattered = ragged.output(index).is_some();
            if !is_scattered {
                matching.check_shape(spec, port)?;
            }
            let batches = signature.max_batch_size > 0;
            output_plans.push(OutputPlan {
                tensor: tensor_plan(spec)?,
                sizes: known_sizes(port, &input_tensors, batches && !is_scattered),
                scalar: is_scalar(port)
                    .then(|| spec.reshape.as_ref().unwrap_or(&spec.dims).clone()),
                echo: signature.inputs.iter().position(|input| input.name == spec.name),
            });
        }
        let (inputs, outputs) = (input_plans, output_plans);
        Ok(Self { inputs, outputs, guesses_fail: AtomicBool::new(false) })
    }

    /// Whether outputs may be placed by sizes that do not stand in the file.
    pub fn guesses(&self) -> bool {
        !self.guesses_fail.load(Ordering::Relaxed)
    }

    /// Notes that such sizes have proved wrong.
    pub fn guess_no_more(&self) {
        self.guesses_fail.store(true, Ordering::Relaxed);
    }
}

impl OutputPlan {
    /// The shape that this output will have, if that can be told before the run.
    pub fn shape(&self, rows: u32, inputs: &[Option<BatchTensor>]) -> Option<Shape> {
        self.sizes
            .as_ref()?
            .iter()
            .map(|size| match *size {
                Size::Fixed(size) => Some(size),
                Size::Rows => Some(i64::from(rows)),
                Size::Of { input, axis } => inputs.get(input)?.as_ref()?.shape.get(axis).copied(),
            })
            .collect::<Option<Shape>>()
    }

    /// The size of this output with a shape; none where it has no fixed size, or one that is too large.
    pub fn bytes(&self, shape: &Shape) -> Option<usize> {
        let count = usize::try_from(shape.element_count()?).ok()?;
        count.checked_mul(self.tensor.datatype.size()?)
    }

    /// Whether a run may well show other sizes than those foreseen, because not all stand in the
    /// file.
    pub fn is_guess(&self) -> bool {
        self.sizes.iter().flatten().any(|size| !matches!(size, Size::Fixed(_)))
    }
}

fn tensor_plan(spec: &TensorSpec) -> Result<TensorPlan, BackendError> {
    let name = CString::new(&*spec.name).map_err(|_| {
        BackendError(format!("tensor name '{}' contains a zero byte", spec.name.escape_debug()))
    })?;
    Ok(TensorPlan {
        name,
        label: spec.name.clone(),
        datatype: spec.datatype,
        element: element_of(spec.datatype),
    })
}

fn is_scalar(tensor: &PortTensor) -> bool {
    tensor.extents.as_ref().is_some_and(Vec::is_empty)
}

fn known_sizes(tensor: &PortTensor, inputs: &[&PortTensor], batches: bool) -> Option<Vec<Size>> {
    let named = |wanted: &str| {
        inputs.iter().enumerate().find_map(|(input, tensor)| {
            let axis = tensor
                .extents
                .iter()
                .flatten()
                .position(|extent| matches!(extent, Extent::Named(name) if name == wanted))?;
            Some(Size::Of { input, axis })
        })
    };
    let extents = tensor.extents.as_ref()?;
    extents
        .iter()
        .enumerate()
        .map(|(axis, extent)| match extent {
            Extent::Fixed(size) => Some(Size::Fixed(*size)),
            _ if batches && axis == 0 => Some(Size::Rows),
            Extent::Named(name) => named(name),
            Extent::Any => None,
        })
        .collect()
}

/// Checks tensors of the configuration against those of the file, in Triton's words.
struct Matching<'a> {
    signature: &'a Signature,
}

impl Matching<'_> {
    fn find<'p>(
        &self,
        side: &str,
        spec: &TensorSpec,
        ports: &'p [Port],
    ) -> Result<&'p PortTensor, BackendError> {
        let model = &self.signature.model;
        let Some(port) = ports.iter().find(|port| *port.name == *spec.name) else {
            let allowed: Vec<&str> = ports.iter().map(|port| port.name.as_str()).collect();
            return Err(BackendError(format!(
                "unable to load model '{model}': unexpected inference {side} '{}', \
                 allowed {side}s are: {}",
                spec.name,
                allowed.join(", ")
            )));
        };
        let tensor = port
            .tensor
            .as_ref()
            .map_err(|why| BackendError(format!("unable to load model '{model}': {why}")))?;
        if tensor.datatype != spec.datatype {
            return Err(BackendError(format!(
                "unable to load model '{model}', configuration expects datatype {} for {side} \
                 '{}', model provides {}",
                spec.datatype.config_name(),
                spec.name,
                tensor.datatype.config_name()
            )));
        }
        Ok(tensor)
    }

    fn check_joined(&self, spec: &TensorSpec, tensor: &PortTensor) -> Result<(), BackendError> {
        match &tensor.extents {
            Some(extents) if extents.len() != 1 => Err(BackendError(format!(
                "unable to load model '{}', configuration expects model provides input with shape \
                 [-1] for ragged input '{}', model provides {}",
                self.signature.model,
                spec.name,
                tensor.shape()
            ))),
            _ => Ok(()),
        }
    }

    fn check_shape(&self, spec: &TensorSpec, tensor: &PortTensor) -> Result<(), BackendError> {
        let model = &self.signature.model;
        let given = spec.reshape.as_ref().unwrap_or(&spec.dims);
        if tensor.extents.is_none() {
            return Ok(());
        }
        if is_scalar(tensor) {
            return match given.iter().all(|&dim| dim == 1) {
                true => Ok(()),
                false => Err(BackendError(format!(
                    "unable to load model '{model}', scalar tensor '{}', should only provide 1 in \
                     the model configuration when the model doesn't support batching. Model \
                     configuration provided: {given}.",
                    spec.name
                ))),
            };
        }
        let expected = tensor.shape();
        let fail = |detail: String| {
            Err(BackendError(format!("model '{model}', tensor '{}': {detail}", spec.name)))
        };
        let batches = self.signature.max_batch_size > 0;
        if batches && expected.first() != Some(&-1) {
            return fail(format!(
                "for the model to support batching the shape should have at least 1 dimension and \
                 the first dimension must be -1; but shape expected by the model is {expected}"
            ));
        }
        let full = if batches { given.with_batch(-1) } else { given.clone() };
        let note = match batches {
            true => format!(
                " (an initial batch dimension because max_batch_size > 0 followed by the explicit \
                 tensor shape, making complete shape {full})"
            ),
            false => format!(" (shape {full})"),
        };
        if expected.len() != full.len() {
            return fail(format!(
                "the model expects {} dimensions (shape {expected}) but the model configuration \
                 specifies {} dimensions{note}",
                expected.len(),
                full.len()
            ));
        }
        let agree = |(&a, &b): (&i64, &i64)| a == -1 || b == -1 || a == b;
        if !expected.iter().zip(full.iter()).all(agree) {
            return fail(format!(
                "the model expects {} dimensions (shape {expected}) but the model configuration \
                 specifies {} dimensions{note}",
                expected.len(),
                full.len()
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str, datatype: DataType, extents: &[Extent]) -> Port {
        let tensor = PortTensor { datatype, extents: Some(extents.to_vec()) };
        Port { name: name.to_owned(), tensor: Ok(tensor) }
    }

    fn named(name: &str) -> Extent {
        Extent::Named(name.to_owned())
    }

    fn signature(max_batch_size: u32, input: TensorSpec, output: TensorSpec) -> Signature {
        Signature { model: "m".into(), max_batch_size, inputs: vec![input], outputs: vec![output] }
    }

    fn spec(name: &str, dims: &[i64]) -> TensorSpec {
        TensorSpec::new(name, DataType::Fp32, dims.into())
    }

    #[test]
    fn sizes_come_from_the_file_the_rows_and_equal_names() {
        let input = [port("x", DataType::Fp32, &[named("n"), Extent::Fixed(3), named("h")])];
        type Case<'a> = (&'a [Extent], u32, Option<&'a [i64]>);
        let cases: [Case<'_>; 5] = [
            (&[Extent::Fixed(7)], 0, Some(&[7])),
            (&[named("h"), named("n")], 0, Some(&[9, 4])),
            (&[Extent::Any, named("h")], 8, Some(&[4, 9])),
            (&[Extent::Any, named("h")], 0, None),
            (&[named("n"), named("other")], 8, None),
        ];
        for (extents, max_batch_size, expected) in cases {
            let dims = vec![-1; extents.len() - usize::from(max_batch_size > 0)];
            let input_dims: &[i64] = if max_batch_size > 0 { &[3, -1] } else { &[-1, 3, -1] };
            let signature = signature(max_batch_size, spec("x", input_dims), spec("y", &dims));
            let output = [port("y", DataType::Fp32, extents)];
            let plan = Plan::new(&signature, &Ragged::default(), &input, &output, true).unwrap();
            let given = BatchTensor { shape: [4, 3, 9].into(), data: Default::default() };
            let shape = plan.outputs[0].shape(4, &[Some(given)]);
            assert_eq!(shape, expected.map(Shape::from), "{extents:?}");
        }
    }

    #[test]
    fn a_configuration_that_disagrees_with_the_file_is_refused() {
        let batch = [named("n"), Extent::Fixed(3)];
        let cases: [(TensorSpec, u32, &[Extent], &str); 7] = [
            (spec("z", &[3]), 4, &batch, "unexpected inference input 'z', allowed inputs are: x"),
            (
                TensorSpec::new("x", DataType::Int32, [3].into()),
                4,
                &batch,
                "configuration expects datatype TYPE_INT32 for input 'x', model provides TYPE_FP32",
            ),
            (spec("x", &[3, 3]), 4, &batch, "the model expects 2 dimensions (shape [-1,3])"),
            (spec("x", &[4]), 4, &batch, "making complete shape [-1,4]"),
            (spec("x", &[4]), 0, &[Extent::Fixed(5)], "specifies 1 dimensions (shape [4])"),
            (
                spec("x", &[3]),
                4,
                &[Extent::Fixed(1), Extent::Fixed(3)],
                "first dimension must be -1",
            ),
            (spec("x", &[2]), 0, &[], "scalar tensor 'x'"),
        ];
        for (input, max_batch_size, extents, expected) in cases {
            let dims: &[i64] = if max_batch_size > 0 { &[] } else { &[-1] };
            let signature = signature(max_batch_size, input, spec("y", dims));
            let inputs = [port("x", DataType::Fp32, extents)];
            let outputs = [port("y", DataType::Fp32, &[Extent::Any])];
            let error =
                Plan::new(&signature, &Ragged::default(), &inputs, &outputs, true).err().unwrap().0;
            assert!(error.contains(expected) && error.contains("'m'"), "{error}");
        }
    }

    #[test]
    fn an_input_that_the_configuration_lacks_is_refused_unless_others_give_it() {
        let signature = signature(0, spec("x", &[1]), spec("y", &[1]));
        let extents = [Extent::Fixed(1)];
        let inputs = [port("x", DataType::Fp32, &extents), port("start", DataType::Fp32, &extents)];
        let outputs = [port("y", DataType::Fp32, &extents)];
        assert!(Plan::new(&signature, &Ragged::default(), &inputs, &outputs, false).is_ok());
        let error =
            Plan::new(&signature, &Ragged::default(), &inputs, &outputs, true).err().unwrap().0;
        assert!(error.contains("expects 1 inputs, model provides 2"), "{error}");
    }
}
