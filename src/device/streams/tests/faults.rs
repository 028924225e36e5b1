//! Whatever goes wrong, every batch ends once and nothing is left behind.

use super::*;
use crate::device::host::Faults;

/// Schedules that are tried; the long form of the tests asks for more.
fn schedules() -> u64 {
    std::env::var("NEREID_FAULT_SCHEDULES").ok().and_then(|it| it.parse().ok()).unwrap_or(400)
}

#[test]
fn no_schedule_of_faults_hangs_or_leaks() {
    for seed in 0..schedules() {
        run(seed);
    }
}

fn run(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let settings = SchedulerSettings {
        depth: random.usize(1..4),
        ahead: millis(random.u64(0..4)),
        chunk_bytes: random.usize(100..2000),
        waiting_max: random.usize(1..40),
        order: if random.bool() { Order::Urgency } else { Order::Arrival },
        timeline_entries: 0,
    };
    let devices = random.usize(1..4);
    let devices = (0..devices).map(|index| {
        let mut chance = |most: f64| if random.bool() { most * random.f64() } else { 0.0 };
        let (copy, launch, allocation) = (chance(0.2), chance(0.2), chance(0.3));
        let lost = chance(0.02);
        let faults =
            Faults { seed: seed + index as u64, copy, launch, allocation, lost, at: Vec::new() };
        HostSettings { memory_bytes: random.usize(4000..40_000), faults, ..linked(index) }
    });
    let devices = devices.collect();
    let simulation = SimulationSettings { seed, jitter: 0.5, ..Default::default() };
    let mut rig = Rig::new(settings, simulation, devices);
    let models = random.usize(1..4);
    for _ in 0..models {
        let instances = rig.devices.iter().enumerate().map(|(device, there)| {
            let model = inverting(&**there, millis(random.u64(0..3)), Duration::from_micros(100));
            (Place { device, lanes: random.usize(1..4) }, model)
        });
        let instances = instances.collect();
        let plan = ModelPlan { name: "m".into(), share: 1.0, graphs: random.bool(), instances };
        rig.lanes.add_model(plan).unwrap();
    }
    let batches = random.usize(1..40);
    for number in 0..batches {
        let plan = Plan {
            number,
            model: random.usize(0..models),
            rows: random.u32(1..5),
            bytes_in: random.usize(1..5000),
            bytes_out: random.usize(1..5000),
            priority: random.u32(0..3),
            deadline: random.bool().then(|| millis(random.u64(1..50))),
        };
        rig.arrive(Timestamp::default() + millis(random.u64(0..40)), plan);
    }
    let refused = rig.run();
    let mut ended = rig.ended();
    assert_eq!(ended.len() + refused, batches, "seed {seed}: batches are missing");
    for Ended { number, outcome, outputs, .. } in &ended {
        if matches!(outcome, Outcome::Done(_)) {
            let is_own = |bytes: &bytes::Bytes| bytes.iter().all(|byte| *byte == !(*number as u8));
            let right = outputs[0].as_ref().is_some_and(is_own);
            assert!(right, "seed {seed}: batch {number} has the outputs of another, or none");
        }
    }
    ended.sort_by_key(|it| it.number);
    ended.dedup_by_key(|it| it.number);
    assert_eq!(ended.len() + refused, batches, "seed {seed}: a batch ended twice");
    drop(ended);
    rig.check_nothing_is_left();
}
