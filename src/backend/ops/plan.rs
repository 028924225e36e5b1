//! What a chain does, understood: steps with known types and shapes, in which neighbouring steps on
//! pictures have become one.

use std::collections::BTreeMap;

use super::{
    chain::Step,
    decode::Limit,
    joined::Joined,
    operation,
    picture::{Geometry, Look},
};
use crate::{
    device::kernels::nms,
    inference::{DataType, Shape},
};

/// A tensor's place among those of a chain.
pub(super) type Slot = usize;

/// A tensor of a chain: its type and its dimensions without the batch's, -1 where they vary.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Form {
    pub datatype: DataType,
    pub dims: Shape,
}

/// A chain that can run.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub stages: Vec<Stage>,
    pub forms: Vec<Form>,
    /// The tensors with names, with the input's first.
    pub names: BTreeMap<String, Slot>,
    /// The names of what no step takes, in the order in which they are made.
    pub results: Vec<String>,
}

/// Something to do.
#[derive(Clone, Debug)]
pub(super) struct Stage {
    pub inputs: Vec<Slot>,
    pub outputs: Vec<Slot>,
    pub work: Work,
    /// The step or steps, for messages.
    pub label: String,
}

/// What a stage does.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Work {
    Image { encoded: Option<Limit>, geometry: Geometry, look: Look, datatype: DataType },
    Cast { to: DataType, scale: f32, zero_point: f32 },
    Pad { to: PadTo, value: f64, truncate: bool },
    Unpad,
    Gather,
    Softmax,
    LogSoftmax,
    TopK { k: usize },
    Argmax,
    Nms { rule: nms::Rule, candidates: usize },
}

impl Work {
    /// Whether what it takes is files.
    pub fn decodes(&self) -> bool {
        matches!(self, Self::Image { encoded: Some(_), .. })
    }
}

/// The length that sequences are brought to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PadTo {
    Length(usize),
    /// The next multiple of a number.
    Multiple(usize),
}

/// Builds a [`Plan`] step by step.
struct Builder {
    plan: Plan,
    open: Option<Joined>,
    /// What the step before gave, if it was given no name.
    last: Option<Slot>,
    taken: Vec<bool>,
}

impl Plan {
    /// Understands the steps of a chain that takes `inputs`. What the last step gives is called
    /// `result` where the step gives it no name.
    ///
    /// # Errors
    /// Names the step, what was expected and what came.
    pub fn new(steps: &[Step], inputs: &[(String, Form)], result: &str) -> Result<Self, String> {
        let mut builder = Builder::new(inputs);
        for (index, step) in steps.iter().enumerate() {
            let is_last = index + 1 == steps.len();
            let mut step = step.clone();
            if is_last && step.outputs.is_empty() {
                step.outputs = vec![result.to_owned()];
            }
            builder.add(&step).map_err(|fault| format!("{}: {fault}", step.label))?;
        }
        builder.close()?;
        let Builder { mut plan, taken, .. } = builder;
        let mut results: Vec<(Slot, String)> = plan
            .names
            .iter()
            .filter(|&(_, &slot)| {
                slot >= inputs.len() && !taken.get(slot).is_some_and(|&taken| taken)
            })
            .map(|(name, &slot)| (slot, name.clone()))
            .collect();
        results.sort();
        plan.results = results.into_iter().map(|(_, name)| name).collect();
        Ok(plan)
    }
}

impl Builder {
    fn new(inputs: &[(String, Form)]) -> Self {
        let names =
            inputs.iter().enumerate().map(|(slot, (name, _))| (name.clone(), slot)).collect();
        let forms: Vec<Form> = inputs.iter().map(|(_, form)| form.clone()).collect();
        Self {
            taken: vec![false; forms.len()],
            last: (forms.len() == 1).then_some(0),
            plan: Plan { stages: Vec::new(), forms, names, results: Vec::new() },
            open: None,
        }
    }

    fn add(&mut self, step: &Step) -> Result<(), String> {
        let joins = step.inputs.is_empty() && self.open.as_ref().is_some_and(|open| !open.is_cast);
        if joins && self.join(step)? {
            return self.name_open(step);
        }
        self.close()?;
        let inputs = self.inputs(step)?;
        if let Some(open) = Joined::begin(step, &inputs, &self.plan.forms)? {
            self.open = Some(open);
            self.join(step)?;
            return self.name_open(step);
        }
        self.whole(step, inputs)
    }

    /// The tensors that a step takes.
    fn inputs(&mut self, step: &Step) -> Result<Vec<Slot>, String> {
        let slots = if step.inputs.is_empty() {
            let last = self.last.ok_or(
                "its 'input' must be named: the step before gives several tensors or named ones, or \
                 the model has several inputs",
            )?;
            vec![last]
        } else {
            let find = |name: &String| {
                self.plan.names.get(name).copied().ok_or_else(|| {
                    let known: Vec<_> = self.plan.names.keys().map(String::as_str).collect();
                    format!(
                        "no tensor '{name}' is there by then; there are '{}'",
                        known.join("', '")
                    )
                })
            };
            step.inputs.iter().map(find).collect::<Result<_, _>>()?
        };
        for &slot in &slots {
            self.taken[slot] = true;
        }
        Ok(slots)
    }

    /// Lets a step join the open image step; `false` when it is of another kind.
    fn join(&mut self, step: &Step) -> Result<bool, String> {
        let Some(open) = &mut self.open else { return Ok(false) };
        open.join(step)
    }

    /// A tensor that has a name is made, so what is open ends there.
    fn name_open(&mut self, step: &Step) -> Result<(), String> {
        if step.outputs.is_empty() {
            return Ok(());
        }
        self.close()?;
        let slot = self.last.take().ok_or("nothing was made")?;
        self.name(step, &[slot])
    }

    /// Ends the open image step, if there is one.
    fn close(&mut self) -> Result<(), String> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let form = open.form();
        let slot = self.slot(form);
        self.plan.stages.push(Stage {
            inputs: vec![open.input],
            outputs: vec![slot],
            work: Work::Image {
                encoded: open.encoded,
                geometry: open.geometry,
                look: open.look,
                datatype: open.datatype,
            },
            label: open.label,
        });
        self.last = Some(slot);
        Ok(())
    }

    /// A step by itself.
    fn whole(&mut self, step: &Step, inputs: Vec<Slot>) -> Result<(), String> {
        let forms: Vec<&Form> = inputs.iter().map(|&slot| &self.plan.forms[slot]).collect();
        let (work, made) = operation::understand(&step.operation, &forms, step.outputs.len())?;
        let outputs: Vec<Slot> = made.into_iter().map(|form| self.slot(form)).collect();
        self.last = match *outputs {
            [only] => Some(only),
            _ => None,
        };
        let label = step.label.clone();
        self.plan.stages.push(Stage { inputs, outputs: outputs.clone(), work, label });
        if step.outputs.is_empty() { Ok(()) } else { self.name(step, &outputs) }
    }

    fn slot(&mut self, form: Form) -> Slot {
        self.plan.forms.push(form);
        self.taken.push(false);
        self.plan.forms.len() - 1
    }

    fn name(&mut self, step: &Step, slots: &[Slot]) -> Result<(), String> {
        if step.outputs.len() > slots.len() {
            return Err(format!(
                "gives {} tensors, got names for {}",
                slots.len(),
                step.outputs.len()
            ));
        }
        for (name, &slot) in step.outputs.iter().zip(slots) {
            if self.plan.names.insert(name.clone(), slot).is_some() {
                return Err(format!("there is a tensor '{name}' already"));
            }
        }
        self.last = slots.first().copied();
        Ok(())
    }
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.datatype, self.dims)
    }
}
