use std::{
    collections::VecDeque,
    io,
    net::Shutdown,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
        eventfd::{EfdFlags, EventFd},
        socket::{MsgFlags, recv, send},
    },
};

use super::{process::Sockets, wire::Writer};

/// So many bytes that the server no longer needs are told to the process at once, fewer with the next
/// message.
const FREED_BYTES_MAX: u64 = 4 << 20;

/// The way to a process. Any thread may send, and none waits: what the socket does not take is kept
/// until the supervisor can write it. The lock is held for one system call.
pub struct Line {
    sockets: Sockets,
    bell: EventFd,
    /// Readable when something has come, save while another thread than the supervisor's waits for it.
    ear: Epoll,
    out: Mutex<Out>,
}

#[derive(Default)]
struct Out {
    kept: VecDeque<u8>,
    /// What the process lent and is to have back, by offset.
    freed: Vec<u64>,
    freed_bytes: u64,
    is_closed: bool,
}

impl Line {
    /// Over sockets that may block.
    ///
    /// # Errors
    /// When the system has no more files.
    pub fn new(sockets: Sockets) -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let bell = EventFd::from_value_and_flags(0, flags)?;
        let ear = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        ear.add(&sockets.inbound, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        Ok(Self { sockets, bell, ear, out: Mutex::default() })
    }

    fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends frames, and with them what goes back.
    pub fn send(&self, mut writer: Writer) {
        let mut out = self.out();
        if out.is_closed {
            return;
        }
        if !out.freed.is_empty() {
            writer.free(&out.freed);
            out.freed.clear();
            out.freed_bytes = 0;
        }
        let bytes = writer.into_bytes();
        let is_written = self.write_kept(&mut out);
        let written = if is_written { self.write(&bytes) } else { 0 };
        if let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            out.kept.extend(rest);
        }
        if !out.kept.is_empty() {
            self.ring();
        }
    }

    /// Keeps frames until something is sent.
    pub fn keep(&self, writer: Writer) {
        let mut out = self.out();
        if !out.is_closed {
            out.kept.extend(writer.into_bytes());
        }
    }

    /// Sends what was kept, if anything was.
    pub fn send_kept(&self) {
        if !self.out().kept.is_empty() {
            self.send(Writer::default());
        }
    }

    /// Gives memory back to the process, now or with the next message.
    pub fn give_back(&self, offset: u64, length: u64) {
        let mut out = self.out();
        out.freed.push(offset);
        out.freed_bytes += length;
        if out.freed_bytes > FREED_BYTES_MAX {
            drop(out);
            self.send(Writer::default());
        }
    }

    /// Writes what the socket did not take before. Tells whether all is written.
    pub fn flush(&self) -> bool {
        self.write_kept(&mut self.out())
    }

    fn write_kept(&self, out: &mut Out) -> bool {
        loop {
            let (front, _) = out.kept.as_slices();
            if front.is_empty() {
                return true;
            }
            let (length, written) = (front.len(), self.write(front));
            out.kept.drain(..written);
            if written < length {
                return false;
            }
        }
    }

    /// Drops what is sent from now on: nobody reads it. Whoever waits for the process waits no longer.
    pub fn close(&self) {
        let mut out = self.out();
        out.is_closed = true;
        out.kept.clear();
        self.hang_up();
    }

    /// Ends what can be received with what has been sent, even if something still has the other end.
    pub fn hang_up(&self) {
        if let Err(error) = self.sockets.inbound.shutdown(Shutdown::Read) {
            log::debug!("a socket cannot be shut down: {error}");
        }
    }

    /// Reads what the process has sent: nothing when it has closed its end.
    ///
    /// # Errors
    /// When there is nothing, unless it `waits`, and when the system has another reason.
    pub fn receive(&self, buffer: &mut [u8], waits: bool) -> io::Result<usize> {
        let flags = if waits { MsgFlags::empty() } else { MsgFlags::MSG_DONTWAIT };
        Ok(recv(self.sockets.inbound.as_raw_fd(), buffer, flags)?)
    }

    /// What is readable when the process has sent something and nobody else waits for it.
    pub fn ear(&self) -> BorrowedFd<'_> {
        self.ear.0.as_fd()
    }

    /// The socket from the process, for another thread.
    ///
    /// # Errors
    /// When the system has no more files.
    pub fn inbound(&self) -> io::Result<UnixStream> {
        self.sockets.inbound.try_clone()
    }

    /// Whether [`Self::ear`] hears the process.
    pub fn listen(&self, listens: bool) {
        let flags = if listens { EpollFlags::EPOLLIN } else { EpollFlags::empty() };
        if let Err(error) = self.ear.modify(&self.sockets.inbound, &mut EpollEvent::new(flags, 0)) {
            // Then two threads wake where one would do.
            log::debug!("a socket cannot be watched otherwise: {error}");
        }
    }

    /// Wakes the supervisor.
    pub fn ring(&self) {
        if let Err(error) = self.bell.write(1) {
            log::debug!("a thread cannot be woken: {error}");
        }
    }

    /// Silences the bell.
    pub fn hush(&self) {
        // It is not rung when there is nothing to read.
        let _ = self.bell.read();
    }

    /// What is readable when the bell was rung.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// The socket, to be waited for until it can be written.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.sockets.outbound.as_fd()
    }

    /// How many of `bytes` the socket takes. One whose other end is gone takes all: the thread that
    /// reads learns it from the socket too.
    fn write(&self, bytes: &[u8]) -> usize {
        let mut written = 0;
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            match send(self.sockets.outbound.as_raw_fd(), rest, flags) {
                Ok(count) => written += count,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(_) => return bytes.len(),
            }
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, os::unix::net::UnixStream};

    use super::*;

    #[test]
    fn what_the_socket_does_not_take_is_written_later_and_in_order() {
        let (outbound, mut theirs) = UnixStream::pair().unwrap();
        let (inbound, _) = UnixStream::pair().unwrap();
        let line = Line::new(Sockets { outbound, inbound }).unwrap();
        let text = "x".repeat(1 << 20);
        for _ in 0..3 {
            let mut writer = Writer::default();
            writer.start(&text);
            line.send(writer);
        }
        assert!(!line.flush());
        // What is kept comes behind what was sent before.
        let mut writer = Writer::default();
        writer.finalize();
        line.keep(writer);
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).unwrap();
            all
        });
        while !line.flush() {
            std::thread::yield_now();
        }
        drop(line);
        let all = reader.join().unwrap();
        let mut frames = super::super::wire::Frames::default();
        frames.push(&all);
        for _ in 0..3 {
            assert_eq!(
                frames.next_frame().unwrap().unwrap().1.len(),
                (text.len() + 4).next_multiple_of(8)
            );
        }
        assert_eq!(frames.next_frame().unwrap().unwrap().1.len(), 0);
        assert_eq!(frames.next_frame().unwrap(), None);
    }

    #[test]
    fn what_is_kept_goes_with_what_is_sent_next() {
        let (outbound, mut theirs) = UnixStream::pair().unwrap();
        let (inbound, _) = UnixStream::pair().unwrap();
        let line = Line::new(Sockets { outbound, inbound }).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut buffer = [0; 256];
        line.send_kept();
        for _ in 0..2 {
            let mut writer = Writer::default();
            writer.finalize();
            line.keep(writer);
        }
        assert!(theirs.read(&mut buffer).is_err());
        line.send_kept();
        assert_eq!(theirs.read(&mut buffer).unwrap(), 2 * super::super::wire::HEADER_BYTES);
    }
}
