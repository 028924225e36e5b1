//! Reading protobuf off a [`Rope`] without joining its pieces.

use bytes::{Buf, Bytes};
use compact_str::CompactString;
use prost::encoding::{WireType, decode_key, decode_varint};

use crate::inference::{Error, Rope};

/// A protobuf message, or a part of one, that is being read field by field.
pub struct WireReader {
    pieces: smallvec::IntoIter<[Bytes; 1]>,
    current: Bytes,
    remaining: usize,
}

impl WireReader {
    pub fn new(message: Rope) -> Self {
        let remaining = message.len();
        let mut pieces = message.into_pieces();
        let current = pieces.next().unwrap_or_default();
        Self { pieces, current, remaining }
    }

    /// The next field's number and wire type, or `None` at the end.
    pub fn next_field(&mut self) -> Result<Option<(u32, WireType)>, Error> {
        if self.remaining == 0 {
            return Ok(None);
        }
        let (number, wire_type) = decode_key(self).map_err(malformed)?;
        Ok(Some((number, wire_type)))
    }

    pub fn varint(&mut self) -> Result<u64, Error> {
        decode_varint(self).map_err(malformed)
    }

    /// The next `len` bytes, sharing the pieces they lie in.
    pub fn take(&mut self, len: usize) -> Result<Rope, Error> {
        if len > self.remaining {
            return Err(Error::malformed(format!(
                "malformed request message: a field of {len} bytes where only {} are left",
                self.remaining
            )));
        }
        let mut rope = Rope::default();
        let mut missing = len;
        while missing > 0 {
            let step = missing.min(self.current.len());
            rope.push(self.current.split_to(step));
            missing -= step;
            self.refill();
        }
        self.remaining -= len;
        Ok(rope)
    }

    /// A length-delimited field's bytes.
    pub fn delimited(&mut self, wire_type: WireType) -> Result<Rope, Error> {
        expect(WireType::LengthDelimited, wire_type)?;
        let len = self.varint()?;
        self.take(usize::try_from(len).unwrap_or(usize::MAX))
    }

    /// A nested message.
    pub fn message(&mut self, wire_type: WireType) -> Result<WireReader, Error> {
        self.delimited(wire_type).map(WireReader::new)
    }

    /// A string; `what` names it in the error when it is not UTF-8.
    pub fn string(&mut self, wire_type: WireType, what: &str) -> Result<CompactString, Error> {
        let bytes = self.delimited(wire_type)?.into_bytes();
        let text = std::str::from_utf8(&bytes)
            .map_err(|_| Error::malformed(format!("{what} is not valid UTF-8")))?;
        Ok(CompactString::from(text))
    }

    /// A scalar that travels as a varint.
    pub fn scalar(&mut self, wire_type: WireType) -> Result<u64, Error> {
        expect(WireType::Varint, wire_type)?;
        self.varint()
    }

    pub fn fixed64(&mut self, wire_type: WireType) -> Result<u64, Error> {
        expect(WireType::SixtyFourBit, wire_type)?;
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.take(8)?.into_bytes());
        Ok(u64::from_le_bytes(bytes))
    }

    /// Passes over a field that we do not know.
    pub fn skip(&mut self, wire_type: WireType) -> Result<(), Error> {
        match wire_type {
            WireType::Varint => self.varint().map(drop),
            WireType::SixtyFourBit => self.take(8).map(drop),
            WireType::ThirtyTwoBit => self.take(4).map(drop),
            WireType::LengthDelimited => self.delimited(wire_type).map(drop),
            WireType::StartGroup | WireType::EndGroup => {
                Err(Error::malformed("malformed request message: a group, which proto3 has not"))
            }
        }
    }

    fn refill(&mut self) {
        if self.current.is_empty()
            && let Some(next) = self.pieces.next()
        {
            self.current = next;
        }
    }
}

/// What prost's decoders read from.
impl Buf for WireReader {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        &self.current
    }

    fn advance(&mut self, mut count: usize) {
        self.remaining -= count;
        while count > 0 {
            let step = count.min(self.current.len());
            self.current.advance(step);
            count -= step;
            self.refill();
        }
    }
}

pub fn expect(expected: WireType, got: WireType) -> Result<(), Error> {
    if expected == got {
        return Ok(());
    }
    Err(Error::malformed(format!(
        "malformed request message: expected wire type {expected:?}, got {got:?}"
    )))
}

pub fn malformed(error: prost::DecodeError) -> Error {
    Error::malformed(format!("malformed request message: {error}"))
}
