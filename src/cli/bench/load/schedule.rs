use std::time::Duration;

use clap::ValueEnum;

/// How the requests of a rate are spread over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Distribution {
    /// Evenly.
    Constant,
    /// As the requests of many clients who do not know of each other arrive.
    Poisson,
}

/// When requests are due, from the start of the load: endless, and the same for the same arguments.
#[derive(Clone, Debug)]
pub struct Schedule {
    rate: f64,
    /// Seconds before the first.
    offset: f64,
    arrivals: Arrivals,
}

#[derive(Clone, Debug)]
enum Arrivals {
    /// How many were taken.
    Constant(u64),
    /// Seconds until the last one taken.
    Poisson(f64, fastrand::Rng),
}

impl Schedule {
    /// One of `shares` schedules that make up `rate` requests a second together.
    pub fn share(
        rate: f64,
        distribution: Distribution,
        seed: u64,
        share: usize,
        shares: usize,
    ) -> Self {
        let (arrivals, offset) = match distribution {
            Distribution::Constant => (Arrivals::Constant(0), share as f64 / rate),
            // Independent Poisson processes add up to one of the summed rate.
            Distribution::Poisson => {
                let mut seeds = fastrand::Rng::with_seed(seed);
                let seed = (0..=share).map(|_| seeds.u64(..)).last().unwrap_or(seed);
                (Arrivals::Poisson(0.0, fastrand::Rng::with_seed(seed)), 0.0)
            }
        };
        Self { rate: rate / shares as f64, offset, arrivals }
    }
}

impl Iterator for Schedule {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let seconds = match &mut self.arrivals {
            Arrivals::Constant(taken) => {
                let at = *taken as f64 / self.rate;
                *taken += 1;
                at
            }
            Arrivals::Poisson(last, random) => {
                *last += -(1.0 - random.f64()).ln() / self.rate;
                *last
            }
        };
        Some(Duration::try_from_secs_f64(self.offset + seconds).unwrap_or(Duration::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn merged(rate: f64, distribution: Distribution, shares: usize, until: f64) -> Vec<f64> {
        let mut due: Vec<f64> = (0..shares)
            .flat_map(|share| {
                Schedule::share(rate, distribution, 7, share, shares)
                    .map(|at| at.as_secs_f64())
                    .take_while(move |&at| at < until)
            })
            .collect();
        due.sort_by(f64::total_cmp);
        due
    }

    #[test]
    fn constant_requests_are_evenly_apart_however_they_are_shared() {
        for shares in [1, 2, 3] {
            let due = merged(1000.0, Distribution::Constant, shares, 0.9995);
            assert_eq!(due.len(), 1000, "{shares} shares");
            for (n, at) in due.iter().enumerate() {
                assert!((at - n as f64 / 1000.0).abs() < 1e-8, "{shares} shares, {n}");
            }
        }
    }

    #[test]
    fn poisson_gaps_have_the_mean_and_spread_of_the_exponential_distribution() {
        for shares in [1, 4] {
            let due = merged(1000.0, Distribution::Poisson, shares, 100.0);
            let gaps: Vec<f64> = due.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let variance =
                gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
            let over_mean = gaps.iter().filter(|&&gap| gap > mean).count() as f64;
            assert!((mean * 1000.0 - 1.0).abs() < 0.02, "mean {mean}");
            assert!((variance.sqrt() / mean - 1.0).abs() < 0.02, "deviation {}", variance.sqrt());
            let expected = (-1.0f64).exp();
            assert!((over_mean / gaps.len() as f64 - expected).abs() < 0.01, "shape");
        }
    }

    proptest! {
        #[test]
        fn schedules_repeat_from_their_seed_and_never_go_back(
            rate in 0.01f64..1e6,
            seed: u64,
            shares in 1usize..5,
            poisson: bool,
        ) {
            let distribution =
                if poisson { Distribution::Poisson } else { Distribution::Constant };
            let schedule = || Schedule::share(rate, distribution, seed, shares - 1, shares);
            let first: Vec<_> = schedule().take(200).collect();
            prop_assert_eq!(&first, &schedule().take(200).collect::<Vec<_>>());
            prop_assert!(first.is_sorted());
            if poisson {
                let other = Schedule::share(rate, distribution, !seed, shares - 1, shares);
                prop_assert_ne!(first, other.take(200).collect::<Vec<_>>());
            }
        }
    }
}
