//! Work that is polled where it comes in, and becomes a task only if it then has to wait.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll},
};

use crate::runtime::{Label, spawn};

/// A place where futures of one type get their first poll. One that is ready then costs no task and no
/// memory: the next one takes its place.
pub struct FirstPoll<F> {
    place: Pin<Box<Option<F>>>,
}

impl<F> Default for FirstPoll<F> {
    fn default() -> Self {
        Self { place: Box::pin(None) }
    }
}

impl<F: Future<Output = ()> + 'static> FirstPoll<F> {
    /// Polls a future on behalf of the task of `cx`, and spawns it as `label` if it is not ready.
    pub fn give(&mut self, label: Label, work: F, cx: &mut Context<'_>) {
        self.place.set(Some(work));
        match self.place.as_mut().as_pin_mut().map(|work| work.poll(cx)) {
            Some(Poll::Pending) => {
                let mut waiting = mem::replace(&mut self.place, Box::pin(None));
                spawn(label, async move {
                    if let Some(work) = waiting.as_mut().as_pin_mut() {
                        work.await;
                    }
                });
            }
            _ => self.place.set(None),
        }
    }
}
