//! What batches get back, what is refused, and what a device that fails does to them.

use super::*;
use crate::device::host::{Fault, FaultKind, Faults};

fn rig(settings: SchedulerSettings, devices: Vec<HostSettings>) -> Rig {
    Rig::new(settings, SimulationSettings::default(), devices)
}

fn outcomes(rig: &Rig) -> Vec<(usize, Outcome)> {
    let mut ended = rig.ended();
    ended.sort_by_key(|it| it.number);
    ended.into_iter().map(|it| (it.number, it.outcome)).collect()
}

#[test]
fn every_batch_gets_its_own_outputs() {
    for graphs in [false, true] {
        let settings = SchedulerSettings { chunk_bytes: 64, ..Default::default() };
        let mut rig = rig(settings, vec![linked(0), linked(1)]);
        let instances = (0..2).map(|device| {
            let model = inverting(&*rig.devices[device], millis(1), millis(1));
            (Place { device, lanes: 2 }, model)
        });
        let instances = instances.collect();
        let plan = ModelPlan { name: "m".into(), share: 1.0, graphs, instances };
        let model = rig.lanes.add_model(plan).unwrap();
        for number in 0..60 {
            let bytes_in = 1 + 7 * (number % 5);
            let rows = number as u32 % 3 + 1;
            rig.submit(Plan { number, rows, ..Plan::of(model, bytes_in, 200 + number) }).unwrap();
        }
        rig.run();
        let ended = rig.ended();
        assert_eq!(ended.len(), 60);
        for Ended { number, outcome, outputs, .. } in ended {
            assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
            assert_eq!(outputs, [Some(vec![!(number as u8); 200 + number].into())]);
        }
        rig.check_nothing_is_left();
    }
}

#[test]
fn the_same_on_real_engines() {
    on_real_engines(|device| inverting(device, Duration::ZERO, Duration::ZERO));
}

#[test]
fn the_same_of_a_library_which_a_thread_of_the_instance_calls() {
    on_real_engines(|device| Runner::open(device, Box::new(Visiting)).unwrap());
}

fn on_real_engines(model: impl Fn(&dyn Device) -> Runner) {
    let devices: Vec<Arc<dyn Device>> = (0..2)
        .map(|index| {
            let settings = HostSettings { index, ..HostSettings::default() };
            Arc::new(HostDevice::start(settings).unwrap()) as Arc<dyn Device>
        })
        .collect();
    let (tell, news) = std::sync::mpsc::channel();
    let settings = SchedulerSettings { chunk_bytes: 1000, ..Default::default() };
    let notify: Notify = Arc::new(move |completion| tell.send(completion).unwrap_or_default());
    let mut lanes = Lanes::new(settings, devices.clone(), notify);
    let instances = devices
        .iter()
        .enumerate()
        .map(|(device, there)| (Place { device, lanes: 3 }, model(&**there)));
    let instances = instances.collect();
    let plan = ModelPlan { name: "m".into(), share: 1.0, graphs: true, instances };
    let model = lanes.add_model(plan).unwrap();
    let pool = BufferPool::new(1 << 22, 1 << 30).unwrap();
    let (report, reports) = std::sync::mpsc::channel();
    for number in 0..100_u8 {
        let report = report.clone();
        let job = Job {
            model,
            parts: BatchParts {
                rows: 1,
                inputs: vec![vec![number; 5000].into()],
                outputs: vec![OutputPart::Comes(pool.allocate(7000).unwrap())],
                ..BatchParts::default()
            },
            priority: 0,
            deadline: None,
            is_moot: Box::new(|| false),
            done: Box::new(move |finished| report.send((number, finished)).unwrap()),
        };
        lanes.submit(job, Timestamp::now()).unwrap();
    }
    for _ in 0..100 {
        let (number, finished) = loop {
            match reports.try_recv() {
                Ok(finished) => break finished,
                Err(_) => {
                    let completion = news.recv_timeout(Duration::from_secs(20)).unwrap();
                    lanes.completed(&completion, Timestamp::now());
                }
            }
        };
        assert!(matches!(finished.outcome, Outcome::Done(_)), "{:?}", finished.outcome);
        assert_eq!(finished.outputs, [Some(vec![!number; 7000].into())]);
    }
}

#[test]
fn a_failed_operation_fails_its_batch_alone() {
    for (kind, count) in [(FaultKind::Copy, 3), (FaultKind::Launch, 1)] {
        let faults = Faults { at: vec![(kind, count, Fault::Fail)], ..Faults::default() };
        let mut rig = rig(Default::default(), vec![HostSettings { faults, ..linked(0) }]);
        let model = rig.model(1.0, 3, millis(1), Duration::ZERO);
        for number in 0..20 {
            rig.submit(Plan { number, ..Plan::of(model, 1000, 1000) }).unwrap();
        }
        rig.run();
        let failed = |(_, outcome): &(usize, Outcome)| matches!(outcome, Outcome::Failed(_));
        let outcomes = outcomes(&rig);
        assert_eq!((outcomes.len(), outcomes.iter().filter(|it| failed(it)).count()), (20, 1));
        rig.check_nothing_is_left();
    }
}

#[test]
fn a_lost_device_leaves_the_others_serving() {
    let lose = Faults { at: vec![(FaultKind::Launch, 5, Fault::Lose)], ..Faults::default() };
    let devices = vec![HostSettings { faults: lose, ..linked(0) }, linked(1)];
    let mut rig = rig(Default::default(), devices);
    let both = rig.model(1.0, 2, millis(1), Duration::ZERO);
    let only = |device| {
        let there: &Arc<HostDevice> = &rig.devices[device];
        let model = inverting(&**there, millis(1), Duration::ZERO);
        vec![(Place { device, lanes: 2 }, model)]
    };
    let (first, second) = (only(0), only(1));
    let mut add = |instances| {
        let plan = ModelPlan { name: "one".into(), share: 1.0, graphs: false, instances };
        rig.lanes.add_model(plan).unwrap()
    };
    let (first, second) = (add(first), add(second));
    for number in 0..60 {
        let model = [both, first, second][number % 3];
        rig.submit(Plan { number, ..Plan::of(model, 1000, 1000) }).unwrap();
    }
    rig.run();
    let outcomes = outcomes(&rig);
    assert_eq!(outcomes.len(), 60);
    let count = |model: usize, is: fn(&Outcome) -> bool| {
        outcomes.iter().filter(|(number, it)| number % 3 == model && is(it)).count()
    };
    assert_eq!(count(2, |it| matches!(it, Outcome::Done(_))), 20);
    // Those that were on it fail, at most as many as it has lanes for them; the others run elsewhere.
    assert!(count(0, |it| matches!(it, Outcome::Done(_))) >= 18);
    assert!(count(1, |it| matches!(it, Outcome::Unavailable(_))) >= 10);
    let refused = rig.submit(Plan::of(first, 10, 10)).err();
    assert!(matches!(refused, Some(Refused::Unavailable { .. })), "{refused:?}");
    assert!(rig.submit(Plan::of(both, 10, 10)).is_ok());
    rig.run();
    rig.check_nothing_is_left();
}

#[test]
fn without_memory_batches_wait_or_are_too_large() {
    // One lane of each model fits, two do not.
    let memory_bytes = 10_000;
    let mut rig = rig(Default::default(), vec![HostSettings { memory_bytes, ..linked(0) }]);
    let model = rig.model(1.0, 3, millis(1), Duration::ZERO);
    let other = rig.model(1.0, 3, millis(1), Duration::ZERO);
    for number in 0..20 {
        let model = if number % 2 == 0 { model } else { other };
        rig.submit(Plan { number, ..Plan::of(model, 4000, 3000) }).unwrap();
    }
    rig.submit(Plan { number: 20, ..Plan::of(model, 9000, 3000) }).unwrap();
    rig.run();
    for (number, outcome) in outcomes(&rig) {
        match number {
            20 => assert!(matches!(outcome, Outcome::TooLarge(_)), "{outcome:?}"),
            _ => assert!(matches!(outcome, Outcome::Done(_)), "{number}: {outcome:?}"),
        }
    }
    rig.check_nothing_is_left();
}

#[test]
fn a_batch_that_waits_for_memory_holds_none() {
    let memory_bytes = 6000;
    let mut rig = rig(Default::default(), vec![HostSettings { memory_bytes, ..linked(0) }]);
    let [first, second, third] = [(); 3].map(|()| rig.model(1.0, 1, millis(1), Duration::ZERO));
    // Beside the first there is room for the second's input and not for its output; the third, which goes
    // before it, needs nearly all.
    for (number, model, bytes_in, bytes_out, priority) in
        [(0, first, 2500, 2500, 1), (1, second, 600, 4500, 2), (2, third, 2700, 2700, 1)]
    {
        let plan = Plan { number, priority, ..Plan::of(model, bytes_in, bytes_out) };
        rig.submit(plan).unwrap();
    }
    rig.run();
    for (number, outcome) in outcomes(&rig) {
        assert!(matches!(outcome, Outcome::Done(_)), "{number}: {outcome:?}");
    }
    rig.check_nothing_is_left();
}

#[test]
fn what_waits_can_be_cancelled_refused_or_expire() {
    let settings = SchedulerSettings { waiting_max: 3, ..Default::default() };
    let mut rig = rig(settings, vec![linked(0)]);
    let model = rig.model(1.0, 1, millis(10), Duration::ZERO);
    let mut submit =
        |number, deadline| rig.submit(Plan { number, deadline, ..Plan::of(model, 1000, 1000) });
    let first = submit(0, None).unwrap();
    let second = submit(1, None).unwrap();
    submit(2, Some(millis(3))).unwrap();
    submit(3, None).unwrap();
    assert_eq!(submit(4, None), Err(Refused::Full { waiting_max: 3 }));
    rig.lanes.cancel(second, Timestamp::default());
    rig.lanes.cancel(first, Timestamp::default());
    rig.run();
    let outcomes = outcomes(&rig);
    assert!(matches!(outcomes[0], (0, Outcome::Done(_))));
    assert_eq!(outcomes[1], (1, Outcome::Cancelled));
    assert_eq!(outcomes[2], (2, Outcome::Expired));
    assert!(matches!(outcomes[3], (3, Outcome::Done(_))));
    rig.check_nothing_is_left();
}

#[test]
fn what_nobody_wants_when_its_turn_comes_does_not_begin() {
    let mut rig = rig(Default::default(), vec![linked(0)]);
    let model = rig.model(1.0, 1, millis(10), Duration::ZERO);
    for number in 0..4 {
        rig.submit(Plan { number, ..Plan::of(model, 1000, 1000) }).unwrap();
    }
    rig.unwanted.lock().unwrap().extend([0, 2]);
    rig.run();
    let outcomes = outcomes(&rig);
    // The first had begun.
    assert!([0, 1, 3].iter().all(|&it| matches!(outcomes[it], (_, Outcome::Done(_)))));
    assert_eq!(outcomes[2], (2, Outcome::Cancelled));
    rig.check_nothing_is_left();
}

#[test]
fn the_timeline_shows_every_operation_where_it_ran() {
    let settings = SchedulerSettings { timeline_entries: 7, ..Default::default() };
    let mut rig = rig(settings, vec![linked(0)]);
    let model = rig.model(1.0, 2, millis(2), Duration::ZERO);
    for number in 0..3 {
        rig.submit(Plan { number, ..Plan::of(model, 1000, 1000) }).unwrap();
    }
    rig.run();
    let timeline = rig.lanes.scheduler().timeline();
    assert_eq!(timeline.entries().count(), 7);
    let trace = timeline.chrome_trace();
    let events = trace["traceEvents"].as_array().unwrap();
    let last = events.last().unwrap();
    assert_eq!(
        (&last["ph"], &last["cat"], &last["dur"]),
        (&"X".into(), &"copy out".into(), &1000.0.into())
    );
    assert_eq!(events.iter().filter(|event| event["ph"] == "M").count(), 4);
}
