use std::{
    cell::RefCell,
    collections::VecDeque,
    io,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use slab::Slab;

/// Room for what is to be handed over at once; more goes in several calls.
const SUBMISSIONS: u32 = 256;
/// Room for what has happened between two looks; more waits in the kernel.
const COMPLETIONS: u32 = 4096;

/// What is asked of every descriptor, once: the ring then tells of each change.
const EVENTS: i16 = libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP;
/// What ends either direction, whatever it was.
const ENDS: i16 = libc::POLLERR | libc::POLLHUP;

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
    /// Whether the kernel has more to say.
    is_polled: bool,
    is_gone: bool,
}

impl Ring {
    /// # Errors
    /// When the system forbids io_uring or is too old.
    pub fn new() -> io::Result<Self> {
        let ring = build()?;
        // Polls that last came in the same release.
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_resource_tagging() {
            let detail = "io_uring of Linux 5.13 or later is needed";
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
        let inner = &mut *self.0.borrow_mut();
        let descriptor = descriptor.as_raw_fd();
        let place = inner.sources.insert(Source {
            descriptor,
            ready: [false, true],
            waiting: [None, None],
            is_polled: true,
            is_gone: false,
        });
        inner.unsent.push_back(poll_add(descriptor, place));
        Readiness { ring: self.clone(), place }
    }

    /// Takes note of what has happened, without waiting. Tells whether a task was woken.
    ///
    /// # Errors
    /// When the kernel refuses to be asked.
    pub fn look(&self) -> io::Result<bool> {
        let mut inner = self.0.borrow_mut();
        let mut woken = std::mem::take(&mut inner.woken);
        if inner.must_enter() {
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

fn poll_add(descriptor: RawFd, place: usize) -> squeue::Entry {
    let events = u32::from(EVENTS.cast_unsigned());
    opcode::PollAdd::new(types::Fd(descriptor), events).multi(true).build().user_data(place as u64)
}

impl Inner {
    /// Whether the kernel has to be entered to hear what has happened.
    fn must_enter(&mut self) -> bool {
        let queue = self.ring.submission();
        !self.unsent.is_empty() || queue.taskrun() || queue.cq_overflow()
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
            let place = completion.user_data() as usize;
            let Some(source) = self.sources.get_mut(place) else { continue };
            let goes_on = cqueue::more(completion.flags());
            if source.is_gone {
                if !goes_on {
                    self.sources.remove(place);
                }
                continue;
            }
            let events = completion.result();
            let happened = |wanted: i16| events < 0 || events & i32::from(wanted | ENDS) != 0;
            let ready = [happened(libc::POLLIN | libc::POLLRDHUP), happened(libc::POLLOUT)];
            for (direction, _) in ready.into_iter().enumerate().filter(|(_, ready)| *ready) {
                source.ready[direction] = true;
                woken.extend(source.waiting[direction].take());
            }
            // A failed poll would fail again; what is wrong shows when the descriptor is used.
            source.is_polled = goes_on || events >= 0;
            if !goes_on && source.is_polled {
                self.unsent.push_back(poll_add(source.descriptor, place));
            }
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
        let mut inner = self.ring.0.borrow_mut();
        let source = &mut inner.sources[self.place];
        if source.ready[direction as usize] {
            return Poll::Ready(());
        }
        let waiting = &mut source.waiting[direction as usize];
        let mut replaced = None;
        if !waiting.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            replaced = waiting.replace(cx.waker().clone());
        }
        drop(inner);
        // With a waker its task may go, and the task's sockets.
        drop(replaced);
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
        let waiting = std::mem::take(&mut source.waiting);
        if source.is_polled {
            // Until its poll is over the kernel keeps a closed socket connected. To remove a poll
            // fails while something happens to it; to cancel it does not.
            let end = opcode::AsyncCancel::new(self.place as u64).build().user_data(NOBODY);
            inner.unsent.push_back(end);
        } else {
            inner.sources.remove(self.place);
        }
        drop(inner);
        drop(waiting);
    }
}
