mod calls;
mod execution;
mod requests;

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use rustc_hash::FxHashMap;

use self::{calls::CallAnswer, execution::Execution, requests::Taken};
use super::{
    arena::{Arena, NotThere},
    inbox::Inbox,
    line::Line,
    placement::{Placement, QUICK},
};
use crate::{
    backend::{Asked, ResponseError},
    inference::Code,
};

/// Tensors of up to so many bytes travel in the message instead of shared memory.
pub const INLINE_BYTES_MAX: usize = 8 << 10;
/// One that has had a batch for so long, and no turns, leaves its reactor's processor before it ends.
const LONG: Duration = Duration::from_millis(20);
/// How long a request waits for room in shared memory before it is refused.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(10);

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
