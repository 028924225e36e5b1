//! HTTP/1.1 connections.

use std::{
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

use super::{
    pace::{Call, Pace, Paced},
    response::Segments,
};
use crate::runtime::{TcpStream, draining, unchanged};

/// How long a client may take to send the head of its next request; an idle connection counts.
const HEAD_MAX: Duration = Duration::from_secs(300);
/// A connection's buffer for heads and small bodies, and the most of a body that is read at once.
const BUFFER_MAX: usize = 512 << 10;

/// Carries a connection until it ends: what comes is answered by `respond`. Nothing of an answer may be taken
/// for `pause_max`, or up to half of it longer.
pub(super) async fn carry<Respond, Answering>(
    stream: TcpStream,
    pause_max: Duration,
    respond: Respond,
) where
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
            .serve_connection(Paced::new(stream, pace.clone()), service)
    );
    let overdue = async {
        let no_request = pin!(unchanged(HEAD_MAX, || pace.at_rest()));
        let unread = pin!(unchanged(pause_max, || pace.held_up()));
        match select(no_request, unread).await {
            Either::Left(_) => format!("no request came for {HEAD_MAX:?}"),
            Either::Right(_) => format!("nothing of an answer was taken for {pause_max:?}"),
        }
    };
    let (draining, overdue) = (pin!(draining()), pin!(overdue));
    let ended = match select(connection.as_mut(), select(draining, overdue)).await {
        Either::Left((ended, _)) => ended,
        Either::Right((Either::Left(_), _)) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        Either::Right((Either::Right((why, _)), _)) => {
            log::debug!("closed an HTTP connection: {why}");
            return;
        }
    };
    if let Err(error) = ended {
        log::debug!("an HTTP connection ended: {error}");
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
