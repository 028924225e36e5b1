//! Steady streams of equal batches, beside what is possible at best. With `--nocapture` the figures are printed.

use super::*;

fn settings() -> SchedulerSettings {
    SchedulerSettings { chunk_bytes: 1000, waiting_max: 10_000, ..SchedulerSettings::default() }
}

/// How long 100 batches of one model take, in milliseconds.
fn makespan(copy_in: usize, execute: u64, copy_out: usize, chunk_bytes: usize) -> f64 {
    let settings = SchedulerSettings { chunk_bytes, ..settings() };
    let mut rig = Rig::new(settings, SimulationSettings::default(), vec![linked(0)]);
    let model = rig.model(1.0, 3, millis(execute), Duration::ZERO);
    for _ in 0..100 {
        rig.submit(Plan::of(model, copy_in * 1000, copy_out * 1000)).unwrap();
    }
    rig.run();
    let elapsed = rig.elapsed();
    assert!(rig.ended().iter().all(|ended| matches!(ended.outcome, Outcome::Done(_))));
    rig.check_nothing_is_left();
    elapsed.as_secs_f64() * 1000.0
}

#[test]
fn equal_batches_take_hardly_longer_than_the_busiest_engine() {
    let shapes = [(1, 1, 1), (3, 1, 1), (1, 3, 1), (1, 1, 3), (2, 1, 2), (2, 2, 2), (5, 5, 1)];
    for (copy_in, execute, copy_out) in shapes {
        for chunk_bytes in [500, 1 << 20] {
            let bound = 100.0 * copy_in.max(execute).max(copy_out) as f64;
            let took = makespan(copy_in, execute as u64, copy_out, chunk_bytes);
            let shape = (copy_in, execute, copy_out);
            let of_bound = took / bound;
            println!(
                "batches of {shape:?} ms, chunks of {chunk_bytes} bytes: {of_bound:.3} of the bound"
            );
            assert!(took >= bound, "{shape:?}: {took} ms is less than possible");
            assert!(took <= 1.05 * bound, "{shape:?} in chunks of {chunk_bytes}: {took} ms");
        }
    }
}

/// What several devices achieve of the bound that the busiest engine, or the host's memory, sets.
fn achieved(count: usize, host: f64, copy_in: usize, execute: u64, copy_out: usize) -> f64 {
    let host_bytes_per_second = Some(host);
    let simulation = SimulationSettings { host_bytes_per_second, ..Default::default() };
    let mut rig = Rig::new(settings(), simulation, (0..count).map(linked).collect());
    let model = rig.model(1.0, 3, millis(execute), Duration::ZERO);
    let batches = 100 * count;
    for _ in 0..batches {
        rig.submit(Plan::of(model, copy_in * 1000, copy_out * 1000)).unwrap();
    }
    rig.run();
    let by_engine = 100.0 * (copy_in.max(copy_out) as f64).max(execute as f64) / 1000.0;
    let by_host = (batches * (copy_in + copy_out) * 1000) as f64 / host;
    let took = rig.elapsed().as_secs_f64();
    rig.check_nothing_is_left();
    by_engine.max(by_host) / took
}

#[test]
fn several_devices_reach_what_the_host_can_feed_them() {
    for count in [2, 4] {
        for (host, copy_in, execute, copy_out) in
            [(1e9, 1, 2, 1), (1e9, 3, 2, 1), (1.5e6, 2, 2, 1), (2.5e6, 2, 1, 2)]
        {
            let achieved = achieved(count, host, copy_in, execute, copy_out);
            println!(
                "{count} devices, host memory {host:e} B/s, batches of {copy_in}, {execute}, {copy_out} ms: \
                 {:.1} % of the bound",
                100.0 * achieved
            );
            assert!(achieved >= 0.95, "{count} devices, host {host}: {achieved} of the bound");
        }
    }
}

#[test]
fn a_batch_goes_where_it_is_through_first() {
    // The second device copies ten times as slowly.
    let slow = Link { bytes_per_second: 1e5, ..LINK };
    let slower = HostSettings { copy_in: Some(slow), copy_out: Some(slow), ..linked(1) };
    let mut rig = Rig::new(settings(), SimulationSettings::default(), vec![linked(0), slower]);
    let model = rig.model(1.0, 3, millis(1), Duration::ZERO);
    for _ in 0..110 {
        rig.submit(Plan::of(model, 1000, 1000)).unwrap();
    }
    rig.run();
    // Eleven batches in ten milliseconds are possible; the ends need not meet.
    assert!(rig.elapsed() < millis(125), "{:?}", rig.elapsed());
    rig.check_nothing_is_left();
}

#[test]
fn models_get_their_shares() {
    let shares = [1.0, 2.0, 4.0];
    let executions = [millis(1), millis(3), millis(2)];
    let mut rig = Rig::new(settings(), SimulationSettings::default(), vec![linked(0)]);
    for (share, execute) in shares.into_iter().zip(executions) {
        let model = rig.model(share, 3, execute, Duration::ZERO);
        for _ in 0..1500 {
            rig.submit(Plan::of(model, 100, 100)).unwrap();
        }
    }
    rig.run();
    // As long as all have work: up to the first whose last batch has ended.
    let ended = rig.ended();
    let last = |model| ended.iter().filter(|it| it.model == model).map(|it| it.at).max();
    let until = (0..3).filter_map(last).min().unwrap();
    let had: Vec<f64> = (0..3)
        .map(|model| {
            let count = ended.iter().filter(|it| it.model == model && it.at <= until).count();
            count as f64 * executions[model].as_secs_f64()
        })
        .collect();
    let whole: f64 = had.iter().sum();
    for (had, share) in had.into_iter().zip(shares) {
        let (got, due) = (had / whole, share / 7.0);
        println!("{:.1} % of the time for a share of {:.1} %", 100.0 * got, 100.0 * due);
        assert!((got / due - 1.0).abs() < 0.05, "{got} of the time for a share of {due}");
    }
}
