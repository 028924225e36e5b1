//! How soon a process that ended is started again.

use std::time::Duration;

/// How long is waited before the first start, and at most.
const FIRST: Duration = Duration::from_millis(100);
const MOST: Duration = Duration::from_secs(10);
/// A process that has run for so long, or has run requests, has not failed at its start.
const STEADY: Duration = Duration::from_secs(10);

/// The rest before the next start: twice as long after each that came to nothing.
pub(super) struct BackOff(Duration);

impl BackOff {
    pub(super) fn new() -> Self {
        Self(FIRST)
    }

    /// Notes that a process has ended that had served for so long.
    pub(super) fn ended(&mut self, served: Duration, has_executed: bool) {
        if served > STEADY || has_executed {
            *self = Self::new();
        }
    }

    /// How long to rest now, before a start.
    pub(super) fn rest(&mut self) -> Duration {
        let rest = self.0;
        self.0 = (rest * 2).min(MOST);
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rests before as many starts, in milliseconds.
    fn rests(back_off: &mut BackOff, starts: usize) -> Vec<u128> {
        (0..starts).map(|_| back_off.rest().as_millis()).collect()
    }

    #[test]
    fn who_fails_again_and_again_is_started_ever_more_rarely() {
        let mut back_off = BackOff::new();
        let expected = [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000];
        assert_eq!(rests(&mut back_off, expected.len()), expected);
    }

    #[test]
    fn who_starts_and_fails_soon_has_not_been_well() {
        let mut back_off = BackOff::new();
        for expected in [100, 200, 400] {
            back_off.ended(STEADY, false);
            assert_eq!(rests(&mut back_off, 1), [expected]);
        }
    }

    #[test]
    fn who_has_been_well_is_started_again_at_once() {
        for (served, has_executed) in
            [(STEADY + Duration::from_millis(1), false), (Duration::ZERO, true)]
        {
            let mut back_off = BackOff::new();
            assert_eq!(rests(&mut back_off, 9).last(), Some(&10_000));
            back_off.ended(served, has_executed);
            assert_eq!(rests(&mut back_off, 2), [100, 200]);
        }
    }
}
