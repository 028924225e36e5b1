//! Batches on their way through the model's `execute`.

use std::{
    collections::VecDeque,
    sync::{Arc, MutexGuard, PoisonError, atomic::Ordering},
};

use super::{REQUESTS_MAX, Session, Taken, lock};
use crate::{
    backend::{
        ModelRequest, Responder,
        python::{
            Outline,
            inbox::{Broken, Inbox},
            wire::{Executed, Said, Writer},
        },
    },
    inference::{Callers, Code},
};

/// What the instance's thread waits for.
#[derive(Default)]
pub(super) struct Execution {
    /// Batches that were sent and have not ended.
    running: usize,
    /// How those before them ended, as far as nobody has looked.
    outcomes: VecDeque<Result<Executed, String>>,
    pub(super) is_dead: bool,
}

impl Execution {
    /// Notes that batches are about to be sent; false when the process has ended.
    fn begin(&mut self, batches: usize) -> bool {
        self.outcomes.clear();
        self.running = batches;
        !self.is_dead
    }
}

/// A batch that the process has.
struct Sent {
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
        let mut batches: VecDeque<Sent> =
            series.into_iter().map(|batch| self.write_batch(&mut body, outline, batch)).collect();
        let running = batches.iter().filter(|batch| !batch.numbers.is_empty()).count();
        if !lock(&self.execution).begin(running) {
            // Requests that were added after the process ended have nobody else to end them.
            return self.die(&outline.is_unhealthy());
        }
        let mut inbox = None;
        let mut body = Some(body).filter(|_| running > 0);
        while let Some(batch) = batches.pop_front() {
            *lock(&self.callers) = Some(batch.callers);
            if let Some(body) = body.take() {
                self.line.listen(false);
                self.line.send(body);
                inbox = Some(lock(&self.inbox));
            }
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
        if inbox.take().is_some() {
            self.line.listen(true);
        }
    }

    fn write_batch(
        &self,
        body: &mut Writer,
        outline: &Outline,
        requests: Vec<ModelRequest>,
    ) -> Sent {
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
        Sent { numbers, callers: Arc::new(callers) }
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
                *inbox = None;
                self.line.listen(true);
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
    fn distrust(&self, misdeed: String) {
        *lock(&self.misdeed) = Some(misdeed);
        self.line.ring();
    }

    /// The model's `execute` has ended.
    pub fn executed(&self, outcome: Result<Executed, String>) {
        self.has_executed.store(true, Ordering::Relaxed);
        let mut execution = lock(&self.execution);
        if execution.running > 0 {
            execution.running -= 1;
            execution.outcomes.push_back(outcome);
            self.execution_ended.notify_all();
        }
    }
}
