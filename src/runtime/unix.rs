use std::{
    future::poll_fn,
    io::{self, IoSlice},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::net,
    },
    pin::Pin,
    task::{Context, Poll, ready},
};

use nix::sys::socket::{
    ControlMessage, MsgFlags, getsockopt, send, sendmsg, sockopt::PeerCredentials,
};
use tokio::io::{AsyncRead as _, ReadBuf};

use super::{
    driver::{self, Driver, EpollUnixStream, UringUnixStream},
    reactor::current,
    tcp::Load,
};

/// A connected Unix socket on the current reactor: a doorbell, over which a descriptor can be handed.
pub struct UnixStream {
    stream: Stream,
    _load: Option<Load>,
}

enum Stream {
    Uring(UringUnixStream),
    Epoll(EpollUnixStream),
}

/// Who is at the other end of a Unix socket, as the system says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The process that connected.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

impl UnixStream {
    /// Takes a connected socket onto the current reactor.
    ///
    /// # Errors
    /// When the event loop refuses the socket.
    pub fn adopt(socket: net::UnixStream) -> io::Result<Self> {
        Self::adopt_counted(socket, Load::on(&current()))
    }

    /// The same for a socket of the server's own, which counts as no connection.
    ///
    /// # Errors
    /// When the event loop refuses the socket.
    pub fn adopt_own(socket: net::UnixStream) -> io::Result<Self> {
        Self::on_current(socket, None)
    }

    pub(super) fn adopt_counted(socket: net::UnixStream, load: Load) -> io::Result<Self> {
        Self::on_current(socket, Some(load))
    }

    fn on_current(socket: net::UnixStream, load: Option<Load>) -> io::Result<Self> {
        let stream = match current().driver() {
            Driver::IoUring => Stream::Uring(driver::uring_unix_stream(socket)?),
            Driver::Epoll => Stream::Epoll(driver::epoll_unix_stream(socket)?),
        };
        Ok(Self { stream, _load: load })
    }

    /// Reads what is there; 0 bytes mean that the other side has left.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(buf);
        ready!(match &mut self.stream {
            Stream::Uring(stream) => Pin::new(stream).poll_read(cx, &mut buf),
            Stream::Epoll(stream) => Pin::new(stream).poll_read(cx, &mut buf),
        })?;
        Poll::Ready(Ok(buf.filled().len()))
    }

    /// Reads as many bytes as `buf` holds.
    ///
    /// # Errors
    /// When the other side leaves before.
    pub async fn read_exact(&mut self, mut buf: &mut [u8]) -> io::Result<()> {
        while !buf.is_empty() {
            let count = poll_fn(|cx| self.poll_read(cx, buf)).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            buf = buf.get_mut(count..).unwrap_or_default();
        }
        Ok(())
    }

    /// Sends one byte, which wakes the other side. When the socket is full there is enough to wake it,
    /// and when it has left nobody is to be woken.
    pub fn ring(&self) {
        let _ =
            send(self.as_fd().as_raw_fd(), &[1], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
    }

    /// Sends a few bytes with a descriptor or none, without waiting.
    ///
    /// # Errors
    /// When the socket does not take them at once.
    pub fn send(&self, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let descriptors = descriptor.map(|descriptor| [descriptor.as_raw_fd()]);
        let rights = descriptors.as_ref().map(|all| [ControlMessage::ScmRights(all)]);
        let sent = sendmsg::<()>(
            self.as_fd().as_raw_fd(),
            &[IoSlice::new(bytes)],
            rights.as_ref().map_or(&[], |rights| &rights[..]),
            MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        match sent == bytes.len() {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::WriteZero, "the socket is full")),
        }
    }

    /// Who connected.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn peer(&self) -> io::Result<Peer> {
        let found = getsockopt(self, PeerCredentials)?;
        Ok(Peer { pid: found.pid(), uid: found.uid(), gid: found.gid() })
    }
}

impl AsFd for UnixStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Uring(stream) => stream.as_fd(),
            Stream::Epoll(stream) => stream.as_fd(),
        }
    }
}
