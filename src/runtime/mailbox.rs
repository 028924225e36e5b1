use std::{
    fmt,
    pin::pin,
    ptr,
    task::{Context, Poll},
};

#[cfg(loom)]
use loom::{
    future::AtomicWaker,
    sync::atomic::{AtomicPtr, AtomicUsize, Ordering},
};
#[cfg(not(loom))]
use {
    futures_util::task::AtomicWaker,
    std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering},
};

/// The way into a reactor from any thread: many senders, one receiver, no lock.
///
/// Senders push onto a list that the receiver takes whole, so a busy receiver is not woken again:
/// only the message that finds the list empty wakes it. A message sent by [`try_send`] is refused
/// when `capacity` of them wait already; one sent by [`send`] never is, because it answers or ends
/// something that was counted when it began.
///
/// [`try_send`]: Mailbox::try_send
/// [`send`]: Mailbox::send
pub struct Mailbox<T> {
    /// The newest message, whose `next` leads to older ones; null when empty, [`closed`] when the
    /// receiver is gone.
    newest: AtomicPtr<Node<T>>,
    /// Refusable messages that wait.
    waiting: AtomicUsize,
    capacity: usize,
    receiver: AtomicWaker,
}

struct Node<T> {
    next: *mut Node<T>,
    counted: bool,
    message: T,
}

/// The mailbox's reactor is gone; the message comes back.
pub struct Closed<T>(pub T);

impl<T> fmt::Debug for Closed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the reactor has ended")
    }
}

/// The mailbox cannot take the message, which comes back.
pub enum Full<T> {
    /// As many refusable messages wait as may.
    Full(T),
    /// The mailbox's reactor is gone.
    Closed(T),
}

impl<T> fmt::Debug for Full<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "the reactor's mailbox is full",
            Self::Closed(_) => "the reactor has ended",
        })
    }
}

impl<T> Mailbox<T> {
    /// An empty mailbox that lets `capacity` refusable messages wait.
    pub fn new(capacity: usize) -> Self {
        Self {
            newest: AtomicPtr::new(ptr::null_mut()),
            waiting: AtomicUsize::new(0),
            capacity,
            receiver: AtomicWaker::new(),
        }
    }

    /// Sends a message that must arrive: a completion, a cancellation, a shutdown.
    ///
    /// # Errors
    /// When the receiver is gone.
    pub fn send(&self, message: T) -> Result<(), Closed<T>> {
        self.push(message, false)
    }

    /// Sends a message that may be refused: new work.
    ///
    /// # Errors
    /// When the mailbox is full or the receiver gone.
    pub fn try_send(&self, message: T) -> Result<(), Full<T>> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.capacity {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(Full::Full(message));
        }
        self.push(message, true).map_err(|Closed(message)| {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            Full::Closed(message)
        })
    }

    fn push(&self, message: T, counted: bool) -> Result<(), Closed<T>> {
        let node = Box::into_raw(Box::new(Node { next: ptr::null_mut(), counted, message }));
        let mut newest = self.newest.load(Ordering::Relaxed);
        loop {
            if newest == closed() {
                // SAFETY: `node` came from `Box::into_raw` above and was not published.
                let node = unsafe { Box::from_raw(node) };
                return Err(Closed(node.message));
            }
            // SAFETY: `node` is not published yet, so this thread alone refers to it.
            unsafe { (*node).next = newest };
            match self.newest.compare_exchange_weak(
                newest,
                node,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => break,
                Err(changed) => newest = changed,
            }
        }
        if newest.is_null() {
            self.receiver.wake();
        }
        Ok(())
    }

    /// Takes all messages that wait, oldest first, or waits for one. One task alone may receive.
    pub async fn receive(&self) -> Messages<T> {
        let mut receive = pin!(std::future::poll_fn(|cx| self.poll_receive(cx)));
        receive.as_mut().await
    }

    fn poll_receive(&self, cx: &mut Context<'_>) -> Poll<Messages<T>> {
        if let Some(messages) = self.take() {
            return Poll::Ready(messages);
        }
        #[cfg(not(loom))]
        self.receiver.register(cx.waker());
        #[cfg(loom)]
        self.receiver.register_by_ref(cx.waker());
        // A sender may have pushed between the first look and the registration.
        match self.take() {
            Some(messages) => Poll::Ready(messages),
            None => Poll::Pending,
        }
    }

    fn take(&self) -> Option<Messages<T>> {
        if self.newest.load(Ordering::Relaxed).is_null() {
            return None;
        }
        let newest = self.newest.swap(ptr::null_mut(), Ordering::Acquire);
        self.collect(newest)
    }

    /// Ends the mailbox: what waits is returned, what is sent from now on is refused.
    pub fn close(&self) -> Option<Messages<T>> {
        let newest = self.newest.swap(closed(), Ordering::AcqRel);
        // The waker belongs to a task of the receiver's thread and must not outlive it elsewhere.
        #[cfg(not(loom))]
        drop(self.receiver.take());
        #[cfg(loom)]
        drop(self.receiver.take_waker());
        if newest == closed() { None } else { self.collect(newest) }
    }

    fn collect(&self, mut newest: *mut Node<T>) -> Option<Messages<T>> {
        let mut oldest_first: *mut Node<T> = ptr::null_mut();
        let mut counted = 0;
        while !newest.is_null() {
            // SAFETY: the list was taken whole by a swap, so this thread alone owns its nodes, and
            // the acquire of that swap makes the senders' writes visible.
            let node = unsafe { &mut *newest };
            counted += usize::from(node.counted);
            let next = std::mem::replace(&mut node.next, oldest_first);
            oldest_first = newest;
            newest = next;
        }
        self.waiting.fetch_sub(counted, Ordering::Relaxed);
        (!oldest_first.is_null()).then_some(Messages { next: oldest_first })
    }
}

impl<T> Drop for Mailbox<T> {
    fn drop(&mut self) {
        drop(self.close());
    }
}

// SAFETY: messages move between threads, so they must be `Send`; the list itself is only changed by
// atomic operations, and taken nodes have one owner.
unsafe impl<T: Send> Send for Mailbox<T> {}
// SAFETY: as above; no `&T` is ever shared between threads.
unsafe impl<T: Send> Sync for Mailbox<T> {}

/// The mark of a mailbox without a receiver: an address that no node has.
fn closed<T>() -> *mut Node<T> {
    ptr::without_provenance_mut(usize::MAX)
}

/// Messages taken from a [`Mailbox`], oldest first.
pub struct Messages<T> {
    next: *mut Node<T>,
}

impl<T> Iterator for Messages<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        if self.next.is_null() {
            return None;
        }
        // SAFETY: the iterator owns the nodes it leads to, each of which came from `Box::into_raw`.
        let node = unsafe { Box::from_raw(self.next) };
        self.next = node.next;
        Some(node.message)
    }
}

impl<T> Drop for Messages<T> {
    fn drop(&mut self) {
        self.for_each(drop);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn messages_come_oldest_first_and_the_refusable_ones_are_bounded() {
        let mailbox = Mailbox::new(2);
        mailbox.try_send(1).unwrap();
        mailbox.try_send(2).unwrap();
        assert!(matches!(mailbox.try_send(3), Err(Full::Full(3))));
        mailbox.send(4).unwrap();
        assert_eq!(mailbox.take().unwrap().collect::<Vec<_>>(), [1, 2, 4]);
        mailbox.try_send(5).unwrap();
        assert_eq!(mailbox.close().unwrap().collect::<Vec<_>>(), [5]);
        assert!(matches!(mailbox.send(6), Err(Closed(6))));
        assert!(matches!(mailbox.try_send(7), Err(Full::Closed(7))));
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::{future::block_on, sync::Arc, thread};

    use super::*;

    #[test]
    fn no_message_is_lost_and_the_receiver_is_woken() {
        loom::model(|| {
            let mailbox = Arc::new(Mailbox::new(8));
            let senders: Vec<_> = (0..2)
                .map(|sender| {
                    let mailbox = mailbox.clone();
                    thread::spawn(move || mailbox.send(sender).unwrap())
                })
                .collect();
            let mut got = Vec::new();
            while got.len() < 2 {
                got.extend(block_on(mailbox.receive()));
            }
            got.sort_unstable();
            assert_eq!(got, [0, 1]);
            senders.into_iter().for_each(|sender| sender.join().unwrap());
        });
    }

    #[test]
    fn a_message_is_either_taken_refused_or_returned_by_close() {
        loom::model(|| {
            let mailbox = Arc::new(Mailbox::new(1));
            let sender = {
                let mailbox = mailbox.clone();
                thread::spawn(move || mailbox.try_send(7_u32).is_ok())
            };
            let taken = mailbox.take().map_or(0, Iterator::count);
            let returned = mailbox.close().map_or(0, Iterator::count);
            let accepted = sender.join().unwrap();
            assert_eq!(taken + returned, usize::from(accepted));
        });
    }
}
