//! HTTP/1.1 connections.

use std::{
    cell::Cell,
    convert::Infallible,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    FutureExt as _,
    future::{Either, select},
};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};

use super::response::Segments;
use crate::runtime::{TcpStream, draining, sleep};

/// How long a client may take to send the head of its next request; an idle connection counts.
const HEAD_MAX: Duration = Duration::from_secs(300);
/// How often in that time it is looked whether anything was done.
const LOOKS: u32 = 4;
/// A connection's buffer for heads and small bodies, and the most of a body that is read at once.
const BUFFER_MAX: usize = 512 << 10;

/// Carries a connection until it ends: what comes is answered by `respond`.
pub(super) async fn carry<Respond, Answering>(stream: TcpStream, respond: Respond)
where
    Respond: Fn(Request<Incoming>) -> Answering,
    Answering: Future<Output = Response<Segments>>,
{
    let pace = Rc::<Pace>::default();
    let service = service_fn(|request| {
        let call = Call::begin(&pace);
        // Not in a block of its own, which would keep the future twice.
        respond(request)
            .map(|answer| Ok::<_, Infallible>(answer.map(|body| Answer { body, _call: call })))
    });
    let mut connection = pin!(
        http1::Builder::new()
            .header_read_timeout(None)
            .max_buf_size(BUFFER_MAX)
            // From where head and body lie; the stream sees to it that a short answer leaves by one plain
            // write. Not by `pipeline_flush`: it writes nothing while more requests wait, however much is
            // unwritten, and never the answer to a head that makes no sense.
            .writev(true)
            .serve_connection(stream, service)
    );
    let (draining, overdue) = (pin!(draining()), pin!(overdue(&pace)));
    let ended = match select(connection.as_mut(), select(draining, overdue)).await {
        Either::Left((ended, _)) => ended,
        Either::Right((Either::Left(_), _)) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        Either::Right((Either::Right(_), _)) => {
            log::debug!("closed an HTTP connection: no request came for {HEAD_MAX:?}");
            return;
        }
    };
    if let Err(error) = ended {
        log::debug!("an HTTP connection ended: {error}");
    }
}

/// How far a connection is. A timer for each head would cost a request more than the counting.
#[derive(Default)]
struct Pace {
    begun: Cell<u64>,
    ended: Cell<u64>,
}

impl Pace {
    /// How many calls there were, while none is being made.
    fn at_rest(&self) -> Option<u64> {
        let ended = self.ended.get();
        (self.begun.get() == ended).then_some(ended)
    }
}

/// A call, until its answer is written.
struct Call(Rc<Pace>);

impl Call {
    fn begin(pace: &Rc<Pace>) -> Self {
        pace.begun.set(pace.begun.get() + 1);
        Self(pace.clone())
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.ended.set(self.0.ended.get() + 1);
    }
}

/// Ready when for [`HEAD_MAX`] no call was made and none began, or up to half of it later.
async fn overdue(pace: &Pace) {
    let (mut looks, mut seen) = (0, None);
    while looks < LOOKS {
        sleep(HEAD_MAX / LOOKS).await;
        let found = pace.at_rest();
        looks = if found.is_some() && found == seen { looks + 1 } else { 0 };
        seen = found;
    }
}

/// The body of an answer, with the call that it belongs to.
struct Answer {
    body: Segments,
    _call: Call,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_rests_between_its_calls() {
        let pace = Rc::<Pace>::default();
        assert_eq!(pace.at_rest(), Some(0));
        let first = Call::begin(&pace);
        let second = Call::begin(&pace);
        drop(first);
        assert_eq!(pace.at_rest(), None);
        drop(second);
        assert_eq!(pace.at_rest(), Some(2));
    }
}
