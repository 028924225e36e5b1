use std::time::Duration;

use super::SequenceKey;
use crate::{
    inference::{Error, Timestamp},
    scheduler::Queued,
};

/// A request that is the next of its sequence to run.
#[cfg_attr(test, derive(Clone))]
pub struct Front<R> {
    pub key: SequenceKey,
    pub request: R,
    pub start: bool,
    pub end: bool,
    /// Since when it waits.
    pub since: Timestamp,
}

impl<R: Queued> Front<R> {
    /// Why it must not run any more, if so.
    pub fn hopeless(&self, now: Timestamp) -> Option<Error> {
        if self.request.is_cancelled() {
            return Some(Error::Cancelled);
        }
        let late = self.request.deadline().is_some_and(|deadline| deadline <= now);
        late.then_some(Error::DeadlineExpired)
    }
}

impl<R: Queued> Queued for Front<R> {
    fn rows(&self) -> u32 {
        self.request.rows()
    }

    fn fits_with(&self, other: &Self) -> bool {
        self.request.fits_with(&other.request)
    }

    fn priority(&self) -> u64 {
        self.request.priority()
    }

    fn queue_timeout(&self) -> Option<Duration> {
        self.request.queue_timeout()
    }

    fn deadline(&self) -> Option<Timestamp> {
        self.request.deadline()
    }

    fn is_cancelled(&self) -> bool {
        self.request.is_cancelled()
    }
}
