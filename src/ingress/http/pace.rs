//! How far a connection is, so that one on which nothing goes on can be let go.

use std::{
    cell::Cell,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use hyper::rt::{Read, ReadBufCursor, Write};

use crate::runtime::TcpStream;

/// The calls and the answers of a connection. A timer for each would cost a request more than the counting.
#[derive(Default)]
pub struct Pace {
    begun: Cell<u64>,
    ended: Cell<u64>,
    /// Bytes that were written.
    written: Cell<u64>,
    /// Whether there are more that the client leaves no room for.
    is_held_up: Cell<bool>,
}

impl Pace {
    /// How many calls there were, while none is being made and all answers are written.
    pub fn at_rest(&self) -> Option<u64> {
        let ended = self.ended.get();
        (self.begun.get() == ended && !self.is_held_up.get()).then_some(ended)
    }

    /// How many bytes the client has taken, while it takes no more of what there is.
    pub fn held_up(&self) -> Option<u64> {
        self.is_held_up.get().then(|| self.written.get())
    }

    fn saw<T>(&self, outcome: Poll<T>) -> Poll<T> {
        self.is_held_up.set(outcome.is_pending());
        outcome
    }

    fn saw_written(&self, outcome: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(count)) = &outcome {
            self.written.set(self.written.get() + *count as u64);
        }
        self.saw(outcome)
    }
}

/// A call, until all of its answer is handed over to be written.
pub struct Call(Rc<Pace>);

impl Call {
    pub fn begin(pace: &Rc<Pace>) -> Self {
        pace.begun.set(pace.begun.get() + 1);
        Self(pace.clone())
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.ended.set(self.0.ended.get() + 1);
    }
}

/// A stream whose writes are counted.
pub struct Paced {
    stream: TcpStream,
    pace: Rc<Pace>,
}

impl Paced {
    pub fn new(stream: TcpStream, pace: Rc<Pace>) -> Self {
        Self { stream, pace }
    }
}

impl Read for Paced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Read::poll_read(Pin::new(&mut self.stream), cx, buf)
    }
}

impl Write for Paced {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Write::poll_write(Pin::new(&mut self.stream), cx, buf);
        self.pace.saw_written(outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Write::poll_write_vectored(Pin::new(&mut self.stream), cx, bufs);
        self.pace.saw_written(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        Write::is_write_vectored(&self.stream)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Write::poll_flush(Pin::new(&mut self.stream), cx);
        self.pace.saw(outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Write::poll_shutdown(Pin::new(&mut self.stream), cx)
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

    #[test]
    fn a_connection_does_not_rest_while_its_client_takes_nothing() {
        let pace = Rc::<Pace>::default();
        let _ = pace.saw_written(Poll::Ready(Ok(7)));
        assert_eq!((pace.at_rest(), pace.held_up()), (Some(0), None));
        let _ = pace.saw_written(Poll::Pending);
        assert_eq!((pace.at_rest(), pace.held_up()), (None, Some(7)));
        let _ = pace.saw_written(Poll::Ready(Ok(2)));
        let _ = pace.saw::<()>(Poll::Pending);
        assert_eq!((pace.at_rest(), pace.held_up()), (None, Some(9)));
        let _ = pace.saw(Poll::Ready(()));
        assert_eq!((pace.at_rest(), pace.held_up()), (Some(0), None));
    }
}
