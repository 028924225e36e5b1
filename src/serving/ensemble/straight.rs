//! A request's way through the steps that need not wait for anything: a loop over tables that were made
//! when the ensemble was loaded.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{
    EnsembleSteps, Step, answer,
    tensor::{Tensor, fitted},
};
use crate::{
    inference::{AdmittedInput, DataType, Error, InferOutput, InferResponse, Timestamp},
    memory::OutputPlaces,
    observe::BatchTimes,
    scheduler::{EnsemblePlan, TensorIndex},
    serving::{execution::RanAlone, job::Job, shard::AtOnce, version::LoadedVersion},
};

/// The steps of an ensemble one after the other, by places in a table of tensors.
pub(super) struct Straight {
    /// In the order in which they can run; none where a step may run several times.
    order: Vec<usize>,
    /// By place in the order.
    tables: Vec<Table>,
}

/// Where a step's tensors come from and go to.
struct Table {
    /// By input of its version; `None` for one that the ensemble never gives.
    takes: Vec<Option<Take>>,
    /// By output that is wanted of its version.
    gives: Vec<TensorIndex>,
}

#[derive(Clone, Copy)]
struct Take {
    tensor: TensorIndex,
    /// Whether nobody takes the tensor after this.
    is_last: bool,
}

impl Straight {
    pub fn new(plan: &EnsemblePlan, steps: &[Step]) -> Self {
        let order = plan.order().unwrap_or_default();
        // From the end, so that what has been seen is what comes after.
        let mut later: Vec<TensorIndex> = plan.outputs.iter().copied().flatten().collect();
        let tables = order.iter().rev().filter_map(|&index| {
            let (step, planned) = (steps.get(index)?, plan.steps.get(index)?);
            let signature = &step.version.signature;
            let mut takes = vec![None; signature.inputs.len()];
            for (place, take) in takes.iter_mut().enumerate().rev() {
                let at = step.inputs.iter().position(|input| *input == place);
                let Some(input) = at.and_then(|at| planned.inputs.get(at)) else { continue };
                let (tensor, is_last) = (input.tensor, !later.contains(&input.tensor));
                later.push(tensor);
                *take = Some(Take { tensor, is_last });
            }
            let gives = step.wanted.iter().filter_map(|&output| {
                let name = &signature.outputs.get(usize::from(output))?.name;
                let given = planned.outputs.iter().find(|(output, _)| output == name);
                Some(given?.1)
            });
            Some(Table { takes, gives: gives.collect() })
        });
        let mut tables: Vec<Table> = tables.collect();
        tables.reverse();
        Self { order, tables }
    }

    /// The first `count` steps.
    pub fn first(&self, count: usize) -> &[usize] {
        self.order.get(..count).unwrap_or_default()
    }
}

/// How far a request has come, of which no step has had to wait.
pub(super) struct Way {
    /// By place in the plan, the tensors that are still taken by somebody.
    pub values: SmallVec<[Option<Tensor>; 4]>,
    /// How many steps have run, of those in their order.
    pub done: usize,
    /// What they took.
    pub times: BatchTimes,
    /// When the last of them ended.
    pub clock: Option<Timestamp>,
}

impl Way {
    /// Of a request whose inputs are taken out of it.
    pub fn new(steps: &EnsembleSteps, job: &mut Job) -> Self {
        let signature = &job.version.signature;
        let batched = signature.max_batch_size > 0;
        let mut values = SmallVec::new();
        values.resize_with(steps.plan.tensors(), || None);
        let inputs = job.admitted.inputs.iter_mut().zip(&signature.inputs).zip(&steps.plan.inputs);
        for (number, ((input, spec), &tensor)) in (0..).zip(inputs) {
            if let (Some(input), Some(value)) = (input.take(), values.get_mut(tensor)) {
                let AdmittedInput { shape, data } = input;
                let resides = job.resident.as_ref().and_then(|it| it.input(number)).cloned();
                let (datatype, resides) = (spec.datatype, resides.map(Box::new));
                *value = Some(Tensor { datatype, shape, data, batched, resides });
            }
        }
        Self { values, done: 0, times: BatchTimes::default(), clock: None }
    }

    /// Goes on until a step has to wait; the answer, if none has. All outputs have to be wanted, and the
    /// tensors on the host.
    pub fn go(
        &mut self,
        steps: &EnsembleSteps,
        job: &mut Job,
    ) -> Result<Option<InferResponse>, Error> {
        let Straight { order, tables } = &steps.straight;
        let are_all_wanted = job.admitted.outputs.len() == steps.plan.outputs.len();
        if order.is_empty() || !are_all_wanted || job.resident.is_some() {
            return Ok(None);
        }
        let places = steps.lent(job);
        for (&index, table) in order.iter().zip(tables) {
            let Some(step) = steps.steps.get(index) else { return Ok(None) };
            let began = self.clock.unwrap_or_else(Timestamp::now);
            let Some(at_once) = step_at_once(job, &step.version, began) else { return Ok(None) };
            let places = places.as_ref().filter(|_| steps.is_last(index));
            let ran = self.run(step, table, at_once, places, began, job);
            ran.map_err(|error| answer::of_this_ensemble(job, error))?;
            self.done += 1;
        }
        let values = &mut self.values;
        let given = steps.plan.outputs.iter().map(|output| values.get_mut((*output)?)?.take());
        answer::response(job, given).map(Some)
    }

    fn run(
        &mut self,
        step: &Step,
        table: &Table,
        at_once: AtOnce<'_>,
        places: Option<&Arc<OutputPlaces>>,
        began: Timestamp,
        job: &Job,
    ) -> Result<(), Error> {
        let signature = &step.version.signature;
        let batched = signature.max_batch_size > 0;
        let mut inputs = SmallVec::new();
        let mut datatypes: SmallVec<[DataType; 4]> = SmallVec::new();
        for (spec, take) in signature.inputs.iter().zip(&table.takes) {
            let tensor = take.and_then(|Take { tensor, is_last }| {
                let value = self.values.get_mut(tensor)?;
                if is_last { value.take() } else { value.clone() }
            });
            datatypes.push(tensor.as_ref().map_or(spec.datatype, |tensor| tensor.datatype));
            inputs.push(tensor.map(|Tensor { shape, data, batched: was_batched, .. }| {
                let shape = fitted(shape, was_batched, &spec.dims, batched);
                AdmittedInput { shape, data }
            }));
        }
        let wanted = SmallVec::from_slice(&step.wanted);
        let admitted = signature.admit_in_order(inputs, &datatypes, wanted);
        let admitted = admitted.map_err(|error| error.in_request(&job.id))?;
        let RanAlone { outcome, times } =
            at_once.run_alone(&step.version, &admitted, places, began);
        self.times = self.times + times;
        self.clock = Some(began + times.total());
        for (&tensor, output) in table.gives.iter().zip(outcome?) {
            let InferOutput { datatype, shape, data, .. } = output;
            if let Some(value) = self.values.get_mut(tensor) {
                *value =
                    Some(Tensor { datatype, shape, data: data.into(), batched, resides: None });
            }
        }
        Ok(())
    }
}

/// What runs a request to a step at once, beginning at `began`, unless somebody has to hear of more than its
/// answer.
pub(super) fn step_at_once<'a>(
    job: &Job,
    version: &'a LoadedVersion,
    began: Timestamp,
) -> Option<AtOnce<'a>> {
    let Job { trace: None, callers: None, deadline, .. } = job else { return None };
    deadline.is_none_or(|deadline| began < deadline).then(|| version.at_once())?
}
