//! The first words with a server.

use std::{
    io::{self, IoSliceMut, Read as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
};

use nereid_ring::{Header, Hello, Memory, REFUSAL_MAX, WELCOME_BYTES, Welcome};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::Error;

/// What a client asks for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes of the arena, for all tensors that are in use at a time.
    pub arena_bytes: u64,
    /// Requests that may be in flight.
    pub requests: u32,
    /// Whether to look for answers all the time while waiting, and to ask the server to look for requests
    /// all the time (which it does if it runs with `--ring-spin`).
    pub spin: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { arena_bytes: 64 << 20, requests: 256, spin: false }
    }
}

/// A socket and the memory that came over it.
pub struct Connected {
    pub socket: UnixStream,
    pub memory: Memory,
    pub header: Header,
}

pub fn connect(path: &Path, hello: &Hello) -> Result<Connected, Error> {
    let failed = |source| Error::Connect { path: path.to_owned(), source };
    let mut socket = UnixStream::connect(path).map_err(failed)?;
    socket.write_all(&hello.encode()).map_err(failed)?;
    let (welcome, file) = receive(&mut socket).map_err(failed)?;
    let welcome = Welcome::parse(&welcome)?;
    let Some(file) = file else {
        let mut reason = vec![0; (welcome.refusal_bytes as usize).min(REFUSAL_MAX)];
        socket.read_exact(&mut reason).map_err(failed)?;
        let reason = String::from_utf8_lossy(&reason).into_owned();
        return Err(Error::Refused { reason });
    };
    let length = usize::try_from(welcome.total_bytes).unwrap_or(usize::MAX);
    let memory = Memory::map(file.as_fd(), length)?;
    let mut header = [0; 64];
    memory.read(0, &mut header);
    let header = Header::parse(&header, welcome.total_bytes)?;
    Ok(Connected { socket, memory, header })
}

/// Reads the welcome and the descriptor that came with its first byte.
fn receive(socket: &mut UnixStream) -> io::Result<([u8; WELCOME_BYTES], Option<OwnedFd>)> {
    let mut welcome = [0; WELCOME_BYTES];
    let mut space = nix::cmsg_space!([i32; 1]);
    let mut file = None;
    let count = {
        let mut buffers = [IoSliceMut::new(&mut welcome)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut space), flags)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(descriptors) = control {
                for descriptor in descriptors {
                    // SAFETY: the system has just made this descriptor for us.
                    file = Some(unsafe { OwnedFd::from_raw_fd(descriptor) });
                }
            }
        }
        message.bytes
    };
    if count == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    socket.read_exact(&mut welcome[count..])?;
    Ok((welcome, file))
}
