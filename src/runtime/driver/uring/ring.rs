use std::{
    cell::RefCell,
    collections::VecDeque,
    io,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use io_uring::{IoUring, opcode, squeue, types};
use slab::Slab;

/// Room for what is to be handed over at once; more goes in several calls.
const SUBMISSIONS: u32 = 256;
/// Room for what has happened between two looks; more waits in the kernel.
const COMPLETIONS: u32 = 4096;

/// What is asked of a descriptor that is waited for, to be read or written. Its end and its failure are
/// told too.
const EVENTS: [i16; 2] = [libc::POLLIN | libc::POLLRDHUP, libc::POLLOUT];

/// For an entry whose completion tells nothing.
const NOBODY: u64 = u64::MAX;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Read = 0,
    Write = 1,
}

/// The ring in which a reactor sleeps, and what it tells of descriptors: when they can be read or written
/// again. Reading and writing is done by plain system calls.
pub struct Ring(RefCell<Inner>);

struct Inner {
    ring: IoUring,
    /// What is to be handed to the kernel.
    unsent: VecDeque<squeue::Entry>,
    sources: Slab<Source>,
    /// Kept for its memory.
    woken: Vec<Waker>,
}

/// A descriptor that is looked after. It stays until the kernel has said its last word on it.
struct Source {
    descriptor: RawFd,
    ready: [bool; 2],
    waiting: [Option<Waker>; 2],
    /// Whether the kernel has been asked and has not answered.
    is_polled: [bool; 2],
    is_gone: bool,
}

impl Ring {
    /// # Errors
    /// When the system forbids io_uring or is too old.
    pub fn new() -> io::Result<Self> {
        let ring = build()?;
        if !ring.params().is_feature_ext_arg() {
            let detail = "io_uring of Linux 5.11 or later is needed";
            return Err(io::Error::new(io::ErrorKind::Unsupported, detail));
        }
        Ok(Self(RefCell::new(Inner {
            ring,
            unsent: VecDeque::new(),
            sources: Slab::new(),
            woken: Vec::new(),
        })))
    }

    /// Looks after a descriptor, which must stay open as long as the result is kept.
    pub fn watch(self: &Rc<Self>, descriptor: BorrowedFd<'_>) -> Readiness {
        let place = self.0.borrow_mut().sources.insert(Source {
            descriptor: descriptor.as_raw_fd(),
            ready: [true; 2],
            waiting: [None, None],
            is_polled: [false; 2],
            is_gone: false,
        });
        Readiness { ring: self.clone(), place }
    }

    /// Takes note of what has happened, without waiting. Tells whether a task was woken. What is to be
    /// handed over waits for the next call of the kernel, unless it is `urgent`.
    ///
    /// # Errors
    /// When the kernel refuses to be asked.
    pub fn look(&self, urgent: bool) -> io::Result<bool> {
        let mut inner = self.0.borrow_mut();
        let mut woken = std::mem::take(&mut inner.woken);
        if inner.must_enter() || urgent && !inner.unsent.is_empty() {
            inner.enter(0, None)?;
        }
        inner.collect(&mut woken);
        drop(inner);
        let any = !woken.is_empty();
        // Not before: with a waker its task may go, and the task's sockets.
        woken.drain(..).for_each(Waker::wake);
        self.0.borrow_mut().woken = woken;
        Ok(any)
    }

    /// Sleeps until something happens, or for `longest`.
    ///
    /// # Errors
    /// When the kernel refuses to be asked.
    pub fn sleep(&self, longest: Option<Duration>) -> io::Result<()> {
        self.0.borrow_mut().enter(1, longest)
    }

    /// Wakes all that wait, for the end of their tasks.
    pub fn wake_all(&self) {
        let mut inner = self.0.borrow_mut();
        let waiting = inner.sources.iter_mut().flat_map(|(_, source)| &mut source.waiting);
        let woken: Vec<_> = waiting.filter_map(Option::take).collect();
        drop(inner);
        woken.into_iter().for_each(Waker::wake);
    }
}

/// A ring whose completions wait until the reactor looks, where the kernel knows that (Linux 6.1).
fn build() -> io::Result<IoUring> {
    let mut lazy = IoUring::builder();
    lazy.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
    let ring = lazy.setup_cqsize(COMPLETIONS).build(SUBMISSIONS);
    match ring {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            IoUring::builder().setup_cqsize(COMPLETIONS).build(SUBMISSIONS)
        }
        ring => ring,
    }
}

/// What a poll is called: by its source and its direction.
fn name(place: usize, direction: usize) -> u64 {
    (place * 2 + direction) as u64
}

impl Inner {
    /// Whether the kernel has to be entered to hear what has happened.
    fn must_enter(&mut self) -> bool {
        let queue = self.ring.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    /// Hands over what is unsent, then waits until `count` things have happened or `longest` is over.
    fn enter(&mut self, count: usize, longest: Option<Duration>) -> io::Result<()> {
        while self.fill() {
            tolerate(self.ring.submit())?;
        }
        tolerate(match longest {
            Some(longest) => {
                let longest = types::Timespec::from(longest);
                let arguments = types::SubmitArgs::new().timespec(&longest);
                self.ring.submitter().submit_with_args(count, &arguments)
            }
            None => self.ring.submit_and_wait(count),
        })
    }

    /// Puts into the queue what is unsent. Tells whether something is left.
    fn fill(&mut self) -> bool {
        let mut queue = self.ring.submission();
        while let Some(entry) = self.unsent.front() {
            // SAFETY: the entries begin or end polls, which refer to no memory.
            if unsafe { queue.push(entry) }.is_err() {
                return true;
            }
            self.unsent.pop_front();
        }
        false
    }

    /// Takes note of what has happened; whom it concerns is put into `woken`.
    fn collect(&mut self, woken: &mut Vec<Waker>) {
        for completion in self.ring.completion() {
            let (place, direction) =
                ((completion.user_data() / 2) as usize, (completion.user_data() % 2) as usize);
            let Some(source) = self.sources.get_mut(place) else { continue };
            source.is_polled[direction] = false;
            if source.is_gone {
                if source.is_polled == [false; 2] {
                    self.sources.remove(place);
                }
                continue;
            }
            // If the poll failed, what is wrong shows when the descriptor is used.
            source.ready[direction] = true;
            woken.extend(source.waiting[direction].take());
        }
    }
}

/// Not an error: a signal came, the time is over, or first what has happened is to be looked at.
fn tolerate(entered: io::Result<usize>) -> io::Result<()> {
    match entered {
        Err(error) => match error.raw_os_error() {
            Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN) => Ok(()),
            _ => Err(error),
        },
        Ok(_) => Ok(()),
    }
}

/// Whether a descriptor can be read and written, as far as is known.
pub struct Readiness {
    ring: Rc<Ring>,
    place: usize,
}

impl Readiness {
    /// Ready when it is worth trying; else the task is woken when it is.
    pub fn poll(&self, direction: Direction, cx: &Context<'_>) -> Poll<()> {
        // Dropped after what is borrowed: with a waker its task may go, and the task's sockets.
        let mut _replaced = None;
        let inner = &mut *self.ring.0.borrow_mut();
        let source = &mut inner.sources[self.place];
        let direction = direction as usize;
        if source.ready[direction] {
            return Poll::Ready(());
        }
        // One poll for each wait, which looks at the descriptor first. One that goes on by itself would
        // tell of changes only, and when many come while nobody looks the kernel can miss the last.
        if !std::mem::replace(&mut source.is_polled[direction], true) {
            let events = u32::from(EVENTS[direction].cast_unsigned());
            let poll = opcode::PollAdd::new(types::Fd(source.descriptor), events).build();
            inner.unsent.push_back(poll.user_data(name(self.place, direction)));
        }
        let waiting = &mut source.waiting[direction];
        if !waiting.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            _replaced = waiting.replace(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Everything was read, or nothing more can be written: it is worth trying again when the ring tells.
    pub fn exhaust(&self, direction: Direction) {
        self.ring.0.borrow_mut().sources[self.place].ready[direction as usize] = false;
    }
}

impl Drop for Readiness {
    fn drop(&mut self) {
        let mut inner = self.ring.0.borrow_mut();
        let source = &mut inner.sources[self.place];
        source.is_gone = true;
        let (waiting, is_polled) = (std::mem::take(&mut source.waiting), source.is_polled);
        if is_polled == [false; 2] {
            inner.sources.remove(self.place);
        }
        for direction in [0, 1].into_iter().filter(|direction| is_polled[*direction]) {
            // Until its polls are over the kernel keeps a closed socket connected. To remove a poll
            // fails while something happens to it; to cancel it does not.
            let end = opcode::AsyncCancel::new(name(self.place, direction)).build();
            inner.unsent.push_back(end.user_data(NOBODY));
        }
        drop(inner);
        drop(waiting);
    }
}
