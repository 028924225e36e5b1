//! Calls that the process makes of other models, and their answers.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use smallvec::SmallVec;

use super::{INLINE_BYTES_MAX, ROOM_WAIT_MAX, Session, lock};
use crate::{
    backend::{
        Answer, Asked,
        python::{json, wire::Writer},
    },
    inference::{Callers, Error},
};

/// Tensors of other models' answers of up to so many bytes are copied by the reactor that has them.
const DIRECT_BYTES_MAX: usize = 64 << 10;

impl Session {
    /// Who waits for a call that `execute` makes.
    pub fn callers(&self) -> Option<Arc<Callers>> {
        lock(&self.execution).callers()
    }

    /// Notes a call that is about to begin.
    pub fn begin_call(&self, number: u64) {
        lock(&self.calls).insert(number, None);
    }

    /// Sends an answer of another model to the process. Runs on a reactor, so large tensors are left to
    /// the supervisor.
    pub fn answer_call(&self, number: u64, model: &str, mut answer: Answer) {
        answer.response = answer.response.map(|it| it.map_err(|error| of_call(model, error)));
        self.tell(number, answer);
    }

    /// Abandons a call; the process is told that no more answers come.
    pub fn cancel_call(&self, number: u64) {
        self.tell(number, Answer { response: None, is_last: true });
    }

    /// Puts an answer behind those before it, unless the call is over.
    fn tell(&self, number: u64, answer: Answer) {
        let deadline = Instant::now() + ROOM_WAIT_MAX;
        let mut calls = lock(&self.calls);
        if !calls.contains_key(&number) {
            return;
        }
        let ended = answer.is_last.then(|| calls.remove(&number));
        // While the calls are locked: nothing comes behind a call's last answer.
        lock(&self.answers).push_back(CallAnswer { number, answer, deadline });
        drop(calls);
        if ended.is_some() {
            self.calls_ended.fetch_add(1, Ordering::Relaxed);
        }
        drop(ended);
        if !self.send_answers(DIRECT_BYTES_MAX) {
            self.line.ring();
        }
    }

    /// Tells the process that a call could not be made.
    pub fn refuse_call(&self, number: u64, model: &str, error: Error) {
        if lock(&self.calls).remove(&number).is_some() {
            self.calls_ended.fetch_add(1, Ordering::Relaxed);
            self.line.send(refusal(number, true, &of_call(model, error)));
        }
    }

    /// Sends answers of other models, in their order, as long as they are no larger than `bytes_max` and
    /// there is room. Tells whether all are sent.
    pub fn send_answers(&self, bytes_max: usize) -> bool {
        // One thread at a time, so that the order stays.
        let Ok(_sending) = self.sending_answers.try_lock() else { return false };
        loop {
            let Some(next) = lock(&self.answers).pop_front() else { return true };
            let is_late = Instant::now() >= next.deadline;
            if next.bytes() > bytes_max {
                lock(&self.answers).push_front(next);
                return false;
            }
            match self.write_answer(&next) {
                Some(writer) => self.line.send(writer),
                None if is_late || next.bytes() > self.arena.half() => {
                    let detail = self.no_room(next.bytes());
                    self.line.send(refusal(next.number, true, &Error::Internal { detail }));
                }
                None => {
                    let mut writer = Writer::default();
                    writer.flush();
                    self.line.send(writer);
                    lock(&self.answers).push_front(next);
                    return false;
                }
            }
        }
    }

    /// A frame with an answer; `None` when there is no room for its tensors.
    fn write_answer(&self, next: &CallAnswer) -> Option<Writer> {
        let CallAnswer { number, answer, .. } = next;
        let response = match &answer.response {
            Some(Err(error)) => {
                return Some(refusal(*number, answer.is_last, error));
            }
            Some(Ok(response)) => response,
            None => {
                let mut writer = Writer::default();
                writer.begin_response(*number, answer.is_last, None);
                writer.finish();
                return Some(writer);
            }
        };
        let mut writer = Writer::default();
        let parameters = json::of_parameters(&response.parameters);
        let outcome = Ok((&*parameters, response.outputs.len()));
        writer.begin_response(*number, answer.is_last, Some(outcome));
        let mut lent: SmallVec<[u64; 2]> = SmallVec::new();
        for output in &response.outputs {
            let data = &output.data;
            let (name, datatype, shape) = (&output.name, output.datatype, &output.shape);
            if data.len() <= INLINE_BYTES_MAX {
                writer.inline(name, datatype, shape, data.len(), [&**data].into_iter());
                continue;
            }
            let Some(range) = self.arena.lend(data.len(), [&**data].into_iter()) else {
                // Nobody was told of these.
                lent.into_iter().for_each(|offset| {
                    let taken = self.arena.take_back(offset);
                    debug_assert!(taken.is_ok(), "it was lent a moment ago");
                });
                return None;
            };
            lent.push(range.offset);
            writer.lent(name, datatype, shape, range);
        }
        writer.finish();
        Some(writer)
    }

    /// Notes what abandons a call, unless it is over already.
    pub fn hold_call(&self, number: u64, asked: Asked) {
        if let Some(call) = lock(&self.calls).get_mut(&number) {
            *call = Some(asked);
        }
    }
}

/// An answer of another model that the process is to have.
pub(super) struct CallAnswer {
    number: u64,
    answer: Answer,
    /// When waiting for room ends.
    deadline: Instant,
}

impl CallAnswer {
    /// The bytes of its tensors.
    fn bytes(&self) -> usize {
        let response = self.answer.response.as_ref().and_then(|response| response.as_ref().ok());
        response.map_or(0, |it| it.outputs.iter().map(|output| output.data.len()).sum())
    }
}

/// An error as the caller of a model reads it, which is in Triton's words where those are known.
fn of_call(model: &str, error: Error) -> Error {
    let code = error.code();
    let detail = match &error {
        // What the called model itself says.
        Error::Model { .. } | Error::Backend { .. } => return error,
        Error::UnknownModel { .. }
        | Error::UnknownVersion { .. }
        | Error::NoAvailableVersions { .. }
        | Error::VersionNotReady { .. } => {
            format!("Failed for execute the inference request. Model '{model}' is not ready.")
        }
        other => other.to_string(),
    };
    Error::Model { code, detail: format!("Model {model} - Error when running inference: {detail}") }
}

fn refusal(number: u64, is_last: bool, error: &Error) -> Writer {
    let mut writer = Writer::default();
    writer.begin_response(number, is_last, Some(Err((error.code(), &error.to_string()))));
    writer.finish();
    writer
}
