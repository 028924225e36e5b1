use std::{
    io::{self, IoSlice},
    net,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig, server::TlsStream};

use super::{
    driver::{self, Driver, EpollStream, UringStream},
    reactor::{ReactorHandle, current},
};

/// So many bytes in several places are copied together: that costs less than to tell the system where they lie.
const JOINED_MAX: usize = 1 << 10;

/// A connected socket on the current reactor. It implements the I/O traits of tokio, for h2, and
/// of hyper.
pub struct TcpStream {
    stream: Stream,
    /// Whoever is outermost counts.
    load: Option<Load>,
}

enum Stream {
    Uring(UringStream),
    Epoll(EpollStream),
    /// TLS over one of the others.
    Tls(Box<TlsStream<TcpStream>>),
}

impl TcpStream {
    /// Takes a connected socket onto the current reactor.
    ///
    /// # Errors
    /// When the event loop refuses the socket.
    pub fn adopt(socket: net::TcpStream) -> io::Result<Self> {
        Self::adopt_counted(socket, Load::on(&current()))
    }

    pub(super) fn adopt_counted(socket: net::TcpStream, load: Load) -> io::Result<Self> {
        let stream = match current().driver() {
            Driver::IoUring => Stream::Uring(driver::uring_stream(socket)?),
            Driver::Epoll => Stream::Epoll(driver::epoll_stream(socket)?),
        };
        Ok(Self { stream, load: Some(load) })
    }

    /// Shakes hands as the server's side of TLS. What is then read and written is the plain text.
    ///
    /// # Errors
    /// When the peer leaves, does not speak TLS, or one side refuses the other.
    pub async fn secured(mut self, config: Arc<ServerConfig>) -> io::Result<Self> {
        let load = self.load.take();
        let stream = TlsAcceptor::from(config).accept(self).await?;
        Ok(Self { stream: Stream::Tls(Box::new(stream)), load })
    }
}

/// One connection in a reactor's count, from the moment it is handed over until it is closed.
pub(super) struct Load(ReactorHandle);

impl Load {
    pub(super) fn on(reactor: &ReactorHandle) -> Self {
        reactor.count_connection();
        Self(reactor.clone())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.uncount_connection();
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Uring(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Epoll(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Uring(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Epoll(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Uring(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Epoll(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            // Nothing is held back.
            Stream::Uring(_) | Stream::Epoll(_) => Poll::Ready(Ok(())),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = match &mut self.stream {
            Stream::Uring(stream) => ready!(Pin::new(stream).poll_shutdown(cx)),
            Stream::Epoll(stream) => ready!(Pin::new(stream).poll_shutdown(cx)),
            Stream::Tls(stream) => ready!(Pin::new(stream).poll_shutdown(cx)),
        };
        match result {
            // The peer was faster.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            result => Poll::Ready(result),
        }
    }
}

impl hyper::rt::Read for TcpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // SAFETY: `ReadBuf` only writes initialised bytes, and `advance` below is told just how
        // many it filled.
        let filled = unsafe {
            let mut read_buf = ReadBuf::uninit(buf.as_mut());
            ready!(AsyncRead::poll_read(self, cx, &mut read_buf))?;
            read_buf.filled().len()
        };
        // SAFETY: the bytes were filled just above.
        unsafe { buf.advance(filled) };
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for TcpStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(self, cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let len: usize = bufs.iter().map(|buf| buf.len()).sum();
        if len > JOINED_MAX {
            return AsyncWrite::poll_write_vectored(self, cx, bufs);
        }
        let mut joined = SmallVec::<[u8; JOINED_MAX]>::new();
        bufs.iter().for_each(|buf| joined.extend_from_slice(buf));
        AsyncWrite::poll_write(self, cx, &joined)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(self, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_shutdown(self, cx)
    }
}
