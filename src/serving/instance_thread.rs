use std::{cell::RefCell, io, ops::ControlFlow, sync::Arc, thread, time::Duration};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::{
    execution::{Executed, SealedBatch, begin, execute, hand_over_series},
    job::Job,
    limiter::Seat,
    version::LoadedVersion,
};
use crate::{
    backend::{ModelInstance, NearInstance, RequestInstance},
    device::Device,
    inference::Timestamp,
    runtime::{ReactorHandle, pin_to},
};

/// Batches in flight for each instance: one that runs, and one that is put together meanwhile and
/// begins when the first ends, without a message home and back.
const LANES: usize = 2;
/// The same for batches that take less time than messages do.
const LANES_WHEN_QUICK: usize = 16;
/// A batch that takes less is quick.
const QUICK: Duration = Duration::from_micros(250);

/// The instances of a model on threads of their own, away from the reactors' cores where there are
/// others. They take batches from their home reactor and send them back there.
pub struct InstanceThreads {
    /// One queue for all, so that the instance that is free first takes the next batch.
    batches: Sender<SealedBatch>,
    threads: Vec<InstanceThread>,
    home: ReactorHandle,
    in_flight: usize,
    /// For each instance.
    lanes: usize,
}

/// An instance's thread, as its home knows it. When this and the queue that it takes batches from are
/// dropped, it ends after all that was sent has run.
struct InstanceThread {
    device: Option<Arc<dyn Device>>,
    /// What takes batches that need no waiting from their home itself.
    near: Option<Arc<dyn NearInstance>>,
    /// Takes the queues that it takes batches from, one after the other.
    supplies: Sender<Supply>,
}

/// Where instances take their batches from.
#[derive(Clone)]
struct Supply {
    batches: Receiver<SealedBatch>,
    /// The device of each instance that does.
    devices: Arc<[Option<Arc<dyn Device>>]>,
}

/// An instance and where it is to run.
pub struct PlacedInstance {
    /// Its name.
    pub name: String,
    /// The processors that its thread is bound to.
    pub cores: Vec<usize>,
    /// Its place among those that share resources, if it needs any.
    pub seat: Option<Seat>,
    /// What runs there.
    pub instance: ModelInstance,
}

/// The system gave no thread for an instance.
pub struct NoThread {
    /// The instance.
    pub name: String,
    /// Why.
    pub source: io::Error,
}

impl InstanceThreads {
    /// Starts a thread for each of `instances`.
    ///
    /// # Errors
    /// When a thread cannot be had.
    pub fn start(instances: Vec<PlacedInstance>, home: &ReactorHandle) -> Result<Self, NoThread> {
        let mut threads = Vec::with_capacity(instances.len());
        for PlacedInstance { name, cores, seat, mut instance } in instances {
            let near = match (&mut instance, &seat) {
                (ModelInstance::Requests(instance), None) => instance.attach(home),
                _ => None,
            };
            let device = instance.device().cloned();
            let (supplies, receive) = unbounded();
            let home = home.clone();
            thread::Builder::new()
                .name(name.clone())
                .spawn(move || work(instance, seat.as_ref(), &cores, &receive, &home))
                .map_err(|source| NoThread { name, source })?;
            threads.push(InstanceThread { device, near, supplies });
        }
        let batches = supply(&threads);
        let home = home.clone();
        Ok(Self { batches, threads, home, in_flight: 0, lanes: LANES })
    }

    /// Goes on with those instances of which `stays` is true, in their order, and then with those of
    /// `others`, which have had no batches. What was sent before runs on the instances that there were;
    /// those that do not stay end after it.
    pub fn exchange(&mut self, stays: &[bool], others: Self) {
        let mut stays = stays.iter().copied();
        self.threads.retain(|_| stays.next().unwrap_or(true));
        self.threads.extend(others.threads);
        // The queue before is closed by this.
        self.batches = supply(&self.threads);
    }

    /// What stands in for an instance whose thread could not be had: it refuses every batch.
    pub fn none(home: ReactorHandle) -> Self {
        let nobody = InstanceThread { device: None, near: None, supplies: unbounded().0 };
        let (batches, _) = bounded(1);
        Self { batches, threads: vec![nobody], home, in_flight: 0, lanes: LANES }
    }

    /// The number of instances.
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// Whether so many batches have ended that others should follow. Quick ones follow in numbers, because
    /// it is messages that take their time.
    pub fn want_more(&self) -> bool {
        self.lanes == LANES || self.in_flight * 2 <= self.count() * self.lanes
    }

    /// Whether a batch would begin at once.
    pub fn have_idle(&self) -> bool {
        self.in_flight < self.count()
    }

    /// Whether a batch can be put together though all are busy.
    pub fn have_free_lane(&self) -> bool {
        self.in_flight < self.count() * self.lanes
    }

    /// Runs a batch on the instance that is free first.
    ///
    /// # Errors
    /// When the threads have ended; the batch comes back.
    pub fn run(&mut self, batch: SealedBatch) -> Result<(), SealedBatch> {
        match self.near_for(&batch) {
            Some(near) => begin(near, batch, &self.home),
            None => self.batches.try_send(batch).map_err(|refused| refused.into_inner())?,
        }
        self.in_flight += 1;
        Ok(())
    }

    /// Sends batches that have been begun on their way.
    pub fn flush(&self) {
        self.near().for_each(|near| near.flush());
    }

    fn near(&self) -> impl Iterator<Item = &dyn NearInstance> {
        self.threads.iter().filter_map(|thread| thread.near.as_deref())
    }

    /// The instance that has the least to do of those that take this batch from its home.
    fn near_for(&self, batch: &SealedBatch) -> Option<&dyn NearInstance> {
        let takes = |near: &&dyn NearInstance| {
            let inputs = batch.jobs.iter().flat_map(|job| job.admitted.inputs.iter().flatten());
            near.takes(&mut inputs.map(|input| input.data.len()))
        };
        self.near().filter(takes).min_by_key(|near| near.running())
    }

    /// Notes that a batch has come back.
    pub fn finished(&mut self, executed: &Executed) {
        self.in_flight -= 1;
        self.lanes = if executed.is_quick(QUICK) { LANES_WHEN_QUICK } else { LANES };
    }
}

/// A queue that these threads take batches from once they have no other.
fn supply(threads: &[InstanceThread]) -> Sender<SealedBatch> {
    let (send, batches) = bounded(threads.len() * LANES_WHEN_QUICK);
    let devices = threads.iter().map(|thread| thread.device.clone()).collect();
    let supply = Supply { batches, devices };
    for InstanceThread { supplies, .. } in threads {
        if supplies.send(supply.clone()).is_err() {
            log::debug!("an instance whose device is lost gets no more batches");
        }
    }
    send
}

fn work(
    mut instance: ModelInstance,
    seat: Option<&Seat>,
    cores: &[usize],
    supplies: &Receiver<Supply>,
    home: &ReactorHandle,
) {
    if let Err(error) = pin_to(cores) {
        log::warn!("an instance thread cannot be bound to cores {cores:?}: {error}");
    }
    for supply in supplies {
        if run(&mut instance, seat, &supply, home).is_break() {
            return;
        }
    }
}

/// Runs what comes from a queue until it is closed. Breaks when the instance can run nothing more.
fn run(
    instance: &mut ModelInstance,
    seat: Option<&Seat>,
    Supply { batches, devices }: &Supply,
    home: &ReactorHandle,
) -> ControlFlow<()> {
    let mut is_quick = false;
    for batch in batches {
        if let (ModelInstance::Requests(instance), None) = (&mut *instance, seat) {
            // What waits while all are busy is shared out among them.
            let others = if is_quick { batches.len().div_ceil(devices.len()) } else { 0 };
            let series = std::iter::once(batch).chain(batches.try_iter().take(others));
            let mut is_gone = false;
            run_series(&mut **instance, series.collect(), home, |version, executed| {
                is_quick = executed.is_quick(QUICK);
                is_gone |= home.send(Box::new(move || version.executed(executed))).is_err();
            });
            if is_gone {
                return ControlFlow::Break(());
            }
            continue;
        }
        let Some(version) = batch.jobs.first().map(|job| job.version.clone()) else { continue };
        let executed = match seat {
            None => run_batch(instance, batch, home),
            Some(seat) => {
                // What is shared between the two ways that the wait can end.
                let batch = RefCell::new(Some(batch));
                let is_moot = || batch.borrow().as_ref().is_none_or(|batch| all_left(&batch.jobs));
                let run = || {
                    let batch = batch.take()?;
                    Some(run_batch(instance, batch, home))
                };
                let ran = seat.run(is_moot, run).flatten();
                match (ran, batch.take()) {
                    (Some(executed), _) => executed,
                    (None, Some(batch)) => Executed::cancelled(batch),
                    // A batch that is not left here has run.
                    (None, None) => continue,
                }
            }
        };
        if home.send(Box::new(move || version.executed(executed))).is_err() {
            return ControlFlow::Break(());
        }
        // An instance that cannot run any more leaves what comes to those that can.
        if is_lost(instance.device()) && !devices.iter().all(|other| is_lost(other.as_ref())) {
            return ControlFlow::Break(());
        }
    }
    ControlFlow::Continue(())
}

/// Runs batches one after the other on an instance that can be told of all of them at once.
fn run_series(
    instance: &mut dyn RequestInstance,
    series: Vec<SealedBatch>,
    home: &ReactorHandle,
    mut done: impl FnMut(Arc<LoadedVersion>, Executed),
) {
    let (left, series): (Vec<_>, Vec<_>) =
        series.into_iter().partition(|batch| all_left(&batch.jobs));
    for batch in left {
        let Some(version) = batch.jobs.first().map(|job| job.version.clone()) else { continue };
        done(version, Executed::cancelled(batch));
    }
    hand_over_series(instance, series, home, done);
}

fn run_batch(instance: &mut ModelInstance, batch: SealedBatch, home: &ReactorHandle) -> Executed {
    // It may have waited for the batch before it, while its clients left.
    match all_left(&batch.jobs) {
        true => Executed::cancelled(batch),
        false => execute(instance, batch, home, Timestamp::now()),
    }
}

fn is_lost(device: Option<&Arc<dyn Device>>) -> bool {
    device.is_some_and(|device| device.lost().is_some())
}

fn all_left(jobs: &[Job]) -> bool {
    jobs.iter().all(|job| job.reply.is_abandoned())
}
