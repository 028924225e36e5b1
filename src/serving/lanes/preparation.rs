//! Threads that make the inputs of requests ready for devices, such as by decoding files.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::OnceLock,
    thread,
};

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::runtime::{ReplyReceiver, reply_channel};

/// More would not be fed by the one reactor that drives the lanes.
const THREADS_MAX: usize = 16;

type Task = Box<dyn FnOnce() + Send>;

/// As many threads as there are processors, started when there is something for them to do. They end when this
/// is dropped and all has been done. What waits for them is bounded by the batches that are on their way.
#[derive(Default)]
pub(super) struct Preparation(OnceLock<Sender<Task>>);

impl Preparation {
    /// Does some work on one of the threads. Without an answer it panicked, or there is no thread. To be called
    /// on a reactor.
    pub fn run<T: Send + 'static>(
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
