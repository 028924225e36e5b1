//! What the server sends, as frames.

use std::{io, os::fd::RawFd};

use pyo3::{
    exceptions::PyOSError,
    prelude::*,
    types::{PyBytes, PyList},
};

use crate::frame::{Frame, HEADER_BYTES};

/// So much is read at once.
const RECEIVE_BYTES: usize = 256 << 10;
/// Kinds of frames that hold tensors.
pub const EXECUTE: u8 = 2;
const CALL_RESPONSE: u8 = 4;

/// Frames out of a stream socket.
#[pyclass]
pub struct Inbox {
    bytes: Vec<u8>,
    /// How many of them have come.
    length: usize,
}

#[pymethods]
impl Inbox {
    #[new]
    fn new() -> Self {
        Self { bytes: vec![0; RECEIVE_BYTES], length: 0 }
    }

    /// Waits for what comes next on the socket. Returns the frames that are whole: their kinds and bodies,
    /// one with tensors as a frame, the others as bytes.
    pub fn receive<'py>(&mut self, py: Python<'py>, socket: RawFd) -> PyResult<Bound<'py, PyList>> {
        let wanted = self.length + RECEIVE_BYTES;
        if self.bytes.len() < wanted {
            self.bytes.resize(wanted, 0);
        }
        let room = self.bytes.get_mut(self.length..).unwrap_or_default();
        let count = loop {
            match py.detach(|| receive(socket, room)) {
                Ok(count) => break count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => py.check_signals()?,
                Err(error) => return Err(PyOSError::new_err(error)),
            }
        };
        if count == 0 {
            // The server is gone: there is nobody to finish for.
            // SAFETY: it returns to nobody.
            unsafe { libc::_exit(0) };
        }
        self.length += count;
        self.whole(py)
    }
}

impl Inbox {
    /// Takes out the frames that are whole.
    fn whole<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let frames = PyList::empty(py);
        let mut rest = self.bytes.get(..self.length).unwrap_or_default();
        while let Some((header, behind)) = rest.split_first_chunk::<HEADER_BYTES>() {
            let [l0, l1, l2, l3, kind, ..] = *header;
            let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
            let Some((body, behind)) = behind.split_at_checked(length) else { break };
            match kind {
                EXECUTE | CALL_RESPONSE => {
                    frames.append((kind, Bound::new(py, Frame::new(body))?))?;
                }
                _ => frames.append((kind, PyBytes::new(py, body)))?,
            }
            rest = behind;
        }
        let left = rest.len();
        self.bytes.copy_within(self.length - left..self.length, 0);
        self.length = left;
        if self.bytes.len() > 2 * RECEIVE_BYTES + left {
            // A large frame has passed.
            self.bytes.truncate(RECEIVE_BYTES + left);
            self.bytes.shrink_to_fit();
        }
        Ok(frames)
    }
}

fn receive(socket: RawFd, room: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the room is as long as said, and written by nobody else meanwhile.
    let count = unsafe { libc::recv(socket, room.as_mut_ptr().cast(), room.len(), 0) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}
