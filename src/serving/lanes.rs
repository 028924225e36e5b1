//! The lanes of all devices, which live on one reactor. `journey` is the way of a sealed batch through
//! them and back, `preparation` what is done to its requests before, `residence` a device as a
//! place where tensors lie, `resident` what of a batch does, `room` how they make way for other batches.

mod journey;
mod preparation;
mod residence;
mod resident;
mod room;

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    sync::{Arc, OnceLock, mpsc},
};

pub use self::{journey::Back, residence::ResidentInput};
use self::{journey::Journey, preparation::Preparation, residence::Residence, room::Room};
use super::{
    execution::{Executed, SealedBatch},
    job::Job,
    porter::Porters,
};
use crate::{
    backend::{DeviceInstance, DeviceModel, PlacementDevice},
    device::{
        Device, DeviceError, DeviceProperties, Devices,
        streams::{
            self, Finished, Lanes, ModelPlan, OpenModel, Place, Runner, SchedulerSettings, Timeline,
        },
    },
    inference::{Signature, Timestamp},
    observe::KeptTensors,
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
    preparation: Preparation,
    /// What carries bytes there beside the batches.
    porters: Arc<Porters>,
    /// By device, in their order; made when a model that can use it first loads.
    residences: OnceLock<Box<[OnceLock<Arc<Residence>>]>>,
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
    /// Bytes that tensors between the steps of ensembles and states of sequences may take on devices, by
    /// their numbers; the last of a number counts.
    pub pool_bytes: Vec<(usize, u64)>,
}

/// What they may take where nothing is said, which is Triton's default.
const POOL_BYTES: usize = 64 << 20;

impl FleetSettings {
    fn pool_bytes_of(&self, device: &DeviceProperties) -> usize {
        let named = self.pool_bytes.iter().rev().find(|(number, _)| *number == device.index);
        match named {
            Some(&(_, bytes)) => usize::try_from(bytes).unwrap_or(usize::MAX),
            // A small device is needed for its models.
            None => POOL_BYTES.min(device.memory_bytes / 8),
        }
    }
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
    room: Room,
    /// Whether somebody goes on with those.
    goes_on: Cell<bool>,
}

impl Driver {
    /// Changes the lanes, and goes on with the batches that have ended by that.
    fn with<T>(&self, change: impl FnOnce(&mut Lanes) -> T) -> T {
        let result = change(&mut self.lanes.borrow_mut());
        // A batch that goes on may end at once and call this again; of many parts each would take of the stack.
        if !self.goes_on.replace(true) {
            while let Some((journey, finished)) = self.next_ended() {
                journey.ended(finished);
            }
            self.goes_on.set(false);
        }
        result
    }

    fn next_ended(&self) -> Option<(Journey, Finished)> {
        self.ended.borrow_mut().pop_front()
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
        Some(Arc::new(Self {
            devices,
            settings,
            home,
            driver,
            preparation: Preparation::default(),
            porters: Arc::default(),
            residences: OnceLock::new(),
            on_loss,
            lost: OnceLock::new(),
        }))
    }

    /// The devices.
    pub fn devices(&self) -> &Arc<Devices> {
        &self.devices
    }

    /// What carries bytes there beside the batches.
    pub(super) fn porters(&self) -> &Arc<Porters> {
        &self.porters
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
        self.open_some(name, graphs, instances, self.settings.lanes.max(1), 1.0)
    }

    /// Opens a lane for each of a model's instances, by which each runs one batch at a time that is for no
    /// other. Blocks, so not for reactors.
    ///
    /// # Errors
    /// When a device refuses.
    pub(super) fn open_apart(
        self: &Arc<Self>,
        name: &Arc<str>,
        graphs: bool,
        instances: Vec<DeviceInstance>,
    ) -> Result<Vec<OpenLanes>, DeviceError> {
        let share = 1.0 / instances.len().max(1) as f64;
        let open = |instance| self.open_some(name, graphs, vec![instance], 1, share);
        instances.into_iter().map(open).collect()
    }

    /// Opens so many lanes of each of the instances, which have this `share` of their devices' time.
    fn open_some(
        self: &Arc<Self>,
        name: &Arc<str>,
        graphs: bool,
        instances: Vec<DeviceInstance>,
        lanes: usize,
        share: f64,
    ) -> Result<OpenLanes, DeviceError> {
        let all = self.devices.all().unwrap_or_default();
        let model = instances.first().map(|instance| instance.model.clone());
        let count = instances.len();
        let devices: Vec<_> = instances.iter().map(|instance| instance.device.clone()).collect();
        let placed = instances.into_iter().map(|instance| {
            let number = instance.device.properties().index;
            let found = all.iter().position(|device| device.properties().index == number);
            let device =
                found.ok_or(DeviceError::Foreign { device: number, what: "an instance" })?;
            Ok((Place { device, lanes }, instance.runner))
        });
        let instances: Vec<(Place, Runner)> = placed.collect::<Result<_, DeviceError>>()?;
        // Where the pixels of a file lie in a batch, only the file tells: no graph would serve twice.
        let graphs = graphs && model.as_ref().is_some_and(|model| model.prepared().is_empty());
        let plan = ModelPlan { name: name.clone(), share, graphs, instances };
        let none = DeviceError::Foreign { device: 0, what: "a model without instances" };
        Ok(OpenLanes {
            fleet: self.clone(),
            residence: self.residence(model.as_deref(), &devices)?,
            devices,
            graphs,
            model: model.ok_or(none)?,
            opened: OpenModel::open(plan, all)?,
            instances: count,
            lanes,
        })
    }

    /// Where the tensors of a model's requests may lie: on the device of all its instances.
    fn residence(
        &self,
        model: Option<&dyn DeviceModel>,
        devices: &[Arc<dyn Device>],
    ) -> Result<Option<Arc<Residence>>, DeviceError> {
        let takes_resident = model.is_some_and(DeviceModel::takes_resident);
        let Some(first) = devices.first().filter(|_| takes_resident) else { return Ok(None) };
        let number = first.properties().index;
        if devices.iter().any(|device| device.properties().index != number) {
            return Ok(None);
        }
        let all = self.devices.all().unwrap_or_default();
        let at = all.iter().position(|device| device.properties().index == number);
        let places = || all.iter().map(|_| OnceLock::new()).collect();
        let Some(place) = at.and_then(|at| self.residences.get_or_init(places).get(at)) else {
            return Ok(None);
        };
        if let Some(known) = place.get() {
            return Ok(Some(known.clone()));
        }
        let limit = self.settings.pool_bytes_of(first.properties());
        let opened = Arc::new(Residence::open(&**first, self.porters.of(&**first)?, limit));
        Ok(Some(place.get_or_init(|| opened).clone()))
    }

    /// The device of this number as a place where tensors lie, if any do.
    fn residence_on(&self, device: usize) -> Option<&Arc<Residence>> {
        let mut places = self.residences.get()?.iter().filter_map(OnceLock::get);
        places.find(|residence| residence.device == device)
    }

    /// What is kept on each device on which anything may be.
    pub fn kept(&self) -> Vec<KeptTensors> {
        let places = self.residences.get().into_iter().flatten();
        places.filter_map(|place| Some(place.get()?.kept())).collect()
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
            self.driver.set(Driver {
                lanes: RefCell::new(lanes),
                ended: Rc::default(),
                goes_on: Cell::new(false),
                room: Room::default(),
            });
        }
        self.driver.get().expect("lanes are driven on their reactor")
    }

    fn completed(&self, completion: &streams::Completion) {
        if let Some(driver) = self.driver.get() {
            driver.with(|lanes| lanes.completed(completion, Timestamp::now()));
        }
        if let Err(error) = &completion.report.outcome {
            self.heed(error);
        }
    }

    /// The first to bring the news that a device is lost has it told.
    pub(super) fn heed(&self, error: &DeviceError) {
        if error.is_lost() {
            self.lost.get_or_init(|| (self.on_loss)(error));
        }
    }
}

/// A model's lanes before they are driven.
pub(super) struct OpenLanes {
    fleet: Arc<Fleet>,
    model: Arc<dyn DeviceModel>,
    devices: Vec<Arc<dyn Device>>,
    residence: Option<Arc<Residence>>,
    graphs: bool,
    opened: OpenModel,
    instances: usize,
    /// Of each instance.
    lanes: usize,
}

impl OpenLanes {
    /// The reactor that is to drive them.
    pub fn home(&self) -> &ReactorHandle {
        &self.fleet.home
    }

    /// The device whose memory tensors of requests may lie in: that of all instances.
    pub fn resident_on(&self) -> Option<usize> {
        self.residence.as_ref().map(|residence| residence.device)
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
        let Self { fleet, model, residence, graphs, opened, instances, lanes, .. } = self;
        let number = fleet.drive().with(|lanes| lanes.add(opened));
        // A graph finds its tensors where they were when it was captured.
        let (reads_in_place, writes_in_place) = (!graphs && !model.writes_inputs(), !graphs);
        let route = Route { fleet, model, number, residence, reads_in_place, writes_in_place };
        ModelLanes { route, instances: (0..instances).collect(), lanes, in_flight: 0 }
    }
}

/// The lanes of a version's instances, as its queue sees them.
pub struct ModelLanes {
    route: Route,
    /// Their indices in the lanes.
    instances: Vec<usize>,
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
    /// Where the tensors of its requests may lie.
    residence: Option<Arc<Residence>>,
    /// Whether it may read inputs and write outputs outside its lanes.
    reads_in_place: bool,
    writes_in_place: bool,
}

impl Route {
    fn wants_pinned(&self) -> bool {
        let devices = self.fleet.devices.opened();
        devices.iter().any(|device| device.properties().wants_pinned)
    }
}

impl ModelLanes {
    /// How many instances there are.
    pub fn count(&self) -> usize {
        self.instances.len()
    }

    /// Goes on with those instances of which `stays` is true, in their order, and then with those of
    /// `others`, which are of the same model. Those that do not stay end with the batches that they have.
    pub fn exchange(&mut self, stays: &[bool], others: Option<OpenLanes>) {
        let (now, number) = (Timestamp::now(), self.route.number);
        let Some(driver) = self.route.fleet.driver.get() else { return };
        let come = others.map(|others| driver.with(|it| it.extend(number, others.opened, now)));
        let mut stays = stays.iter().copied();
        self.instances.retain(|&instance| {
            let stays = stays.next().unwrap_or(true);
            if !stays {
                driver.with(|lanes| lanes.close(number, instance, now));
            }
            stays
        });
        self.instances.extend(come.into_iter().flatten());
    }

    /// Whether an instance has nothing to do.
    pub fn have_idle(&self) -> bool {
        self.in_flight < self.count()
    }

    /// Whether a batch can be on its way while others run.
    pub fn have_free_lane(&self) -> bool {
        self.in_flight < self.count() * self.lanes
    }

    /// Whether inputs have to be brought into the server's own memory.
    pub fn want_pinned(&self) -> bool {
        self.route.wants_pinned()
    }

    /// Whether requests are made ready before their batch is put together.
    pub fn prepare(&self) -> bool {
        !self.route.model.prepared().is_empty()
    }

    /// Sends a batch off, now, at `began`. It comes back through its version.
    pub fn run(&mut self, batch: SealedBatch, began: Timestamp) {
        self.in_flight += 1;
        let SealedBatch { jobs, padding, rows, ticket } = batch;
        let Some(signature) = jobs.first().map(|job| job.version.signature.clone()) else { return };
        let home = self.route.fleet.home.clone();
        // Its version may be at work with its queue just now, so it gets a message.
        let deliver = Box::new(move |back: Back| {
            let Some(version) = back.version() else { return };
            let Back { jobs, outcome, failed, fillers, began, times } = back;
            let executed = Executed::batch(jobs, ticket, outcome, began, times);
            let executed = executed.with_failed(failed).with_fillers(fillers);
            if home.send(Box::new(move || version.executed(executed))).is_err() {
                log::debug!("a batch has come back from a device after its reactor had ended");
            }
        });
        let journey = Journey::new(self.route.clone(), signature, jobs, began, deliver);
        if self.prepare() {
            return spawn(&"making a batch ready", journey.prepare());
        }
        journey.with_padding(padding).depart_with(rows);
    }

    /// Sends a batch of sequences off, now, at `began`. Its requests have the tensors of `signature`; it
    /// comes back to `deliver`.
    pub fn run_sequences(
        &mut self,
        jobs: Vec<Job>,
        signature: &Arc<Signature>,
        began: Timestamp,
        deliver: Box<dyn FnOnce(Back)>,
    ) {
        self.in_flight += 1;
        let journey = Journey::new(self.route.clone(), signature.clone(), jobs, began, deliver);
        journey.of_sequences().depart();
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
