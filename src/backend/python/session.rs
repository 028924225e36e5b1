mod execution;

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use self::execution::Execution;
use super::{
    Outline,
    arena::{Arena, NotThere},
    inbox::Inbox,
    json,
    line::Line,
    placement::Placement,
    wire::{self, Correlation, Place, Writer},
};
use crate::{
    backend::{
        Answer, Asked, ModelRequest, ModelResponse, Responder, ResponseError, ResponseTensor,
    },
    inference::{Callers, Code, CorrelationId, DataType, Error, Rope},
    observe::trace::OuterTrace,
};

/// Tensors of up to so many bytes travel in the message instead of shared memory.
pub const INLINE_BYTES_MAX: usize = 8 << 10;
/// Tensors of other models' answers of up to so many bytes are copied by the reactor that has them.
const DIRECT_BYTES_MAX: usize = 64 << 10;
/// A process that takes less until it says something runs by turns with its reactor.
const QUICK: Duration = Duration::from_micros(250);
/// One that has had a batch for so long, and no turns, leaves its reactor's processor before it ends.
const LONG: Duration = Duration::from_millis(20);
/// How long a request waits for room in shared memory before it is refused.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(10);
/// The system's largest number of requests in one message.
const REQUESTS_MAX: usize = 1 << 20;

/// One process of a model, and what is under way between it and the server. When the process ends, so
/// does this: what comes after it is another one.
pub struct Session {
    /// The way to the process.
    pub line: Arc<Line>,
    /// The memory shared with it.
    pub arena: Arc<Arena>,
    /// Its number in the system.
    pub process: u32,
    /// Whether the model's hook `is_ready` said so when it was asked last.
    pub is_ready: AtomicBool,
    /// Whether the process was stopped by a signal.
    pub is_stopped: AtomicBool,
    /// Whether the model's `execute` has ended at least once.
    pub has_executed: AtomicBool,
    /// Whether the model's `finalize` has returned.
    pub has_finalized: AtomicBool,
    inbox: Mutex<Inbox>,
    /// Whether a reactor hears the process.
    is_attached: AtomicBool,
    /// Whether one is to.
    is_claimed: AtomicBool,
    /// Why the process cannot be trusted any more, if the instance's thread found that out.
    misdeed: Mutex<Option<String>>,
    next: AtomicU64,
    requests: Mutex<FxHashMap<u64, Taken>>,
    calls: Mutex<FxHashMap<u64, Option<Asked>>>,
    /// How many calls have ended since a batch did.
    calls_ended: AtomicU32,
    placement: Placement,
    answers: Mutex<VecDeque<CallAnswer>>,
    sending_answers: Mutex<()>,
    execution: Mutex<Execution>,
    execution_ended: Condvar,
}

/// A request that the process has.
struct Taken {
    responder: Responder,
    trace: Option<OuterTrace>,
}

impl Session {
    /// Over a line to a process, by its number, and the memory that goes with it.
    pub fn new(line: Arc<Line>, arena: Arc<Arena>, process: u32) -> Self {
        Self {
            line,
            arena,
            process,
            is_ready: AtomicBool::new(true),
            is_stopped: AtomicBool::new(false),
            has_executed: AtomicBool::new(false),
            has_finalized: AtomicBool::new(false),
            inbox: Mutex::default(),
            is_attached: AtomicBool::new(false),
            is_claimed: AtomicBool::new(false),
            misdeed: Mutex::default(),
            next: AtomicU64::new(1),
            requests: Mutex::default(),
            calls: Mutex::default(),
            calls_ended: AtomicU32::new(0),
            placement: Placement::of(process),
            answers: Mutex::default(),
            sending_answers: Mutex::default(),
            execution: Mutex::default(),
            execution_ended: Condvar::new(),
        }
    }

    /// What the process has sent, unless another thread reads it.
    pub fn inbox_if_free(&self) -> Option<MutexGuard<'_, Inbox>> {
        match self.inbox.try_lock() {
            Ok(inbox) => Some(inbox),
            Err(TryLockError::Poisoned(inbox)) => Some(inbox.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The same, once the other thread no longer does.
    pub fn inbox(&self) -> MutexGuard<'_, Inbox> {
        lock(&self.inbox)
    }

    /// Whether a reactor hears the process.
    pub fn is_attached(&self) -> bool {
        self.is_attached.load(Ordering::Acquire)
    }

    /// Notes that a reactor is to hear the process; false when one is already.
    pub fn claim(&self) -> bool {
        !self.is_claimed.swap(true, Ordering::AcqRel)
    }

    /// Has nobody but a reactor hear the process from now on; false while another thread does.
    pub fn attach(&self) -> bool {
        let Some(_inbox) = self.inbox_if_free() else { return false };
        self.is_attached.store(true, Ordering::Release);
        self.line.listen(false);
        true
    }

    /// Leaves the hearing to the supervisor again.
    pub fn detach(&self) {
        self.line.listen(true);
        self.is_attached.store(false, Ordering::Release);
        self.line.ring();
    }

    /// Why the process cannot be trusted any more, if it cannot.
    pub fn misdeed(&self) -> Option<String> {
        lock(&self.misdeed).take()
    }

    /// Ends all that is under way, because the process has ended: `message` is what clients read.
    pub fn die(&self, message: &str) {
        self.line.close();
        let batches = lock(&self.execution).die();
        self.execution_ended.notify_all();
        let calls = std::mem::take(&mut *lock(&self.calls));
        drop(calls);
        let requests = std::mem::take(&mut *lock(&self.requests));
        for Taken { responder, .. } in requests.into_values() {
            let message = message.to_owned();
            responder.finish(Err(ResponseError { code: Code::Unavailable, message }));
        }
        batches.into_iter().for_each(|batch| batch.ended());
    }

    /// Takes memory back that the process no longer needs.
    ///
    /// # Errors
    /// When it was not lent.
    pub fn take_back(&self, offsets: &[u64]) -> Result<(), NotThere> {
        offsets.iter().try_for_each(|&offset| self.arena.take_back(offset))?;
        if !lock(&self.answers).is_empty() {
            // There may be room for them now.
            self.line.ring();
        }
        Ok(())
    }

    /// Has a process leave its reactor's processor that has run there for long.
    pub fn look_after(&self) {
        let turns = self.calls_ended.load(Ordering::Relaxed).saturating_add(1);
        let limit = QUICK.saturating_mul(turns).max(LONG);
        let is_long = lock(&self.execution).runs_longer_than(limit);
        if is_long {
            self.placement.end_turns();
        }
    }

    /// Whether requests would be answered.
    pub fn serves(&self) -> bool {
        !self.is_stopped.load(Ordering::Relaxed) && self.is_ready.load(Ordering::Relaxed)
    }

    // --- Requests

    fn write_request(
        &self,
        writer: &mut Writer,
        outline: &Outline,
        request: &ModelRequest,
        number: u64,
    ) -> Result<(), ResponseError> {
        let sequence = request.sequence.as_deref();
        let correlation = match sequence.map(|sequence| &sequence.id) {
            Some(CorrelationId::Text(text)) => Correlation::Text(text.clone()),
            Some(CorrelationId::Number(number)) => Correlation::Number(*number),
            None => Correlation::Number(0),
        };
        let flag = |flag: Option<bool>, bit: u32| u32::from(flag == Some(true)) * bit;
        let timeout = request.queue_timeout.map_or(0, |timeout| timeout.as_micros());
        let context = request.trace.as_ref().and_then(OuterTrace::context);
        let head = wire::Request {
            number,
            id: &request.id,
            timeout_us: u64::try_from(timeout).unwrap_or(u64::MAX),
            correlation: &correlation,
            flags: flag(sequence.map(|it| it.start), 1) | flag(sequence.map(|it| it.end), 2),
            parameters: &json::of_parameters(&request.parameters),
            trace: context.as_deref().unwrap_or_default(),
        };
        let inputs = request.tensors.inputs.iter().zip(&outline.signature.inputs);
        let inputs: SmallVec<[_; 4]> =
            inputs.filter_map(|(input, spec)| Some((input.as_ref()?, spec))).collect();
        let wanted: SmallVec<[&str; 4]> = request
            .tensors
            .outputs
            .iter()
            .filter_map(|&output| outline.signature.outputs.get(usize::from(output)))
            .map(|spec| &*spec.name)
            .collect();
        let sizes = inputs.iter().map(|(input, _)| input.data.len());
        let large = sizes.filter(|&size| size > INLINE_BYTES_MAX).sum();
        if large > self.arena.half() {
            return Err(ResponseError { code: Code::Unavailable, message: self.no_room(large) });
        }
        let before = writer.mark();
        writer.request(&head, inputs.len(), wanted.into_iter());
        let mut lent: SmallVec<[wire::Range; 4]> = SmallVec::new();
        for (input, spec) in inputs {
            let written =
                self.write_tensor(writer, &spec.name, spec.datatype, &input.shape, &input.data);
            match written {
                Ok(range) => lent.extend(range),
                Err(error) => {
                    writer.undo(before);
                    for range in lent {
                        // It was lent a moment ago, and the process has never heard of it.
                        let _ = self.arena.take_back(range.offset);
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Writes a tensor into a frame, or into shared memory if it is large: then it tells where.
    fn write_tensor(
        &self,
        writer: &mut Writer,
        name: &str,
        datatype: DataType,
        shape: &crate::inference::Shape,
        data: &Rope,
    ) -> Result<Option<wire::Range>, ResponseError> {
        let pieces = || data.pieces().iter().map(|piece| &**piece);
        if data.len() <= INLINE_BYTES_MAX {
            writer.inline(name, datatype, shape, data.len(), pieces());
            return Ok(None);
        }
        let range = self.lend(data.len(), pieces)?;
        writer.lent(name, datatype, shape, range);
        Ok(Some(range))
    }

    /// Lends memory, waiting for room if there is none.
    fn lend<'p, I: Iterator<Item = &'p [u8]>>(
        &self,
        length: usize,
        pieces: impl Fn() -> I,
    ) -> Result<wire::Range, ResponseError> {
        let deadline = Instant::now() + ROOM_WAIT_MAX;
        loop {
            if let Some(range) = self.arena.lend(length, pieces()) {
                return Ok(range);
            }
            let is_dead = lock(&self.execution).is_dead;
            if length > self.arena.half() || is_dead || Instant::now() >= deadline {
                let message = self.no_room(length);
                return Err(ResponseError { code: Code::Unavailable, message });
            }
            let mut writer = Writer::default();
            writer.flush();
            self.line.send(writer);
            self.arena.wait_for_room(Duration::from_millis(20));
        }
    }

    fn no_room(&self, length: usize) -> String {
        format!(
            "no room for {length} bytes of tensors in shared memory: a model instance may hold {}, half \
             of shm-limit-byte-size, and holds {}",
            self.arena.half(),
            self.arena.lent_bytes()
        )
    }

    /// Whether nobody waits for the answer to a request any more; so it is if it was answered.
    pub fn is_cancelled(&self, number: u64) -> bool {
        lock(&self.requests).get(&number).is_none_or(|taken| taken.responder.is_cancelled())
    }

    /// The trace of a request that has not been answered, if it is traced.
    pub fn trace_of(&self, number: u64) -> Option<OuterTrace> {
        lock(&self.requests).get(&number)?.trace.clone()
    }

    /// Ends requests that the process let go of.
    pub fn let_go(&self, outline: &Outline, numbers: &[u64]) {
        for &number in numbers {
            self.fail(number, Code::Internal, outline.let_go());
        }
    }

    fn fail(&self, number: u64, code: Code, message: String) {
        if let Some(responder) = self.take_request(number) {
            responder.finish(Err(ResponseError { code, message }));
        }
    }

    fn take_request(&self, number: u64) -> Option<Responder> {
        lock(&self.requests).remove(&number).map(|taken| taken.responder)
    }

    /// Gives a response of the process to the request's client.
    ///
    /// # Errors
    /// When the process names memory that it does not have.
    pub fn respond(&self, outline: &Outline, response: wire::Response) -> Result<(), NotThere> {
        let wire::Response { number, is_last, outcome } = response;
        let outcome = match outcome {
            None => None,
            Some(Ok(outputs)) => Some(Ok(self.model_response(outline, outputs)?)),
            Some(Err(wire::Failure { code, message })) => {
                Some(Err(ResponseError { code, message }))
            }
        };
        match (is_last, outcome) {
            (true, outcome) => {
                if let Some(responder) = self.take_request(number) {
                    match outcome {
                        Some(last) => responder.finish(last),
                        None => responder.close(),
                    }
                }
            }
            (false, Some(outcome)) => {
                if let Some(taken) = lock(&self.requests).get_mut(&number) {
                    taken.responder.send(outcome);
                }
            }
            (false, None) => {}
        }
        Ok(())
    }

    fn model_response(
        &self,
        outline: &Outline,
        outputs: wire::Outputs,
    ) -> Result<ModelResponse, NotThere> {
        let mut response = ModelResponse {
            parameters: json::to_parameters(&outputs.parameters),
            ..ModelResponse::default()
        };
        for tensor in outputs.tensors {
            let data = self.data(&tensor)?;
            // What the configuration does not know, nobody can have asked for.
            let Some(output) = outline.output(&tensor.name) else { continue };
            let wire::Tensor { datatype, shape, .. } = tensor;
            response.outputs.push(ResponseTensor { output, datatype, shape, data });
        }
        Ok(response)
    }

    /// The bytes of a tensor of the process.
    ///
    /// # Errors
    /// When the process does not have the memory that it names.
    pub fn data(&self, tensor: &wire::Tensor) -> Result<Bytes, NotThere> {
        let data = match &tensor.place {
            Place::Inline(bytes) => return Ok(bytes.clone()),
            Place::Sender(range) => self.arena.borrowed(*range)?,
            Place::Receiver(range) => self.arena.own(*range)?,
        };
        // Strings are interpreted, so they must not change any more.
        Ok(if tensor.datatype == DataType::Bytes { Bytes::copy_from_slice(&data) } else { data })
    }

    // --- Calls

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
        if answer.is_last {
            self.end_call(number);
        }
        let deadline = Instant::now() + ROOM_WAIT_MAX;
        lock(&self.answers).push_back(CallAnswer { number, answer, deadline });
        if !self.send_answers(DIRECT_BYTES_MAX) {
            self.line.ring();
        }
    }

    /// Tells the process that a call could not be made.
    pub fn refuse_call(&self, number: u64, model: &str, error: Error) {
        self.end_call(number);
        self.line.send(refusal(number, true, &of_call(model, error)));
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

    /// Forgets a call; abandons it if it is not over.
    pub fn end_call(&self, number: u64) {
        let asked = lock(&self.calls).remove(&number);
        if asked.is_some() {
            self.calls_ended.fetch_add(1, Ordering::Relaxed);
        }
        drop(asked);
    }
}

/// An answer of another model that the process is to have.
struct CallAnswer {
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes the memory and the line that give back to each other.
///
/// # Errors
/// When the system refuses memory or files.
pub fn arena_and_line(
    bytes: usize,
    line: &Arc<std::sync::OnceLock<Arc<Line>>>,
) -> io::Result<Arc<Arena>> {
    let line = line.clone();
    Arena::new(bytes, move |offset, length| {
        if let Some(line) = line.get() {
            line.give_back(offset, length);
        }
    })
}
