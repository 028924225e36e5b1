use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::{
    job::{Finished, Job, ModelPlan, Notify},
    lane::{Cargo, Instance, Lane},
    scheduler::Scheduler,
    work::{
        BatchId, Command, Completion, ModelSpec, Outcome, Refused, SchedulerSettings, Stage,
        Ticket, Work,
    },
    worker::{Errand, Worker, report_end, stillborn},
};
use crate::{
    device::{Device, DeviceError, Stream},
    inference::Timestamp,
};

/// Batches on their way through devices: does what the [`Scheduler`] decides.
///
/// It belongs to one thread, which hands it batches and the news that `notify` was told.
pub struct Lanes {
    scheduler: Scheduler,
    devices: Vec<Arc<dyn Device>>,
    /// Their instances, by the scheduler's numbers for them; none at a place that is closed.
    models: FxHashMap<usize, Vec<Option<Instance>>>,
    batches: FxHashMap<BatchId, Batch>,
    notify: Notify,
    /// Operations that could not even be given to their device.
    stillborn: Vec<Completion>,
}

struct Batch {
    model: usize,
    /// Its instance and lane, once it has them.
    at: Option<(usize, usize)>,
    cargo: Cargo,
    is_moot: Box<dyn Fn() -> bool>,
    done: Box<dyn FnOnce(Finished)>,
}

/// A model whose lanes have their streams.
pub struct OpenModel {
    spec: ModelSpec,
    instances: Vec<Instance>,
}

impl OpenModel {
    /// Opens the streams of a model's lanes on `devices`, those of the [`Lanes`] that it is for. Memory
    /// is taken as batches need it.
    ///
    /// # Errors
    /// When a device refuses, or there is none of a place's number.
    pub fn open(plan: ModelPlan, devices: &[Arc<dyn Device>]) -> Result<Self, DeviceError> {
        let ModelPlan { name, share, graphs, instances } = plan;
        let places = instances.iter().map(|(place, _)| *place).collect();
        let threads = instances.iter().any(|(_, runner)| runner.model.is_library());
        let opened = instances
            .into_iter()
            .map(|(place, runner)| {
                let device = place.device;
                let there = devices.get(device);
                let there = there.ok_or(DeviceError::Foreign { device, what: "a place" })?;
                let lanes = (0..place.lanes.max(1)).map(|_| Lane::open(&**there));
                let lanes = lanes.collect::<Result<_, _>>()?;
                Ok(Instance { device, worker: Worker::of(runner, device)?, lanes })
            })
            .collect::<Result<_, DeviceError>>()?;
        Ok(Self { spec: ModelSpec { name, share, places, graphs, threads }, instances: opened })
    }
}

impl Lanes {
    /// Lanes on `devices`, for no model yet.
    pub fn new(settings: SchedulerSettings, devices: Vec<Arc<dyn Device>>, notify: Notify) -> Self {
        Self {
            scheduler: Scheduler::new(settings, devices.len()),
            devices,
            models: FxHashMap::default(),
            batches: FxHashMap::default(),
            notify,
            stillborn: Vec::new(),
        }
    }

    /// Opens a model's lanes on the calling thread, adds it and gives its number.
    ///
    /// # Errors
    /// As [`OpenModel::open`].
    pub fn add_model(&mut self, plan: ModelPlan) -> Result<usize, DeviceError> {
        OpenModel::open(plan, &self.devices).map(|model| self.add(model))
    }

    /// Adds a model and gives its number, which is free again once the model has been removed.
    pub fn add(&mut self, model: OpenModel) -> usize {
        let number = self.scheduler.add_model(model.spec);
        self.models.insert(number, model.instances.into_iter().map(Some).collect());
        number
    }

    /// Gives a model the instances of `others` as well, and returns their indices among its instances.
    pub fn extend(&mut self, model: usize, others: OpenModel, now: Timestamp) -> Vec<usize> {
        let Some(instances) = self.models.get_mut(&model) else { return Vec::new() };
        let mut indices = Vec::with_capacity(others.instances.len());
        for (place, instance) in others.spec.places.into_iter().zip(others.instances) {
            let Some(index) = self.scheduler.add_place(model, place) else { break };
            match instances.get_mut(index) {
                Some(closed) => *closed = Some(instance),
                None => instances.push(Some(instance)),
            }
            indices.push(index);
        }
        self.pump(now);
        indices
    }

    /// Gives no further batch to an instance of a model. What it has on its device is given back when it
    /// has none.
    pub fn close(&mut self, model: usize, instance: usize, now: Timestamp) {
        self.scheduler.close_place(model, instance);
        self.pump(now);
    }

    /// Gives back what a model has on its devices. None of its batches may be left.
    pub fn remove_model(&mut self, model: usize) {
        self.scheduler.remove_model(model);
        self.models.remove(&model);
    }

    /// Takes a batch and starts what can start, now, at `now`.
    ///
    /// # Errors
    /// When too many wait, or all devices of its model are lost; then `done` is not called.
    pub fn submit(&mut self, job: Job, now: Timestamp) -> Result<BatchId, Refused> {
        let Job { model, parts, priority, deadline, is_moot, done } = job;
        let (rows, cargo) = (parts.rows, Cargo::new(parts));
        let (bytes_in, bytes_out) = cargo.bytes();
        let work = Work { model, rows, bytes_in, bytes_out, priority, deadline };
        let batch = self.scheduler.submit(work)?;
        self.batches.insert(batch, Batch { model, at: None, cargo, is_moot, done });
        self.pump(now);
        Ok(batch)
    }

    /// Gives up a batch that has not begun.
    pub fn cancel(&mut self, batch: BatchId, now: Timestamp) {
        self.scheduler.cancel(batch);
        self.pump(now);
    }

    /// Takes the news that an operation has ended, and goes on, now, at `now`.
    pub fn completed(&mut self, completion: &Completion, now: Timestamp) {
        self.scheduler.completed(completion);
        self.pump(now);
    }

    /// Goes on, now, at `now`, though nothing has happened: batches may have passed their deadlines.
    pub fn pump(&mut self, now: Timestamp) {
        loop {
            while let Some(command) = self.scheduler.next(now) {
                self.obey(command);
            }
            let Some(completion) = self.stillborn.pop() else { return };
            self.scheduler.completed(&completion);
        }
    }

    /// What decides.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Prepare { batch, .. } if self.is_moot(batch) => {
                self.scheduler.cancel(batch);
            }
            Command::Prepare { batch, place, lane } => {
                let prepared = self.prepare(batch, place, lane);
                self.scheduler.prepared(batch, prepared);
            }
            Command::Reclaim { device } => self
                .models
                .values_mut()
                .flatten()
                .flatten()
                .filter(|instance| instance.device == device)
                .flat_map(|instance| &mut instance.lanes)
                .filter(|lane| !lane.in_use)
                .for_each(Lane::reclaim),
            Command::Close { model, place } => {
                let instance = self.models.get_mut(&model).and_then(|it| it.get_mut(place));
                drop(instance.and_then(Option::take));
            }
            Command::CopyIn { batch, range } => {
                let ticket = Ticket { batch, stage: Stage::CopyIn, bytes: range.len() };
                self.copy(ticket, Lane::copies_in, |lane, cargo| lane.copy_in(cargo, &range));
            }
            Command::Execute { batch, graph } => self.execute(batch, graph),
            Command::CopyOut { batch, range } => {
                let ticket = Ticket { batch, stage: Stage::CopyOut, bytes: range.len() };
                self.copy(ticket, Lane::copies_out, |lane, cargo| lane.copy_out(cargo, &range));
            }
            Command::Finish { batch, outcome } => self.finish(batch, outcome),
        }
    }

    fn is_moot(&self, batch: BatchId) -> bool {
        self.batches.get(&batch).is_some_and(|batch| (batch.is_moot)())
    }

    fn prepare(&mut self, batch: BatchId, place: usize, lane: usize) -> Result<(), DeviceError> {
        let Some(it) = self.batches.get_mut(&batch) else { return Ok(()) };
        let instance = self.models.get_mut(&it.model).and_then(|model| model.get_mut(place));
        let Some(Some(instance)) = instance else { return Ok(()) };
        let (device, Some(lane_there)) = (instance.device, instance.lanes.get_mut(lane)) else {
            return Ok(());
        };
        let there = self.devices.get(device);
        let there = there.ok_or(DeviceError::Foreign { device, what: "a place" })?;
        if let Err(error) = lane_there.prepare(&**there, &mut it.cargo) {
            // What it did get others may need.
            lane_there.reclaim();
            return Err(error);
        }
        lane_there.in_use = true;
        it.at = Some((place, lane));
        Ok(())
    }

    /// Gives a device a copy, and has its end reported.
    fn copy(
        &mut self,
        ticket: Ticket,
        stream: impl FnOnce(&mut Lane) -> &mut dyn Stream,
        give: impl FnOnce(&mut Lane, &mut Cargo) -> Result<(), DeviceError>,
    ) {
        let Some(batch) = self.batches.get_mut(&ticket.batch) else { return };
        let Some((_, lane)) = on_its_way(&mut self.models, batch) else { return };
        let given = give(lane, &mut batch.cargo);
        self.stillborn.extend(report_end(stream(lane), given.err(), ticket, &self.notify));
    }

    /// Gives a device an execution, or has it given, and has its end reported.
    fn execute(&mut self, batch: BatchId, graph: bool) {
        let ticket = Ticket { batch, stage: Stage::Execute, bytes: 0 };
        let Some(batch) = self.batches.get_mut(&batch) else { return };
        let Some((worker, lane)) = on_its_way(&mut self.models, batch) else { return };
        match worker {
            Worker::Here(runner) => {
                let given = lane.execute(runner, &batch.cargo, graph);
                let told = report_end(&mut *runner.stream, given.err(), ticket, &self.notify);
                self.stillborn.extend(told);
            }
            Worker::Thread(thread) => {
                let ((there, computed), batch) = (lane.events(), batch.cargo.placed().clone());
                let notify = self.notify.clone();
                let sent = thread.send(Errand { there, computed, batch, ticket, notify });
                let ended = |_| DeviceError::Driver {
                    device: 0,
                    call: "giving an execution",
                    reason: "the thread of its instance has ended".to_owned(),
                };
                self.stillborn.extend(sent.err().map(ended).map(|error| stillborn(error, ticket)));
            }
        }
    }

    fn finish(&mut self, batch: BatchId, outcome: Outcome) {
        let Some(Batch { model, at, mut cargo, done, .. }) = self.batches.remove(&batch) else {
            return;
        };
        if let Some((place, lane)) = at
            && let Some(instances) = self.models.get_mut(&model)
            && let Some(Some(instance)) = instances.get_mut(place)
            && let Some(lane) = instance.lanes.get_mut(lane)
        {
            lane.in_use = false;
        }
        let kept = cargo.take_kept();
        let finished = match outcome {
            Outcome::Done(times) => match cargo.finish() {
                Some(outputs) => Finished { outcome: Outcome::Done(times), outputs, kept },
                None => {
                    let (device, call) = (0, "copying outputs");
                    let reason = "the device still holds their memory".to_owned();
                    let error = DeviceError::Driver { device, call, reason };
                    Finished::without_outputs(Outcome::Failed(error))
                }
            },
            outcome => Finished::without_outputs(outcome),
        };
        done(finished);
    }
}

/// The instance and the lane that a batch is on.
fn on_its_way<'a>(
    models: &'a mut FxHashMap<usize, Vec<Option<Instance>>>,
    batch: &Batch,
) -> Option<(&'a mut Worker, &'a mut Lane)> {
    let (place, lane) = batch.at?;
    let instance = models.get_mut(&batch.model)?.get_mut(place)?.as_mut()?;
    Some((&mut instance.worker, instance.lanes.get_mut(lane)?))
}
