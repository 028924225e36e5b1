use std::{
    cell::RefCell,
    collections::VecDeque,
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use super::{
    reactor::{ReactorHandle, current},
    thread_bound::ThreadBound,
};

/// A channel whose receiver lives on the current reactor and whose sender may go anywhere: for the
/// responses to one request.
///
/// From its own reactor a send is a function call, from another thread a message. Either way the
/// receiving task is woken by its own reactor.
///
/// # Panics
/// On a thread that is not a reactor.
pub fn reply_channel<T: Send + 'static>() -> (ReplySender<T>, ReplyReceiver<T>) {
    let queue = RefCell::new(Queue {
        first: None,
        rest: VecDeque::new(),
        end: None,
        waker: None,
        abandoned: None,
    });
    let state = Arc::new(State {
        abandoned: AtomicBool::new(false),
        unread: AtomicUsize::new(0),
        queue: ThreadBound::new(queue),
    });
    let receiver = ReplyReceiver(Source::Sent(state.clone()));
    (ReplySender { reactor: current(), state: Some(state) }, receiver)
}

/// Replies that may wait to be received, besides the last.
const UNREAD_MAX: usize = 1 << 16;

/// How the replies to a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With the reply that was received last.
    Last,
    /// After the reply that was received last, if there was one.
    Closed,
    /// The sender was dropped without an end.
    Dropped,
}

/// So many replies wait to be received that no more are taken; the one refused is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{limit} replies wait to be received")]
pub struct Unread {
    /// The most that may wait.
    pub limit: usize,
}

struct State<T> {
    abandoned: AtomicBool,
    /// Replies on their way or waiting; the last is not counted.
    unread: AtomicUsize,
    /// Used and dropped on the receiver's reactor only.
    queue: ThreadBound<RefCell<Queue<T>>>,
}

struct Queue<T> {
    /// The reply that most requests have just one of.
    first: Option<T>,
    rest: VecDeque<T>,
    end: Option<End>,
    waker: Option<Waker>,
    /// Whom to wake when the receiver is dropped before the end.
    abandoned: Option<Waker>,
}

impl<T> State<T> {
    fn push(&self, value: Option<T>, end: Option<End>) {
        let mut queue = self.queue.borrow_mut();
        if let Some(value) = value {
            if queue.first.is_none() && queue.rest.is_empty() {
                queue.first = Some(value);
            } else {
                queue.rest.push_back(value);
            }
        }
        queue.end = queue.end.or(end);
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Sends the replies to one request; dropping it without a reply tells the receiver that none
/// will come.
pub struct ReplySender<T: Send + 'static> {
    reactor: ReactorHandle,
    /// `None` once the channel is complete.
    state: Option<Arc<State<T>>>,
}

impl<T: Send + 'static> ReplySender<T> {
    /// Sends a reply that others may follow.
    ///
    /// # Errors
    /// When too many wait to be received.
    pub fn send(&self, value: T) -> Result<(), Unread> {
        let Some(state) = &self.state else { return Ok(()) };
        if state.unread.fetch_add(1, Ordering::Relaxed) >= UNREAD_MAX {
            state.unread.fetch_sub(1, Ordering::Relaxed);
            return Err(Unread { limit: UNREAD_MAX });
        }
        deliver(&self.reactor, state.clone(), Some(value), None);
        Ok(())
    }

    /// Sends the last reply.
    pub fn finish(mut self, value: T) {
        if let Some(state) = self.state.take() {
            deliver(&self.reactor, state, Some(value), Some(End::Last));
        }
    }

    /// Tells the receiver that no more replies come.
    pub fn close(mut self) {
        if let Some(state) = self.state.take() {
            deliver(&self.reactor, state, None, Some(End::Closed));
        }
    }

    /// The reactor that asked, where the receiver lives.
    pub fn reactor(&self) -> &ReactorHandle {
        &self.reactor
    }

    /// Whether nobody waits for replies any more: the client cancelled or left.
    pub fn is_abandoned(&self) -> bool {
        self.state.as_ref().is_none_or(|state| state.abandoned.load(Ordering::Relaxed))
    }

    /// Ready when nobody waits for replies any more. Only a task on the receiver's own reactor is woken
    /// by that.
    pub fn poll_abandoned(&self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(state) = &self.state else { return Poll::Ready(()) };
        if state.abandoned.load(Ordering::Relaxed) {
            return Poll::Ready(());
        }
        if state.queue.is_own() {
            let mut queue = state.queue.borrow_mut();
            match &mut queue.abandoned {
                Some(waker) => waker.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
        }
        Poll::Pending
    }
}

impl<T: Send + 'static> Drop for ReplySender<T> {
    fn drop(&mut self) {
        if let Some(state) = self.state.take() {
            deliver(&self.reactor, state, None, Some(End::Dropped));
        }
    }
}

fn deliver<T: Send + 'static>(
    reactor: &ReactorHandle,
    state: Arc<State<T>>,
    value: Option<T>,
    end: Option<End>,
) {
    if state.queue.is_own() {
        state.push(value, end);
    } else if let Err(closed) = reactor.send(Box::new(move || state.push(value, end))) {
        // The reactor is gone, and only it could have dropped the queue.
        mem::forget(closed.0);
    }
}

/// Receives the replies to one request; dropping it abandons the request.
pub struct ReplyReceiver<T>(Source<T>);

enum Source<T> {
    /// The only reply, until it is received; in a place of its own, so that what waits for replies is small.
    Here(Option<Box<T>>),
    /// What a [`ReplySender`] sends.
    Sent(Arc<State<T>>),
}

impl<T> ReplyReceiver<T> {
    /// Of a request that has been answered already, by one reply.
    pub fn answered(reply: T) -> Self {
        Self(Source::Here(Some(Box::new(reply))))
    }

    /// The next reply, or `None` after the last.
    pub fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let state = match &mut self.0 {
            Source::Here(reply) => return Poll::Ready(reply.take().map(|reply| *reply)),
            Source::Sent(state) => state,
        };
        let mut queue = state.queue.borrow_mut();
        if let Some(value) = queue.first.take() {
            queue.first = queue.rest.pop_front();
            if queue.first.is_some() || queue.end != Some(End::Last) {
                state.unread.fetch_sub(1, Ordering::Relaxed);
            }
            return Poll::Ready(Some(value));
        }
        if queue.end.is_some() {
            return Poll::Ready(None);
        }
        match &mut queue.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// How the replies ended, once all of them have been received.
    pub fn end(&self) -> Option<End> {
        match &self.0 {
            Source::Here(reply) => reply.is_none().then_some(End::Last),
            Source::Sent(state) => {
                let queue = state.queue.borrow();
                if queue.first.is_some() { None } else { queue.end }
            }
        }
    }

    /// The next reply, or `None` after the last.
    pub async fn receive(&mut self) -> Option<T> {
        std::future::poll_fn(|cx| self.poll_receive(cx)).await
    }
}

impl<T> Drop for ReplyReceiver<T> {
    fn drop(&mut self) {
        let Source::Sent(state) = &self.0 else { return };
        state.abandoned.store(true, Ordering::Relaxed);
        let waker = state.queue.borrow_mut().abandoned.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
