//! Batches on their way through the model's `execute`.

use std::{
    collections::VecDeque,
    sync::{Arc, MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use smallvec::SmallVec;

use super::{INLINE_BYTES_MAX, Session, lock, requests::Taken};
use crate::{
    backend::{
        ModelRequest, NearBatch, Responder,
        python::{
            Outline,
            inbox::{Broken, Inbox},
            placement::Turn,
            wire::{Executed, Said, Writer},
        },
    },
    inference::{Callers, Code},
};

/// The system's largest number of requests in one message.
const REQUESTS_MAX: usize = 1 << 20;
/// So many bytes of a batch's inputs are put into its message, or into shared memory, by the reactor.
const NEAR_BYTES_MAX: usize = 1 << 20;

/// What the process runs.
#[derive(Default)]
pub(super) struct Execution {
    /// Batches that were sent and have not ended, in the order of their frames.
    sent: VecDeque<Sent>,
    /// How those of the instance's thread ended, as far as it has not looked.
    outcomes: VecDeque<Result<Executed, String>>,
    pub(super) is_dead: bool,
}

/// A batch that the process has.
struct Sent {
    callers: Arc<Callers>,
    whose: Whose,
    since: Instant,
    turn: Turn,
}

/// Who began a batch.
enum Whose {
    /// The instance's thread, which waits for its end.
    Thread,
    /// The reactor that hears the process.
    Reactor { numbers: Vec<u64>, batch: Box<dyn NearBatch> },
}

impl Execution {
    /// Notes that the process has ended. Returns what nobody waits for.
    pub(super) fn die(&mut self) -> Vec<Box<dyn NearBatch>> {
        self.is_dead = true;
        let batch = |sent: Sent| match sent.whose {
            Whose::Thread => None,
            Whose::Reactor { batch, .. } => Some(batch),
        };
        self.sent.drain(..).filter_map(batch).collect()
    }

    /// Whether the process has had a batch for longer than `limit`.
    pub(super) fn runs_longer_than(&self, limit: Duration) -> bool {
        self.sent.front().is_some_and(|sent| sent.since.elapsed() > limit)
    }

    /// Who waits for what the batch that runs calls.
    pub(super) fn callers(&self) -> Option<Arc<Callers>> {
        self.sent.front().map(|sent| sent.callers.clone())
    }
}

/// A batch that is written down.
struct Written {
    numbers: Vec<u64>,
    callers: Arc<Callers>,
}

impl Session {
    /// Runs batches, one after the other: returns when the model's last `execute` has, or the process has
    /// ended. Meanwhile what the process says is read here and given to `hear`, so that no other thread
    /// has to wake for it. The end of each batch is told to `ended`.
    pub fn execute(
        &self,
        outline: &Outline,
        series: Vec<Vec<ModelRequest>>,
        hear: &mut dyn FnMut(Said) -> Result<(), String>,
        ended: &mut dyn FnMut(),
    ) {
        let mut body = Writer::default();
        let batches: Vec<Written> =
            series.into_iter().map(|batch| self.write_batch(&mut body, outline, batch)).collect();
        if !self.send_batches(body, &batches) {
            // Requests that were added after the process ended have nobody else to end them.
            return self.die(&outline.is_unhealthy());
        }
        let runs = batches.iter().any(|batch| !batch.numbers.is_empty());
        // What a reactor hears it also tells this thread.
        let mut inbox = (runs && !self.is_attached()).then(|| lock(&self.inbox));
        inbox = inbox.filter(|_| !self.is_attached());
        for batch in batches {
            if !batch.numbers.is_empty() {
                let Some(outcome) = self.next_outcome(&mut inbox, hear) else {
                    return self.die(&outline.is_unhealthy());
                };
                self.end_batch(outline, batch.numbers, outcome);
            }
            ended();
        }
        // What came along with the end is heard before somebody else reads.
        while let Some(said) = inbox.as_mut().and_then(|inbox| self.heard(inbox.kept())) {
            if let Err(misdeed) = hear(said) {
                self.distrust(misdeed);
                break;
            }
        }
        if inbox.is_some() {
            self.line.listen(true);
        }
    }

    /// Sends the frames of batches of the instance's thread; false when the process has ended.
    fn send_batches(&self, body: Writer, batches: &[Written]) -> bool {
        let mut execution = lock(&self.execution);
        if execution.is_dead {
            return false;
        }
        let before = execution.sent.len();
        let running = batches.iter().filter(|batch| !batch.numbers.is_empty());
        let since = Instant::now();
        execution.sent.extend(running.map(|batch| {
            let callers = batch.callers.clone();
            Sent { callers, whose: Whose::Thread, since, turn: Turn::begin() }
        }));
        if execution.sent.len() > before {
            if !self.is_attached() {
                self.line.listen(false);
            }
            // While the lock is held, so that frames come in the order of what is noted.
            self.line.send(body);
        }
        true
    }

    /// Whether a batch with inputs of these sizes needs no waiting.
    pub fn takes(&self, inputs: &mut dyn Iterator<Item = usize>) -> bool {
        let (mut bytes, mut large) = (0_usize, SmallVec::<[usize; 8]>::new());
        for input in inputs {
            bytes = bytes.saturating_add(input);
            large.extend((input > INLINE_BYTES_MAX).then_some(input));
        }
        if bytes > NEAR_BYTES_MAX || !self.is_attached() {
            return false;
        }
        let is_the_threads = |sent: &Sent| matches!(sent.whose, Whose::Thread);
        if lock(&self.execution).sent.iter().any(is_the_threads) {
            return false;
        }
        // Answers of other models come from other threads, which may take the room meanwhile.
        large.is_empty()
            || (lock(&self.calls).is_empty()
                && lock(&self.answers).is_empty()
                && self.arena.has_room(large.into_iter()))
    }

    /// Batches that the process has.
    pub fn running(&self) -> usize {
        lock(&self.execution).sent.len()
    }

    /// Keeps the frames of a batch that this [takes](Self::takes) for when something is sent. A batch of
    /// which nothing runs comes back.
    ///
    /// # Errors
    /// When the process has ended, or none of the requests can be written.
    pub fn begin(
        &self,
        outline: &Outline,
        requests: Vec<ModelRequest>,
        batch: Box<dyn NearBatch>,
    ) -> Result<(), Box<dyn NearBatch>> {
        let mut body = Writer::default();
        let Written { numbers, callers } = self.write_batch(&mut body, outline, requests);
        if numbers.is_empty() {
            return Err(batch);
        }
        let mut execution = lock(&self.execution);
        if execution.is_dead {
            drop(execution);
            // Requests that were added after the process ended have nobody else to end them.
            self.die(&outline.is_unhealthy());
            return Err(batch);
        }
        let (whose, since) = (Whose::Reactor { numbers, batch }, Instant::now());
        execution.sent.push_back(Sent { callers, whose, since, turn: Turn::begin() });
        // While the lock is held, so that frames come in the order of what is noted.
        self.line.keep(body);
        Ok(())
    }

    fn write_batch(
        &self,
        body: &mut Writer,
        outline: &Outline,
        requests: Vec<ModelRequest>,
    ) -> Written {
        let before = body.mark();
        body.begin_execute();
        let mut numbers = Vec::with_capacity(requests.len().min(REQUESTS_MAX));
        let callers = requests.iter().filter_map(|request| request.callers.as_deref());
        let callers = Callers::of(&outline.signature.model, outline.version, callers);
        for request in requests {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            match self.write_request(body, outline, &request, number) {
                Ok(()) => {
                    let ModelRequest { responder, trace, .. } = request;
                    lock(&self.requests).insert(number, Taken { responder, trace });
                    numbers.push(number);
                }
                Err(error) => request.responder.finish(Err(error)),
            }
        }
        match numbers.is_empty() {
            true => body.undo(before),
            false => body.end_execute(numbers.len()),
        }
        Written { numbers, callers: Arc::new(callers) }
    }

    fn end_batch(&self, outline: &Outline, numbers: Vec<u64>, outcome: Result<Executed, String>) {
        match outcome {
            Ok(Executed { let_go, again }) => {
                for number in let_go {
                    self.fail(number, Code::Internal, outline.let_go());
                }
                again
                    .into_iter()
                    .filter_map(|it| self.take_request(it))
                    .for_each(Responder::run_again);
            }
            Err(message) => {
                let message = outline.failed(&message);
                for number in numbers {
                    self.fail(number, Code::Internal, message.clone());
                }
            }
        }
    }

    /// Reads until another `execute` has ended; `None` when the process has.
    fn next_outcome(
        &self,
        inbox: &mut Option<MutexGuard<'_, Inbox>>,
        hear: &mut dyn FnMut(Said) -> Result<(), String>,
    ) -> Option<Result<Executed, String>> {
        loop {
            let mut execution = lock(&self.execution);
            if let Some(outcome) = execution.outcomes.pop_front() {
                return Some(outcome);
            }
            if execution.is_dead {
                return None;
            }
            let Some(open) = inbox else {
                // The supervisor finds out what became of the process.
                let waited = self.execution_ended.wait(execution);
                drop(waited.unwrap_or_else(PoisonError::into_inner));
                continue;
            };
            drop(execution);
            let heard = self.heard(open.next(&self.line, true)).map(&mut *hear);
            if !matches!(heard, Some(Ok(()))) {
                if let Some(Err(misdeed)) = heard {
                    self.distrust(misdeed);
                }
                self.line.listen(true);
                *inbox = None;
            }
        }
    }

    /// What the process said; `None` when it says nothing more.
    fn heard(&self, said: Result<Option<Said>, Broken>) -> Option<Said> {
        match said {
            Ok(said) => said,
            Err(Broken::Closed) => None,
            Err(Broken::Malformed(error)) => {
                self.distrust(error.to_string());
                None
            }
        }
    }

    /// Has the supervisor end the process.
    pub fn distrust(&self, misdeed: String) {
        *lock(&self.misdeed) = Some(misdeed);
        self.line.ring();
    }

    /// The model's `execute` has ended.
    pub fn executed(&self, outline: &Outline, outcome: Result<Executed, String>) {
        self.has_executed.store(true, Ordering::Relaxed);
        let mut execution = lock(&self.execution);
        let Some(Sent { whose, since, turn, .. }) = execution.sent.pop_front() else { return };
        if let Some(Sent { whose: Whose::Reactor { batch, .. }, .. }) = execution.sent.front() {
            batch.begins();
        }
        match whose {
            Whose::Thread => {
                execution.outcomes.push_back(outcome);
                drop(execution);
                self.execution_ended.notify_all();
                self.placement.note_other();
            }
            Whose::Reactor { numbers, batch } => {
                drop(execution);
                let turns = self.calls_ended.swap(0, Ordering::Relaxed).saturating_add(1);
                match turn.is_alone() {
                    true => self.placement.note_turns(turns, since.elapsed()),
                    false => self.placement.note_other(),
                }
                drop(turn);
                self.end_batch(outline, numbers, outcome);
                batch.ended();
            }
        }
    }
}
