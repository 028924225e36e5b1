use std::{sync::Arc, thread};

use crossbeam_channel::{Receiver, Sender, bounded};
use smallvec::SmallVec;

use super::{
    rows,
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
        limiter::Seat,
    },
};

type Batch = SequenceBatch<Job, States>;

/// The instances of a version, each on a thread of its own with the sequences that are bound to it.
/// One runs one batch at a time: the next needs what this one leaves behind.
pub struct Instances(Vec<Instance>);

struct Instance {
    batches: Sender<Batch>,
    is_idle: bool,
    /// What it cannot run without.
    device: Option<Arc<dyn Device>>,
}

/// A batch that has run, on its way home.
pub struct Ran {
    /// The instance that is free again.
    pub instance: usize,
    /// The sequences that were in it, with what they carry from now on.
    pub sequences: SmallVec<[(SequenceKey, States); 4]>,
    /// The answers.
    pub executed: Executed,
}

impl Instances {
    /// Starts the threads.
    ///
    /// # Errors
    /// When one cannot be had.
    pub fn start(
        placed: Vec<PlacedInstance>,
        setup: &Arc<SequenceSetup>,
        home: &ReactorHandle,
    ) -> Result<Self, NoThread> {
        let started = placed.into_iter().enumerate().map(|(index, placed)| {
            let PlacedInstance { name, cores, instance, seat } = placed;
            let (batches, receive) = bounded(1);
            let device = instance.device().cloned();
            let (setup, home) = (setup.clone(), home.clone());
            thread::Builder::new()
                .name(name.clone())
                .spawn(move || run(index, instance, seat.as_ref(), &cores, &setup, &receive, &home))
                .map_err(|source| NoThread { name, source })?;
            Ok(Instance { batches, is_idle: true, device })
        });
        started.collect::<Result<_, _>>().map(Self)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_idle(&self, instance: usize) -> bool {
        self.0.get(instance).is_some_and(|instance| instance.is_idle)
    }

    /// Why an idle instance cannot run any more, if that is so; from then on it is never idle again.
    pub fn lost_now(&mut self, instance: usize) -> Option<String> {
        let instance = self.0.get_mut(instance)?;
        let lost = instance.device.as_ref()?.lost()?;
        instance.is_idle = false;
        Some(lost.to_string())
    }

    /// Runs a batch on an instance that is idle.
    ///
    /// # Errors
    /// When its thread has ended; the batch comes back.
    pub fn run(&mut self, instance: usize, batch: Batch) -> Result<(), Batch> {
        let Some(instance) = self.0.get_mut(instance) else { return Err(batch) };
        instance.is_idle = false;
        instance.batches.try_send(batch).map_err(|refused| refused.into_inner())
    }

    /// Notes that an instance has run its batch.
    pub fn finished(&mut self, instance: usize) {
        if let Some(instance) = self.0.get_mut(instance) {
            instance.is_idle = true;
        }
    }
}

fn run(
    index: usize,
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
        let ran = Ran { instance: index, sequences, executed };
        if home.send(Box::new(move || version.ran(ran))).is_err() {
            return;
        }
    }
}
