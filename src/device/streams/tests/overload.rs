//! More work than a device can do: what arrives in time by the scheduler's order, by that of arrival,
//! and with one batch at a time on its way through each instance. With `--nocapture` the figures are printed.

use super::*;

/// The parts of requests of each class that were answered before their deadlines.
#[derive(Debug)]
struct Attained {
    interactive: f64,
    bulk: f64,
    goodput: usize,
}

/// Two models on one device, for two seconds: small batches of priority 1 that must be
/// answered within 25 ms, and
/// large ones of priority 2 that have 200 ms, together `load` times what the device can do.
fn attained(order: Order, lanes: usize, load: f64, seed: u64) -> Attained {
    let settings =
        SchedulerSettings { order, chunk_bytes: 250, waiting_max: 10_000, ..Default::default() };
    let simulation = SimulationSettings { seed, jitter: 0.2, ..Default::default() };
    let mut rig = Rig::new(settings, simulation, vec![linked(0)]);
    let interactive = rig.model(1.0, lanes, millis(1), Duration::ZERO);
    let bulk = rig.model(1.0, lanes, millis(8), Duration::ZERO);
    let mut random = fastrand::Rng::with_seed(seed);
    // Arrivals of a Poisson process, of each kind of batch half the device's time.
    let mut arrivals = |model, mean: f64, plan: Plan| {
        let (mut at, mut count) = (0.0, 0);
        loop {
            at += -mean * (1.0 - random.f64()).ln();
            if at > 2.0 {
                return count;
            }
            rig.arrive(Timestamp::default() + Duration::from_secs_f64(at), Plan { model, ..plan });
            count += 1;
        }
    };
    let small = Plan { priority: 1, deadline: Some(millis(25)), ..Plan::of(interactive, 500, 500) };
    let large = Plan { priority: 2, deadline: Some(millis(200)), ..Plan::of(bulk, 8000, 4000) };
    let counts = [
        arrivals(interactive, 0.001 / (0.5 * load), small),
        arrivals(bulk, 0.008 / (0.5 * load), large),
    ];
    rig.run();
    let ended = rig.ended();
    assert_eq!(ended.len(), counts.iter().sum::<usize>());
    let in_time = |model| {
        let done = |it: &&Ended| it.model == model && matches!(it.outcome, Outcome::Done(_));
        ended.iter().filter(done).filter(|it| it.number == 0).count()
    };
    let (small, large) = (in_time(interactive), in_time(bulk));
    drop(ended);
    rig.check_nothing_is_left();
    Attained {
        interactive: small as f64 / counts[0] as f64,
        bulk: large as f64 / counts[1] as f64,
        goodput: small + large,
    }
}

#[test]
fn under_overload_more_is_answered_in_time_than_by_arrival_or_one_at_a_time() {
    for seed in 0..3 {
        let ours = attained(Order::Urgency, 3, 1.3, seed);
        let by_arrival = attained(Order::Arrival, 3, 1.3, seed);
        let one_at_a_time = attained(Order::Arrival, 1, 1.3, seed);
        for (name, it) in [
            ("urgency, 3 lanes", &ours),
            ("arrival, 3 lanes", &by_arrival),
            ("arrival, 1 lane", &one_at_a_time),
        ] {
            let (interactive, bulk) = (100.0 * it.interactive, 100.0 * it.bulk);
            println!(
                "1.3 times what the device can do, seed {seed}, by {name}: {interactive:.1} % of the small ones in \
                 time, {bulk:.1} % of the large ones, {} in all",
                it.goodput
            );
        }
        assert!(ours.interactive >= 0.95, "{ours:?}");
        assert!(ours.goodput as f64 >= 1.3 * by_arrival.goodput as f64, "{by_arrival:?}");
        assert!(ours.goodput as f64 >= 1.3 * one_at_a_time.goodput as f64, "{one_at_a_time:?}");
    }
}

#[test]
fn below_its_capacity_all_is_answered_in_time() {
    let attained = attained(Order::Urgency, 3, 0.6, 7);
    println!("0.6 times what the device can do: {attained:?}");
    assert!(attained.interactive >= 0.98 && attained.bulk >= 0.99, "{attained:?}");
}

#[test]
fn a_priority_goes_before_all_below_it() {
    let settings = SchedulerSettings { chunk_bytes: 1000, ..Default::default() };
    let mut rig = Rig::new(settings, SimulationSettings::default(), vec![linked(0)]);
    let model = rig.model(1.0, 3, millis(5), Duration::ZERO);
    let urgent = rig.model(1.0, 3, millis(1), Duration::ZERO);
    for _ in 0..50 {
        rig.submit(Plan { priority: 2, ..Plan::of(model, 50_000, 1000) }).unwrap();
    }
    let arrived = Timestamp::default() + millis(100);
    rig.arrive(arrived, Plan { priority: 1, number: 9, ..Plan::of(urgent, 1000, 1000) });
    rig.run();
    let ended = rig.ended();
    let urgent = ended.iter().find(|it| it.number == 9).unwrap();
    // Two chunks of a copy and an execution may be before it; its own way takes 3 ms.
    assert!(urgent.at - arrived <= millis(3 + 2 + 5), "{:?}", urgent.at - arrived);
    drop(ended);
    rig.check_nothing_is_left();
}
