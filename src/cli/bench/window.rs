/// The windows in a row that have to agree.
pub const STABLE_WINDOWS: usize = 3;

/// What is compared between windows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// Answered requests per second.
    pub rate: f64,
    /// The latency percentile of interest, in µs.
    pub latency_us: f64,
}

/// What the windows so far say about going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The last windows agree.
    Stable,
    /// They do not yet.
    Continue,
    /// They do not, and enough was tried.
    Unstable,
}

/// Whether to go on after these windows: the last [`STABLE_WINDOWS`] agree when the rate and the
/// latency of each lie within `percent` of their mean.
pub fn judge(windows: &[Reading], percent: f64, max_trials: usize) -> Verdict {
    let settled = windows
        .len()
        .checked_sub(STABLE_WINDOWS)
        .and_then(|first| windows.get(first..))
        .is_some_and(|last| {
            agree(last, |reading| reading.rate, percent)
                && agree(last, |reading| reading.latency_us, percent)
        });
    match settled {
        true => Verdict::Stable,
        false if windows.len() >= max_trials => Verdict::Unstable,
        false => Verdict::Continue,
    }
}

fn agree(windows: &[Reading], value: impl Fn(&Reading) -> f64, percent: f64) -> bool {
    let mean = windows.iter().map(&value).sum::<f64>() / windows.len() as f64;
    let allowed = mean * percent / 100.0;
    mean > 0.0 && windows.iter().all(|window| (value(window) - mean).abs() <= allowed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn windows(pairs: &[(f64, f64)]) -> Vec<Reading> {
        pairs.iter().map(|&(rate, latency_us)| Reading { rate, latency_us }).collect()
    }

    #[test]
    fn three_windows_in_a_row_have_to_agree() {
        let even = (100.0, 10.0);
        for (seen, verdict) in [
            (vec![], Verdict::Continue),
            (vec![even, even], Verdict::Continue),
            (vec![even, even, even], Verdict::Stable),
            (vec![even, even, (200.0, 10.0)], Verdict::Continue),
            (vec![even, even, (100.0, 20.0)], Verdict::Continue),
            (vec![(200.0, 10.0), even, even, even], Verdict::Stable),
            (vec![even, even, even, (200.0, 10.0)], Verdict::Continue),
            (vec![even, even, even, even, (200.0, 10.0)], Verdict::Unstable),
            (vec![(0.0, 0.0); 3], Verdict::Continue),
            (vec![(0.0, 0.0); 5], Verdict::Unstable),
            (vec![(95.0, 10.0), (105.0, 10.0), (100.0, 10.0)], Verdict::Stable),
            (vec![(89.0, 10.0), (111.0, 10.0), (100.0, 10.0)], Verdict::Continue),
        ] {
            assert_eq!(judge(&windows(&seen), 10.0, 5), verdict, "{seen:?}");
        }
        assert_eq!(judge(&windows(&[even]), 10.0, 1), Verdict::Unstable);
    }

    proptest! {
        #[test]
        fn only_the_last_three_count_in_any_unit(
            before in prop::collection::vec((1.0f64..1e6, 1.0f64..1e6), 0..5),
            last in prop::collection::vec((90.0f64..110.0, 90.0f64..110.0), 3),
            scale in 1e-3f64..1e3,
        ) {
            let alone = judge(&windows(&last), 5.0, usize::MAX);
            let scaled: Vec<_> = last.iter().map(|(r, l)| (r * scale, l * scale)).collect();
            prop_assert_eq!(judge(&windows(&scaled), 5.0, usize::MAX), alone);
            let all: Vec<_> = before.iter().chain(&last).copied().collect();
            prop_assert_eq!(judge(&windows(&all), 5.0, usize::MAX), alone);
        }
    }
}
