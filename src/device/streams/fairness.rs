use std::time::Duration;

/// What models had of the devices' time, for start-time fair queueing (Goyal, Vin and Cheng, 1996):
/// each has a clock that its batches push on by what they take, divided by its share, and the batch
/// with the least start goes first. A model that was away begins where the others are: it has saved
/// up nothing.
#[derive(Debug, Default)]
pub(super) struct Fairness {
    clocks: Vec<Clock>,
    /// The latest start that was given out.
    latest: f64,
}

#[derive(Debug)]
struct Clock {
    share: f64,
    time: f64,
}

impl Fairness {
    /// Adds a model with its share, in place of one of the same number that has gone.
    pub fn add(&mut self, model: usize, share: f64) {
        let share = if share > 0.0 { share } else { 1.0 };
        let clock = Clock { share, time: self.latest };
        match self.clocks.get_mut(model) {
            Some(place) => *place = clock,
            // Numbers are given out without gaps.
            None => self.clocks.push(clock),
        }
    }

    /// Where a batch of the model would start, if the least start of those on their way is `least`.
    pub fn start(&self, model: usize, least: Option<f64>) -> f64 {
        let time = self.clocks.get(model).map_or(0.0, |clock| clock.time);
        time.max(least.unwrap_or(self.latest.min(time)))
    }

    /// A batch starts, and will take about `expected`. Gives its start.
    pub fn begin(&mut self, model: usize, least: Option<f64>, expected: Duration) -> f64 {
        let start = self.start(model, least);
        self.latest = self.latest.max(start);
        if let Some(clock) = self.clocks.get_mut(model) {
            clock.time = start + expected.as_nanos() as f64 / clock.share;
        }
        start
    }

    /// A batch took `took` where `expected` was counted.
    pub fn settle(&mut self, model: usize, expected: Duration, took: Duration) {
        if let Some(clock) = self.clocks.get_mut(model) {
            clock.time += (took.as_nanos() as f64 - expected.as_nanos() as f64) / clock.share;
        }
    }
}
