//! The verdict of a bench in Rust, worded as `benches/peer/bench.py` words that of the others.

use std::process::ExitCode;

/// Figures that have goals, each in units of its goal: over 1 misses it.
pub struct Goals {
    bench: &'static str,
    worst: f64,
}

impl Goals {
    /// None as yet.
    pub fn of(bench: &'static str) -> Self {
        Self { bench, worst: f64::NEG_INFINITY }
    }

    /// Judges a figure that is to be no larger than `goal`.
    pub fn at_most(&mut self, name: &str, value: f64, goal: f64) {
        let share = value / goal;
        let mark = if share <= 1.0 { "met   " } else { "MISSED" };
        println!("{mark} {name}: {value:.3} (goal: at most {goal:.3})");
        self.worst = self.worst.max(share);
    }

    /// The last line, and the exit status: 1 when a goal is missed.
    pub fn conclude(self) -> ExitCode {
        println!("bench-{}: worst figure is {:.2} of its goal", self.bench, self.worst);
        ExitCode::from(u8::from(self.worst > 1.0))
    }
}
