//! Batches that run on devices: the lanes of all of them, which live on one reactor, and the way of a
//! sealed batch through them and back.

use std::{
    cell::RefCell,
    collections::VecDeque,
    rc::Rc,
    sync::{Arc, OnceLock, mpsc},
};

use smallvec::SmallVec;

use super::{
    batch::{self, Outputs},
    execution::{Executed, SealedBatch},
    job::Job,
    rows::SharedRows,
};
use crate::{
    backend::{DeviceInstance, DeviceModel, PlacementDevice, returned},
    device::{
        Device, DeviceError, Devices,
        streams::{
            self, BatchParts, Compute, Finished, Lanes, ModelPlan, OpenModel, Outcome, Place,
            Refused, SchedulerSettings, Timeline,
        },
    },
    inference::{Admitted, Error, Shape, Timestamp},
    observe::BatchTimes,
    runtime::{PerReactor, ReactorHandle, reply_channel, spawn},
};

/// What is done when a device is lost.
type OnLoss = Box<dyn Fn(&DeviceError) + Send + Sync>;

/// The devices that models run on, and the lanes that lead there. One reactor drives them, the home of
/// all models that run in lanes: so one scheduler sees all that the devices have to do.
pub struct Fleet {
    devices: Arc<Devices>,
    settings: FleetSettings,
    home: ReactorHandle,
    driver: PerReactor<Driver>,
    on_loss: OnLoss,
    lost: OnceLock<()>,
}

/// How lanes are to work.
#[derive(Clone, Debug)]
pub struct FleetSettings {
    /// Batches on their way through one instance at a time: while one runs, others are copied.
    pub lanes: usize,
    /// What the scheduler does with them.
    pub scheduler: SchedulerSettings,
    /// How full devices may be, of 1, for models to load there, by their numbers; the last of a number
    /// counts.
    pub load_limits: Vec<(usize, f64)>,
}

/// A device is fuller than it may be for a model to load; the text is Triton's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "can not create model '{model}': memory limit set for GPU {device} has exceeded, model loading is \
     rejected."
)]
pub struct TooFull {
    model: String,
    device: usize,
}

/// What drives the lanes, on their reactor.
struct Driver {
    lanes: RefCell<Lanes>,
    ended: Rc<RefCell<VecDeque<(Journey, Finished)>>>,
}

impl Driver {
    /// Changes the lanes, and goes on with the batches that have ended by that.
    fn with<T>(&self, change: impl FnOnce(&mut Lanes) -> T) -> T {
        let result = change(&mut self.lanes.borrow_mut());
        loop {
            let ended = self.ended.borrow_mut().pop_front();
            let Some((journey, finished)) = ended else { return result };
            journey.ended(finished);
        }
    }
}

impl Fleet {
    /// Lanes on `devices`, which the first model opens. `on_loss` is called once a device is lost.
    pub fn new(
        devices: Arc<Devices>,
        settings: FleetSettings,
        reactors: &[ReactorHandle],
        on_loss: impl Fn(&DeviceError) + Send + Sync + 'static,
    ) -> Option<Arc<Self>> {
        let home = reactors.first()?.clone();
        let (driver, on_loss) = (PerReactor::new(reactors), Box::new(on_loss));
        let lost = OnceLock::new();
        Some(Arc::new(Self { devices, settings, home, driver, on_loss, lost }))
    }

    /// The devices.
    pub fn devices(&self) -> &Arc<Devices> {
        &self.devices
    }

    /// Whether a model may load on a device.
    ///
    /// # Errors
    /// When the device is fuller than it may be for that.
    pub(super) fn check_room(&self, model: &str, on: PlacementDevice) -> Result<(), TooFull> {
        let PlacementDevice::Gpu(number) = on else { return Ok(()) };
        let limits = self.settings.load_limits.iter().rev();
        let limit = limits.into_iter().find(|(device, _)| i32::try_from(*device) == Ok(number));
        let Some(&(device, most)) = limit else { return Ok(()) };
        let Ok(there) = self.devices.get(device) else { return Ok(()) };
        let total = there.properties().memory_bytes.max(1);
        let used = total.saturating_sub(there.free_bytes());
        match used as f64 / total as f64 > most {
            true => Err(TooFull { model: model.to_owned(), device }),
            false => Ok(()),
        }
    }

    /// Opens the lanes of a model's instances. Blocks, so not for reactors.
    ///
    /// # Errors
    /// When a device refuses.
    pub(super) fn open(
        self: &Arc<Self>,
        name: &Arc<str>,
        graphs: bool,
        instances: Vec<DeviceInstance>,
    ) -> Result<OpenLanes, DeviceError> {
        let all = self.devices.all().unwrap_or_default();
        let model = instances.first().map(|instance| instance.model.clone());
        let count = instances.len();
        let devices = instances.iter().map(|instance| instance.device.clone()).collect();
        let placed = instances.into_iter().map(|instance| {
            let number = instance.device.properties().index;
            let found = all.iter().position(|device| device.properties().index == number);
            let device =
                found.ok_or(DeviceError::Foreign { device: number, what: "an instance" })?;
            Ok((Place { device, lanes: self.settings.lanes }, instance.compute))
        });
        let instances: Vec<(Place, Box<dyn Compute>)> =
            placed.collect::<Result<_, DeviceError>>()?;
        let plan = ModelPlan { name: name.clone(), share: 1.0, graphs, instances };
        let none = DeviceError::Foreign { device: 0, what: "a model without instances" };
        Ok(OpenLanes {
            fleet: self.clone(),
            devices,
            model: model.ok_or(none)?,
            opened: OpenModel::open(plan, all)?,
            instances: count,
        })
    }

    /// What the devices did lately, as a reactor asks for it.
    pub async fn timeline(self: &Arc<Self>) -> Option<Timeline> {
        let (reply, mut answer) = reply_channel();
        let fleet = self.clone();
        let tell = Box::new(move || reply.finish(fleet.timeline_here()));
        // Without an answer the lanes have ended.
        self.home.send(tell).ok()?;
        answer.receive().await
    }

    /// The same for a thread that may wait.
    pub fn timeline_blocking(self: &Arc<Self>) -> Option<Timeline> {
        let (tell, told) = mpsc::channel();
        let fleet = self.clone();
        let tell = Box::new(move || tell.send(fleet.timeline_here()).unwrap_or_default());
        self.home.send(tell).ok()?;
        told.recv().ok()
    }

    /// On the lanes' reactor.
    fn timeline_here(&self) -> Timeline {
        let driver = self.driver.get();
        let timeline = driver.map(|driver| driver.lanes.borrow().scheduler().timeline().clone());
        timeline.unwrap_or_else(|| Timeline::new(0))
    }

    /// On the lanes' reactor.
    fn drive(self: &Arc<Self>) -> &Driver {
        if self.driver.get().is_none() {
            let (fleet, home) = (Arc::downgrade(self), self.home.clone());
            let notify: streams::Notify = Arc::new(move |completion| {
                let fleet = fleet.clone();
                let news = Box::new(move || {
                    if let Some(fleet) = fleet.upgrade() {
                        fleet.completed(&completion);
                    }
                });
                if home.send(news).is_err() {
                    log::debug!("a device has ended something after its reactor");
                }
            });
            let devices = self.devices.all().unwrap_or_default().to_vec();
            let lanes = Lanes::new(self.settings.scheduler.clone(), devices, notify);
            self.driver.set(Driver { lanes: RefCell::new(lanes), ended: Rc::default() });
        }
        self.driver.get().expect("lanes are driven on their reactor")
    }

    fn completed(&self, completion: &streams::Completion) {
        if let Some(driver) = self.driver.get() {
            driver.with(|lanes| lanes.completed(completion, Timestamp::now()));
        }
        if let Err(error) = &completion.report.outcome
            && error.is_lost()
        {
            self.lost.get_or_init(|| (self.on_loss)(error));
        }
    }
}

/// A model's lanes before they are driven.
pub(super) struct OpenLanes {
    fleet: Arc<Fleet>,
    model: Arc<dyn DeviceModel>,
    devices: Vec<Arc<dyn Device>>,
    opened: OpenModel,
    instances: usize,
}

impl OpenLanes {
    /// The reactor that is to drive them.
    pub fn home(&self) -> &ReactorHandle {
        &self.fleet.home
    }

    /// The device of each instance.
    pub fn devices(&self) -> &[Arc<dyn Device>] {
        &self.devices
    }

    /// Has them driven.
    ///
    /// # Panics
    /// Not on the lanes' reactor.
    pub fn start(self) -> ModelLanes {
        let Self { fleet, model, opened, instances, .. } = self;
        let number = fleet.drive().with(|lanes| lanes.add(opened));
        let lanes = fleet.settings.lanes.max(1);
        let route = Route { fleet, model, number };
        ModelLanes { route, instances, lanes, in_flight: 0 }
    }
}

/// The lanes of a version's instances, as its queue sees them.
pub struct ModelLanes {
    route: Route,
    instances: usize,
    /// Of each instance.
    lanes: usize,
    in_flight: usize,
}

/// Where a model's batches go.
#[derive(Clone)]
struct Route {
    fleet: Arc<Fleet>,
    model: Arc<dyn DeviceModel>,
    /// The model's number in the lanes.
    number: usize,
}

impl ModelLanes {
    /// How many instances there are.
    pub fn count(&self) -> usize {
        self.instances
    }

    /// Whether an instance has nothing to do.
    pub fn have_idle(&self) -> bool {
        self.in_flight < self.instances
    }

    /// Whether a batch can be on its way while others run.
    pub fn have_free_lane(&self) -> bool {
        self.in_flight < self.instances * self.lanes
    }

    /// Whether inputs have to be brought into the server's own memory.
    pub fn want_pinned(&self) -> bool {
        let devices = self.route.fleet.devices.opened();
        devices.iter().any(|device| device.properties().wants_pinned)
    }

    /// Sends a batch off, now, at `began`. It comes back through its version.
    pub fn run(&mut self, batch: SealedBatch, began: Timestamp) {
        self.in_flight += 1;
        let SealedBatch { jobs, rows, ticket, .. } = batch;
        let journey = Journey {
            route: self.route.clone(),
            ticket,
            began,
            jobs,
            shapes: Vec::new(),
            later: Vec::new(),
            back: Vec::new(),
            outputs: Vec::new(),
            times: BatchTimes::default(),
        };
        if rows.is_soon_filled() {
            return journey.depart(rows);
        }
        spawn(&"putting a batch together", async move {
            rows.fill().await;
            journey.depart(rows);
        });
    }

    /// Notes that a batch has come back.
    pub fn finished(&mut self) {
        self.in_flight -= 1;
    }
}

impl Drop for ModelLanes {
    fn drop(&mut self) {
        if let Some(driver) = self.route.fleet.driver.get() {
            driver.with(|lanes| lanes.remove_model(self.route.number));
        }
    }
}

/// A sealed batch on its way. Where the device has no memory for all of it, its requests go in
/// several parts, one after the other.
struct Journey {
    route: Route,
    /// The batch's place among those of its queue.
    ticket: u64,
    began: Timestamp,
    /// The requests that are on their way now, and the shapes of their outputs.
    jobs: Vec<Job>,
    shapes: Vec<Shape>,
    /// Those that go after them, the next last.
    later: Vec<Vec<Job>>,
    /// Those that are back, with their outputs.
    back: Vec<Job>,
    outputs: Vec<Outputs>,
    times: BatchTimes,
}

impl Journey {
    /// Brings the requests into lanes.
    fn depart(mut self, rows: SharedRows) {
        if self.jobs.iter().all(|job| job.reply.is_abandoned()) {
            return self.end(Err(Error::Cancelled));
        }
        let parts = match self.lay_out(rows) {
            Ok((parts, shapes)) => {
                self.shapes = shapes;
                parts
            }
            Err(error) => return self.end(Err(error)),
        };
        let (fleet, model) = (self.route.fleet.clone(), self.route.number);
        let (priority, deadline) = (self.priority(), self.deadline());
        let Some(driver) = fleet.driver.get() else {
            let detail = "the lanes of the devices have ended".to_owned();
            return self.end(Err(Error::Internal { detail }));
        };
        let ended = driver.ended.clone();
        let journey = Rc::new(RefCell::new(Some(self)));
        let travels = journey.clone();
        let done = Box::new(move |finished| {
            let journey = travels.borrow_mut().take();
            ended.borrow_mut().extend(journey.map(|journey| (journey, finished)));
        });
        let job = streams::Job { model, parts, priority, deadline, done };
        let taken = driver.with(|lanes| lanes.submit(job, Timestamp::now()));
        if let Err(refused) = taken {
            let journey = journey.borrow_mut().take();
            journey.into_iter().for_each(|journey| {
                let error = journey.refusal(&refused);
                journey.end(Err(error));
            });
        }
    }

    fn lay_out(&self, shared: SharedRows) -> Result<(BatchParts, Vec<Shape>), Error> {
        let Some(version) = self.jobs.first().map(|job| &job.version) else {
            return Ok((BatchParts::default(), Vec::new()));
        };
        let pool = &version.host.pool;
        let requests: SmallVec<[&Admitted; 8]> =
            self.jobs.iter().map(|job| &job.admitted).collect();
        let inputs = batch::assemble(&version.signature, &version.ragged, &requests, shared, pool)?;
        let rows = requests.iter().map(|request| request.batch_size).sum();
        let laid = self.route.model.lay_out(rows, &inputs);
        let laid = laid.map_err(|error| Error::Backend { detail: error.0 })?;
        Ok(laid.parts(rows, pool)?)
    }

    /// Smaller goes first: what the model's configuration says.
    fn priority(&self) -> u32 {
        let version = self.jobs.first().map(|job| &job.version);
        version.map_or(0, |version| version.device_priority)
    }

    /// When none of the requests is wanted any more.
    fn deadline(&self) -> Option<Timestamp> {
        let deadlines: Option<Vec<Timestamp>> = self.jobs.iter().map(|job| job.deadline).collect();
        deadlines?.into_iter().max()
    }

    /// What was on its way has come back, or will not.
    fn ended(mut self, finished: Finished) {
        let Finished { outcome, outputs } = finished;
        match outcome {
            Outcome::Done(took) => {
                self.times.compute_infer += took.execute;
                self.times.compute_output += took.copy_out;
                match self.split(outputs) {
                    Ok(outputs) => self.outputs.extend(outputs),
                    Err(error) => return self.end(Err(error)),
                }
                let back = std::mem::take(&mut self.jobs);
                self.back.extend(back);
                match self.later.pop() {
                    Some(jobs) => {
                        self.jobs = jobs;
                        self.depart(SharedRows::default());
                    }
                    None => {
                        let outputs = std::mem::take(&mut self.outputs);
                        self.end(Ok(outputs));
                    }
                }
            }
            Outcome::TooLarge(_) if self.jobs.len() > 1 => {
                let second = self.jobs.split_off(self.jobs.len() / 2);
                self.later.push(second);
                self.depart(SharedRows::default());
            }
            Outcome::TooLarge(error) | Outcome::Failed(error) if !error.is_lost() => {
                self.end(Err(Error::Backend { detail: error.to_string() }));
            }
            Outcome::TooLarge(error) | Outcome::Failed(error) | Outcome::Unavailable(error) => {
                let error = self.unavailable(&error);
                self.end(Err(error));
            }
            Outcome::Expired => self.end(Err(Error::DeadlineExpired)),
            Outcome::Cancelled => self.end(Err(Error::Cancelled)),
        }
    }

    fn split(&mut self, outputs: Vec<bytes::Bytes>) -> Result<Vec<Outputs>, Error> {
        let began = Timestamp::now();
        let tensors = returned(std::mem::take(&mut self.shapes), outputs);
        let Some(version) = self.jobs.first().map(|job| &job.version) else {
            return Ok(Vec::new());
        };
        let requests: SmallVec<[&Admitted; 8]> =
            self.jobs.iter().map(|job| &job.admitted).collect();
        let split = batch::split(&version.signature, &version.ragged, &requests, &tensors);
        self.times.compute_output += Timestamp::now() - began;
        split
    }

    fn refusal(&self, refused: &Refused) -> Error {
        match refused {
            Refused::Full { .. } => Error::QueueFull,
            Refused::Unavailable { source, .. } => self.unavailable(source),
            Refused::NoModel { .. } => Error::Internal { detail: refused.to_string() },
        }
    }

    fn unavailable(&self, error: &DeviceError) -> Error {
        let version = self.jobs.first().map(|job| &job.version);
        let model = version.map(|version| version.name.to_string()).unwrap_or_default();
        Error::ModelUnavailable { model, reason: error.to_string() }
    }

    /// Hands the requests back to their version, as one batch again. It may be at work with its queue
    /// just now, so it gets a message.
    fn end(self, outcome: Result<Vec<Outputs>, Error>) {
        let Self { route, ticket, began, jobs, later, back, mut times, .. } = self;
        let all: Vec<Job> =
            back.into_iter().chain(jobs).chain(later.into_iter().rev().flatten()).collect();
        let Some(version) = all.first().map(|job| job.version.clone()) else { return };
        // What the batch waited for, between its stages too, is time before the run.
        let whole = Timestamp::now() - began;
        times.compute_input = whole.saturating_sub(times.compute_infer + times.compute_output);
        let executed = Executed::batch(all, ticket, outcome, began, times);
        if route.fleet.home.send(Box::new(move || version.executed(executed))).is_err() {
            log::debug!("a batch has come back from a device after its reactor had ended");
        }
    }
}
