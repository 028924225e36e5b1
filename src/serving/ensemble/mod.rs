//! Ensembles: versions without instances, whose requests go through the versions of other models.
//!
//! [`EnsembleSteps`] is what a loaded ensemble has in place of a queue: its plan, and the versions that
//! its steps run, held as long as the ensemble is served. [`straight`] takes a request through those that
//! need not wait for anything, and [`flow`] through all others, on the reactor where the answer is wanted.
//! It knows neither queues nor instances.

mod answer;
mod flow;
mod straight;
mod tensor;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use smallvec::SmallVec;

use self::straight::Straight;
pub use self::{
    flow::{go_on, start},
    straight::{Asked, Way},
};
use super::{server::Server, version::LoadedVersion};
use crate::{
    inference::{Signature, TensorSpec},
    memory::OutputPlaces,
    observe::BatchTimes,
    repository::{Composing, Ensemble, ModelId, ensemble_faults},
    scheduler::{EnsemblePlan, LastStep, Takers},
};

/// How many ensembles may lie in each other. A request goes through all of them on one stack.
const NESTED_MAX: usize = 32;

/// What an ensemble runs.
pub struct EnsembleSteps {
    plan: Arc<EnsemblePlan>,
    /// How many ensembles lie in each other, with this one.
    nested: usize,
    /// By step of the plan.
    steps: Vec<Step>,
    straight: Straight,
    last: Option<LastStep>,
    /// By input of the ensemble, the device that all steps which take it take it on, if nobody else does.
    taken_on: Vec<Option<usize>>,
    ensemble: Ensemble,
}

/// What one step runs.
struct Step {
    version: Arc<LoadedVersion>,
    /// By input of the step, which it is of the version's.
    inputs: Vec<usize>,
    /// The version's outputs that are used, ascending.
    wanted: SmallVec<[u16; 4]>,
    /// Of these, the ones that only steps on the version's own device take.
    resident: SmallVec<[u16; 2]>,
    /// Those that are outputs of the ensemble and that steps elsewhere do not take: if whoever asks the
    /// ensemble wants them left on the device, they may be.
    passed: SmallVec<[Passed; 1]>,
    /// If it is the last step, the outputs that may go to places of the client's on the device.
    placed: SmallVec<[Passed; 1]>,
}

/// An output of a step that is one of the ensemble.
#[derive(Clone, Copy)]
struct Passed {
    /// Which of the step's version.
    output: u16,
    /// Which of the ensemble.
    of_ensemble: usize,
    /// Where it may lie.
    device: usize,
}

impl Step {
    fn new(version: Arc<LoadedVersion>, plan: &EnsemblePlan, index: usize) -> Self {
        let signature = &version.signature;
        // The plan was found to fit the signature.
        let inputs = plan.steps[index].inputs.iter();
        let inputs = inputs.filter_map(|input| signature.input(&input.name));
        let inputs = inputs.collect();
        let is_used = |spec: &TensorSpec| plan.output_names(index).any(|name| *name == spec.name);
        let outputs = signature.outputs.iter().zip(0..);
        let wanted = outputs.filter(|(spec, _)| is_used(spec)).map(|(_, output)| output).collect();
        let (resident, passed, placed) = (SmallVec::new(), SmallVec::new(), SmallVec::new());
        Self { version, inputs, wanted, resident, passed, placed }
    }
}

/// Whether all these steps take a tensor where it lies on a device.
fn take_it_on(device: usize, takers: &Takers, steps: &[Step]) -> bool {
    takers.inputs.iter().all(|&(step, input)| {
        let step = steps.get(step);
        let taker = step.and_then(|step| Some((&step.version, *step.inputs.get(input)?)));
        taker.and_then(|(version, input)| version.takes_between_steps_on(input)) == Some(device)
    })
}

/// The device that all steps which take the ensemble's input `input` take it on, if nobody else does.
fn taken_on(input: usize, steps: &[Step], plan: &EnsemblePlan) -> Option<usize> {
    let takers = plan.takers_of_input(input);
    let &(step, first) = takers.inputs.first().filter(|_| takers.output.is_none())?;
    let step = steps.get(step)?;
    let device = step.version.takes_between_steps_on(*step.inputs.get(first)?)?;
    take_it_on(device, &takers, steps).then_some(device)
}

/// The outputs of step `index` that may stay on its device.
fn staying(
    steps: &[Step],
    plan: &EnsemblePlan,
    index: usize,
) -> (SmallVec<[u16; 2]>, SmallVec<[Passed; 1]>) {
    let (mut resident, mut passed) = (SmallVec::new(), SmallVec::new());
    for (step, &output) in
        steps.get(index).into_iter().flat_map(|it| it.wanted.iter().map(move |output| (it, output)))
    {
        let number = usize::from(output);
        let spec = step.version.signature.outputs.get(number);
        let device = step.version.keeps_between_steps_on(number);
        let Some((spec, device)) = spec.zip(device) else { continue };
        let takers = plan.takers(index, &spec.name);
        // The length of strings only they tell.
        if spec.datatype.size().is_none() || !take_it_on(device, &takers, steps) {
            continue;
        }
        match takers.output {
            Some(of_ensemble) => passed.push(Passed { output, of_ensemble, device }),
            None if takers.inputs.is_empty() => {}
            None => resident.push(output),
        }
    }
    (resident, passed)
}

/// The outputs of the last step that its device may put to places of the client's.
fn placed(step: &Step, last: &LastStep) -> SmallVec<[Passed; 1]> {
    let placed = last.outputs.iter().filter_map(|(name, of_ensemble)| {
        let number = step.version.signature.output(name)?;
        let device = step.version.puts_on(number)?;
        let output = u16::try_from(number).ok()?;
        Some(Passed { output, of_ensemble: *of_ensemble, device })
    });
    placed.collect()
}

/// Why an ensemble cannot be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotComposed {
    /// These of its models are not served.
    Missing(Vec<String>),
    /// It does not fit its models; the text says how.
    Misfit(String),
}

impl EnsembleSteps {
    /// Of the models as `server` serves them now, for the ensemble `id`.
    ///
    /// # Errors
    /// A model is not served, or does not fit.
    pub fn compose(
        server: &Server,
        id: &ModelId,
        ensemble: &Ensemble,
        signature: &Signature,
    ) -> Result<Self, NotComposed> {
        let found: Vec<_> =
            ensemble.steps.iter().map(|step| server.step_version(id, step)).collect();
        let mut missing: Vec<String> = Vec::new();
        for (step, found) in ensemble.steps.iter().zip(&found) {
            if found.is_none() && !missing.contains(&step.model) {
                missing.push(step.model.clone());
            }
        }
        if !missing.is_empty() {
            return Err(NotComposed::Missing(missing));
        }
        let found: Vec<StepVersion> = found.into_iter().flatten().collect();
        let composing: Vec<_> = found
            .iter()
            .map(|it| Composing { signature: &it.version.signature, has_version: it.is_wanted })
            .collect();
        if let Some(fault) = ensemble_faults(signature, ensemble, &composing).into_iter().next() {
            return Err(NotComposed::Misfit(fault));
        }
        let versions: Vec<_> = found.into_iter().map(|it| it.version).collect();
        let inner = versions.iter().filter_map(|version| version.steps.as_ref());
        let nested = 1 + inner.map(|steps| steps.nested).max().unwrap_or(0);
        if nested > NESTED_MAX {
            return Err(NotComposed::Misfit(format!(
                "ensemble '{id}' has {nested} ensembles in each other, expected at most {NESTED_MAX}"
            )));
        }
        let decoupled: Vec<bool> = versions.iter().map(|version| version.decoupled).collect();
        let plan = Arc::new(EnsemblePlan::new(ensemble, signature, &decoupled));
        let steps = versions.into_iter().enumerate();
        let steps = steps.map(|(index, version)| Step::new(version, &plan, index));
        let mut steps: Vec<Step> = steps.collect();
        for index in 0..steps.len() {
            let (resident, passed) = staying(&steps, &plan, index);
            let Some(step) = steps.get_mut(index) else { continue };
            (step.resident, step.passed) = (resident, passed);
        }
        let last = plan.last_step();
        if let Some(last) = &last
            && let Some(step) = steps.get_mut(last.index)
        {
            step.placed = placed(step, last);
        }
        let inputs = 0..signature.inputs.len();
        let taken_on = inputs.map(|input| taken_on(input, &steps, &plan)).collect();
        let straight = Straight::new(&plan, &steps);
        Ok(Self { plan, nested, steps, straight, last, taken_on, ensemble: ensemble.clone() })
    }

    /// The device that the ensemble's input `input` is taken on.
    pub fn take_on(&self, input: usize) -> Option<usize> {
        *self.taken_on.get(input)?
    }

    /// The device that the ensemble's output `output` may stay on.
    pub fn keep_on(&self, output: usize) -> Option<usize> {
        let mut passed = self.steps.iter().flat_map(|step| &step.passed);
        Some(passed.find(|passed| passed.of_ensemble == output)?.device)
    }

    /// The device whose memory the ensemble's output `output` may be put to.
    pub fn put_on(&self, output: usize) -> Option<usize> {
        let mut placed = self.steps.iter().flat_map(|step| &step.placed);
        Some(placed.find(|placed| placed.of_ensemble == output)?.device)
    }

    /// Whether a request may get any number of responses.
    pub fn are_decoupled(&self) -> bool {
        self.versions().any(|version| version.decoupled)
    }

    /// Whether all its models would answer now.
    pub fn are_ready(&self) -> bool {
        self.versions().all(|version| version.is_ready())
    }

    /// Whether composing the ensemble `id` again would give the same.
    pub fn are_current(&self, server: &Server, id: &ModelId) -> bool {
        self.ensemble.steps.iter().zip(self.versions()).all(|(step, version)| {
            let found = server.step_version(id, step);
            found.is_some_and(|found| found.is_wanted && Arc::ptr_eq(&found.version, version))
        })
    }

    /// Whether these run the same versions as `other`.
    pub fn are_those_of(&self, other: &Self) -> bool {
        self.steps.len() == other.steps.len()
            && self.versions().zip(other.versions()).all(|(a, b)| Arc::ptr_eq(a, b))
    }

    /// Whether no step comes after the one at `index`.
    fn is_last(&self, index: usize) -> bool {
        self.last.as_ref().is_some_and(|last| last.index == index)
    }

    /// The places for the outputs of a request to the ensemble, by the names that its last step has for them.
    fn lent(
        &self,
        version: &LoadedVersion,
        wanted: &[u16],
        places: Option<&Arc<OutputPlaces>>,
    ) -> Option<Arc<OutputPlaces>> {
        let (last, places) = self.last.as_ref().zip(places)?;
        let names = last.outputs.iter().filter_map(|(name, output)| {
            let is_wanted = wanted.iter().any(|wanted| usize::from(*wanted) == *output);
            let spec = version.signature.outputs.get(*output).filter(|_| is_wanted)?;
            Some(((&**name).into(), (&*spec.name).into()))
        });
        Some(Arc::new(places.renamed(names.collect())))
    }

    fn versions(&self) -> impl Iterator<Item = &Arc<LoadedVersion>> {
        self.steps.iter().map(|step| &step.version)
    }
}

/// A version that a step could run.
pub struct StepVersion {
    /// The version.
    pub version: Arc<LoadedVersion>,
    /// Whether it is the one that the step wants; else it is another, because that one is not served.
    pub is_wanted: bool,
}

/// What the steps of one request took, as Triton counts an ensemble's times: all of them added.
#[derive(Default)]
pub struct Account {
    queue: AtomicU64,
    compute_input: AtomicU64,
    compute_infer: AtomicU64,
    compute_output: AtomicU64,
}

impl Account {
    /// Adds what a step's request took: how long it waited, and its batch's times.
    pub fn add(&self, queued: Duration, times: BatchTimes) {
        for (sum, time) in [
            (&self.queue, queued),
            (&self.compute_input, times.compute_input),
            (&self.compute_infer, times.compute_infer),
            (&self.compute_output, times.compute_output),
        ] {
            let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            sum.fetch_add(nanos, Ordering::Relaxed);
        }
    }

    /// How long all steps waited, and their batches' times.
    pub fn sums(&self) -> (Duration, BatchTimes) {
        let read = |sum: &AtomicU64| Duration::from_nanos(sum.load(Ordering::Relaxed));
        let times = BatchTimes {
            compute_input: read(&self.compute_input),
            compute_infer: read(&self.compute_infer),
            compute_output: read(&self.compute_output),
        };
        (read(&self.queue), times)
    }
}
