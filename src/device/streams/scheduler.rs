mod choice;

use std::{collections::VecDeque, sync::Arc};

use rustc_hash::FxHashMap;
use slab::Slab;

use super::{
    course::{Course, Waiting},
    fairness::Fairness,
    placement::{DeviceState, PlaceOpen, PlaceState},
    timeline::{Timeline, TimelineEntry},
    work::{
        BatchId, Command, Completion, ModelSpec, Outcome, Place, Refused, SchedulerSettings, Stage,
        Ticket, Work,
    },
};
use crate::{device::DeviceError, inference::Timestamp};

/// Decides what devices do next. It has no clock, no thread and no device of its own.
///
/// Whoever drives it submits work, reports what devices have done, and after each of these asks
/// [`next`](Scheduler::next) until there is nothing more to do for now. Every batch that it takes ends
/// with one [`Command::Finish`].
pub struct Scheduler {
    settings: SchedulerSettings,
    devices: Vec<DeviceState>,
    models: Slab<Model>,
    waiting: Vec<(BatchId, Waiting)>,
    courses: FxHashMap<BatchId, Course>,
    fairness: Fairness,
    /// What is to be said before anything else is decided.
    commands: VecDeque<Command>,
    /// Models and their places that are closing.
    closing: Vec<(usize, usize)>,
    submitted: u64,
    timeline: Timeline,
}

struct Model {
    spec: ModelSpec,
    places: Vec<PlaceState>,
}

impl Scheduler {
    /// A scheduler for `devices` devices, without models.
    pub fn new(settings: SchedulerSettings, devices: usize) -> Self {
        Self {
            timeline: Timeline::new(settings.timeline_entries),
            settings,
            devices: (0..devices).map(|_| DeviceState::default()).collect(),
            models: Slab::new(),
            waiting: Vec::new(),
            courses: FxHashMap::default(),
            fairness: Fairness::default(),
            commands: VecDeque::new(),
            closing: Vec::new(),
            submitted: 0,
        }
    }

    /// Adds a model and gives its number.
    pub fn add_model(&mut self, spec: ModelSpec) -> usize {
        let (share, places) = (spec.share, spec.places.iter());
        let places = places.map(|place| PlaceState::new(*place)).collect();
        let number = self.models.insert(Model { spec, places });
        self.fairness.add(number, share);
        number
    }

    /// Forgets a model, none of whose batches is left. Its number goes to another.
    pub fn remove_model(&mut self, model: usize) {
        self.models.try_remove(model);
        self.closing.retain(|(other, _)| *other != model);
    }

    /// Gives a model one more place, and its index among the model's.
    pub fn add_place(&mut self, model: usize, place: Place) -> Option<usize> {
        let places = &mut self.models.get_mut(model)?.places;
        let (closed, place) = (PlaceOpen::Closed, PlaceState::new(place));
        match places.iter().position(|other| other.state == closed) {
            Some(index) => {
                places[index] = place;
                Some(index)
            }
            None => {
                places.push(place);
                Some(places.len() - 1)
            }
        }
    }

    /// Has no further batch go to a place of a model. Once none is there [`Command::Close`] follows.
    pub fn close_place(&mut self, model: usize, place: usize) {
        let Some(known) = self.models.get_mut(model) else { return };
        if let Some(state) = known.places.get_mut(place).filter(|state| state.is_open()) {
            state.state = PlaceOpen::Closing;
            self.closing.push((model, place));
        }
    }

    /// Takes a batch.
    ///
    /// # Errors
    /// When too many wait, or all devices of its model are lost.
    pub fn submit(&mut self, work: Work) -> Result<BatchId, Refused> {
        let model = work.model;
        let known = self.models.get(model).ok_or(Refused::NoModel { model })?;
        if let Some(source) = self.unavailable(model) {
            return Err(Refused::Unavailable { model: known.spec.name.clone(), source });
        }
        let waiting_max = self.settings.waiting_max;
        if self.waiting.len() >= waiting_max {
            return Err(Refused::Full { waiting_max });
        }
        self.submitted += 1;
        let (batch, number) = (BatchId(self.submitted), self.submitted);
        self.waiting.push((batch, Waiting { work, number, starved_on: None, reclaimed: false }));
        Ok(batch)
    }

    /// Gives up a batch that still waits, or whose lane is not prepared yet; one that has begun runs
    /// to its end. Whether it had not begun.
    pub fn cancel(&mut self, batch: BatchId) -> bool {
        let found = self.waiting.iter().position(|(id, _)| *id == batch);
        match found {
            Some(at) => {
                self.waiting.swap_remove(at);
            }
            None if self.courses.get(&batch).is_some_and(|course| !course.prepared) => {
                self.leave(batch);
            }
            None => return false,
        }
        self.finish(batch, Outcome::Cancelled);
        true
    }

    /// Whether a batch of the model would begin at once.
    pub fn has_free_lane(&self, model: usize) -> bool {
        let places = self.models.get(model).map_or(&[][..], |model| &model.places);
        places.iter().any(|place| {
            let works =
                self.devices.get(place.place.device).is_some_and(|device| device.lost.is_none());
            works && place.free_lane().is_some()
        })
    }

    /// Why a model cannot run: all its devices are lost.
    pub fn unavailable(&self, model: usize) -> Option<DeviceError> {
        let places = self.models.get(model)?.places.iter().filter(|place| place.is_open());
        let lost = |place: &PlaceState| self.devices.get(place.place.device)?.lost.clone();
        let last = lost(places.clone().next_back()?)?;
        places.into_iter().all(|place| lost(place).is_some()).then_some(last)
    }

    /// What the engines did.
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Batches that wait, and those on their way.
    pub fn load(&self) -> (usize, usize) {
        (self.waiting.len(), self.courses.len())
    }

    /// What the driver is to do next; none when it is to wait for news.
    pub fn next(&mut self, now: Timestamp) -> Option<Command> {
        if let Some(command) = self.commands.pop_front() {
            return Some(command);
        }
        self.admit(now);
        if let Some(command) = self.commands.pop_front().or_else(|| self.close()) {
            return Some(command);
        }
        (0..self.devices.len()).find_map(|device| self.give(device, now))
    }

    /// Closes a place that is to be closed and has no batch any more.
    fn close(&mut self) -> Option<Command> {
        let models = &mut self.models;
        let empty = self.closing.iter().position(|&(model, place)| {
            let state = models.get(model).and_then(|model| model.places.get(place));
            state.is_some_and(|state| !state.taken.contains(&true))
        });
        let (model, place) = self.closing.swap_remove(empty?);
        models.get_mut(model)?.places.get_mut(place)?.state = PlaceOpen::Closed;
        Some(Command::Close { model, place })
    }

    /// Reports whether the batch's lane has memory for it.
    pub fn prepared(&mut self, batch: BatchId, outcome: Result<(), DeviceError>) {
        let Some(course) = self.courses.get_mut(&batch) else { return };
        let Err(error) = outcome else {
            course.prepared = true;
            return;
        };
        let Some(course) = self.leave(batch) else { return };
        if !error.is_out_of_memory() {
            self.fail(batch, course.device, error);
            return;
        }
        let (reclaimed, device) = (course.reclaimed, course.device);
        let mut waiting =
            Waiting { work: course.work, number: course.number, starved_on: None, reclaimed: true };
        if !reclaimed {
            self.commands.push_back(Command::Reclaim { device });
        } else if self.devices.get(device).is_some_and(|device| device.courses > 0) {
            // What runs there gives memory back when it ends.
            waiting.starved_on = Some(device);
            waiting.reclaimed = false;
        } else {
            self.finish(batch, Outcome::TooLarge(error));
            return;
        }
        self.waiting.push((batch, waiting));
    }

    /// Reports that an operation has ended.
    pub fn completed(&mut self, completion: &Completion) {
        let Completion { ticket: Ticket { batch, stage, bytes }, report } = completion;
        // A batch that was given up with its device is not known any more.
        let Some(course) = self.courses.get_mut(batch) else { return };
        course.ended(*stage, *bytes, report);
        let (device, place, work) = (course.device, course.place, course.work);
        let outcome = course.outcome();
        let Some(state) = self.devices.get_mut(device) else { return };
        // An engine's operations end in the order in which they were given,
        // near enough.
        state.given[*stage as usize].pop_front();
        let Some(model) = self.models.get_mut(work.model) else { return };
        if report.outcome.is_ok() {
            let took = report.busy;
            match stage {
                Stage::CopyIn => state.copies_in.observe(*bytes as u64, took),
                Stage::CopyOut => state.copies_out.observe(*bytes as u64, took),
                Stage::Execute => {
                    if let Some(place) = model.places.get_mut(place) {
                        place.executions.observe(u64::from(work.rows), took);
                    }
                }
            }
        }
        self.timeline.note(|| TimelineEntry {
            device,
            stage: *stage,
            model: Arc::clone(&model.spec.name),
            batch: *batch,
            rows: work.rows,
            bytes: *bytes,
            began: report.began,
            ended: report.ended,
            failed: report.outcome.is_err(),
        });
        match (&report.outcome, outcome) {
            (Err(error), _) if error.is_lost() => self.lost(device, error),
            (_, Some(outcome)) => {
                self.leave(*batch);
                self.finish(*batch, outcome);
            }
            (_, None) => {}
        }
    }

    /// Reports that a device is lost. What it ran fails; what still waits runs elsewhere, if its model
    /// has another device.
    ///
    /// A batch that was on the device is not tried on another: it may be what lost the first.
    pub fn lost(&mut self, device: usize, error: &DeviceError) {
        let Some(state) = self.devices.get_mut(device) else { return };
        if state.lost.is_some() {
            return;
        }
        state.lost = Some(error.clone());
        let mut on_it: Vec<BatchId> = self
            .courses
            .iter()
            .filter_map(|(batch, course)| (course.device == device).then_some(*batch))
            .collect();
        on_it.sort_unstable();
        for batch in on_it {
            self.leave(batch);
            self.finish(batch, Outcome::Failed(error.clone()));
        }
        let hopeless: Vec<_> = self
            .waiting
            .iter()
            .filter_map(|(batch, it)| Some((*batch, self.unavailable(it.work.model)?)))
            .collect();
        self.waiting.retain(|(batch, _)| !hopeless.iter().any(|(lost, _)| lost == batch));
        for (batch, error) in hopeless {
            self.finish(batch, Outcome::Unavailable(error));
        }
    }

    fn fail(&mut self, batch: BatchId, device: usize, error: DeviceError) {
        self.finish(batch, Outcome::Failed(error.clone()));
        if error.is_lost() {
            self.lost(device, &error);
        }
    }

    fn finish(&mut self, batch: BatchId, outcome: Outcome) {
        self.commands.push_back(Command::Finish { batch, outcome });
    }

    /// Takes a batch off its lane.
    fn leave(&mut self, batch: BatchId) -> Option<Course> {
        let course = self.courses.remove(&batch)?;
        let took = course.took().longest();
        self.fairness.settle(course.work.model, course.expected.longest(), took);
        if let Some(device) = self.devices.get_mut(course.device) {
            device.courses -= 1;
        }
        let model = self.models.get_mut(course.work.model)?;
        if let Some(taken) = model.places.get_mut(course.place)?.taken.get_mut(course.lane) {
            *taken = false;
        }
        for (_, waiting) in &mut self.waiting {
            // One that got no memory gives none back.
            if course.prepared && waiting.starved_on == Some(course.device) {
                waiting.starved_on = None;
            }
        }
        Some(course)
    }
}
