use std::{
    io,
    task::{Poll, ready},
};

use super::{
    line::Line,
    wire::{self, Frames, Malformed, Said},
};

const RECEIVE_BYTES: usize = 256 << 10;

/// What has come from a process and has not been heard yet. Who holds it hears it, in order: the reactor
/// that is the instance's home, where it has one; else the instance's thread while it waits for the
/// model's `execute`, and the supervisor at other times.
pub struct Inbox {
    frames: Frames,
    received: Vec<u8>,
}

/// Nothing more comes from a process.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// It has closed its end, or has ended.
    #[error("has closed its socket")]
    Closed,
    /// What it says cannot be understood.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

impl Default for Inbox {
    fn default() -> Self {
        Self { frames: Frames::default(), received: vec![0; RECEIVE_BYTES] }
    }
}

impl Inbox {
    /// What was received and not heard.
    ///
    /// # Errors
    /// When it cannot be understood.
    pub fn kept(&mut self) -> Result<Option<Said>, Broken> {
        match self.frames.next_frame()? {
            Some((kind, body)) => Ok(Some(wire::decode(kind, body)?)),
            None => Ok(None),
        }
    }

    /// Takes what `read` puts into a buffer; gives what it returns.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn fill(
        &mut self,
        read: impl FnOnce(&mut [u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let count = ready!(read(&mut self.received))?;
        self.frames.push(self.received.get(..count).unwrap_or_default());
        Poll::Ready(Ok(count))
    }

    /// The next thing that the process said, if it is there. One that `waits` has it, or an error.
    ///
    /// # Errors
    /// When the process has ended, or says what cannot be understood.
    pub fn next(&mut self, line: &Line, waits: bool) -> Result<Option<Said>, Broken> {
        loop {
            if let Some(said) = self.kept()? {
                return Ok(Some(said));
            }
            match line.receive(&mut self.received, waits) {
                Ok(0) => return Err(Broken::Closed),
                Ok(count) => self.frames.push(self.received.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(_) => return Err(Broken::Closed),
            }
        }
    }
}
