use std::{
    collections::VecDeque,
    net::Shutdown,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd},
        unix::net::UnixStream,
    },
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nereid_ring::{
    Bell, CLIENT_WAITS, COMPLETION_BYTES, Hello, Indices, Operation, Request, Span, Submission,
    WAITS_FOR_ROOM, WAITS_FOR_WORK, Words,
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{MsgFlags, recv, send},
};
use slab::Slab;

use crate::{
    Block, Completion, Error, Options,
    arena::Arena,
    connect::{Connected, connect},
};

/// Descriptions up to this size lie at a place of their own for every place of the submission ring.
const DESCRIPTION_PLACE: u64 = 1024;
/// How often a spinning client looks for answers before it looks at its socket and its watch.
const LOOKS: u32 = 1024;

/// A connection to a server, and the memory shared with it. One thread uses it at a time.
pub struct Ring {
    socket: UnixStream,
    arena: Arc<Arena>,
    spins: bool,
    /// Submissions put, and completions taken, so far.
    put: u32,
    taken: u32,
    /// Submissions that the server was seen to have taken. Each look costs both sides a cache line.
    fetched: u32,
    /// Completions that were seen, and those taken of which the server has been told.
    seen: u32,
    told: u32,
    /// Counts requests, so that no token is used twice.
    count: u64,
    in_flight: Slab<InFlight>,
    /// Completions that came while another was waited for.
    others: VecDeque<Completion>,
    description: Vec<u8>,
}

struct InFlight {
    token: u64,
    blocks: Arc<Vec<Block>>,
    /// Where its description lies if it is long.
    _description: Option<Block>,
}

impl Ring {
    /// Connects to the server that listens at `path`.
    ///
    /// # Errors
    /// When nobody listens there, or the server refuses.
    pub fn connect(path: impl AsRef<Path>, options: &Options) -> Result<Self, Error> {
        let requests = options.requests.max(1).next_power_of_two();
        let descriptions = u64::from(requests) * DESCRIPTION_PLACE;
        let hello = Hello {
            arena_bytes: options.arena_bytes.saturating_add(descriptions),
            submissions: requests,
            completions: requests,
            spin: options.spin,
        };
        let Connected { socket, memory, header } = connect(path.as_ref(), &hello)?;
        let first = u64::from(header.submissions) * DESCRIPTION_PLACE;
        Ok(Self {
            socket,
            arena: Arena::new(memory, header, first),
            spins: options.spin,
            put: 0,
            taken: 0,
            fetched: 0,
            seen: 0,
            told: 0,
            count: 0,
            in_flight: Slab::new(),
            others: VecDeque::new(),
            description: Vec::new(),
        })
    }

    /// Bytes of the arena, at a multiple of 64. What stands there is what was left there.
    ///
    /// # Errors
    /// When no so many are free in a row.
    pub fn allocate(&self, bytes: usize) -> Result<Block, Error> {
        let arena = self.arena.header.arena_bytes;
        self.arena.allocate(bytes).ok_or(Error::NoRoom { asked: bytes, arena })
    }

    /// Requests that have not had their last completion.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Puts a request into the ring, with the blocks that it names, and returns its token. The server
    /// learns of it by [`Ring::ring`] or when an answer is waited for: several that are put first cost
    /// one wake-up.
    ///
    /// # Errors
    /// When as many requests are in flight as may be, this one cannot be told, or it has the server write
    /// outside the blocks. They are free then.
    pub fn submit(&mut self, request: &Request<'_>, blocks: Vec<Block>) -> Result<u64, Error> {
        let holds = |span: Span| blocks.iter().any(|block| block.part(span).is_some());
        if !holds(request.area) {
            return Err(Error::NotInBlocks { what: "the area for answers".to_owned() });
        }
        let placed = request.outputs.iter().filter_map(|output| Some((output.name, output.place?)));
        if let Some((name, _)) = placed.clone().find(|(_, place)| !holds(*place)) {
            return Err(Error::NotInBlocks { what: format!("the place of output '{name}'") });
        }
        self.put_request(request, blocks)
    }

    /// Puts a request whose memory the caller keeps. [`Completion::tensor`] finds nothing then.
    ///
    /// # Safety
    /// Until the request's last completion has been taken, nobody reads or writes its area and the places
    /// of its outputs but through [`Completion::answer`], and nobody frees their blocks.
    ///
    /// # Errors
    /// When as many requests are in flight as may be, or this one cannot be told.
    pub unsafe fn submit_lent(&mut self, request: &Request<'_>) -> Result<u64, Error> {
        self.put_request(request, Vec::new())
    }

    fn put_request(&mut self, request: &Request<'_>, blocks: Vec<Block>) -> Result<u64, Error> {
        let places = self.arena.header.submissions;
        if self.in_flight.len() >= places as usize {
            return Err(Error::Full { in_flight: self.in_flight.len(), places });
        }
        self.check_place()?;
        self.description.clear();
        request.encode(&mut self.description)?;
        let length = self.description.len() as u64;
        let (offset, block) = match length <= DESCRIPTION_PLACE {
            true => (self.submissions().place(self.put) as u64 * DESCRIPTION_PLACE, None),
            false => {
                let block = self.allocate(self.description.len())?;
                (block.span().offset, Some(block))
            }
        };
        let span = Span { offset, length };
        let at = self.arena.header.arena_range("a request's description", span)?;
        self.arena.memory.write(at, &self.description);
        let entry = self.in_flight.vacant_entry();
        self.count = self.count.wrapping_add(1);
        let token = (self.count << 32) | entry.key() as u64;
        entry.insert(InFlight { token, blocks: Arc::new(blocks), _description: block });
        self.put_submission(&Submission { token, operation: Operation::Infer, span });
        Ok(token)
    }

    /// Asks the server to give a request up. It has its last completion all the same: that it was
    /// cancelled, or what came of it before.
    ///
    /// # Errors
    /// When the submission ring is full.
    pub fn cancel(&mut self, token: u64) -> Result<(), Error> {
        self.check_place()?;
        let span = Span::default();
        self.put_submission(&Submission { token, operation: Operation::Cancel, span });
        self.ring();
        Ok(())
    }

    /// Wakes the server if it sleeps.
    pub fn ring(&self) {
        self.ring_for(WAITS_FOR_WORK);
    }

    /// The next completion if there is one already.
    ///
    /// # Errors
    /// When the server has put nonsense there.
    pub fn try_next(&mut self) -> Result<Option<Completion>, Error> {
        match self.others.pop_front() {
            Some(other) => Ok(Some(other)),
            None => self.take(),
        }
    }

    /// Waits for the next completion; `None` when there was none for so long as `patience`.
    ///
    /// # Errors
    /// When the server has left, or has put nonsense there.
    pub fn next(&mut self, patience: Option<Duration>) -> Result<Option<Completion>, Error> {
        match self.others.pop_front() {
            Some(other) => Ok(Some(other)),
            None => self.wait(patience),
        }
    }

    /// Submits a request and waits for its answer, which is to be the only one.
    ///
    /// # Errors
    /// When the request cannot be put, the server has left, or the request failed.
    pub fn infer(
        &mut self,
        request: &Request<'_>,
        blocks: Vec<Block>,
    ) -> Result<Completion, Error> {
        let token = self.submit(request, blocks)?;
        loop {
            let Some(completion) = self.wait(None)? else { continue };
            if completion.token != token {
                self.others.push_back(completion);
                continue;
            }
            return completion.answer().map(|_| ()).map(|()| completion);
        }
    }

    /// Asks to be rung for: the socket can be read when a completion comes after this. `true` when one
    /// is there already, so that there is nothing to wait for.
    ///
    /// # Errors
    /// When the server has put nonsense there.
    pub fn arm(&self) -> Result<bool, Error> {
        self.bell().arm(CLIENT_WAITS);
        Ok(!self.others.is_empty() || self.completions().ready(self.taken)? > 0)
    }

    /// Takes the rings off the socket.
    ///
    /// # Errors
    /// When the server has closed it.
    pub fn hear(&self) -> Result<(), Error> {
        let mut rings = [0; 64];
        match recv(self.socket.as_raw_fd(), &mut rings, MsgFlags::MSG_DONTWAIT) {
            Ok(1..) | Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Ok(0) | Err(_) => Err(Error::Closed),
        }
    }

    /// Ends the connection: the server gives up what is in flight. The memory stays as long as its blocks.
    pub fn hang_up(&self) {
        // An error here means that the server has ended it before.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    fn wait(&mut self, patience: Option<Duration>) -> Result<Option<Completion>, Error> {
        self.ring();
        let until = patience.map(|patience| Instant::now() + patience);
        let left = || until.map(|until| until.saturating_duration_since(Instant::now()));
        loop {
            for _ in 0..if self.spins { LOOKS } else { 1 } {
                if let Some(completion) = self.take()? {
                    return Ok(Some(completion));
                }
                std::hint::spin_loop();
            }
            if left().is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
            if self.spins {
                self.look_at_socket()?;
                // Where both sides share a processor, the other one is to have it now and then.
                thread::yield_now();
            } else if !self.arm()? {
                self.sleep(left())?;
            }
        }
    }

    /// Looks whether the server is still there. What it put before it left is taken first.
    fn look_at_socket(&self) -> Result<(), Error> {
        let gone = self.hear();
        match self.completions().ready(self.taken)? {
            0 => gone,
            _ => Ok(()),
        }
    }

    fn sleep(&self, left: Option<Duration>) -> Result<(), Error> {
        // A moment longer rather than shorter, or the last millisecond would be spent in a loop.
        let timeout = match left {
            None => PollTimeout::NONE,
            Some(left) => {
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            }
        };
        let mut descriptors = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut descriptors, timeout) {
            Ok(0) | Err(Errno::EINTR) => Ok(()),
            Ok(_) => self.look_at_socket(),
            Err(error) => Err(Error::Wait(error.into())),
        }
    }

    fn take(&mut self) -> Result<Option<Completion>, Error> {
        let taken = self.taken;
        if self.seen == taken {
            if self.told != taken {
                self.told = taken;
                self.ring_for(WAITS_FOR_ROOM);
            }
            self.seen = taken.wrapping_add(self.completions().ready(taken)?);
        }
        if self.seen == taken {
            return Ok(None);
        }
        let completions = self.completions();
        let mut entry = [0; COMPLETION_BYTES];
        let at = self.arena.header.completion_at(completions.place(taken));
        self.arena.memory.read(at, &mut entry);
        let put = nereid_ring::Completion::parse(&entry)?;
        let at = self.arena.header.arena_range("an answer", put.answer)?;
        let mut record = vec![0; put.answer.length as usize];
        self.arena.memory.read(at, &mut record);
        completions.release(taken.wrapping_add(1));
        self.taken = taken.wrapping_add(1);
        let key = (put.token & u64::from(u32::MAX)) as usize;
        let request = self.in_flight.get(key).filter(|request| request.token == put.token);
        let Some(request) = request else {
            return Err(Error::UnknownToken { token: put.token });
        };
        let blocks = match put.is_final {
            true => self.in_flight.remove(key).blocks,
            false => request.blocks.clone(),
        };
        let (token, status, is_final) = (put.token, put.status, put.is_final);
        Ok(Some(Completion { token, status, is_final, record, blocks }))
    }

    fn put_submission(&mut self, submission: &Submission) {
        let submissions = self.submissions();
        let at = self.arena.header.submission_at(submissions.place(self.put));
        self.arena.memory.write(at, &submission.encode());
        submissions.publish(self.put.wrapping_add(1));
        self.put = self.put.wrapping_add(1);
    }

    /// Whether one more submission finds a place.
    fn check_place(&mut self) -> Result<(), Error> {
        let places = self.arena.header.submissions;
        if self.put.wrapping_sub(self.fetched) >= places {
            self.fetched = self.put.wrapping_sub(self.submissions().untaken(self.put)?);
        }
        match self.put.wrapping_sub(self.fetched) < places {
            true => Ok(()),
            false => Err(Error::Full { in_flight: self.in_flight.len(), places }),
        }
    }

    fn submissions(&self) -> Indices<'_> {
        Indices {
            head: self.arena.memory.word(Words::SUBMISSION_HEAD),
            tail: self.arena.memory.word(Words::SUBMISSION_TAIL),
            entries: self.arena.header.submissions,
        }
    }

    fn completions(&self) -> Indices<'_> {
        Indices {
            head: self.arena.memory.word(Words::COMPLETION_HEAD),
            tail: self.arena.memory.word(Words::COMPLETION_TAIL),
            entries: self.arena.header.completions,
        }
    }

    fn bell(&self) -> Bell<'_> {
        Bell(self.arena.memory.word(Words::CLIENT_BELL))
    }

    fn ring_for(&self, reason: u32) {
        if Bell(self.arena.memory.word(Words::SERVER_BELL)).take(reason) {
            // A full socket wakes the server as well, and one that has left is met when it is waited for.
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let _ = send(self.socket.as_raw_fd(), &[1], flags);
        }
    }
}

impl AsFd for Ring {
    /// The socket, for event loops: see [`Ring::arm`] and [`Ring::hear`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
