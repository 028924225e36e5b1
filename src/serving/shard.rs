mod at_once;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use smallvec::SmallVec;

pub use self::at_once::AtOnce;
use super::{
    answer_order::{AnswerOrder, AnswerTicket, End},
    bell::Bell,
    execution::{Executed, SealedBatch, execute},
    inline::Pace,
    instance_thread::{InstanceThreads, NoThread, PlacedInstance},
    job::Job,
    lanes::{ModelLanes, OpenLanes},
    padding::padding,
    rows::{Help, SHARED_AHEAD_BYTES_MIN, SHARED_BYTES_MIN, SharedRows},
    version::LoadedVersion,
};
use crate::{
    backend::ModelInstance,
    inference::{Admitted, Error, Timestamp},
    runtime::{ReactorHandle, Sleep, TURN, current, sleep_until, spawn, turn_is_over, yield_now},
    scheduler::{BatchingPolicy, Decision, DynamicQueue, InOrder},
};

/// One reactor's queue for a version of a model, and the instances that it feeds. All of it lives
/// on that reactor.
pub struct Shard {
    home: ReactorHandle,
    queue: RefCell<DynamicQueue<Job>>,
    executor: RefCell<Executor>,
    /// Batches that have run before those in front of them, where answers must keep the order.
    in_order: Option<RefCell<InOrder<Executed>>>,
    /// The same for requests that their model answers itself.
    answer_order: AnswerOrder,
    /// Whether requests form batches, and so have to wait for each other.
    batches: bool,
    bell: Bell,
    closed: Cell<bool>,
}

/// Where a shard's batches run.
pub enum Executor {
    /// On the reactor itself, between two polls; `None` while it runs.
    Inline(Option<InlineInstance>),
    /// On instance threads.
    Threads(InstanceThreads),
    /// On devices, which this reactor drives.
    Lanes(ModelLanes),
}

/// An instance that runs on its reactor as long as it is fast.
pub struct InlineInstance {
    /// What runs, and where its thread is bound to, should it need one.
    pub placed: PlacedInstance,
    /// How fast it has been.
    pub pace: Pace,
}

impl InlineInstance {
    fn takes_batches(&self) -> bool {
        matches!(self.placed.instance, ModelInstance::Batches(_))
    }

    /// Gives the instance a thread of its own, because it has become slow.
    fn into_thread(self) -> Executor {
        let name = &self.placed.name;
        log::warn!("instance '{name}' has become too slow to run inline: it gets a thread");
        let home = current();
        let started = InstanceThreads::start(vec![self.placed], &home);
        Executor::Threads(started.unwrap_or_else(|NoThread { name, source }| {
            log::error!("cannot start the thread of instance '{name}': {source}");
            InstanceThreads::none(home)
        }))
    }
}

impl Shard {
    /// Starts the task that feeds the instances. Requests that arrive in one tick are seen together.
    pub fn start(policy: BatchingPolicy, executor: Executor) -> ShardHandle {
        let ordered = policy.dynamic.as_ref().is_some_and(|dynamic| dynamic.preserve_ordering);
        let shard = Rc::new(Self {
            in_order: ordered.then(RefCell::default),
            answer_order: AnswerOrder::default(),
            batches: policy.dynamic.is_some(),
            home: current(),
            queue: RefCell::new(DynamicQueue::new(policy).for_instances(executor.instances())),
            executor: RefCell::new(executor),
            bell: Bell::default(),
            closed: Cell::new(false),
        });
        spawn(&"a model's queue", feed(shard.clone()));
        ShardHandle(shard)
    }

    /// The number of its reactor.
    pub fn reactor(&self) -> usize {
        self.home.index()
    }

    /// Queues a request, or runs it at once if nothing is in its way.
    pub fn submit(&self, job: Job) {
        match self.at_once(&job.version) {
            Some(at_once) => at_once.run_job(job),
            None => self.enqueue(job),
        }
    }

    fn enqueue(&self, job: Job) {
        let statistics = job.version.statistics.clone();
        let arrived = job.arrived;
        let queued = self.queue.borrow_mut().push(job, arrived);
        let queued = queued.or_else(|(job, _)| {
            // Those whose clients have left take nobody's place.
            self.drop_hopeless(arrived);
            self.queue.borrow_mut().push(job, arrived)
        });
        match queued {
            Ok(()) => {
                statistics.enqueued(self.home.index());
                self.bell.ring();
            }
            Err((job, error)) => {
                let error = error.in_request(&job.id);
                job.fail(self.home.index(), error);
            }
        }
    }

    /// Takes back a batch that an instance thread has run, and answers it.
    pub fn finished(&self, executed: Executed) {
        match &mut *self.executor.borrow_mut() {
            Executor::Inline(_) => {}
            Executor::Threads(threads) => threads.finished(&executed),
            Executor::Lanes(lanes) => lanes.finished(),
        }
        self.note(&executed);
        let now = Timestamp::now();
        match &self.in_order {
            None => executed.answer(self.home.index(), now),
            Some(in_order) => {
                let ready = in_order.borrow_mut().back(executed.ticket(), executed);
                ready.into_iter().for_each(|executed| executed.answer(self.home.index(), now));
            }
        }
        if !self.queue.borrow().is_empty() && self.executor.borrow().wants_more() {
            self.bell.ring();
        }
    }

    /// Goes on with those instances of which `stays` is true and with `others`, if they are on threads.
    pub fn exchange_instances(&self, stays: &[bool], others: InstanceThreads) {
        let mut executor = self.executor.borrow_mut();
        if let Executor::Threads(threads) = &mut *executor {
            threads.exchange(stays, others);
        }
        self.feed_anew(&executor);
    }

    /// The same, if they are in lanes.
    pub fn exchange_lanes(&self, stays: &[bool], others: Option<OpenLanes>) {
        let mut executor = self.executor.borrow_mut();
        if let Executor::Lanes(lanes) = &mut *executor {
            lanes.exchange(stays, others);
        }
        self.feed_anew(&executor);
    }

    fn feed_anew(&self, executor: &Executor) {
        self.queue.borrow_mut().set_instances(executor.instances());
        self.bell.ring();
    }

    /// Ends an answer when all before it have ended.
    pub fn end_in_order(&self, ticket: &AnswerTicket, end: End) {
        self.answer_order.take_back(ticket, Some(end));
    }

    /// Tells the queue of a batch that has run.
    fn note(&self, executed: &Executed) {
        self.queue.borrow_mut().finished(executed.rows(), executed.took());
    }

    /// What runs a request that need not wait for the shard's task: no other can join it, none is in front of
    /// it, and what ran this way has not kept the reactor too long.
    pub fn at_once(&self, version: &LoadedVersion) -> Option<AtOnce<'_>> {
        let can = !self.batches
            && version.allowed_batch_sizes.is_empty()
            && !turn_is_over()
            && self.queue.borrow().is_empty()
            && matches!(&*self.executor.borrow(), Executor::Inline(Some(it)) if it.takes_batches());
        can.then_some(AtOnce(self))
    }

    /// Starts every batch that can start. Returns when to be called again, though nothing arrives.
    async fn pump(&self) -> Option<Timestamp> {
        let mut inline_since = Timestamp::now();
        loop {
            let now = Timestamp::now();
            if now - inline_since > TURN {
                self.executor.borrow().flush();
                yield_now().await;
                inline_since = Timestamp::now();
                continue;
            }
            self.drop_hopeless(now);
            let decision = match self.executor.borrow().room() {
                Room::Now => Some(self.queue.borrow_mut().next(now)),
                Room::Later => self.queue.borrow_mut().settled(now).map(Decision::Run),
                Room::None => None,
            };
            match decision {
                Some(Decision::Run(jobs)) => self.run(jobs, now),
                Some(Decision::WaitUntil(due)) => {
                    let expiry = self.queue.borrow().next_expiry();
                    return Some(expiry.map_or(due, |expiry| due.min(expiry)));
                }
                Some(Decision::Idle) => return None,
                // What waits does so until an instance is free or its own time is up.
                None => return self.queue.borrow().next_expiry(),
            }
        }
    }

    fn drop_hopeless(&self, now: Timestamp) {
        let (expired, cancelled) = {
            let mut queue = self.queue.borrow_mut();
            (queue.expired(now), queue.cancelled())
        };
        let cancelled = cancelled.into_iter().map(|job| (job, Error::Cancelled));
        for (job, error) in expired.into_iter().chain(cancelled) {
            job.version.statistics.dequeued(self.home.index());
            job.fail(self.home.index(), error);
        }
    }

    /// Runs a batch, or has a thread run it.
    fn run(&self, mut jobs: Vec<Job>, now: Timestamp) {
        for job in &mut jobs {
            job.version.statistics.dequeued(self.home.index());
            if self.in_order.is_some() && job.version.takes_requests {
                job.ticket = Some(self.answer_order.give(0));
            }
        }
        if let Some(Job { version, .. }) = jobs.first() {
            let closure = self.queue.borrow().last_closure();
            version.statistics.closed(self.home.index(), closure);
        }
        let mut executor = self.executor.borrow_mut();
        match &mut *executor {
            Executor::Inline(instance) => {
                let Some(mut taken) = instance.take() else { return };
                drop(executor);
                let batch = seal(jobs, Some(usize::MAX));
                let executed = execute(&mut taken.placed.instance, batch, &self.home, now);
                let ended = executed.ended();
                self.note(&executed);
                self.put_back(taken, executed.compute_infer());
                executed.answer(self.home.index(), ended);
            }
            Executor::Threads(threads) => {
                let bytes_min =
                    if threads.have_idle() { SHARED_BYTES_MIN } else { SHARED_AHEAD_BYTES_MIN };
                let batch = self.with_ticket(seal(jobs, Some(bytes_min)));
                let help = help(&batch);
                let refused = threads.run(batch).err();
                drop(executor);
                let Some(SealedBatch { jobs, .. }) = refused else {
                    // Last, for the one that runs the batch can begin without them.
                    help.into_iter().for_each(Help::call);
                    return;
                };
                self.queue.borrow_mut().finished(0, None);
                for job in jobs {
                    if let Some(ticket) = &job.ticket {
                        self.answer_order.take_back(ticket, None);
                    }
                    let detail = "the instance's thread has ended".to_owned();
                    job.fail(self.home.index(), Error::Internal { detail });
                }
            }
            Executor::Lanes(lanes) => {
                let bytes_min = match (lanes.prepare(), lanes.want_pinned()) {
                    (true, _) => Some(usize::MAX),
                    (false, true) => None,
                    (false, false) => Some(SHARED_AHEAD_BYTES_MIN),
                };
                let batch = self.with_ticket(seal(jobs, bytes_min));
                let help = help(&batch);
                lanes.run(batch, now);
                drop(executor);
                help.into_iter().for_each(Help::call);
            }
        }
    }

    /// Takes back the inline instance, which ran for so long.
    fn put_back(&self, mut taken: InlineInstance, compute_infer: Duration) {
        let slow = taken.pace.is_lost_after(compute_infer);
        *self.executor.borrow_mut() =
            if slow { taken.into_thread() } else { Executor::Inline(Some(taken)) };
    }

    fn with_ticket(&self, mut batch: SealedBatch) -> SealedBatch {
        if let Some(in_order) = &self.in_order {
            batch.ticket = in_order.borrow_mut().ticket();
        }
        batch
    }
}

/// Gives a batch of at least `bytes_min` its places, so that several threads can put it together;
/// without a bound all of every batch.
fn seal(jobs: Vec<Job>, bytes_min: Option<usize>) -> SealedBatch {
    let (padding, rows) = match jobs.first() {
        Some(Job { version, .. }) if !version.takes_requests => {
            let (signature, pool) = (&version.signature, &version.host.pool);
            let padding = padding(&version.allowed_batch_sizes, signature, &jobs);
            let requests: SmallVec<[&Admitted; 8]> =
                jobs.iter().map(|job| &job.admitted).chain(&padding).collect();
            let rows = match bytes_min {
                Some(bytes_min) => SharedRows::seal(signature, &requests, bytes_min, pool),
                None => SharedRows::seal_all(signature, &requests, pool),
            };
            drop(requests);
            (padding, rows)
        }
        _ => Default::default(),
    };
    SealedBatch { jobs, padding, rows, ticket: 0 }
}

/// Who could help to put the batch together.
fn help(batch: &SealedBatch) -> Option<Help> {
    batch.rows.help(batch.jobs.iter().map(|job| job.reply.reactor()))
}

/// When a batch would run.
enum Room {
    Now,
    /// After the one that runs; meanwhile it can be put together.
    Later,
    /// There is no place for it.
    None,
}

impl Executor {
    /// The instance that runs on the reactor, if there is one that does not run.
    fn take_inline(&mut self) -> Option<InlineInstance> {
        match self {
            Self::Inline(instance) => instance.take(),
            Self::Threads(_) | Self::Lanes(_) => None,
        }
    }

    /// How many batches can run at once.
    fn instances(&self) -> usize {
        match self {
            Self::Inline(_) => 1,
            Self::Threads(threads) => threads.count(),
            Self::Lanes(lanes) => lanes.count(),
        }
    }

    /// Whether batches should follow those that have ended.
    fn wants_more(&self) -> bool {
        match self {
            Self::Threads(threads) => threads.want_more(),
            Self::Inline(_) | Self::Lanes(_) => true,
        }
    }

    /// Sends batches that have been begun on their way.
    fn flush(&self) {
        if let Self::Threads(threads) = self {
            threads.flush();
        }
    }

    fn room(&self) -> Room {
        match self {
            Self::Inline(Some(_)) => Room::Now,
            Self::Threads(threads) if threads.have_idle() => Room::Now,
            Self::Threads(threads) if threads.have_free_lane() => Room::Later,
            Self::Lanes(lanes) if lanes.have_idle() => Room::Now,
            Self::Lanes(lanes) if lanes.have_free_lane() => Room::Later,
            _ => Room::None,
        }
    }
}

/// Owns a [`Shard`]; dropping it ends the shard's task.
pub struct ShardHandle(Rc<Shard>);

impl std::ops::Deref for ShardHandle {
    type Target = Shard;

    fn deref(&self) -> &Shard {
        &self.0
    }
}

impl Drop for ShardHandle {
    fn drop(&mut self) {
        self.0.closed.set(true);
        self.0.bell.ring();
    }
}

async fn feed(shard: Rc<Shard>) {
    let mut again: Option<Sleep> = None;
    loop {
        std::future::poll_fn(|cx| shard.bell.poll_rung(cx, &mut again)).await;
        if shard.closed.get() {
            return;
        }
        let due = shard.pump().await;
        shard.executor.borrow().flush();
        again = due.map(|due| sleep_until(due.to_instant()));
    }
}
