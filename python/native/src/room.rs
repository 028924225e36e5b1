//! Shared memory for the tensors of one message.

use std::cell::RefCell;

use pyo3::{intern, prelude::*};

/// Takes shared memory of this process's half.
pub struct Room<'a, 'py> {
    channel: &'a Bound<'py, PyAny>,
    taken: RefCell<Vec<u64>>,
}

impl<'a, 'py> Room<'a, 'py> {
    /// For a message that the channel is to send.
    pub fn new(channel: &'a Bound<'py, PyAny>) -> Self {
        Self { channel, taken: RefCell::default() }
    }

    /// That this thread is attached to the interpreter.
    pub fn py(&self) -> Python<'py> {
        self.channel.py()
    }

    /// Takes so many bytes. Returns their offset.
    ///
    /// # Errors
    /// When there is no room, also after a while.
    pub fn take(&self, length: usize) -> PyResult<u64> {
        let offset = self.channel.call_method1(intern!(self.py(), "take"), (length,))?.extract()?;
        self.taken.borrow_mut().push(offset);
        Ok(offset)
    }

    /// What came of writing the message. Of one that could not be written, the server never hears, so that
    /// all is given back here.
    ///
    /// # Errors
    /// As given.
    pub fn settle<T>(self, written: PyResult<T>) -> PyResult<T> {
        if written.is_err() {
            let arena = self.channel.getattr(intern!(self.py(), "arena"))?;
            for offset in self.taken.take() {
                arena.call_method1(intern!(self.py(), "give"), (offset,))?;
            }
        }
        written
    }
}
