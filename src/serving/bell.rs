use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use crate::runtime::Sleep;

/// Wakes a shard's task: rung any number of times, it is heard once.
#[derive(Default)]
pub struct Bell {
    rung: Cell<bool>,
    listener: Cell<Option<Waker>>,
}

impl Bell {
    /// Wakes the listener.
    pub fn ring(&self) {
        if !self.rung.replace(true)
            && let Some(listener) = self.listener.take()
        {
            listener.wake();
        }
    }

    /// Ready when the bell was rung or `timeout` has passed.
    pub fn poll_rung(&self, cx: &mut Context<'_>, timeout: &mut Option<Sleep>) -> Poll<()> {
        if self.rung.take() {
            return Poll::Ready(());
        }
        if let Some(sleep) = timeout
            && Pin::new(sleep).poll(cx).is_ready()
        {
            *timeout = None;
            return Poll::Ready(());
        }
        self.listener.set(Some(cx.waker().clone()));
        Poll::Pending
    }
}
