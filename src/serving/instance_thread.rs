use std::{io, sync::mpsc, thread};

use super::{execution::execute, job::Job};
use crate::{
    backend::Instance,
    runtime::{ReactorHandle, pin_to},
};

/// An instance on a thread of its own, away from the reactors' cores where there are others. It
/// takes batches from its home reactor and sends them back there.
pub struct InstanceThread {
    /// The thread ends when this is dropped and what was sent has run.
    batches: mpsc::Sender<Vec<Job>>,
}

impl InstanceThread {
    /// Starts the thread of instance `index`, bound to `cores`.
    ///
    /// # Errors
    /// When the thread cannot be had.
    pub fn start(
        name: String,
        index: usize,
        cores: Vec<usize>,
        mut instance: Box<dyn Instance>,
        home: ReactorHandle,
    ) -> io::Result<Self> {
        let (batches, receive) = mpsc::channel::<Vec<Job>>();
        thread::Builder::new().name(name).spawn(move || {
            if let Err(error) = pin_to(&cores) {
                log::warn!("an instance thread cannot be bound to cores {cores:?}: {error}");
            }
            for jobs in receive {
                let Some(version) = jobs.first().map(|job| job.version.clone()) else { continue };
                let executed = execute(&mut *instance, jobs);
                if home.send(Box::new(move || version.executed(index, executed))).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { batches })
    }

    /// Runs a batch.
    ///
    /// # Errors
    /// When the thread has ended; the batch comes back.
    pub fn run(&self, jobs: Vec<Job>) -> Result<(), Vec<Job>> {
        self.batches.send(jobs).map_err(|mpsc::SendError(jobs)| jobs)
    }
}
