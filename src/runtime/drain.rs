use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use slab::Slab;

thread_local! {
    static BEGUN: Cell<bool> = const { Cell::new(false) };
    static WAITING: RefCell<Slab<Waker>> = const { RefCell::new(Slab::new()) };
}

/// Tells everything on this reactor that waits for it that the server is stopping.
pub(super) fn begin() {
    BEGUN.set(true);
    let waiting = WAITING
        .with_borrow(|waiting| waiting.iter().map(|(_, waker)| waker.clone()).collect::<Vec<_>>());
    waiting.into_iter().for_each(Waker::wake);
}

/// Ready once the server is stopping: a connection then finishes what it has in flight and ends.
pub fn draining() -> Draining {
    Draining { place: None }
}

/// See [`draining`].
pub struct Draining {
    place: Option<usize>,
}

impl Future for Draining {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if BEGUN.get() {
            return Poll::Ready(());
        }
        WAITING.with_borrow_mut(|waiting| match self.place {
            Some(place) => waiting[place].clone_from(cx.waker()),
            None => self.place = Some(waiting.insert(cx.waker().clone())),
        });
        Poll::Pending
    }
}

impl Drop for Draining {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            // At the end of the thread the list may be gone already.
            let _ = WAITING.try_with(|waiting| waiting.borrow_mut().try_remove(place));
        }
    }
}
