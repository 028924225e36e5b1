use std::{
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Looks at what passes through a stream.
pub trait Watch {
    /// These were read.
    fn read(&self, bytes: &[u8]);

    /// These were written.
    fn wrote(&self, bytes: &[u8]);

    /// What is to be written in place of the first bytes of `next`, and of how many; `None` where they are
    /// written as they are. It is written at once or, where the peer does not read, in part.
    fn in_place_of(&self, next: &[u8]) -> Option<(Bytes, usize)>;
}

/// A stream that is watched. It implements the I/O traits of tokio, for h2.
pub struct WatchedStream<S, W> {
    stream: S,
    watch: Rc<W>,
}

impl<S, W> WatchedStream<S, W> {
    /// `stream`, watched by `watch`.
    pub fn new(stream: S, watch: Rc<W>) -> Self {
        Self { stream, watch }
    }
}

impl<S: AsyncRead + Unpin, W: Watch> AsyncRead for WatchedStream<S, W> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.watch.read(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin, W: Watch> AsyncWrite for WatchedStream<S, W> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = bufs.iter().find(|buf| !buf.is_empty());
        if let Some((other, count)) = first.and_then(|first| self.watch.in_place_of(first)) {
            ready!(Pin::new(&mut self.stream).poll_write(cx, &other))?;
            return Poll::Ready(Ok(count));
        }
        let count = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        let mut left = count;
        for buf in bufs {
            let written = left.min(buf.len());
            self.watch.wrote(&buf[..written]);
            left -= written;
        }
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
