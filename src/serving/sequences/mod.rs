//! Models whose requests belong to sequences: their queue, their instances, and what each row of a
//! batch is given besides the client's tensors.
//!
//! All sequences of a version live on its home, in one [`SequenceQueue`]; an instance has a thread of
//! its own (`rows`), or on a device a lane of its own (`in_lanes`), for a sequence stays with its instance.
//! What the scheduler keeps with a sequence is its implicit state ([`States`]): outputs of one run that are
//! inputs of the next, on the instance's device if they can be there.

mod in_lanes;
mod instances;
mod rows;
mod setup;

pub use setup::{SequenceSetup, SetupError, States};

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::Arc,
};

use super::{
    answer_order::{AnswerOrder, AnswerTicket, End},
    bell::Bell,
    job::Job,
    respond::Progress,
};
use crate::{
    inference::{Error, Sequence, Timestamp},
    runtime::{ReactorHandle, Sleep, current, sleep_until, spawn},
    scheduler::{SequenceDecision, SequenceKey, SequenceQueue},
};

pub use instances::{Instances, NewInstances, Ran};

/// What lets a request run again, in the place of its sequence.
pub struct Turn {
    /// The sequence.
    pub key: SequenceKey,
    /// How far the turns before have come.
    pub progress: Progress,
}

/// The sequences of a version, on its home.
pub struct SequenceShard {
    home: ReactorHandle,
    setup: Arc<SequenceSetup>,
    queue: RefCell<SequenceQueue<Job, States>>,
    instances: RefCell<Instances>,
    /// The order of each instance's answers, where that is to be the order of the requests.
    orders: Option<RefCell<BTreeMap<u32, Rc<AnswerOrder>>>>,
    bell: Bell,
    closed: Cell<bool>,
}

impl SequenceShard {
    /// Starts the task that feeds the instances, which are numbered from 0 on.
    pub fn start(setup: Arc<SequenceSetup>, instances: Instances) -> SequenceShardHandle {
        let queue = SequenceQueue::new(setup.policy.clone(), instances.count(), setup.initial());
        let shard = Rc::new(Self {
            home: current(),
            instances: RefCell::new(instances),
            orders: setup.policy.strategy.preserves_ordering().then(RefCell::default),
            setup,
            queue: RefCell::new(queue),
            bell: Bell::default(),
            closed: Cell::new(false),
        });
        spawn(&"a model's sequences", feed(shard.clone()));
        SequenceShardHandle(shard)
    }

    /// Queues a request.
    pub fn submit(&self, mut job: Job) {
        if self.setup.policy.iterative && job.sequence.as_ref().is_none_or(|it| it.id.is_none()) {
            let id = self.queue.borrow_mut().unused_id();
            job.sequence = Some(Box::new(Sequence { id, start: true, end: false }));
        }
        if let Err(error) = self.setup.check(&job) {
            return job.refuse(error);
        }
        let (statistics, arrived) = (job.version.statistics.clone(), job.arrived);
        let pushed = self.queue.borrow_mut().push(job, arrived);
        match pushed {
            Ok(ready) => {
                statistics.enqueued(self.home.index());
                if ready.is_some() {
                    self.bell.ring();
                }
            }
            Err((job, error @ Error::ModelUnavailable { .. })) => {
                job.fail(self.home.index(), error);
            }
            Err((job, error)) => job.refuse(error),
        }
    }

    /// Queues a request that its model wants to run again, before all others of its sequence. The model
    /// is told of the sequence's start once.
    pub fn run_again(&self, mut job: Job) {
        let Some(Turn { key, .. }) = job.turn else { return };
        if let Some(sequence) = &mut job.sequence {
            (sequence.start, sequence.end) = (false, false);
        }
        // What the server told the model beside is told anew.
        job.admitted.inputs.truncate(job.version.signature.inputs.len());
        let statistics = job.version.statistics.clone();
        match self.queue.borrow_mut().push_again(key, job, Timestamp::now()) {
            Ok(()) => statistics.enqueued(self.home.index()),
            Err((job, error)) => self.fail(job, error),
        }
    }

    /// Ends an answer when all before it have ended.
    pub fn end_in_order(&self, ticket: &AnswerTicket, end: Option<End>) {
        let orders = self.orders.as_ref().map(RefCell::borrow);
        let order = orders.and_then(|orders| orders.get(&ticket.of).cloned());
        if let Some(order) = order {
            order.take_back(ticket, end);
        }
    }

    /// Gives a request that its model answers itself its place among the answers of an instance. One that
    /// runs again keeps the place it has.
    fn put_in_order(&self, job: &mut Job, instance: u32) {
        if let Some(orders) = &self.orders
            && job.version.takes_requests
            && job.ticket.is_none()
        {
            let order = orders.borrow_mut().entry(instance).or_default().clone();
            job.ticket = Some(order.give(instance));
        }
    }

    fn fail(&self, mut job: Job, error: Error) {
        let ticket = job.ticket.take();
        job.fail(self.home.index(), error);
        if let Some(ticket) = ticket {
            self.end_in_order(&ticket, None);
        }
    }

    /// Takes back a batch that an instance has run, and answers it.
    pub fn finished(&self, ran: Ran) {
        let now = Timestamp::now();
        self.instances.borrow_mut().finished(ran.instance);
        {
            let mut queue = self.queue.borrow_mut();
            for (key, states) in ran.sequences {
                queue.finished(key, states, now);
            }
        }
        ran.executed.answer(self.home.index(), now);
        self.bell.ring();
    }

    /// Binds no more sequences to the instances of which `stays` is false, of those with these `numbers`;
    /// they end with the sequences that they have. New ones are bound to `others` too.
    pub fn exchange_instances(&self, numbers: &[u32], stays: &[bool], others: Instances) {
        let (mut queue, now) = (self.queue.borrow_mut(), Timestamp::now());
        others.numbers().for_each(|number| queue.add(number, now));
        let leaving = numbers.iter().zip(stays).filter(|(_, stays)| !**stays);
        leaving.for_each(|(number, _)| queue.leave(*number));
        self.instances.borrow_mut().add(others);
        self.bell.ring();
    }

    /// Starts every batch that can start. Returns when to be called again, though nothing arrives.
    fn pump(&self) -> Option<Timestamp> {
        let now = Timestamp::now();
        self.queue.borrow_mut().expire(now);
        let mut again = None;
        let mut hopeless = Vec::new();
        let idle = self.instances.borrow().idle();
        for instance in idle {
            let lost = self.instances.borrow().lost(instance);
            if let Some(reason) = lost {
                self.queue.borrow_mut().lose(instance, reason, now, &mut hopeless);
                self.instances.borrow_mut().end(instance);
                continue;
            }
            let decision = self.queue.borrow_mut().next(instance, now, &mut hopeless);
            match decision {
                SequenceDecision::Idle => {}
                SequenceDecision::WaitUntil(due) => again = earlier(again, Some(due)),
                SequenceDecision::Run(mut batch) => {
                    for row in batch.rows.iter_mut().flatten() {
                        row.request.version.statistics.dequeued(self.home.index());
                        self.put_in_order(&mut row.request, instance);
                    }
                    let (mut instances, setup) = (self.instances.borrow_mut(), &self.setup);
                    let refused = instances.run(instance, batch, setup, &self.home).err();
                    drop(instances);
                    for row in refused.into_iter().flat_map(|batch| batch.rows).flatten() {
                        let detail = "the instance's thread has ended".to_owned();
                        self.fail(row.request, Error::Internal { detail });
                    }
                }
            }
        }
        // Last, for one whose client has left may have been what kept an instance.
        for instance in self.queue.borrow_mut().left() {
            self.instances.borrow_mut().end(instance);
        }
        for (job, error) in hopeless {
            job.version.statistics.dequeued(self.home.index());
            self.fail(job, error);
        }
        earlier(again, self.queue.borrow().next_expiry())
    }
}

fn earlier(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    [a, b].into_iter().flatten().min()
}

/// Owns a [`SequenceShard`]; dropping it ends the shard's task.
pub struct SequenceShardHandle(Rc<SequenceShard>);

impl std::ops::Deref for SequenceShardHandle {
    type Target = SequenceShard;

    fn deref(&self) -> &SequenceShard {
        &self.0
    }
}

impl Drop for SequenceShardHandle {
    fn drop(&mut self) {
        self.0.closed.set(true);
        self.0.bell.ring();
    }
}

async fn feed(shard: Rc<SequenceShard>) {
    let mut again: Option<Sleep> = None;
    loop {
        std::future::poll_fn(|cx| shard.bell.poll_rung(cx, &mut again)).await;
        if shard.closed.get() {
            return;
        }
        again = shard.pump().map(|due| sleep_until(due.to_instant()));
    }
}
