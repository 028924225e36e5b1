use std::{collections::BTreeMap, sync::Arc};

use crate::{
    inference::Signature,
    repository::{Ensemble, EnsembleStep},
};

/// A tensor of an ensemble: its place among all.
pub type TensorIndex = usize;

/// The steps of an ensemble and the tensors between them, by their places in lists.
#[derive(Clone, Debug, Default)]
pub struct EnsemblePlan {
    /// In the order of the configuration.
    pub steps: Vec<PlanStep>,
    /// Which tensor each input of the ensemble is.
    pub inputs: Vec<TensorIndex>,
    /// Which tensor each output of the ensemble is; `None` for one that no step gives.
    pub outputs: Vec<Option<TensorIndex>>,
    pub(super) tensors: Vec<PlanTensor>,
    /// The most calls of one step that may be open at a time.
    pub(super) calls_max: usize,
    /// What it takes to give all outputs.
    pub(super) need: Need,
}

/// What it takes to give outputs that are wanted.
#[derive(Clone, Debug, Default)]
pub(super) struct Need {
    /// Of each step, whether anything that is wanted comes of it.
    pub steps: Vec<bool>,
    /// How often each value of a tensor is taken; `None` for any number of times.
    pub takers: Vec<Option<usize>>,
    /// Whether responses come any number of times.
    pub repeats: bool,
}

/// The step after all others: what it answers, nobody reads but the client.
pub struct LastStep {
    /// Its place among the steps.
    pub index: usize,
    /// Of its outputs, the names and which of the ensemble's outputs each is.
    pub outputs: Vec<(Arc<str>, usize)>,
}

/// Who takes a tensor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Takers {
    /// Steps, each with which of its inputs.
    pub inputs: Vec<(usize, usize)>,
    /// Which of the ensemble's outputs it is, if it is one.
    pub output: Option<usize>,
}

/// A step.
#[derive(Clone, Debug)]
pub struct PlanStep {
    /// What it takes.
    pub inputs: Vec<StepInput>,
    /// What it gives: the model's name for it, and which tensor it is.
    pub outputs: Vec<(Arc<str>, TensorIndex)>,
    /// Whether a call gives any number of responses.
    pub(super) decoupled: bool,
    /// Whether it runs again for each response of a decoupled step before it.
    pub(super) repeated: bool,
}

/// An input of a step.
#[derive(Clone, Debug)]
pub struct StepInput {
    /// The model's name for it.
    pub name: Arc<str>,
    /// Which tensor it is.
    pub tensor: TensorIndex,
}

#[derive(Clone, Debug, Default)]
pub(super) struct PlanTensor {
    /// The step that gives it; `None` for an input of the ensemble.
    pub from: Option<usize>,
    /// The steps that take it.
    pub to: Vec<usize>,
    /// Whether there is one for each response of a decoupled step.
    pub repeated: bool,
}

impl EnsemblePlan {
    /// For an ensemble that takes and gives what `signature` says. `decoupled` tells of each step whether
    /// its model gives any number of responses. The configuration has been validated: no tensor has two
    /// sources, and there is no circle.
    pub fn new(ensemble: &Ensemble, signature: &Signature, decoupled: &[bool]) -> Self {
        let mut names = BTreeMap::new();
        let mut tensors: Vec<PlanTensor> = Vec::new();
        let mut tensor = |name: &str| -> TensorIndex {
            *names.entry(name.to_owned()).or_insert_with(|| {
                tensors.push(PlanTensor::default());
                tensors.len() - 1
            })
        };
        let inputs: Vec<_> = signature.inputs.iter().map(|input| tensor(&input.name)).collect();
        let outputs: Vec<_> = signature.outputs.iter().map(|output| tensor(&output.name)).collect();
        let steps = ensemble.steps.iter().zip(decoupled);
        let steps: Vec<PlanStep> =
            steps.map(|(step, &decoupled)| plan_step(step, decoupled, &mut tensor)).collect();
        for (index, step) in steps.iter().enumerate() {
            for (_, tensor) in &step.outputs {
                if let Some(tensor) = tensors.get_mut(*tensor) {
                    tensor.from = Some(index);
                }
            }
            for input in &step.inputs {
                if let Some(tensor) = tensors.get_mut(input.tensor)
                    && !tensor.to.contains(&index)
                {
                    tensor.to.push(index);
                }
            }
        }
        let is_given = |tensor: TensorIndex| {
            inputs.contains(&tensor) || tensors.get(tensor).is_some_and(|it| it.from.is_some())
        };
        let outputs = outputs.into_iter().map(|it| is_given(it).then_some(it)).collect();
        let calls_max = ensemble.max_inflight.map_or(usize::MAX, |max| max as usize);
        let need = Need::default();
        let mut plan = Self { steps, inputs, outputs, tensors, calls_max, need };
        plan.mark_repeated();
        plan.need = Need::of(&plan, &plan.outputs, &[]);
        plan
    }

    /// How many tensors there are.
    pub fn tensors(&self) -> usize {
        self.tensors.len()
    }

    /// The steps one after the other, each behind those that it waits for, until all outputs are there;
    /// `None` where a step may run several times, or an output never comes.
    pub fn order(&self) -> Option<Vec<usize>> {
        let is_once = self.steps.iter().all(|step| !step.decoupled);
        if !is_once || self.outputs.contains(&None) {
            return None;
        }
        let mut order = Vec::new();
        let needed = |index: &usize| self.need.steps.get(*index) == Some(&true);
        let mut left: Vec<usize> = (0..self.steps.len()).filter(needed).collect();
        while !left.is_empty() {
            let waits = |index: &usize| {
                let inputs = self.steps[*index].inputs.iter();
                let mut sources = inputs.filter_map(|input| self.tensors[input.tensor].from);
                sources.any(|from| left.contains(&from))
            };
            // There is no circle.
            let next = left.iter().position(|index| !waits(index))?;
            order.push(left.remove(next));
        }
        Some(order)
    }

    /// The names that step `index` has for its outputs that are used.
    pub fn output_names(&self, index: usize) -> impl Iterator<Item = &Arc<str>> {
        self.steps.get(index).into_iter().flat_map(|step| step.outputs.iter().map(|(name, _)| name))
    }

    /// Who takes the output `name` of step `index`.
    pub fn takers(&self, index: usize, name: &str) -> Takers {
        let outputs = self.steps.get(index).map_or(&[][..], |step| &step.outputs);
        let tensor = outputs.iter().find(|(output, _)| **output == *name);
        tensor.map(|(_, tensor)| self.takers_of(*tensor)).unwrap_or_default()
    }

    /// Who takes the ensemble's input `index`.
    pub fn takers_of_input(&self, index: usize) -> Takers {
        self.inputs.get(index).map(|tensor| self.takers_of(*tensor)).unwrap_or_default()
    }

    fn takers_of(&self, tensor: TensorIndex) -> Takers {
        let inputs = self.steps.iter().enumerate().flat_map(|(index, step)| {
            let inputs = step.inputs.iter().enumerate();
            let taken = inputs.filter(move |(_, input)| input.tensor == tensor);
            taken.map(move |(input, _)| (index, input))
        });
        let output = self.outputs.iter().position(|output| *output == Some(tensor));
        Takers { inputs: inputs.collect(), output }
    }

    /// The step that begins when all others have ended, and runs once, if there is one.
    pub fn last_step(&self) -> Option<LastStep> {
        let is_taken = |(_, tensor): &(Arc<str>, TensorIndex)| {
            self.tensors.get(*tensor).is_some_and(|tensor| !tensor.to.is_empty())
        };
        // What all others give is taken, in the end by this one.
        let steps = self.steps.iter().enumerate();
        let mut ends = steps.filter(|(_, step)| !step.outputs.iter().any(is_taken));
        let (index, step) = ends.next()?;
        if ends.next().is_some() || self.steps.iter().any(|step| step.decoupled) {
            return None;
        }
        let answered = step.outputs.iter().filter_map(|(name, tensor)| {
            let output = self.outputs.iter().position(|output| *output == Some(*tensor))?;
            Some((name.clone(), output))
        });
        Some(LastStep { index, outputs: answered.collect() })
    }

    /// What a decoupled step gives is there any number of times, and so is what is made of it.
    fn mark_repeated(&mut self) {
        let Self { steps, tensors, .. } = self;
        let mut changed: Vec<usize> =
            (0..steps.len()).filter(|&index| steps[index].decoupled).collect();
        while let Some(index) = changed.pop() {
            let outputs: Vec<TensorIndex> =
                steps[index].outputs.iter().map(|(_, tensor)| *tensor).collect();
            for tensor in outputs {
                let tensor = &mut tensors[tensor];
                if std::mem::replace(&mut tensor.repeated, true) {
                    continue;
                }
                for &to in &tensor.to {
                    if !std::mem::replace(&mut steps[to].repeated, true) {
                        changed.push(to);
                    }
                }
            }
        }
    }
}

impl Need {
    /// To give `wanted` when the steps `done` have run, by walking back from them: steps of which nothing is
    /// wanted do not run.
    pub fn of(plan: &EnsemblePlan, wanted: &[Option<TensorIndex>], done: &[usize]) -> Self {
        let mut steps = vec![false; plan.steps.len()];
        let mut open: Vec<TensorIndex> = wanted.iter().copied().flatten().collect();
        while let Some(tensor) = open.pop() {
            let from = plan.tensors[tensor].from.filter(|from| !done.contains(from));
            let Some(from) = from else { continue };
            if !std::mem::replace(&mut steps[from], true) {
                open.extend(plan.steps[from].inputs.iter().map(|input| input.tensor));
            }
        }
        let repeats = wanted.iter().flatten().any(|&tensor| plan.tensors[tensor].repeated);
        let takers = plan.tensors.iter().enumerate().map(|(index, tensor)| {
            let takers = tensor.to.iter().filter(|&&to| steps[to]);
            let repeatedly = !tensor.repeated && takers.clone().any(|&to| plan.steps[to].repeated);
            let answers = wanted.iter().flatten().filter(|wanted| **wanted == index).count();
            let is_kept = repeatedly || (answers > 0 && repeats && !tensor.repeated);
            (!is_kept).then(|| takers.count() + answers)
        });
        Self { takers: takers.collect(), steps, repeats }
    }
}

fn plan_step(
    step: &EnsembleStep,
    decoupled: bool,
    tensor: &mut impl FnMut(&str) -> TensorIndex,
) -> PlanStep {
    let inputs = step
        .inputs
        .iter()
        .map(|(name, source)| StepInput { name: name.as_str().into(), tensor: tensor(source) });
    let inputs = inputs.collect();
    let outputs = step.outputs.iter().map(|(name, target)| (name.as_str().into(), tensor(target)));
    PlanStep { inputs, outputs: outputs.collect(), decoupled, repeated: false }
}
