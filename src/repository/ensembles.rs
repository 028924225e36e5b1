//! What is wrong with an ensemble can be said only with the models of its steps at hand.

use std::collections::BTreeMap;

use super::scheduling::{Ensemble, EnsembleStep};
use crate::inference::{DataType, Shape, Signature, TensorSpec};

/// What an ensemble needs to know of the model of a step.
#[derive(Clone, Copy, Debug)]
pub struct Composing<'a> {
    /// Its tensors.
    pub signature: &'a Signature,
    /// Whether it has the version that the step wants.
    pub has_version: bool,
}

/// A tensor of an ensemble, as one model has it.
struct Seen {
    datatype: DataType,
    dims: Shape,
    batched: bool,
    model: String,
}

impl Seen {
    fn new(spec: &TensorSpec, signature: &Signature) -> Self {
        Self {
            datatype: spec.datatype,
            dims: spec.dims.clone(),
            batched: signature.max_batch_size > 0,
            model: signature.model.to_string(),
        }
    }

    /// The dimensions as clients see them.
    fn full_dims(&self) -> Shape {
        if self.batched { self.dims.with_batch(-1) } else { self.dims.clone() }
    }

    /// Whether a tensor can be of both shapes. One that goes through models with and without a batch
    /// dimension may be the same with it or without it.
    fn agrees_with(&self, other: &Self) -> bool {
        agree(&self.dims, &other.dims) || agree(&self.full_dims(), &other.full_dims())
    }
}

fn agree(one: &Shape, other: &Shape) -> bool {
    one.len() == other.len()
        && one.iter().zip(other.iter()).all(|(a, b)| a == b || *a < 0 || *b < 0)
}

/// What is wrong with the ensemble whose tensors are `signature`'s, given the models of its steps, one for
/// each step. The texts are Triton's.
pub fn ensemble_faults(
    signature: &Signature,
    ensemble: &Ensemble,
    models: &[Composing<'_>],
) -> Vec<String> {
    let name = &signature.model;
    let mut faults = Vec::new();
    let mut tensors: BTreeMap<String, Seen> = BTreeMap::new();
    for spec in signature.inputs.iter().chain(&signature.outputs) {
        tensors.entry(spec.name.to_string()).or_insert_with(|| Seen::new(spec, signature));
    }
    for (step, model) in ensemble.steps.iter().zip(models) {
        if let Some(version) = step.version.filter(|_| !model.has_version) {
            faults.push(format!(
                "ensemble '{name}' depends on '{}' whose required version {version} is not loaded.",
                step.model
            ));
        }
        let (limit, rows) = (model.signature.max_batch_size, signature.max_batch_size);
        if limit > 0 && limit < rows {
            faults.push(format!(
                "ensemble {name} allows maximum batch size {rows}, but it contains model {} which \
                 only allows maximum batch size to be {limit}",
                step.model
            ));
        }
        check_step(name, step, model.signature, &mut tensors, &mut faults);
    }
    faults
}

fn check_step(
    name: &str,
    step: &EnsembleStep,
    signature: &Signature,
    tensors: &mut BTreeMap<String, Seen>,
    faults: &mut Vec<String>,
) {
    let inputs =
        step.inputs.iter().map(|names| ("mapping to non-existing input", names, &signature.inputs));
    let outputs = step
        .outputs
        .iter()
        .map(|names| ("mapped from non-existing output", names, &signature.outputs));
    for (direction, (own, tensor), specs) in inputs.chain(outputs) {
        let Some(spec) = specs.iter().find(|spec| *spec.name == **own) else {
            faults.push(format!(
                "in ensemble {name}, ensemble tensor {tensor} is {direction} {own} in model {}",
                step.model
            ));
            continue;
        };
        let here = Seen::new(spec, signature);
        let Some(known) = tensors.get(tensor) else {
            tensors.insert(tensor.clone(), here);
            continue;
        };
        if known.datatype != here.datatype {
            faults.push(format!(
                "in ensemble {name}, ensemble tensor {tensor}: inconsistent data type: {} is inferred \
                 from model {} while {} is inferred from model {}",
                known.datatype.config_name(),
                known.model,
                here.datatype.config_name(),
                here.model
            ));
        } else if !known.agrees_with(&here) {
            faults.push(format!(
                "in ensemble {name}, ensemble tensor {tensor}: inconsistent shape: {} is inferred from \
                 model {} while {} is inferred from model {}",
                known.full_dims(),
                known.model,
                here.full_dims(),
                here.model
            ));
        }
    }
    for input in signature.inputs.iter().filter(|input| !input.optional) {
        if !step.inputs.contains_key(&*input.name) {
            faults.push(format!(
                "in ensemble {name}, input {} in model {} is not mapped to any ensemble tensors",
                input.name, step.model
            ));
        }
    }
}

/// The last model on a way through steps that leads from `name` back to it. `steps` gives the steps of a
/// model that is an ensemble.
pub fn returns_to(
    name: &str,
    ensemble: &Ensemble,
    mut steps: impl FnMut(&EnsembleStep) -> Option<Ensemble>,
) -> Option<String> {
    let mut seen = Vec::new();
    let mut waiting = vec![(name.to_owned(), ensemble.clone())];
    while let Some((from, ensemble)) = waiting.pop() {
        for step in &ensemble.steps {
            if step.model == name {
                return Some(from);
            }
            if !seen.contains(&step.model) {
                seen.push(step.model.clone());
                waiting.extend(steps(step).map(|inner| (step.model.clone(), inner)));
            }
        }
    }
    None
}
