use std::{collections::BTreeMap, sync::Arc, thread};

use crossbeam_channel::{Receiver, Sender, bounded};
use smallvec::SmallVec;

use super::{
    in_lanes, rows,
    setup::{SequenceSetup, States},
};
use crate::{
    backend::ModelInstance,
    device::Device,
    inference::Timestamp,
    runtime::{ReactorHandle, pin_to},
    scheduler::{SequenceBatch, SequenceKey},
    serving::{
        execution::Executed,
        instance_thread::{NoThread, PlacedInstance},
        job::Job,
        lanes::{ModelLanes, OpenLanes},
        limiter::Seat,
    },
};

type Batch = SequenceBatch<Job, States>;

/// The instances of a version by their numbers, each on a thread or in a lane of its own with the sequences
/// that are bound to it. One runs one batch at a time: the next needs what this one leaves behind.
pub struct Instances(BTreeMap<u32, Instance>);

/// Instances on their way to their home.
pub enum NewInstances {
    /// Their threads wait for work.
    OnThreads(Instances),
    /// Each in one of these.
    InLanes(Vec<OpenLanes>),
}

struct Instance {
    place: InstancePlace,
    is_idle: bool,
    /// What it cannot run without.
    device: Option<Arc<dyn Device>>,
}

enum InstancePlace {
    Thread(Sender<Batch>),
    Lane(ModelLanes),
}

/// A batch that has run, on its way home.
pub struct Ran {
    /// The instance that is free again.
    pub instance: u32,
    /// The sequences that were in it, with what they carry from now on.
    pub sequences: SmallVec<[(SequenceKey, States); 4]>,
    /// The answers.
    pub executed: Executed,
}

impl Instances {
    /// Starts the threads. The instances are numbered from `first` on.
    ///
    /// # Errors
    /// When one cannot be had.
    pub fn start(
        first: u32,
        placed: Vec<PlacedInstance>,
        setup: &Arc<SequenceSetup>,
        home: &ReactorHandle,
    ) -> Result<Self, NoThread> {
        let started = (first..).zip(placed).map(|(number, placed)| {
            let PlacedInstance { name, cores, instance, seat } = placed;
            let (batches, receive) = bounded(1);
            let device = instance.device().cloned();
            let (setup, home) = (setup.clone(), home.clone());
            thread::Builder::new()
                .name(name.clone())
                .spawn(move || {
                    run(number, instance, seat.as_ref(), &cores, &setup, &receive, &home);
                })
                .map_err(|source| NoThread { name, source })?;
            let place = InstancePlace::Thread(batches);
            Ok((number, Instance { place, is_idle: true, device }))
        });
        started.collect::<Result<_, _>>().map(Self)
    }

    pub fn count(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }

    pub fn numbers(&self) -> impl Iterator<Item = u32> {
        self.0.keys().copied()
    }

    /// Those that could run a batch.
    pub fn idle(&self) -> SmallVec<[u32; 8]> {
        self.0.iter().filter(|(_, instance)| instance.is_idle).map(|(number, _)| *number).collect()
    }

    pub fn add(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// Ends an instance that is idle.
    pub fn end(&mut self, instance: u32) {
        self.0.remove(&instance);
    }

    /// Why an instance cannot run any more, if that is so.
    pub fn lost(&self, instance: u32) -> Option<String> {
        let lost = self.0.get(&instance)?.device.as_ref()?.lost()?;
        Some(lost.to_string())
    }

    /// Runs a batch on an instance that is idle.
    ///
    /// # Errors
    /// When its thread has ended; the batch comes back.
    pub fn run(
        &mut self,
        number: u32,
        batch: Batch,
        setup: &Arc<SequenceSetup>,
        home: &ReactorHandle,
    ) -> Result<(), Batch> {
        let Some(instance) = self.0.get_mut(&number) else { return Err(batch) };
        instance.is_idle = false;
        match &mut instance.place {
            InstancePlace::Thread(batches) => {
                batches.try_send(batch).map_err(|refused| refused.into_inner())
            }
            InstancePlace::Lane(lane) => {
                in_lanes::run(setup, number, lane, batch, home);
                Ok(())
            }
        }
    }

    /// Notes that an instance has run its batch.
    pub fn finished(&mut self, instance: u32) {
        let Some(instance) = self.0.get_mut(&instance) else { return };
        instance.is_idle = true;
        if let InstancePlace::Lane(lane) = &mut instance.place {
            lane.finished();
        }
    }
}

impl NewInstances {
    /// Those of them that come in lanes are numbered from `first` on and have them driven.
    ///
    /// # Panics
    /// Not on the lanes' reactor.
    pub fn at_home(self, first: u32) -> Instances {
        let lanes = match self {
            Self::OnThreads(instances) => return instances,
            Self::InLanes(lanes) => lanes,
        };
        let instances = (first..).zip(lanes).map(|(number, lane)| {
            let device = lane.devices().first().cloned();
            let place = InstancePlace::Lane(lane.start());
            (number, Instance { place, is_idle: true, device })
        });
        Instances(instances.collect())
    }
}

fn run(
    number: u32,
    mut instance: ModelInstance,
    seat: Option<&Seat>,
    cores: &[usize],
    setup: &SequenceSetup,
    batches: &Receiver<Batch>,
    home: &ReactorHandle,
) {
    if let Err(error) = pin_to(cores) {
        log::warn!("an instance thread cannot be bound to cores {cores:?}: {error}");
    }
    for batch in batches {
        let first = batch.rows.iter().flatten().next();
        let Some(version) = first.map(|row| row.request.version.clone()) else { continue };
        let work = || rows::run(setup, &mut instance, batch, home, Timestamp::now());
        // The sequences of a batch go on even when its clients have left.
        let ran = match seat {
            None => Some(work()),
            Some(seat) => seat.run(|| false, work),
        };
        let Some((sequences, executed)) = ran else { return };
        let ran = Ran { instance: number, sequences, executed };
        if home.send(Box::new(move || version.ran(ran))).is_err() {
            return;
        }
    }
}
