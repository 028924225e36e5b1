//! The delay that the dynamic batcher chooses itself, beside fixed ones, over steps of load.

mod simulation;

use std::time::Duration;

use simulation::{Delay, FIXED_US, SITES, STEPS, TARGETS, simulate};

const EACH: Duration = Duration::from_secs(1);

/// Never a tenth behind the best fixed delay that keeps the target, and the target is kept where one of them
/// keeps it.
#[test]
fn no_fixed_delay_is_much_better() {
    let mut faults = Vec::new();
    for site in &SITES {
        let fixed = FIXED_US
            .map(|us| simulate(site, Delay::Fixed(Duration::from_micros(us)), &STEPS, EACH));
        for target in TARGETS {
            let auto = simulate(site, Delay::Auto { target }, &STEPS, EACH);
            for (step, (load, auto)) in STEPS.iter().zip(&auto).enumerate() {
                let fixed = fixed.iter().map(|of_delay| of_delay[step]);
                let allowed = auto.p99.max(target);
                let rivals = fixed.clone().filter(|it| it.p99 <= allowed);
                let best = rivals.map(|it| it.per_second).fold(0.0, f64::max);
                let is_late = auto.p99 > target && fixed.clone().any(|it| it.p99 <= target);
                if is_late || auto.per_second < 0.9 * best {
                    let fixed: Vec<_> = fixed.collect();
                    faults.push(format!(
                        "{}, {load:?}, target {target:?}: {auto:?} beside {fixed:?}",
                        site.name
                    ));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
