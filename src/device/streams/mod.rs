//! The stream scheduler: which batch is copied, run and copied back next, on which device.
//!
//! [`Scheduler`] is the policy, a pure state machine: it is told what arrived and what a device has
//! done, and says what a device is to do ([`Command`]). It gives each engine only as much as keeps it
//! busy, so that what is urgent need not queue behind what has been given. [`Lanes`] does what it says
//! on real [`Device`](super::Device)s and keeps the memory that batches lie in. [`Timeline`] notes what
//! the engines did.
//!
//! It must not know what a model computes, nor which thread it is on: who drives it brings the news
//! ([`Completion`]) to it.

mod alone;
mod course;
mod fairness;
mod job;
mod lane;
mod lanes;
mod placement;
mod prediction;
mod resident;
mod scheduler;
mod timeline;
mod work;
mod worker;

pub use self::{
    alone::Alone,
    job::{BatchParts, Compute, Finished, Job, ModelPlan, Notify, OutputPart, PlacedBatch},
    lanes::{Lanes, OpenModel},
    resident::{Mover, Resident, Rows},
    scheduler::Scheduler,
    timeline::{Timeline, TimelineEntry},
    work::{
        BatchId, Command, Completion, ModelSpec, Order, Outcome, Place, Refused, SchedulerSettings,
        Stage, Ticket, Times, Work,
    },
    worker::Runner,
};

#[cfg(test)]
mod tests;
