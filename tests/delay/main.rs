//! The delay that the dynamic batcher chooses itself, beside fixed ones, over steps of load.

mod simulation;

use std::time::Duration;

use simulation::{
    Delay, Load, Random, RunTime, SITES, STEPS, Site, TARGETS, played_fixed, share_of_best,
    simulate,
};

const EACH: Duration = Duration::from_secs(1);

/// Never a tenth behind the best fixed delay that keeps the target, and the target is kept where one of them
/// keeps it.
#[test]
fn no_fixed_delay_is_much_better() {
    let mut faults = Vec::new();
    for site in &SITES {
        let fixed = played_fixed(site, &STEPS, EACH);
        for target in TARGETS {
            let auto = simulate(site, Delay::Auto { target }, &STEPS, EACH);
            for (step, (load, auto)) in STEPS.iter().zip(&auto).enumerate() {
                let fixed = fixed.each_ref().map(|of_delay| of_delay[step]);
                let is_late = auto.p99 > target && fixed.iter().any(|it| it.p99 <= target);
                if is_late || share_of_best(auto, &fixed, target) < 0.9 {
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

/// The same for several instances and loads that jump, from a fifth of what they can do to more than that. While
/// another way to wait is tried the target may be passed, by no more than half.
#[test]
fn several_instances_do_not_keep_it_from_the_best_delay() {
    const RUNS: [RunTime; 4] = [
        RunTime { base: 1000, row: 0, step: 1, by_step: 0 },
        RunTime { base: 300, row: 200, step: 1, by_step: 0 },
        RunTime { base: 0, row: 0, step: 16, by_step: 2000 },
        RunTime { base: 100, row: 0, step: 4, by_step: 400 },
    ];
    let target = TARGETS[0];
    let mut faults = Vec::new();
    for (instances, run) in [2, 4].iter().flat_map(|&it| RUNS.map(|run| (it, run))) {
        let site = Site { name: "several", instances, rows_max: 32, run };
        let share = |share: f64| Load::Rate(share * site.capacity());
        let clients = Load::Clients;
        let loads = [
            clients(16),
            share(0.2),
            clients(5),
            share(0.95),
            clients(12),
            clients(48),
            share(1.2),
            clients(3),
        ];
        let fixed = played_fixed(&site, &loads, EACH / 2);
        let auto = simulate(&site, Delay::Auto { target }, &loads, EACH / 2);
        for (step, (load, auto)) in loads.iter().zip(&auto).enumerate() {
            let fixed = fixed.each_ref().map(|of_delay| of_delay[step]);
            let is_kept = fixed.iter().any(|it| it.p99 <= target);
            let is_late = is_kept && auto.p99 > target.mul_f64(1.5);
            let share = share_of_best(auto, &fixed, target);
            if is_late || share < 0.9 {
                faults.push(format!("{share:.3}: {site:?}, {load:?}: {auto:?} beside {fixed:?}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Models of which batches take longer in steps of rows, under loads of all kinds: seldom more than a tenth
/// behind, and never far.
#[test]
fn steps_in_the_time_of_a_run_are_found() {
    const LOADS: usize = 4;
    let seeds = seeds();
    let (mut behind, mut far_behind) = (Vec::new(), Vec::new());
    for seed in 1..=seeds {
        let mut random = Random::new(seed);
        let mut below = |end: u64| (random.next() * end as f64) as u64;
        (0..8).for_each(|_| _ = below(2));
        let run = RunTime {
            base: 150 * below(4),
            row: 10 * below(4),
            step: 2 << below(4),
            by_step: 200 + 200 * below(10),
        };
        let instances = 1 << below(3);
        let site = Site { name: "steps", instances, rows_max: 16 << below(3), run };
        let loads = [(); LOADS].map(|()| match below(4) {
            0 => Load::Rate((100 << below(7)) as f64),
            1 => Load::Clients(1 + below(64) as usize),
            // As many as go into whole steps: there it matters most that they go together.
            _ => Load::Clients(run.step as usize * (1 + below(4) as usize)),
        });
        let target = Duration::from_millis(3 + below(12));
        let fixed = played_fixed(&site, &loads, EACH / 2);
        let auto = simulate(&site, Delay::Auto { target }, &loads, EACH / 2);
        for (step, auto) in auto.iter().enumerate() {
            let fixed = fixed.each_ref().map(|of_delay| of_delay[step]);
            let share = share_of_best(auto, &fixed, target);
            let told = || format!("{share:.3}: {site:?}, {step} of {loads:?}, target {target:?}");
            behind.extend((share < 0.9).then(told));
            far_behind.extend((share < 0.75).then(told));
        }
    }
    assert!(far_behind.is_empty(), "{}", far_behind.join("\n"));
    assert!(behind.len() <= seeds as usize * LOADS / 100, "{}", behind.join("\n"));
}

/// How many models are tried: few in each test run, more by NEREID_DELAY_SEEDS.
fn seeds() -> u64 {
    let given = std::env::var("NEREID_DELAY_SEEDS").ok();
    given.map_or(10, |seeds| seeds.parse().expect("NEREID_DELAY_SEEDS is a number"))
}
