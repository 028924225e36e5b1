//! A request's way through the steps that need not wait for anything: a loop over tables that were made
//! when the ensemble was loaded.

use std::{sync::Arc, time::Duration};

use compact_str::CompactString;
use smallvec::SmallVec;

use super::{
    EnsembleSteps, Step, answer,
    tensor::{Tensor, fitted},
};
use crate::{
    inference::{
        Admitted, AdmittedInput, DataType, Error, InferOutput, InferResponse, Sequence, Timestamp,
    },
    memory::OutputPlaces,
    observe::BatchTimes,
    runtime::current,
    scheduler::{EnsemblePlan, TensorIndex},
    serving::{
        execution::RanAlone,
        job::{Reply, ResidentTensors, kind},
        shard::AtOnce,
        version::LoadedVersion,
    },
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

/// What the loop has to know of a request that is neither traced nor made by a model, of which nobody wants
/// classes, and whose tensors lie on the host.
pub struct Asked<'a> {
    /// The ensemble.
    pub version: &'a LoadedVersion,
    /// What is left of it without its inputs.
    pub admitted: &'a Admitted,
    /// Its name.
    pub id: &'a CompactString,
    /// What it says of a sequence.
    pub sequence: Option<&'a Sequence>,
    /// Where its client wants the outputs, if it has said so.
    pub places: Option<&'a Arc<OutputPlaces>>,
    /// Until when its client waits.
    pub deadline: Option<Timestamp>,
}

/// How far a request has come, of which no step has had to wait. It is large, and best made where it stays.
#[derive(Default)]
pub struct Way {
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
    /// Begins with a request to `version`, whose inputs it takes; of them, `resident` tells which lie on a
    /// device.
    pub fn begin(
        &mut self,
        steps: &EnsembleSteps,
        version: &LoadedVersion,
        admitted: &mut Admitted,
        resident: Option<&ResidentTensors>,
    ) {
        let signature = &version.signature;
        let batched = signature.max_batch_size > 0;
        self.values.resize_with(steps.plan.tensors(), || None);
        let inputs = admitted.inputs.iter_mut().zip(&signature.inputs).zip(&steps.plan.inputs);
        for (number, ((input, spec), &tensor)) in (0..).zip(inputs) {
            if let (Some(input), Some(value)) = (input.take(), self.values.get_mut(tensor)) {
                let AdmittedInput { shape, data } = input;
                let resides = resident.and_then(|it| it.input(number)).cloned();
                let (datatype, resides) = (spec.datatype, resides.map(Box::new));
                *value = Some(Tensor { datatype, shape, data, batched, resides });
            }
        }
    }

    /// Takes the request, which has come now, at `arrived`, as far as no step has to wait: its answer, which is
    /// counted, if none has to.
    pub fn go(
        &mut self,
        steps: &EnsembleSteps,
        asked: &Asked<'_>,
        arrived: Timestamp,
    ) -> Option<Reply> {
        let answer = self.run_all(steps, asked, arrived).transpose()?;
        let (statistics, reactor) = (&asked.version.statistics, current().index());
        match &answer {
            Ok(_) => {
                let now = self.clock.unwrap_or(arrived);
                let (total, counts) = (now - arrived, (asked.admitted.batch_size, 0));
                statistics.executed(reactor, counts, 1, self.times, now);
                statistics.succeeded(reactor, total, Duration::ZERO, total);
            }
            Err(error) => statistics.failed(reactor, kind(error), Timestamp::now() - arrived),
        }
        Some(answer)
    }

    /// All outputs have to be wanted.
    fn run_all(
        &mut self,
        steps: &EnsembleSteps,
        asked: &Asked<'_>,
        arrived: Timestamp,
    ) -> Result<Option<InferResponse>, Error> {
        let Asked { version, admitted, .. } = *asked;
        let Straight { order, tables } = &steps.straight;
        if order.is_empty() || admitted.outputs.len() != steps.plan.outputs.len() {
            return Ok(None);
        }
        let places = steps.lent(version, &admitted.outputs, asked.places);
        for (&index, table) in order.iter().zip(tables) {
            let Some(step) = steps.steps.get(index) else { return Ok(None) };
            let began = self.clock.unwrap_or(arrived);
            if asked.deadline.is_some_and(|deadline| deadline <= began) {
                return Ok(None);
            }
            let Some(at_once) = step.version.at_once() else { return Ok(None) };
            let places = places.as_ref().filter(|_| steps.is_last(index));
            let ran = self.run(step, table, at_once, places, began, asked.id);
            ran.map_err(|error| answer::of_this_ensemble(version, error))?;
            self.done += 1;
        }
        let values = &mut self.values;
        let given = steps.plan.outputs.iter().map(|output| values.get_mut((*output)?)?.take());
        let outputs = answer::outputs(version, &admitted.outputs, given, None);
        Ok(Some(answer::response(version, asked.id.clone(), asked.sequence, outputs)))
    }

    fn run(
        &mut self,
        step: &Step,
        table: &Table,
        at_once: AtOnce<'_>,
        places: Option<&Arc<OutputPlaces>>,
        began: Timestamp,
        id: &CompactString,
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
        let admitted = admitted.map_err(|error| error.in_request(id))?;
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
