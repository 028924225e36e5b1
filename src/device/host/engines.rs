//! What the engines of a device do next: a state machine over streams, events and time, without
//! threads or clocks of its own.

use std::{collections::VecDeque, time::Duration};

use rustc_hash::FxHashMap;
use slab::Slab;

use super::operation::Operation;
use crate::{
    device::{DeviceError, Report, Urgency},
    inference::Timestamp,
};

/// What runs operations. Each runs one at a time, beside the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Engine {
    CopyIn,
    CopyOut,
    Compute,
    /// Calls the host.
    Host,
}

pub(super) const ENGINES: [Engine; 4] =
    [Engine::CopyIn, Engine::CopyOut, Engine::Compute, Engine::Host];

#[derive(Default)]
pub(super) struct Engines {
    streams: Slab<Stream>,
    /// By numbers that are never used again.
    events: FxHashMap<u64, Event>,
    events_opened: u64,
    /// Streams whose next operation an engine can take, by engine, in the order in which they came.
    ready: [VecDeque<usize>; 4],
}

struct Stream {
    urgency: Urgency,
    operations: VecDeque<Operation>,
    state: State,
    /// Whether nothing can be added any more.
    closed: bool,
    /// When its next operation could have begun.
    ready_at: Timestamp,
    error: Option<DeviceError>,
    began: Option<Timestamp>,
    ended: Option<Timestamp>,
    busy: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing to do.
    Idle,
    /// In a queue of `ready`.
    Ready,
    /// An engine runs its operation.
    Running,
    /// It waits for an event.
    Blocked,
}

#[derive(Default)]
struct Event {
    /// How often it was recorded, in the order of the calls, and how many of these have happened.
    recorded: u64,
    happened: u64,
    waiting: Vec<(usize, u64)>,
    closed: bool,
}

/// An operation that an engine has taken.
pub(super) struct Taken {
    pub stream: usize,
    pub operation: Operation,
    /// When it could have begun.
    pub ready_at: Timestamp,
    /// For a call: what it is told.
    pub report: Report,
}

impl Engines {
    pub fn open_stream(&mut self, urgency: Urgency) -> usize {
        self.streams.insert(Stream {
            urgency,
            operations: VecDeque::new(),
            state: State::Idle,
            closed: false,
            ready_at: Timestamp::default(),
            error: None,
            began: None,
            ended: None,
            busy: Duration::ZERO,
        })
    }

    /// Nothing more comes; what is there still runs.
    pub fn close_stream(&mut self, stream: usize) {
        self.streams[stream].closed = true;
        self.forget_if_done(stream);
    }

    pub fn open_event(&mut self) -> u64 {
        self.events_opened += 1;
        self.events.insert(self.events_opened, Event::default());
        self.events_opened
    }

    pub fn close_event(&mut self, event: u64) {
        if let Some(it) = self.events.get_mut(&event) {
            it.closed = true;
        }
        self.forget_event_if_done(event);
    }

    /// Adds an operation to a stream, now, at `now`.
    pub fn submit(&mut self, stream: usize, operation: Operation, now: Timestamp) {
        let target = &mut self.streams[stream];
        target.operations.push_back(operation);
        if target.state == State::Idle {
            self.advance(stream, now);
        }
    }

    /// Adds the record of an event to a stream.
    pub fn record(&mut self, stream: usize, event: u64, now: Timestamp) {
        let Some(it) = self.events.get_mut(&event) else { return };
        it.recorded += 1;
        let generation = it.recorded;
        self.submit(stream, Operation::Record { event, generation }, now);
    }

    /// Adds to a stream that it waits for an event as it was last recorded.
    pub fn wait(&mut self, stream: usize, event: u64, now: Timestamp) {
        let Some(it) = self.events.get(&event) else { return };
        let generation = it.recorded;
        if it.happened < generation {
            self.submit(stream, Operation::Wait { event, generation }, now);
        }
    }

    /// Whether an engine has something to take.
    pub fn has_work(&self, engine: Engine) -> bool {
        !self.ready[engine as usize].is_empty()
    }

    /// Takes the next operation for an engine: of an urgent stream, else of the one that came first.
    pub fn take(&mut self, engine: Engine) -> Option<Taken> {
        let queue = &mut self.ready[engine as usize];
        let urgent = |&stream: &usize| self.streams[stream].urgency == Urgency::Urgent;
        let at = queue.iter().position(urgent).unwrap_or(0);
        let stream = queue.remove(at)?;
        let target = &mut self.streams[stream];
        target.state = State::Running;
        let operation = target.operations.pop_front()?;
        let ready_at = target.ready_at;
        let report = match operation {
            Operation::Call(_) => target.report(),
            _ => {
                let (outcome, busy) = (Ok(()), Duration::ZERO);
                Report { outcome, began: ready_at, ended: ready_at, busy }
            }
        };
        Some(Taken { stream, operation, ready_at, report })
    }

    /// An operation has run from `began` to `ended`.
    pub fn finished(
        &mut self,
        stream: usize,
        outcome: Result<(), DeviceError>,
        began: Timestamp,
        ended: Timestamp,
    ) {
        let target = &mut self.streams[stream];
        target.began.get_or_insert(began);
        target.ended = Some(ended);
        target.busy += ended - began;
        if let Err(error) = outcome {
            target.error.get_or_insert(error);
        }
        self.advance(stream, ended);
    }

    /// A call of the host has returned.
    pub fn called(&mut self, stream: usize, now: Timestamp) {
        self.advance(stream, now);
    }

    /// Whether nothing runs or waits.
    pub fn is_empty(&self) -> bool {
        self.streams.iter().all(|(_, it)| it.operations.is_empty() && it.state == State::Idle)
    }

    /// Brings a stream on to its next operation that takes an engine, or that has to wait.
    fn advance(&mut self, stream: usize, now: Timestamp) {
        // Events that have happened, and streams that they may have set free.
        let mut advancing = vec![stream];
        while let Some(stream) = advancing.pop() {
            self.advance_one(stream, now, &mut advancing);
            self.forget_if_done(stream);
        }
    }

    fn advance_one(&mut self, stream: usize, now: Timestamp, freed: &mut Vec<usize>) {
        let target = &mut self.streams[stream];
        target.state = State::Idle;
        while let Some(operation) = target.operations.front() {
            match *operation {
                Operation::Record { event, generation } => {
                    target.operations.pop_front();
                    let Some(it) = self.events.get_mut(&event) else { continue };
                    it.happened = it.happened.max(generation);
                    let happened = it.happened;
                    let released = it.waiting.extract_if(.., |(_, wanted)| *wanted <= happened);
                    freed.extend(released.map(|(stream, _)| stream));
                    if it.closed && it.happened == it.recorded {
                        self.events.remove(&event);
                    }
                }
                Operation::Wait { event, generation } => {
                    match self.events.get_mut(&event) {
                        Some(it) if it.happened < generation => {
                            it.waiting.push((stream, generation));
                            target.state = State::Blocked;
                            return;
                        }
                        // It has happened, and may be gone since.
                        _ => drop(target.operations.pop_front()),
                    }
                }
                _ => {
                    if let Some(engine) = operation.engine() {
                        target.state = State::Ready;
                        target.ready_at = now;
                        self.ready[engine as usize].push_back(stream);
                    }
                    return;
                }
            }
        }
    }

    fn forget_if_done(&mut self, stream: usize) {
        let Some(target) = self.streams.get(stream) else { return };
        if target.closed && target.state == State::Idle && target.operations.is_empty() {
            self.streams.remove(stream);
        }
    }

    fn forget_event_if_done(&mut self, event: u64) {
        if self.events.get(&event).is_some_and(|it| it.happened == it.recorded) {
            self.events.remove(&event);
        }
    }
}

impl Stream {
    /// What a call is told of the operations since the one before.
    fn report(&mut self) -> Report {
        let outcome = self.error.take().map_or(Ok(()), Err);
        let ended = self.ended.take().unwrap_or(self.ready_at);
        let (began, busy) = (self.began.take().unwrap_or(ended), std::mem::take(&mut self.busy));
        Report { outcome, began, ended, busy }
    }
}
