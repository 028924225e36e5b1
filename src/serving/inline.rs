//! Which models run inline: on the reactors, between two polls.

use std::time::Duration;

use smallvec::SmallVec;

use super::{
    instance_thread::PlacedInstance,
    version::{Outline, VersionSpec},
};
use crate::{
    backend::{Batch, BatchTensor, InlineFitness, ModelInstance},
    inference::{Signature, Timestamp},
    memory::BufferPool,
};

/// The longest that the largest batch of an inline model may take. A message to an instance thread
/// and back costs about as much.
const LONGEST: Duration = Duration::from_micros(50);
/// A run that takes this long, the very first aside, ends the trial: no settling makes up for it.
const HOPELESS: Duration = Duration::from_millis(1);
/// Runs before the measured ones, in which caches and allocators settle.
const WARM_UP_RUNS: u32 = 10;
/// Measured runs.
const RUNS: usize = 100;
/// Of the measured runs, how many may take longer: the 99th percentile counts.
const OUTLIERS: usize = 1;
/// The parameter in a model's configuration that forbids inline runs by the value `off`.
const PARAMETER: &str = "inline_execution";

/// A run of an inline model that takes this long is slow. Twice what the trial at load allows, so that
/// a model at the limit does not move to and fro.
const SLOW: Duration = Duration::from_micros(100);
/// Runs that are judged together.
const WINDOW: u32 = 256;
/// Slow runs in a window that end inline running: more than the machine's noise makes.
const SLOW_RUNS_MAX: u32 = WINDOW / 10;

/// Watches whether an inline model stays as fast as it was when it was loaded. Like the trial then it
/// looks at the model's own time: what copying the tensors costs is the same on every thread.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    /// Whether it does not matter: the model takes next to no time by its nature.
    unwatched: bool,
    runs: u32,
    slow: u32,
}

impl Pace {
    /// That of a model before its first run.
    pub fn of(fitness: InlineFitness) -> Self {
        Self { unwatched: fitness == InlineFitness::Always, ..Self::default() }
    }

    /// Notes a run in which the model took so long, and returns whether it has become too slow to run
    /// inline.
    pub fn is_lost_after(&mut self, compute_infer: Duration) -> bool {
        if self.unwatched {
            return false;
        }
        self.runs += 1;
        self.slow += u32::from(compute_infer > SLOW);
        let lost = self.slow > SLOW_RUNS_MAX;
        if self.runs == WINDOW {
            *self = Self::default();
        }
        lost
    }
}

/// Tries the model with zeros at its largest batch: it runs inline when it is small, of fixed
/// shapes, needs no threads of its own and its configuration does not forbid it.
pub fn suits(spec: &VersionSpec, instances: &mut [PlacedInstance], pool: &BufferPool) -> bool {
    let Outline { config, signature, .. } = &spec.outline;
    let forbidden = config
        .parameters
        .get(PARAMETER)
        .is_some_and(|parameter| parameter.string_value.eq_ignore_ascii_case("off"));
    // Its batches differ in more than their rows.
    let is_ragged =
        !config.batch_input.is_empty() || config.input.iter().any(|input| input.allow_ragged_batch);
    let Some(PlacedInstance { instance, .. }) = instances.first_mut() else { return false };
    match spec.model.inline_fitness() {
        _ if forbidden || is_ragged => return false,
        InlineFitness::Never => return false,
        InlineFitness::Always => return true,
        InlineFitness::IfFast => {}
    }
    let ModelInstance::Batches(instance) = instance else { return false };
    let Some(inputs) = zeros(signature, pool) else { return false };
    let wanted: SmallVec<[bool; 4]> = SmallVec::from_elem(true, signature.outputs.len());
    let rows = signature.max_batch_size.max(1);
    let batch = Batch { rows, inputs: &inputs, wanted: &wanted, pool, places: None };
    let mut times = Vec::with_capacity(RUNS);
    for run in 0..WARM_UP_RUNS as usize + RUNS {
        let began = Timestamp::now();
        if instance.execute(&batch).is_err() {
            return false;
        }
        let took = Timestamp::now() - began;
        if run > 0 && took > HOPELESS {
            return false;
        }
        if run >= WARM_UP_RUNS as usize {
            times.push(took);
        }
        // One slow run in the beginning is the machine's noise, many are the model.
        if times.iter().filter(|&&took| took > LONGEST).count() > OUTLIERS {
            return false;
        }
    }
    true
}

/// Inputs of the largest batch, all zero; `None` when a shape is not fixed.
fn zeros(signature: &Signature, pool: &BufferPool) -> Option<SmallVec<[Option<BatchTensor>; 2]>> {
    let rows = i64::from(signature.max_batch_size);
    signature
        .inputs
        .iter()
        .map(|input| {
            let dims = input.reshape.as_ref().unwrap_or(&input.dims);
            let shape = if rows > 0 { dims.with_batch(rows) } else { dims.clone() };
            let bytes = shape.element_count()?.checked_mul(input.datatype.size()? as u64)?;
            let mut data = pool.allocate(usize::try_from(bytes).ok()?).ok()?;
            data.fill(0);
            Some(Some(BatchTensor { shape, data: data.freeze() }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_slow_runs_is_noise_and_more_is_the_model() {
        let mut pace = Pace::default();
        for run in 0..10 * WINDOW {
            let took = if run % 11 == 0 { 2 * SLOW } else { SLOW / 4 };
            assert!(!pace.is_lost_after(took));
        }
        let lost = (0..WINDOW).position(|_| pace.is_lost_after(2 * SLOW));
        assert_eq!(lost, Some(SLOW_RUNS_MAX as usize));
    }

    #[test]
    fn a_model_that_is_fast_by_its_nature_never_loses_its_pace() {
        let mut pace = Pace::of(InlineFitness::Always);
        assert!((0..10 * WINDOW).all(|_| !pace.is_lost_after(2 * SLOW)));
        let mut pace = Pace::of(InlineFitness::IfFast);
        assert!(!(0..10 * WINDOW).all(|_| !pace.is_lost_after(2 * SLOW)));
    }
}
