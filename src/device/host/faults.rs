/// What is to go wrong on a host device: seeded chances, and single operations by their number.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Where the chances' dice begin.
    pub seed: u64,
    /// The chance that a copy fails, from 0 to 1.
    pub copy: f64,
    /// The chance that a launch fails.
    pub launch: f64,
    /// The chance that an allocation fails.
    pub allocation: f64,
    /// The chance that any of them loses the device.
    pub lost: f64,
    /// What strikes the operation of a kind with a number, counted from 0.
    pub at: Vec<(FaultKind, usize, Fault)>,
}

/// What a fault can strike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Copies and fills.
    Copy,
    /// Launches and graphs.
    Launch,
    /// Allocations.
    Allocation,
}

/// What a fault does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The operation fails and has no effect.
    Fail,
    /// The device is lost.
    Lose,
}

/// Decides which operations are struck.
pub(super) struct Dice {
    faults: Faults,
    random: fastrand::Rng,
    seen: [usize; 3],
}

impl Dice {
    pub fn new(faults: Faults) -> Self {
        Self { random: fastrand::Rng::with_seed(faults.seed), faults, seen: [0; 3] }
    }

    /// Whether the next operation of a kind is struck.
    pub fn roll(&mut self, kind: FaultKind) -> Option<Fault> {
        let (slot, chance) = match kind {
            FaultKind::Copy => (0, self.faults.copy),
            FaultKind::Launch => (1, self.faults.launch),
            FaultKind::Allocation => (2, self.faults.allocation),
        };
        let number = self.seen[slot];
        self.seen[slot] += 1;
        let planned = self.faults.at.iter().find(|(at, count, _)| (*at, *count) == (kind, number));
        if let Some((_, _, fault)) = planned {
            return Some(*fault);
        }
        if self.faults.lost > 0.0 && self.random.f64() < self.faults.lost {
            return Some(Fault::Lose);
        }
        (chance > 0.0 && self.random.f64() < chance).then_some(Fault::Fail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_operations_and_chances_strike_the_same_again() {
        let at = vec![(FaultKind::Copy, 1, Fault::Fail)];
        let mut dice = Dice::new(Faults { at, ..Faults::default() });
        let rolls = [FaultKind::Copy, FaultKind::Launch, FaultKind::Copy, FaultKind::Copy];
        assert_eq!(rolls.map(|kind| dice.roll(kind)), [None, None, Some(Fault::Fail), None]);
        let strikes = |seed| {
            let faults = Faults { seed, launch: 0.2, lost: 0.05, ..Faults::default() };
            let mut dice = Dice::new(faults);
            (0..200).map(|_| dice.roll(FaultKind::Launch)).collect::<Vec<_>>()
        };
        assert_eq!(strikes(1), strikes(1));
        assert_ne!(strikes(1), strikes(2));
        assert!(strikes(1).contains(&Some(Fault::Lose)) && strikes(1).contains(&None));
    }
}
