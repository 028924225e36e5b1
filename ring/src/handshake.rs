//! What goes over the socket before anything is shared.

use crate::{
    MAGIC, VERSION,
    wire::{Malformed, Reader, Writer},
};

/// The size of a [`Hello`].
pub const HELLO_BYTES: usize = 48;
/// The size of a [`Welcome`] without the text of a refusal.
pub const WELCOME_BYTES: usize = 48;
/// The longest text of a refusal, in bytes.
pub const REFUSAL_MAX: usize = 4096;

/// In [`Hello`] and [`Welcome`]: the server looks for submissions without being rung for.
const SPIN: u32 = 1;

/// What a client asks for: the first thing that it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Bytes of the arena.
    pub arena_bytes: u64,
    /// Submissions that may wait, rounded up to a power of two.
    pub submissions: u32,
    /// Completions that may wait, rounded up to a power of two; also how many requests may be in flight.
    pub completions: u32,
    /// Whether the server is to look for submissions without being rung for.
    pub spin: bool,
}

/// The server's answer: the memory comes with it as a descriptor, unless it is a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Bytes of the file, which are all to be mapped; 0 is a refusal.
    pub total_bytes: u64,
    /// Bytes of the text that follows, which says why the client is refused.
    pub refusal_bytes: u32,
    /// Whether the server looks for submissions without being rung for.
    pub spin: bool,
}

fn begin(writer: &mut Writer<'_>, size: usize) {
    writer.bytes(&MAGIC);
    writer.u32(VERSION);
    writer.length32("a handshake's size", size);
}

fn check(reader: &mut Reader<'_>, what: &'static str, size: usize) -> Result<(), Malformed> {
    let magic = reader.bytes(MAGIC.len())?;
    if magic != MAGIC {
        return Err(Malformed::new(what, format!("magic bytes {MAGIC:?}"), format!("{magic:?}")));
    }
    let version = reader.u32()?;
    if version != VERSION {
        return Err(Malformed::new(what, format!("version {VERSION} of the ring"), version));
    }
    let told = reader.u32()?;
    if told as usize != size {
        return Err(Malformed::new(what, format!("{size} bytes"), told));
    }
    Ok(())
}

impl Hello {
    /// As it is sent.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HELLO_BYTES);
        let mut writer = Writer::new(&mut bytes);
        begin(&mut writer, HELLO_BYTES);
        writer.u64(self.arena_bytes);
        writer.u32(self.submissions);
        writer.u32(self.completions);
        writer.u32(if self.spin { SPIN } else { 0 });
        bytes.resize(HELLO_BYTES, 0);
        bytes
    }

    /// Reads what was sent.
    ///
    /// # Errors
    /// When it is not one, or of another version.
    pub fn parse(bytes: &[u8; HELLO_BYTES]) -> Result<Self, Malformed> {
        let mut reader = Reader::new("the client's hello", bytes);
        check(&mut reader, "the client's hello", HELLO_BYTES)?;
        Ok(Self {
            arena_bytes: reader.u64()?,
            submissions: reader.u32()?,
            completions: reader.u32()?,
            spin: reader.u32()? & SPIN != 0,
        })
    }
}

impl Welcome {
    /// As it is sent.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(WELCOME_BYTES);
        let mut writer = Writer::new(&mut bytes);
        begin(&mut writer, WELCOME_BYTES);
        writer.u64(self.total_bytes);
        writer.u32(self.refusal_bytes);
        writer.u32(if self.spin { SPIN } else { 0 });
        bytes.resize(WELCOME_BYTES, 0);
        bytes
    }

    /// Reads what was sent.
    ///
    /// # Errors
    /// When it is not one, or of another version.
    pub fn parse(bytes: &[u8; WELCOME_BYTES]) -> Result<Self, Malformed> {
        let mut reader = Reader::new("the server's welcome", bytes);
        check(&mut reader, "the server's welcome", WELCOME_BYTES)?;
        Ok(Self {
            total_bytes: reader.u64()?,
            refusal_bytes: reader.u32()?,
            spin: reader.u32()? & SPIN != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_and_a_welcome_are_read_as_written() {
        let hello = Hello { arena_bytes: 1 << 20, submissions: 8, completions: 9, spin: true };
        let bytes: [u8; HELLO_BYTES] = hello.encode().try_into().unwrap();
        assert_eq!(Hello::parse(&bytes), Ok(hello));
        let welcome = Welcome { total_bytes: 4096, refusal_bytes: 0, spin: false };
        let bytes: [u8; WELCOME_BYTES] = welcome.encode().try_into().unwrap();
        assert_eq!(Welcome::parse(&bytes), Ok(welcome));
    }

    #[test]
    fn another_version_is_told() {
        let hello = Hello { arena_bytes: 1, submissions: 1, completions: 1, spin: false };
        let mut bytes: [u8; HELLO_BYTES] = hello.encode().try_into().unwrap();
        bytes[8] = 9;
        let error = Hello::parse(&bytes).unwrap_err().to_string();
        assert_eq!(error, "the client's hello: expected version 1 of the ring, got 9");
        bytes[0] = b'G';
        assert!(Hello::parse(&bytes).unwrap_err().to_string().contains("magic"));
    }
}
