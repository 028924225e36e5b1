//! What goes next: which of the batches that wait gets a lane and where, and which operation an engine is given.

use std::cmp::Ordering;

use super::{
    super::{
        course::{Course, Waiting, is_late, through},
        placement::{backlogs, best, expected},
        work::{BatchId, Command, Order, Outcome, Stage, Times, Work},
    },
    Scheduler,
};
use crate::inference::Timestamp;

const STAGES: [Stage; 3] = [Stage::CopyIn, Stage::Execute, Stage::CopyOut];

impl Scheduler {
    /// Gives batches that wait the lanes that are free, and turns away those whose time has passed.
    pub(super) fn admit(&mut self, now: Timestamp) {
        let passed = |it: &Waiting| it.work.deadline.is_some_and(|deadline| deadline <= now);
        let expired: Vec<_> = self.waiting.extract_if(.., |(_, it)| passed(it)).collect();
        for (batch, _) in expired {
            self.finish(batch, Outcome::Expired);
        }
        let mut order: Vec<(Rank, BatchId)> = self
            .waiting
            .iter()
            .filter(|(_, it)| it.starved_on.is_none() && self.has_free_lane(it.work.model))
            .map(|(batch, it)| (self.rank_waiting(it, now), *batch))
            .collect();
        order.sort_by(|(a, _), (b, _)| a.compare(b));
        // One at a time: each changes what is before the engines.
        for (_, batch) in order {
            if self.admit_one(batch) {
                return;
            }
        }
    }

    fn admit_one(&mut self, batch: BatchId) -> bool {
        let Some(at) = self.waiting.iter().position(|(id, _)| *id == batch) else { return false };
        let work = self.waiting[at].1.work;
        let backlogs = backlogs(self.devices.len(), self.courses.values());
        let least = self.least_start();
        let chunk_bytes = self.settings.chunk_bytes;
        let Some(model) = self.models.get_mut(work.model) else { return false };
        let chosen = best(&work, &model.places, &self.devices, &backlogs, chunk_bytes);
        let Some(place) = chosen else { return false };
        let state = &mut model.places[place];
        // It will be through first where it has to wait for a lane.
        let Some(lane) = state.free_lane() else { return false };
        let number = state.place.device;
        let Some(device) = self.devices.get_mut(number) else { return false };
        let (_, waiting) = self.waiting.swap_remove(at);
        let mut course = Course::new(&waiting, place, number, lane);
        course.expected = expected(&work, state, device, chunk_bytes);
        course.start = self.fairness.begin(work.model, least, course.expected.longest());
        course.threaded = model.spec.threads;
        if model.spec.graphs {
            // The first run may set up what cannot be captured.
            course.graph = state.runs_before(lane, work.rows).is_some_and(|runs| runs > 0);
        }
        state.taken[lane] = true;
        device.courses += 1;
        self.courses.insert(batch, course);
        self.commands.push_back(Command::Prepare { batch, place, lane });
        true
    }

    /// Gives an engine of a device its next operation, if one has room and there is something.
    pub(super) fn give(&mut self, device: usize, now: Timestamp) -> Option<Command> {
        let state = self.devices.get(device)?;
        if state.lost.is_some() {
            return None;
        }
        for stage in STAGES {
            let state = self.devices.get(device)?;
            if !state.has_room(stage, self.settings.depth, self.settings.ahead) {
                continue;
            }
            let dry = state.given[stage as usize].is_empty();
            let candidates = self.courses.iter().filter_map(|(batch, course)| {
                let ready = (course.device == device).then(|| course.can_be_given(stage))??;
                // Behind what can run, an operation that waits for another engine keeps the place of
                // one that need not; it is given only when the engine would run dry.
                (ready || dry).then(|| (!ready, self.rank(course, now), *batch))
            });
            let first = candidates.min_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.compare(&b.1)));
            let Some((_, _, batch)) = first else { continue };
            let course = self.courses.get_mut(&batch)?;
            let range = course.give(stage, self.settings.chunk_bytes);
            let graph = course.graph;
            let expected = course.expected.execute;
            let state = self.devices.get_mut(device)?;
            let takes = match stage {
                Stage::CopyIn => state.copies_in.of(range.len() as u64),
                Stage::Execute => expected,
                Stage::CopyOut => state.copies_out.of(range.len() as u64),
            };
            state.given[stage as usize].push_back(takes);
            return Some(match stage {
                Stage::CopyIn => Command::CopyIn { batch, range },
                Stage::Execute => Command::Execute { batch, graph },
                Stage::CopyOut => Command::CopyOut { batch, range },
            });
        }
        None
    }

    fn least_start(&self) -> Option<f64> {
        self.courses.values().map(|course| course.start).min_by(f64::total_cmp)
    }

    fn rank_waiting(&self, waiting: &Waiting, now: Timestamp) -> Rank {
        let Some(model) = self.models.get(waiting.work.model) else {
            return Rank::by_arrival(waiting.number);
        };
        let takes = model.places.iter().filter_map(|place| {
            let device = self.devices.get(place.place.device)?;
            let expected = expected(&waiting.work, place, device, self.settings.chunk_bytes);
            device.lost.is_none().then(|| through(Times::default(), expected))
        });
        let late = is_late(&waiting.work, now, takes.min().unwrap_or_default());
        let start = self.fairness.start(waiting.work.model, self.least_start());
        self.rank_of(&waiting.work, waiting.number, late, start)
    }

    fn rank(&self, course: &Course, now: Timestamp) -> Rank {
        let late = is_late(&course.work, now, through(Times::default(), course.left()));
        self.rank_of(&course.work, course.number, late, course.start)
    }

    fn rank_of(&self, work: &Work, number: u64, late: bool, start: f64) -> Rank {
        match self.settings.order {
            Order::Arrival => Rank::by_arrival(number),
            Order::Urgency => {
                let deadline = work.deadline.map_or(u64::MAX, Timestamp::as_nanos);
                Rank { priority: work.priority, late, deadline, start, number }
            }
        }
    }
}

/// What goes first; the least does.
#[derive(Clone, Copy, Debug)]
struct Rank {
    priority: u32,
    /// What will miss its deadline anyhow makes no other miss its own.
    late: bool,
    deadline: u64,
    start: f64,
    number: u64,
}

impl Rank {
    fn by_arrival(number: u64) -> Self {
        Self { priority: 0, late: false, deadline: 0, start: 0.0, number }
    }

    fn compare(&self, other: &Rank) -> Ordering {
        let key = |rank: &Rank| (rank.priority, rank.late, rank.deadline);
        let by_start = || self.start.total_cmp(&other.start);
        key(self).cmp(&key(other)).then_with(by_start).then(self.number.cmp(&other.number))
    }
}
