//! Requests from inside the server: a model asks another. They are admitted, queued, bounded and
//! counted like those of clients.

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    task::{Context, Poll, Waker},
};

use super::{job::Reply, server::Server};
use crate::{
    backend::{Answer, AnswerTo, AskModels, Asked},
    inference::{Error, InferRequest},
    observe::trace::OuterTrace,
    runtime::{End, Full, ReplyReceiver, ReplySender, reply_channel, spawn},
};

/// The way to a server's models from the models themselves, which the server owns.
pub struct FromInside(pub Weak<Server>);

/// What is known of a request that another thread sent.
enum Errand {
    /// It is on its way to a reactor.
    Sent,
    /// It is in a model; dropping this wakes the task that waits for the answers.
    Running { _while_wanted: ReplySender<()> },
    /// Nobody wants the answers any more.
    Abandoned,
}

impl AskModels for FromInside {
    fn ask(
        &self,
        request: InferRequest,
        trace: Option<OuterTrace>,
        answer: AnswerTo,
    ) -> Result<Asked, Error> {
        let server = self.0.upgrade().ok_or(Error::Stopping)?;
        let reactor = server.reactor_for(&request).clone();
        // Two threads meet here: a lock, but one that is free whenever it is asked for, save when a
        // request is abandoned as it starts.
        let errand = Arc::new(Mutex::new(Errand::Sent));
        let abandoned = errand.clone();
        let asked = Asked::new(move || {
            let mut errand = abandoned.lock().unwrap_or_else(PoisonError::into_inner);
            *errand = Errand::Abandoned;
        });
        if reactor.is_current() {
            server.run(request, trace, answer, &errand);
            return Ok(asked);
        }
        let run = Box::new(move || server.run(request, trace, answer, &errand));
        reactor.try_send(run).map_err(|refused| match refused {
            Full::Full(_) => Error::QueueFull,
            Full::Closed(_) => Error::Stopping,
        })?;
        Ok(asked)
    }

    fn is_ready(&self, model: &str, version: &str) -> bool {
        let server = self.0.upgrade();
        let version = server.and_then(|server| server.version(model, version).ok());
        version.is_some_and(|version| version.is_ready())
    }

    fn is_decoupled(&self, model: &str, version: &str) -> bool {
        self.0.upgrade().is_some_and(|server| server.is_decoupled(model, version))
    }
}

impl Server {
    /// Sends a request of a model's. Runs on a reactor.
    fn run(
        &self,
        request: InferRequest,
        trace: Option<OuterTrace>,
        mut answer: AnswerTo,
        errand: &Mutex<Errand>,
    ) {
        let (while_wanted, wanted) = reply_channel();
        {
            let mut errand = errand.lock().unwrap_or_else(PoisonError::into_inner);
            if let Errand::Abandoned = *errand {
                return;
            }
            *errand = Errand::Running { _while_wanted: while_wanted };
        }
        match self.infer_from_inside(request, trace) {
            Ok(replies) => {
                let mut passing = Box::pin(pass_on(replies, wanted, answer));
                // A model that runs on this reactor has answered by now.
                if passing.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                    spawn(&"a request of a model's", passing);
                }
            }
            Err(error) => answer(Answer { response: Some(Err(error)), is_last: true }),
        }
    }
}

/// Gives every reply to `answer`, as long as somebody wants them.
async fn pass_on(
    mut replies: ReplyReceiver<Reply>,
    mut wanted: ReplyReceiver<()>,
    mut answer: AnswerTo,
) {
    loop {
        let reply = std::future::poll_fn(|cx| match replies.poll_receive(cx) {
            Poll::Ready(reply) => Poll::Ready(Some(reply)),
            Poll::Pending => wanted.poll_receive(cx).map(|_| None),
        });
        let Some(reply) = reply.await else { return };
        let next = next_answer(reply, replies.end());
        let is_last = next.is_last;
        answer(next);
        if is_last {
            return;
        }
    }
}

/// The answer that a reply is, when `end` is how the replies ended, if they did.
pub fn next_answer(reply: Option<Reply>, end: Option<End>) -> Answer {
    match (reply, end) {
        (Some(reply), end) => Answer { response: Some(reply), is_last: end == Some(End::Last) },
        (None, Some(End::Dropped)) => {
            Answer { response: Some(Err(Error::unanswered())), is_last: true }
        }
        (None, _) => Answer { response: None, is_last: true },
    }
}
