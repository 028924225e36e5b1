//! Instances that come and go while their model has batches.

use proptest::prelude::*;

use super::*;

fn rig() -> Rig {
    Rig::new(
        SchedulerSettings::default(),
        SimulationSettings::default(),
        vec![linked(0), linked(1)],
    )
}

impl Rig {
    /// Gives a model an instance of two lanes on a device.
    fn open(&mut self, model: usize, device: usize) -> usize {
        let handles: Vec<_> =
            self.devices.iter().map(|device| device.clone() as Arc<dyn Device>).collect();
        let runner = inverting(&*handles[device], millis(1), Duration::ZERO);
        let instances = vec![(Place { device, lanes: 2 }, runner)];
        let plan = ModelPlan { name: "m".into(), share: 1.0, graphs: false, instances };
        let opened = OpenModel::open(plan, &handles).unwrap();
        self.lanes.extend(model, opened, self.simulation.now())[0]
    }

    fn close(&mut self, model: usize, instance: usize) {
        self.lanes.close(model, instance, self.simulation.now());
    }

    fn takes_memory(&self, device: usize) -> bool {
        self.devices[device].free_bytes() < self.devices[device].properties().memory_bytes
    }

    fn run_some(&mut self, model: usize) {
        for number in 0..8 {
            self.submit(Plan { number, ..Plan::of(model, 1000, 1000) }).unwrap();
        }
        self.run();
        let ended = self.ended();
        assert_eq!(ended.len(), 8);
        assert!(ended.iter().all(|ended| matches!(ended.outcome, Outcome::Done(_))));
    }
}

#[test]
fn what_is_closed_gives_its_memory_back_and_gets_no_batch() {
    let mut rig = rig();
    let model = rig.model(1.0, 2, millis(1), Duration::ZERO);
    rig.run_some(model);
    assert!(rig.takes_memory(0) && rig.takes_memory(1));
    rig.close(model, 0);
    assert!(!rig.takes_memory(0) && rig.takes_memory(1));
    rig.run_some(model);
    assert!(!rig.takes_memory(0));
    // Its index is another's now.
    assert_eq!((rig.open(model, 0), rig.open(model, 1)), (0, 2));
    rig.run_some(model);
    assert!(rig.takes_memory(0));
    rig.check_nothing_is_left();
}

proptest! {
    /// Whatever comes and goes between batches and their operations, each batch is answered with its own.
    #[test]
    fn batches_end_as_they_should(steps in prop::collection::vec((0..6_u8, 0..4_usize), 0..80)) {
        let mut rig = rig();
        let model = rig.model(1.0, 2, millis(1), Duration::ZERO);
        let (mut open, mut submitted) = (vec![0, 1], 0);
        for (step, which) in steps {
            match step {
                0 => open.push(rig.open(model, which % 2)),
                1 if open.len() > 1 => {
                    let instance = open.swap_remove(which % open.len());
                    rig.close(model, instance);
                }
                2 | 3 => {
                    let plan = Plan::of(model, 500 * which + 1, 700);
                    rig.submit(Plan { number: submitted, ..plan }).unwrap();
                    submitted += 1;
                }
                _ => {
                    rig.simulation.step();
                    let news = std::mem::take(&mut *rig.news.lock().unwrap());
                    let now = rig.simulation.now();
                    news.iter().for_each(|completion| rig.lanes.completed(completion, now));
                }
            }
        }
        rig.run();
        let ended = rig.ended();
        prop_assert_eq!(ended.len(), submitted);
        for Ended { number, outcome, outputs, .. } in ended {
            prop_assert!(matches!(outcome, Outcome::Done(_)), "{:?}", outcome);
            prop_assert_eq!(&outputs, &[Some(vec![!(number as u8); 700].into())]);
        }
        // All that is left belongs to those that are open.
        open.iter().for_each(|&instance| rig.close(model, instance));
        prop_assert!(!rig.takes_memory(0) && !rig.takes_memory(1));
        rig.check_nothing_is_left();
    }
}
