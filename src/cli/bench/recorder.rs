use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

/// Latencies are told apart to one part in a thousand, from 1 µs up to an hour.
const SIGNIFICANT_DIGITS: u8 = 3;
const LOWEST_NS: u64 = 1_000;
const HIGHEST_NS: u64 = 3_600_000_000_000;

/// Error messages that are counted one by one; the rest are counted together.
const MESSAGES: usize = 32;
const FURTHER: &str = "(further messages)";

/// What was seen in a stretch of time: latencies of answered requests and the messages of failed
/// ones.
#[derive(Clone, Debug)]
pub struct Recording {
    /// Latencies in nanoseconds.
    latencies: Histogram<u64>,
    /// How long after they were due the requests of a schedule were sent, in nanoseconds.
    delays: Histogram<u64>,
    errors: BTreeMap<String, u64>,
    elapsed: Duration,
}

impl Recording {
    /// Nothing seen yet.
    pub fn new() -> Self {
        let histogram = || {
            Histogram::new_with_bounds(LOWEST_NS, HIGHEST_NS, SIGNIFICANT_DIGITS)
                .expect("the bounds are constants within those of the crate")
        };
        Self {
            latencies: histogram(),
            delays: histogram(),
            errors: BTreeMap::new(),
            elapsed: Duration::ZERO,
        }
    }

    /// Counts an answered request.
    pub fn answered(&mut self, latency: Duration) {
        self.latencies.saturating_record(nanos(latency));
    }

    /// Counts a request as sent this long after it was due.
    pub fn sent(&mut self, delay: Duration) {
        self.delays.saturating_record(nanos(delay));
    }

    /// Counts a failed request.
    pub fn failed(&mut self, message: &str) {
        let message = if self.errors.len() < MESSAGES || self.errors.contains_key(message) {
            message
        } else {
            FURTHER
        };
        match self.errors.get_mut(message) {
            Some(count) => *count += 1,
            None => {
                self.errors.insert(message.to_owned(), 1);
            }
        }
    }

    /// Adds what another client thread saw in the same stretch of time.
    pub fn add_beside(&mut self, other: &Recording) {
        let elapsed = self.elapsed.max(other.elapsed);
        self.add_after(other);
        self.elapsed = elapsed;
    }

    /// Adds what was seen in the stretch of time that follows.
    pub fn add_after(&mut self, other: &Recording) {
        for (mine, theirs) in
            [(&mut self.latencies, &other.latencies), (&mut self.delays, &other.delays)]
        {
            mine.add(theirs).expect("all recordings have the same bounds");
        }
        for (message, count) in &other.errors {
            *self.errors.entry(message.clone()).or_default() += count;
        }
        self.elapsed += other.elapsed;
    }

    /// Answered requests.
    pub fn answers(&self) -> u64 {
        self.latencies.len()
    }

    /// Failed requests.
    pub fn failures(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Failed requests by message.
    pub fn errors(&self) -> &BTreeMap<String, u64> {
        &self.errors
    }

    /// The length of the stretch of time.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// Answered requests per second.
    pub fn rate(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { self.answers() as f64 / seconds } else { 0.0 }
    }

    /// The latency within which this percentage of requests was answered, in µs.
    pub fn latency_us(&self, percentile: f64) -> f64 {
        micros(self.latencies.value_at_quantile(percentile / 100.0))
    }

    /// The mean latency in µs.
    pub fn mean_us(&self) -> f64 {
        self.latencies.mean() / 1e3
    }

    /// The longest latency in µs.
    pub fn longest_us(&self) -> f64 {
        micros(self.latencies.max())
    }

    /// How long after it was due this percentage of a schedule's requests was sent at the latest,
    /// in µs.
    pub fn delay_us(&self, percentile: f64) -> f64 {
        micros(self.delays.value_at_quantile(percentile / 100.0))
    }
}

/// A recording under way, which can be cut into windows.
pub struct Recorder {
    window: Recording,
    since: Instant,
}

impl Recorder {
    /// Starts at `now`.
    pub fn new(now: Instant) -> Self {
        Self { window: Recording::new(), since: now }
    }

    /// The window under way.
    pub fn window(&mut self) -> &mut Recording {
        &mut self.window
    }

    /// Ends the window under way and starts the next.
    pub fn cut(&mut self, now: Instant) -> Recording {
        let mut window = std::mem::replace(&mut self.window, Recording::new());
        window.elapsed = now.saturating_duration_since(self.since);
        self.since = now;
        window
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_latencies() {
        let mut recording = Recording::new();
        (1..=10_000).rev().for_each(|us| recording.answered(Duration::from_micros(us)));
        for (percentile, us) in
            [(50.0, 5_000.0), (90.0, 9_000.0), (99.0, 9_900.0), (99.9, 9_990.0), (100.0, 10_000.0)]
        {
            let got = recording.latency_us(percentile);
            assert!((got / us - 1.0).abs() < 2e-3, "p{percentile}: {got}");
        }
        assert!((recording.mean_us() / 5_000.5 - 1.0).abs() < 2e-3);
        assert_eq!(Recording::new().latency_us(99.0), 0.0);
        assert_eq!(Recording::new().rate(), 0.0);
    }

    #[test]
    fn windows_follow_each_other_without_a_gap() {
        let start = Instant::now();
        let mut recorder = Recorder::new(start);
        recorder.window().answered(Duration::from_micros(10));
        let mut first = recorder.cut(start + Duration::from_secs(1));
        recorder.window().answered(Duration::from_micros(20));
        recorder.window().answered(Duration::from_micros(20));
        let second = recorder.cut(start + Duration::from_secs(2));
        assert_eq!((first.answers(), first.rate()), (1, 1.0));
        assert_eq!((second.answers(), second.rate()), (2, 2.0));
        let mut beside = first.clone();
        beside.add_beside(&second);
        assert_eq!((beside.answers(), beside.rate()), (3, 3.0));
        first.add_after(&second);
        assert_eq!((first.answers(), first.rate()), (3, 1.5));
    }

    #[test]
    fn messages_are_bounded_and_none_is_lost() {
        let mut recording = Recording::new();
        for n in 0..100 {
            recording.failed(&format!("message {n}"));
            recording.failed("message 3");
        }
        assert_eq!(recording.failures(), 200);
        assert_eq!(recording.errors()["message 3"], 101);
        assert_eq!(recording.errors().len(), MESSAGES + 1);
    }
}
