//! Requests that run where they come in, by themselves.

use std::{sync::Arc, time::Duration};

use super::Shard;
use crate::{
    backend::ModelInstance,
    inference::{Admitted, Error, Timestamp},
    memory::OutputPlaces,
    observe::{BatchTimes, Closure},
    runtime::spend_turn,
    serving::{
        execution::RanAlone,
        job::{Job, kind},
        version::LoadedVersion,
    },
};

/// A shard with an instance on this reactor that is free to run a request by itself.
pub struct AtOnce<'a>(pub(super) &'a Shard);

impl AtOnce<'_> {
    /// Runs and answers a request.
    pub(super) fn run_job(self, job: Job) {
        let (began, reactor) = (Timestamp::now(), self.0.reactor());
        if job.deadline.is_some_and(|deadline| deadline <= began) {
            return job.fail(reactor, Error::DeadlineExpired);
        }
        let places = job.output_places();
        let RanAlone { outcome, times } = self.run(&job.version, &job.admitted, places, began);
        match outcome {
            Err(error) => job.fail(reactor, error),
            Ok(outputs) => job.answer(outputs, began, times, reactor, began + times.total()),
        }
    }

    /// Runs a request to `version`, which is the shard's, beginning now, at `began`, and counts it. It is not
    /// traced, and nobody wants classes of it.
    pub fn run_alone(
        self,
        version: &LoadedVersion,
        request: &Admitted,
        places: Option<&Arc<OutputPlaces>>,
        began: Timestamp,
    ) -> RanAlone {
        let (statistics, reactor) = (&version.statistics, self.0.reactor());
        let ran = self.run(version, request, places, began);
        match &ran.outcome {
            Ok(_) => {
                let total = ran.times.total();
                statistics.succeeded(reactor, total, Duration::ZERO, total);
            }
            Err(error) => statistics.failed(reactor, kind(error), Timestamp::now() - began),
        }
        ran
    }

    /// Runs a request, and counts the run.
    fn run(
        &self,
        version: &LoadedVersion,
        request: &Admitted,
        places: Option<&Arc<OutputPlaces>>,
        began: Timestamp,
    ) -> RanAlone {
        let Self(shard) = *self;
        let mut taken = shard.executor.borrow_mut().take_inline();
        let ran = match taken.as_mut().map(|taken| &mut taken.placed.instance) {
            Some(ModelInstance::Batches(instance)) => {
                RanAlone::of(&mut **instance, version, request, places, began)
            }
            // It was found to be there, and to take batches.
            _ => RanAlone { outcome: Err(Error::unanswered()), times: BatchTimes::default() },
        };
        let (times, took) = (ran.times, ran.times.total());
        if let Some(taken) = taken {
            shard.put_back(taken, times.compute_infer);
        }
        spend_turn(took);
        if ran.outcome.is_ok() {
            let (statistics, reactor) = (&version.statistics, shard.reactor());
            statistics.closed(reactor, Closure::Single);
            statistics.executed(reactor, (request.batch_size, 0), 1, times, began + took);
        }
        ran
    }
}
