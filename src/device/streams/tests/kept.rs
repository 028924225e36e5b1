//! Outputs that stay on the device for the batches behind.

use super::*;
use crate::device::{
    DeviceSlice,
    streams::{Mover, Resident, Rows, Stage},
};

const ROW: usize = 512;

/// Lanes of one model on one device, and what brings bytes from place to place there.
struct Steps {
    rig: Rig,
    mover: Arc<Mover>,
    model: usize,
    writes_in_place: bool,
}

impl Steps {
    fn new(graphs: bool) -> Self {
        let settings = SchedulerSettings { timeline_entries: 100, ..Default::default() };
        let mut rig = Rig::new(settings, Default::default(), vec![linked(0)]);
        let instances = vec![(
            Place { device: 0, lanes: 2 },
            inverting(&*rig.devices[0], millis(1), millis(0)),
        )];
        let plan = ModelPlan { name: "m".into(), share: 1.0, graphs, instances };
        let model = rig.lanes.add_model(plan).unwrap();
        let mover = Arc::new(Mover::load(&*rig.devices[0]));
        Self { rig, mover, model, writes_in_place: !graphs }
    }

    /// Runs a batch and gives what came and what stayed.
    fn run(
        &mut self,
        inputs: Vec<bytes::Bytes>,
        outputs: Vec<OutputPart>,
        resident: Resident,
    ) -> Finished {
        let (tell, told) = std::sync::mpsc::channel();
        let job = Job {
            model: self.model,
            parts: BatchParts {
                rows: 1,
                inputs,
                outputs,
                resident: Some(resident),
                ..BatchParts::default()
            },
            priority: 0,
            deadline: None,
            is_moot: Box::new(|| false),
            done: Box::new(move |finished| tell.send(finished).unwrap()),
        };
        self.rig.lanes.submit(job, self.rig.simulation.now()).unwrap();
        self.rig.run();
        told.recv().unwrap()
    }

    /// Runs a batch of these bytes whose output stays.
    fn first(&mut self, value: u8, rows: usize) -> DeviceSlice {
        let mut resident = Resident::new(self.mover.clone());
        resident.keep(0, self.writes_in_place);
        let outputs = vec![OutputPart::Stays(rows * ROW)];
        let finished = self.run(vec![vec![value; rows * ROW].into()], outputs, resident);
        assert!(matches!(finished.outcome, Outcome::Done(_)), "{:?}", finished.outcome);
        let (index, kept) = finished.kept.into_iter().next().unwrap();
        assert_eq!((index, kept.len()), (0, rows * ROW));
        kept
    }

    /// Runs a batch of what stayed, and gives what comes of it.
    fn second(&mut self, places: Vec<DeviceSlice>) -> Vec<u8> {
        let bytes = places.iter().map(DeviceSlice::len).sum();
        let mut resident = Resident::new(self.mover.clone());
        let rows = places.into_iter().map(Rows::Lie).collect();
        resident.add_input(0, rows, self.writes_in_place);
        let outputs = vec![OutputPart::Comes(self.rig.pool.allocate(bytes).unwrap())];
        let finished = self.run(vec![bytes::Bytes::new()], outputs, resident);
        finished.outputs[0].as_ref().unwrap().to_vec()
    }
}

#[test]
fn what_stays_is_read_by_the_batches_behind_and_is_free_after_them() {
    for graphs in [false, true] {
        let mut steps = Steps::new(graphs);
        for round in 0..3 {
            let (one, other) = (steps.first(round, 2), steps.first(round + 100, 1));
            // All of one batch, a part of it, and rows of two.
            assert_eq!(steps.second(vec![one.clone()]), vec![round; 2 * ROW]);
            let rows: Vec<_> =
                (0..2).map(|row| one.slice(row * ROW..(row + 1) * ROW).unwrap()).collect();
            assert_eq!(steps.second(rows.clone()), vec![round; 2 * ROW]);
            assert_eq!(steps.second(rows[1..].to_vec()), vec![round; ROW]);
            let mixed = steps.second(vec![other.clone(), rows[0].clone()]);
            assert_eq!(mixed, [vec![round + 100; ROW], vec![round; ROW]].concat());
            let held = steps.rig.devices[0].free_bytes();
            drop((one, other, rows));
            assert_eq!(steps.rig.devices[0].free_bytes(), held + 3 * ROW);
        }
        let copied = |stage: Stage| -> usize {
            let entries = steps.rig.lanes.scheduler().timeline().entries();
            entries.filter(|entry| entry.stage == stage).map(|entry| entry.bytes).sum()
        };
        assert_eq!((copied(Stage::CopyIn), copied(Stage::CopyOut)), (9 * ROW, 21 * ROW));
        steps.rig.check_nothing_is_left();
    }
}

#[test]
fn what_each_keeps_for_itself_is_held_by_nobody_else() {
    for graphs in [false, true] {
        let mut steps = Steps::new(graphs);
        let lying = steps.first(7, 1);
        // A row of the device, one of the host, and one of zeros; the middle one keeps nothing.
        let run = |steps: &mut Steps, lying: &DeviceSlice| {
            let mut resident = Resident::new(steps.mover.clone());
            let host = [vec![5; ROW / 2], vec![6; ROW / 2]].map(|half| Rows::Come(half.into()));
            let [half, other] = host;
            let rows = vec![Rows::Lie(lying.clone()), half, other, Rows::Zeros(ROW)];
            resident.add_input(0, rows, true);
            resident.keep_apart(0, vec![0..ROW, 2 * ROW..3 * ROW]);
            let comes = OutputPart::Comes(steps.rig.pool.allocate(3 * ROW).unwrap());
            steps.run(vec![bytes::Bytes::new()], vec![comes], resident)
        };
        for _ in 0..3 {
            let Finished { outputs, mut kept, .. } = run(&mut steps, &lying);
            let halves = [(7, 2), (!5_u8, 1), (!6, 1), (!0, 2)];
            let expected: Vec<u8> = halves
                .into_iter()
                .flat_map(|(value, count)| vec![value; count * ROW / 2])
                .collect();
            assert_eq!(outputs[0].as_deref(), Some(&expected[..]));
            let numbers: Vec<_> = kept.iter().map(|(index, it)| (*index, it.len())).collect();
            assert_eq!(numbers, [(0, ROW), (0, ROW)]);
            let held = steps.rig.devices[0].free_bytes();
            let (_, last) = kept.pop().unwrap();
            assert_eq!(steps.second(vec![last.clone()]), vec![0; ROW]);
            drop(last);
            assert_eq!(steps.rig.devices[0].free_bytes(), held + ROW);
            assert_eq!(steps.second(vec![kept[0].1.clone()]), vec![!7; ROW]);
        }
        drop(lying);
        steps.rig.check_nothing_is_left();
    }
}
