//! Ensembles: versions without instances, whose requests go through the versions of other models.
//!
//! [`EnsembleSteps`] is what a loaded ensemble has in place of a queue: its plan, and the versions that
//! its steps run, held as long as the ensemble is served. [`flow`] takes one request through them, on the
//! reactor where the answer is wanted. It knows neither queues nor instances.

mod flow;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use smallvec::SmallVec;

pub use self::flow::start;
use super::{server::Server, version::LoadedVersion};
use crate::{
    inference::{Signature, TensorSpec},
    observe::BatchTimes,
    repository::{Composing, Ensemble, ModelId, ensemble_faults},
    scheduler::{EnsemblePlan, LastStep},
};

/// What an ensemble runs.
pub struct EnsembleSteps {
    plan: Arc<EnsemblePlan>,
    /// By step of the plan.
    steps: Vec<Step>,
    last: Option<LastStep>,
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
}

impl Step {
    fn new(version: Arc<LoadedVersion>, plan: &EnsemblePlan, index: usize) -> Self {
        let signature = &version.signature;
        let place = |name: &str| signature.inputs.iter().position(|spec| *spec.name == *name);
        // The plan was found to fit the signature.
        let inputs = plan.steps[index].inputs.iter().filter_map(|input| place(&input.name));
        let inputs = inputs.collect();
        let is_used = |spec: &TensorSpec| plan.output_names(index).any(|name| *name == spec.name);
        let outputs = signature.outputs.iter().zip(0..);
        let wanted = outputs.filter(|(spec, _)| is_used(spec)).map(|(_, output)| output).collect();
        Self { version, inputs, wanted, resident: SmallVec::new() }
    }
}

/// The outputs of step `index` that only steps on its own device take.
fn resident_outputs(steps: &[Step], plan: &EnsemblePlan, index: usize) -> SmallVec<[u16; 2]> {
    let on = |step: usize| steps.get(step)?.version.resident_between_steps_on();
    let (Some(step), Some(device)) = (steps.get(index), on(index)) else { return SmallVec::new() };
    let wanted = step.wanted.iter().copied();
    wanted
        .filter(|&output| {
            let Some(spec) = step.version.signature.outputs.get(usize::from(output)) else {
                return false;
            };
            let takers = plan.takers(index, &spec.name);
            let are_there = !takers.is_empty() && takers.iter().all(|&it| on(it) == Some(device));
            // The length of strings only they tell.
            spec.datatype.size().is_some() && are_there
        })
        .collect()
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
        let decoupled: Vec<bool> = versions.iter().map(|version| version.decoupled).collect();
        let plan = Arc::new(EnsemblePlan::new(ensemble, signature, &decoupled));
        let steps = versions.into_iter().enumerate();
        let steps = steps.map(|(index, version)| Step::new(version, &plan, index));
        let mut steps: Vec<Step> = steps.collect();
        for index in 0..steps.len() {
            let resident = resident_outputs(&steps, &plan, index);
            steps.get_mut(index).into_iter().for_each(|step| step.resident = resident.clone());
        }
        let last = plan.last_step();
        Ok(Self { plan, steps, last, ensemble: ensemble.clone() })
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
