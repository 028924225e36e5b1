use std::{collections::BTreeMap, time::Duration};

/// After this many observations older ones fade.
const MEMORY: u32 = 16;
/// Sizes that are told apart.
const SIZES_MAX: usize = 256;

/// How long something takes by its size: running means of what it took, straight lines between.
#[derive(Clone, Debug, Default)]
pub(super) struct Prediction(BTreeMap<u64, Mean>);

#[derive(Clone, Copy, Debug)]
struct Mean {
    nanos: f64,
    count: u32,
}

impl Prediction {
    /// Notes what something of a size took.
    pub fn observe(&mut self, size: u64, took: Duration) {
        let nanos = took.as_nanos() as f64;
        if let Some(mean) = self.0.get_mut(&size) {
            mean.count = (mean.count + 1).min(MEMORY);
            mean.nanos += (nanos - mean.nanos) / f64::from(mean.count);
        } else if self.0.len() < SIZES_MAX {
            self.0.insert(size, Mean { nanos, count: 1 });
        }
    }

    /// What something of a size will take; zero when nothing was ever observed.
    pub fn of(&self, size: u64) -> Duration {
        let below = self.0.range(..=size).next_back();
        let above = self.0.range(size..).next();
        let nanos = match (below, above) {
            (Some((&low, from)), Some((&high, to))) if low < high => {
                let part = (size - low) as f64 / (high - low) as f64;
                from.nanos + (to.nanos - from.nanos) * part
            }
            (_, Some((_, mean))) => mean.nanos,
            // Beyond the largest, as if all its time went with the size.
            (Some((&low, mean)), None) => mean.nanos * size as f64 / low.max(1) as f64,
            (None, None) => 0.0,
        };
        Duration::from_nanos(nanos as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_sizes_by_their_mean_others_by_their_neighbours() {
        let mut prediction = Prediction::default();
        assert_eq!(prediction.of(5), Duration::ZERO);
        let micros = Duration::from_micros;
        prediction.observe(10, micros(90));
        prediction.observe(10, micros(110));
        prediction.observe(20, micros(200));
        let predicted = [5, 10, 15, 20, 40].map(|size| prediction.of(size).as_micros());
        assert_eq!(predicted, [100, 100, 150, 200, 400]);
    }

    #[test]
    fn what_changed_is_learnt() {
        let mut prediction = Prediction::default();
        for took in [100; 50].into_iter().chain([300; 100]) {
            prediction.observe(1, Duration::from_micros(took));
        }
        let error = prediction.of(1).abs_diff(Duration::from_micros(300));
        assert!(error < Duration::from_micros(3), "{error:?}");
    }
}
