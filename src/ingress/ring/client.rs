//! What the requests of one client share: its memory, its completions, who is in flight.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use nereid_ring::{
    Bell, CLIENT_WAITS, Completion, Corrupt, DESCRIPTOR_MAX, Indices, Malformed, Operation,
    SUBMISSION_BYTES, Span, Status, Submission, Words,
};
use slab::Slab;

use crate::{inference::Timestamp, memory::RingMemory, runtime::UnixStream, serving::Server};

/// How long a client that sleeps is left asleep over completions while more of its submissions are taken:
/// several times what it takes to wake it. That costs the server as much as a few requests.
const RING_DELAY: Duration = Duration::from_micros(100);

/// A client, on the reactor that its socket is on.
pub struct Client {
    pub server: Arc<Server>,
    pub memory: Arc<RingMemory>,
    pub socket: RefCell<UnixStream>,
    /// Submissions taken so far, and those that were seen. What the memory says of it is for the client.
    taken: Cell<u32>,
    seen: Cell<u32>,
    /// Completions put so far, and those of which the client was seen to have taken them.
    put: Cell<u32>,
    read: Cell<u32>,
    in_flight: RefCell<Slab<InFlight>>,
    /// Who has a completion that is not its request's last, and waits for a place for it.
    crowded: RefCell<Vec<Waker>>,
    /// Who takes the submissions, and whether it does so now.
    turns: RefCell<Option<Waker>>,
    is_in_turn: Cell<bool>,
    /// Whether more submissions are sure to be taken in the next turn.
    is_busy: Cell<bool>,
    /// Whether completions were put that the client has not been rung for, and when that was seen.
    is_put: Cell<bool>,
    unrung_since: Cell<Option<Timestamp>>,
    /// Whether it is to look again at what it sleeps for.
    is_to_look: Cell<bool>,
    /// Whether it waits until nothing is in flight.
    is_ending: Cell<bool>,
}

/// A request that has been taken and has not had its last completion.
#[derive(Default)]
struct InFlight {
    token: u64,
    is_cancelled: bool,
    waker: Option<Waker>,
}

/// A submission that has been copied out of the client's reach.
pub enum Taken {
    /// A request, whose description has been copied.
    Request { token: u64 },
    /// A submission that makes no sense.
    Nonsense { token: u64, error: Malformed },
    /// Requests of this token are to be given up.
    Cancel { token: u64 },
}

impl Client {
    pub fn new(socket: UnixStream, memory: Arc<RingMemory>, server: Arc<Server>) -> Rc<Self> {
        Rc::new(Self {
            server,
            memory,
            socket: RefCell::new(socket),
            taken: Cell::new(0),
            seen: Cell::new(0),
            put: Cell::new(0),
            read: Cell::new(0),
            in_flight: RefCell::default(),
            crowded: RefCell::default(),
            turns: RefCell::default(),
            is_in_turn: Cell::default(),
            is_busy: Cell::default(),
            is_put: Cell::default(),
            unrung_since: Cell::default(),
            is_to_look: Cell::default(),
            is_ending: Cell::default(),
        })
    }

    fn submissions(&self) -> Indices<'_> {
        let memory = self.memory.memory();
        Indices {
            head: memory.word(Words::SUBMISSION_HEAD),
            tail: memory.word(Words::SUBMISSION_TAIL),
            entries: self.memory.header.submissions,
        }
    }

    fn completions(&self) -> Indices<'_> {
        let memory = self.memory.memory();
        Indices {
            head: memory.word(Words::COMPLETION_HEAD),
            tail: memory.word(Words::COMPLETION_TAIL),
            entries: self.memory.header.completions,
        }
    }

    /// The mark that the server sets before it sleeps.
    pub fn bell(&self) -> Bell<'_> {
        Bell(self.memory.memory().word(Words::SERVER_BELL))
    }

    /// Looks at both of the client's indices. Until it is called again they are looked at only when what
    /// was seen is used up.
    ///
    /// # Errors
    /// When one makes no sense.
    pub fn look(&self) -> Result<(), Corrupt> {
        self.see_work()?;
        self.see_room()
    }

    fn see_work(&self) -> Result<(), Corrupt> {
        let taken = self.taken.get();
        self.seen.set(taken.wrapping_add(self.submissions().ready(taken)?));
        Ok(())
    }

    fn see_room(&self) -> Result<(), Corrupt> {
        let put = self.put.get();
        self.read.set(put.wrapping_sub(self.completions().untaken(put)?));
        Ok(())
    }

    /// Whether a submission waits.
    ///
    /// # Errors
    /// When the client's index makes no sense.
    pub fn has_work(&self) -> Result<bool, Corrupt> {
        if self.seen == self.taken {
            self.see_work()?;
        }
        Ok(self.seen != self.taken)
    }

    /// Whether one more completion finds a place, with one kept for every request in flight: so the last
    /// completion of a request always finds one.
    ///
    /// # Errors
    /// When the client's index makes no sense.
    pub fn has_room(&self) -> Result<bool, Corrupt> {
        let fits = || {
            let untaken = self.put.get().wrapping_sub(self.read.get()) as usize;
            untaken + self.in_flight.borrow().len() < self.memory.header.completions as usize
        };
        if !fits() {
            self.see_room()?;
        }
        Ok(fits())
    }

    /// Whether somebody waits for a place for a completion.
    pub fn is_crowded(&self) -> bool {
        !self.crowded.borrow().is_empty()
    }

    /// Takes the next submission, if there is one, and copies it and, to `description`, what it leads to.
    /// Until its index is told, the client leaves both alone; if it does not, it gets what it has made of
    /// them.
    ///
    /// # Errors
    /// When the client's index makes no sense.
    pub fn take(&self, description: &mut Vec<u8>) -> Result<Option<Taken>, Corrupt> {
        if !self.has_work()? {
            return Ok(None);
        }
        let (submissions, taken) = (self.submissions(), self.taken.get());
        let mut entry = [0; SUBMISSION_BYTES];
        let at = self.memory.header.submission_at(submissions.place(taken));
        self.memory.memory().read(at, &mut entry);
        let submission = match Submission::parse(&entry) {
            (_, Ok(Submission { token, operation: Operation::Cancel, .. })) => {
                Taken::Cancel { token }
            }
            (token, Ok(submission)) => match self.describe(&submission, description) {
                Ok(()) => Taken::Request { token },
                Err(error) => Taken::Nonsense { token, error },
            },
            (token, Err(error)) => Taken::Nonsense { token, error },
        };
        self.taken.set(taken.wrapping_add(1));
        submissions.release(taken.wrapping_add(1));
        Ok(Some(submission))
    }

    fn describe(&self, submission: &Submission, target: &mut Vec<u8>) -> Result<(), Malformed> {
        const WHAT: &str = "a request's description";
        let at = self.memory.header.arena_range(WHAT, submission.span)?;
        let length = usize::try_from(submission.span.length).unwrap_or(usize::MAX);
        if length > DESCRIPTOR_MAX {
            return Err(Malformed {
                what: WHAT,
                expected: format!("at most {DESCRIPTOR_MAX} bytes"),
                got: length.to_string(),
            });
        }
        target.resize(length, 0);
        self.memory.memory().read(at, target);
        Ok(())
    }

    /// Counts a request in, before its first completion. There must be room.
    pub fn begin(&self, token: u64) -> usize {
        self.in_flight.borrow_mut().insert(InFlight { token, ..InFlight::default() })
    }

    /// Gives up the requests of a token.
    pub fn cancel(&self, token: u64) {
        self.cancel_where(|request| request.token == token);
    }

    /// Gives up all requests.
    pub fn cancel_all(&self) {
        self.cancel_where(|_| true);
    }

    fn cancel_where(&self, is_meant: impl Fn(&InFlight) -> bool) {
        let mut woken = Vec::new();
        for (_, request) in self.in_flight.borrow_mut().iter_mut() {
            if is_meant(request) {
                request.is_cancelled = true;
                woken.extend(request.waker.take());
            }
        }
        woken.into_iter().for_each(Waker::wake);
    }

    /// Whether a request was given up.
    pub fn is_cancelled(&self, key: usize) -> bool {
        self.in_flight.borrow().get(key).is_none_or(|request| request.is_cancelled)
    }

    /// Whether a request was given up; if not, its task is woken when it is.
    pub fn poll_cancelled(&self, key: usize, cx: &mut Context<'_>) -> Poll<()> {
        match self.in_flight.borrow_mut().get_mut(key) {
            Some(request) if !request.is_cancelled => {
                match &mut request.waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }

    /// Waits for a place for a completion of the request `key` that is not its last: `true` when there is
    /// one, `false` when the request is given up.
    pub fn poll_room(&self, key: usize, cx: &mut Context<'_>) -> Poll<bool> {
        if self.poll_cancelled(key, cx).is_ready() {
            return Poll::Ready(false);
        }
        if self.has_room().unwrap_or(true) {
            return Poll::Ready(true);
        }
        self.crowded.borrow_mut().push(cx.waker().clone());
        // That one then asks the client to ring when it has taken completions.
        self.wake_turns();
        Poll::Pending
    }

    /// Lets those look again who wait for a place.
    pub fn look_for_room(&self) {
        let waiting = std::mem::take(&mut *self.crowded.borrow_mut());
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Puts a completion of the request `key` that others follow.
    pub fn put_more(&self, key: usize, status: Status, answer: Span) {
        let token = self.in_flight.borrow().get(key).map(|request| request.token);
        if let Some(token) = token {
            self.put(Completion { token, status, is_final: false, answer });
        }
    }

    /// Puts the last completion of the request `key`.
    pub fn put_last(&self, key: usize, status: Status, answer: Span) {
        let Some(request) = self.in_flight.borrow_mut().try_remove(key) else { return };
        self.put(Completion { token: request.token, status, is_final: true, answer });
        if self.is_ending.get() && self.is_idle() {
            self.wake_turns();
        }
    }

    /// Says that no more submissions are taken.
    pub fn end(&self) {
        self.is_ending.set(true);
    }

    /// Whether nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.in_flight.borrow().is_empty()
    }

    /// Whether who takes the submissions is to look again, because nothing is in flight or somebody waits
    /// for a place; if not, it is woken when it is.
    pub fn is_to_look(&self) -> bool {
        self.is_to_look.take()
    }

    /// Says whether more submissions are sure to be taken in the next turn.
    pub fn set_busy(&self, is_busy: bool) {
        self.is_busy.set(is_busy);
    }

    /// Polls who takes the submissions. Afterwards the client is rung for, once for all that was put since it
    /// last was: to wake somebody takes longer than a request.
    pub fn poll_turns<T>(
        &self,
        turns: impl FnOnce(&mut Context<'_>) -> Poll<T>,
        cx: &mut Context<'_>,
    ) -> Poll<T> {
        match &mut *self.turns.borrow_mut() {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        self.is_in_turn.set(true);
        let poll = turns(cx);
        self.is_in_turn.set(false);
        if self.is_put.get() && !self.may_ring_later() {
            self.is_put.set(false);
            self.unrung_since.set(None);
            if Bell(self.memory.memory().word(Words::CLIENT_BELL)).take(CLIENT_WAITS) {
                self.socket.borrow().ring();
            }
        }
        poll
    }

    fn may_ring_later(&self) -> bool {
        if !self.is_busy.get() {
            return false;
        }
        let now = Timestamp::now();
        let since = self.unrung_since.get().unwrap_or(now);
        self.unrung_since.set(Some(since));
        now - since < RING_DELAY
    }

    fn wake_turns(&self) {
        self.is_to_look.set(true);
        self.turns.borrow().iter().for_each(Waker::wake_by_ref);
    }

    fn put(&self, completion: Completion) {
        let (completions, put) = (self.completions(), self.put.get());
        let at = self.memory.header.completion_at(completions.place(put));
        self.memory.memory().write(at, &completion.encode());
        self.put.set(put.wrapping_add(1));
        completions.publish(put.wrapping_add(1));
        let is_rung_for = self.is_put.replace(true) || self.is_in_turn.get();
        if !is_rung_for {
            self.turns.borrow().iter().for_each(Waker::wake_by_ref);
        }
    }
}
