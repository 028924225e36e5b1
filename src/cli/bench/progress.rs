use std::{
    io::{self, IsTerminal},
    thread,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{load::Level, window::Reading};

const TICK: Duration = Duration::from_millis(100);

/// Shows how a measurement goes, on a terminal.
pub struct Progress {
    /// Draws nothing when there is no terminal.
    bar: ProgressBar,
    trials: usize,
}

impl Progress {
    /// For loads of up to `trials` windows each.
    pub fn new(quiet: bool, trials: usize) -> Self {
        let visible = !quiet && io::stderr().is_terminal();
        let target =
            if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(trials as u64), target);
        if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} {msg}") {
            bar.set_style(style);
        }
        Self { bar, trials }
    }

    /// Begins with a load.
    pub fn level(&self, level: Level) {
        self.bar.reset();
        self.bar.set_length(self.trials as u64);
        self.bar.set_prefix(level.to_string());
        self.bar.set_message("");
    }

    /// Ends a window.
    pub fn window(&self, reading: Reading, percentile: f64) {
        let Reading { rate, latency_us } = reading;
        self.bar.inc(1);
        self.bar.set_message(format!("{rate:.0} requests/s, p{percentile} {latency_us:.0} µs"));
    }

    /// Sleeps, and shows that it does no more than that.
    pub fn rest(&self, duration: Duration) {
        let end = Instant::now() + duration;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            // Ticks cost CPU time that would count as the client's.
            thread::sleep(if self.bar.is_hidden() { left } else { left.min(TICK) });
            self.bar.tick();
        }
    }

    /// Leaves the terminal as it was.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
