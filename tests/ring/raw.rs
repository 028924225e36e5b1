//! A client without the client library.

use std::{
    io::{IoSliceMut, Read as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    sync::atomic::Ordering,
};

use nereid_ring::{Header, Hello, Memory, WELCOME_BYTES, Welcome, Words};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::server::{PATIENCE, Server};

/// A client that can write whatever it likes.
pub struct Raw {
    socket: UnixStream,
    pub memory: Memory,
    pub header: Header,
    put: u32,
}

impl Raw {
    /// One of few places and a small arena.
    pub fn connect(server: &Server) -> Self {
        Self::with_places(server, 16)
    }

    pub fn with_places(server: &Server, places: u32) -> Self {
        let mut socket = UnixStream::connect(server.socket()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let hello =
            Hello { arena_bytes: 1 << 16, submissions: places, completions: places, spin: false };
        socket.write_all(&hello.encode()).unwrap();
        let mut welcome = [0; WELCOME_BYTES];
        let mut space = nix::cmsg_space!([i32; 1]);
        let file = {
            let mut buffers = [IoSliceMut::new(&mut welcome)];
            let flags = MsgFlags::MSG_WAITALL;
            let got =
                recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut space), flags).unwrap();
            let descriptor = got.cmsgs().unwrap().find_map(|control| match control {
                ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
                _ => None,
            });
            // SAFETY: the system has just made this descriptor for us.
            unsafe { OwnedFd::from_raw_fd(descriptor.unwrap()) }
        };
        let total = Welcome::parse(&welcome).unwrap().total_bytes;
        let memory = Memory::map(file.as_fd(), total as usize).unwrap();
        let mut bytes = [0; 64];
        memory.read(0, &mut bytes);
        let header = Header::parse(&bytes, total).unwrap();
        Self { socket, memory, header, put: 0 }
    }

    /// Submits and wakes the server.
    pub fn put(&mut self, entry: &[u8]) {
        self.lay(entry);
        self.tell();
    }

    /// Writes a submission that the server is not told of yet.
    pub fn lay(&mut self, entry: &[u8]) {
        let place = (self.put & (self.header.submissions - 1)) as usize;
        self.memory.write(self.header.submission_at(place), entry);
        self.put = self.put.wrapping_add(1);
    }

    /// Tells the server of all that was laid.
    pub fn tell(&self) {
        self.set(Words::SUBMISSION_TAIL, self.put);
    }

    /// How many completions the server has put.
    pub fn completed(&self) -> u32 {
        self.memory.word(Words::COMPLETION_TAIL).load(Ordering::Acquire)
    }

    pub fn set(&self, word: usize, value: u32) {
        self.memory.word(word).store(value, Ordering::Release);
        // The server may have closed the socket.
        let _ = (&self.socket).write(&[1]);
    }

    /// Waits until the server has closed the socket.
    pub fn is_sent_away(&mut self) -> bool {
        let mut rings = [0; 64];
        loop {
            match self.socket.read(&mut rings) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }
}
