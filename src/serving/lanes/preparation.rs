//! Threads that make the inputs of requests ready for devices, such as by decoding files.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock},
    thread,
};

use crossbeam_channel::{Receiver, Sender, unbounded};
use smallvec::SmallVec;

use super::journey::of_model;
use crate::{
    backend::{DeviceModel, Prepared},
    inference::{Error, Shape},
    runtime::{ReplyReceiver, reply_channel},
    serving::job::Job,
};

/// More would not be fed by the one reactor that drives the lanes.
const THREADS_MAX: usize = 16;

type Task = Box<dyn FnOnce() + Send>;

/// As many threads as there are processors, started when there is something for them to do. They end when this
/// is dropped and all has been done. What waits for them is bounded by the batches that are on their way.
#[derive(Default)]
pub(super) struct Preparation(OnceLock<Sender<Task>>);

/// The requests of a batch that were made ready.
pub(super) struct Ready {
    /// Those that become the same, in the order in which they came, part by part.
    pub parts: Vec<Vec<Job>>,
    /// Those that could not be made ready, or that nobody waits for any more.
    pub failed: Vec<(Job, Error)>,
}

impl Preparation {
    /// Makes the requests ready, each by itself, as their model does it. To be called on a reactor.
    pub async fn ready(&self, model: &Arc<dyn DeviceModel>, mut jobs: Vec<Job>) -> Ready {
        let mut begun = Vec::new();
        for (at, job) in jobs.iter().enumerate().filter(|(_, job)| !job.reply.is_abandoned()) {
            let (rows, pool) = (job.admitted.batch_size, job.version.host.pool.clone());
            for &index in model.prepared() {
                let input = job.admitted.inputs.get(index).and_then(Option::as_ref);
                let Some(data) = input.map(|input| input.data.clone().into_bytes()) else {
                    continue;
                };
                let (model, pool) = (model.clone(), pool.clone());
                begun.push((at, index, self.run(move || model.prepare(index, rows, data, &pool))));
            }
        }
        let mut faults: Vec<(usize, Error)> = Vec::new();
        let mut become_what: Vec<SmallVec<[Shape; 1]>> = vec![SmallVec::new(); jobs.len()];
        for (at, index, mut answer) in begun {
            let input = jobs.get_mut(at).and_then(|job| job.admitted.inputs.get_mut(index));
            match (answer.receive().await, input) {
                (Some(Ok(Prepared { data, becomes })), Some(Some(input))) => {
                    input.data = data.into();
                    become_what[at].push(becomes);
                }
                (Some(Err(error)), _) => faults.push((at, of_model(error))),
                _ => faults.push((at, Error::unanswered())),
            }
        }
        let (mut parts, mut failed) = (Vec::<(SmallVec<[Shape; 1]>, Vec<Job>)>::new(), Vec::new());
        for ((at, job), becomes) in jobs.into_iter().enumerate().zip(become_what) {
            let fault = faults.iter().position(|(other, _)| *other == at);
            let abandoned = job.reply.is_abandoned().then_some(Error::Cancelled);
            let alike = parts.iter_mut().find(|(known, _)| *known == becomes);
            match (fault.map(|fault| faults.swap_remove(fault).1).or(abandoned), alike) {
                (Some(error), _) => failed.push((job, error)),
                (None, Some((_, jobs))) => jobs.push(job),
                (None, None) => parts.push((becomes, vec![job])),
            }
        }
        Ready { parts: parts.into_iter().map(|(_, jobs)| jobs).collect(), failed }
    }

    /// Does some work on one of the threads. Without an answer it panicked, or there is no thread.
    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> ReplyReceiver<T> {
        let (reply, answer) = reply_channel();
        let task = Box::new(move || {
            // Without a value the reply's sender is dropped, which the receiver sees.
            if let Ok(value) = catch_unwind(AssertUnwindSafe(work)) {
                reply.finish(value);
            }
        });
        // Where nobody takes it, it is dropped, and the reply with it.
        let _ = self.0.get_or_init(start).send(task);
        answer
    }
}

fn start() -> Sender<Task> {
    let (tasks, taken) = unbounded::<Task>();
    let count = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    for number in 0..count {
        let taken: Receiver<Task> = taken.clone();
        let work = move || taken.into_iter().for_each(|task| task());
        let started = thread::Builder::new().name(format!("preparing-{number}")).spawn(work);
        if let Err(error) = started {
            log::warn!("one thread less makes requests ready for devices: {error}");
        }
    }
    tasks
}
