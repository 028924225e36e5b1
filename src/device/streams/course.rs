use std::time::Duration;

use super::work::{Outcome, Stage, Times, Work};
use crate::{
    device::{DeviceError, Report},
    inference::Timestamp,
};

/// A batch that waits for a lane.
pub(super) struct Waiting {
    pub work: Work,
    pub number: u64,
    /// The device that had no memory for it; it waits until something there has finished.
    pub starved_on: Option<usize>,
    /// Whether memory of idle lanes was given back for it.
    pub reclaimed: bool,
}

/// A batch on its way through a lane.
pub(super) struct Course {
    pub work: Work,
    pub number: u64,
    pub place: usize,
    pub device: usize,
    pub lane: usize,
    /// Whether its lane has memory for it.
    pub prepared: bool,
    /// Its start, for fairness.
    pub start: f64,
    pub expected: Times,
    /// Whether it runs by a graph.
    pub graph: bool,
    /// Whether a thread gives its execution.
    pub threaded: bool,
    /// Whether memory of idle lanes was given back for it.
    pub reclaimed: bool,
    given_in: usize,
    given_execute: bool,
    given_out: usize,
    done_in: usize,
    done_execute: bool,
    done_out: usize,
    /// Operations that were given and have not ended.
    outstanding: usize,
    error: Option<DeviceError>,
    took: Times,
}

impl Course {
    pub fn new(waiting: &Waiting, place: usize, device: usize, lane: usize) -> Self {
        Self {
            work: waiting.work,
            number: waiting.number,
            place,
            device,
            lane,
            prepared: false,
            start: 0.0,
            expected: Times::default(),
            graph: false,
            threaded: false,
            reclaimed: waiting.reclaimed,
            given_in: 0,
            given_execute: false,
            given_out: 0,
            done_in: 0,
            done_execute: false,
            done_out: 0,
            outstanding: 0,
            error: None,
            took: Times::default(),
        }
    }

    /// Whether its next operation at a stage can be given, and if so, whether all that it waits for
    /// has been done.
    pub fn can_be_given(&self, stage: Stage) -> Option<bool> {
        if !self.prepared || self.error.is_some() {
            return None;
        }
        let all_in = self.given_in == self.work.bytes_in;
        match stage {
            Stage::CopyIn => (!all_in).then_some(true),
            Stage::Execute => {
                (all_in && !self.given_execute).then_some(self.done_in == self.given_in)
            }
            Stage::CopyOut => {
                let more = self.given_out < self.work.bytes_out;
                let executes = if self.threaded { self.done_execute } else { self.given_execute };
                (executes && more).then_some(self.done_execute)
            }
        }
    }

    /// Gives the next `at_most` bytes of a copy, or the execution.
    pub fn give(&mut self, stage: Stage, at_most: usize) -> std::ops::Range<usize> {
        self.outstanding += 1;
        let (given, total) = match stage {
            Stage::CopyIn => (&mut self.given_in, self.work.bytes_in),
            Stage::CopyOut => (&mut self.given_out, self.work.bytes_out),
            Stage::Execute => {
                self.given_execute = true;
                return 0..0;
            }
        };
        let range = *given..(*given + at_most.max(1)).min(total);
        *given = range.end;
        range
    }

    /// An operation has ended.
    pub fn ended(&mut self, stage: Stage, bytes: usize, report: &Report) {
        self.outstanding = self.outstanding.saturating_sub(1);
        let took = report.busy;
        match stage {
            Stage::CopyIn => {
                self.done_in += bytes;
                self.took.copy_in += took;
            }
            Stage::Execute => {
                self.done_execute = true;
                self.took.execute += took;
            }
            Stage::CopyOut => {
                self.done_out += bytes;
                self.took.copy_out += took;
            }
        }
        if let Err(error) = &report.outcome {
            self.error.get_or_insert_with(|| error.clone());
        }
    }

    /// What became of it, once nothing of it is under way any more.
    pub fn outcome(&self) -> Option<Outcome> {
        if self.outstanding > 0 {
            return None;
        }
        if let Some(error) = &self.error {
            return Some(Outcome::Failed(error.clone()));
        }
        let done = self.done_execute && self.done_out == self.work.bytes_out;
        done.then_some(Outcome::Done(self.took))
    }

    /// What it took so far.
    pub fn took(&self) -> Times {
        self.took
    }

    /// What of it is still before the engines.
    pub fn left(&self) -> Times {
        let part = |done: usize, total: usize, whole: Duration| match total {
            0 => Duration::ZERO,
            total => whole.mul_f64((total - done.min(total)) as f64 / total as f64),
        };
        Times {
            copy_in: part(self.done_in, self.work.bytes_in, self.expected.copy_in),
            execute: if self.done_execute { Duration::ZERO } else { self.expected.execute },
            copy_out: part(self.done_out, self.work.bytes_out, self.expected.copy_out),
        }
    }
}

/// When a batch would be through an engine after the other, behind what is before them already.
pub(super) fn through(before: Times, own: Times) -> Duration {
    let copied = before.copy_in + own.copy_in;
    let executed = copied.max(before.execute) + own.execute;
    executed.max(before.copy_out) + own.copy_out
}

/// Whether a batch that took `left` from `now` on would miss its deadline.
pub(super) fn is_late(work: &Work, now: Timestamp, left: Duration) -> bool {
    work.deadline.is_some_and(|deadline| now + left > deadline)
}
