use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    net::Shutdown,
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::ring::{Direction, Readiness, Ring};

/// A connected socket that is tried first and waited for only when it has nothing, or is full. It
/// implements the I/O traits of tokio.
pub struct Socket<S> {
    /// Goes before the descriptor does.
    readiness: Readiness,
    socket: S,
}

impl<S: AsFd> Socket<S> {
    pub fn new(socket: S, ring: &Rc<Ring>) -> Self {
        Self { readiness: ring.watch(socket.as_fd()), socket }
    }

    /// Tries until the socket takes part.
    fn attempt(
        &self,
        direction: Direction,
        cx: &Context<'_>,
        mut try_once: impl FnMut(SockRef<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.readiness.poll(direction, cx));
            match try_once(SockRef::from(&self.socket)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readiness.exhaust(direction);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return Poll::Ready(result),
            }
        }
    }

    /// After a part of what was wanted there is no more: the next try would only find that out.
    fn note(&self, direction: Direction, count: usize, wanted: usize) {
        if 0 < count && count < wanted {
            self.readiness.exhaust(direction);
        }
    }
}

impl<S: AsFd> AsFd for Socket<S> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl<S: AsFd + Unpin> AsyncRead for Socket<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let wanted = buf.remaining();
        // SAFETY: `recv` writes bytes and nothing else.
        let room: &mut [MaybeUninit<u8>] = unsafe { buf.unfilled_mut() };
        let count = ready!(self.attempt(Direction::Read, cx, |socket| {
            socket.recv_with_flags(room, libc::MSG_DONTWAIT)
        }))?;
        self.note(Direction::Read, count, wanted);
        // SAFETY: so many were just written.
        unsafe { buf.assume_init(count) };
        buf.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsFd + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let count = ready!(self.attempt(Direction::Write, cx, |socket| {
            socket.send_vectored_with_flags(bufs, flags)
        }))?;
        self.note(Direction::Write, count, bufs.iter().map(|buf| buf.len()).sum());
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing is held back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&self.socket).shutdown(Shutdown::Write))
    }
}
