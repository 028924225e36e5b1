//! Reading protobuf: the outermost message off a [`Rope`] without joining its pieces, what is nested in
//! it off a slice.

use bytes::{Buf, Bytes};
use prost::encoding::{WireType, decode_key, decode_varint};

use crate::inference::{Error, Rope};

/// An outermost message that is being read field by field.
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
        next_field(self)
    }

    /// A length-delimited field's bytes, sharing the pieces they lie in.
    pub fn delimited(&mut self, wire_type: WireType) -> Result<Rope, Error> {
        let len = self.delimited_len(wire_type)?;
        Ok(self.take(len))
    }

    /// What `read` makes of a nested message. Only one that lies across pieces is copied for it.
    pub fn nested<T>(
        &mut self,
        wire_type: WireType,
        read: impl FnOnce(Fields<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let len = self.delimited_len(wire_type)?;
        match self.current.get(..len) {
            Some(bytes) => {
                let read = read(Fields(bytes))?;
                self.advance(len);
                Ok(read)
            }
            None => read(Fields(&self.take(len).into_bytes())),
        }
    }

    /// A string; `what` names it in the error when it is not UTF-8.
    pub fn string<T>(&mut self, wire_type: WireType, what: &str) -> Result<T, Error>
    where
        T: for<'a> From<&'a str>,
    {
        self.nested(wire_type, |bytes| utf8(bytes.0, what).map(T::from))
    }

    /// Passes over a field that we do not know.
    pub fn skip(&mut self, wire_type: WireType) -> Result<(), Error> {
        match wire_type {
            WireType::LengthDelimited => self.delimited(wire_type).map(drop),
            _ => skip_scalar(self, wire_type),
        }
    }

    fn delimited_len(&mut self, wire_type: WireType) -> Result<usize, Error> {
        delimited_len(self, wire_type)
    }

    /// The next `len` bytes, of which there are so many.
    fn take(&mut self, len: usize) -> Rope {
        let mut rope = Rope::default();
        let mut missing = len;
        while missing > 0 {
            let step = missing.min(self.current.len());
            rope.push(self.current.split_to(step));
            missing -= step;
            self.refill();
        }
        self.remaining -= len;
        rope
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

/// A nested message that is being read field by field.
#[derive(Clone, Copy)]
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// The bytes that are left.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }

    /// The next field's number and wire type, or `None` at the end.
    pub fn next_field(&mut self) -> Result<Option<(u32, WireType)>, Error> {
        next_field(&mut self.0)
    }

    /// The next varint, without a field's key in front.
    pub fn varint(&mut self) -> Result<u64, Error> {
        decode_varint(&mut self.0).map_err(malformed)
    }

    /// A message in this one.
    pub fn message(&mut self, wire_type: WireType) -> Result<Fields<'a>, Error> {
        let len = delimited_len(&mut self.0, wire_type)?;
        let (message, rest) = self.0.split_at(len);
        self.0 = rest;
        Ok(Fields(message))
    }

    /// A string; `what` names it in the error when it is not UTF-8.
    pub fn string(&mut self, wire_type: WireType, what: &str) -> Result<&'a str, Error> {
        utf8(self.message(wire_type)?.0, what)
    }

    /// A scalar that travels as a varint.
    pub fn scalar(&mut self, wire_type: WireType) -> Result<u64, Error> {
        expect(WireType::Varint, wire_type)?;
        self.varint()
    }

    /// A scalar of eight bytes.
    pub fn fixed64(&mut self, wire_type: WireType) -> Result<u64, Error> {
        expect(WireType::SixtyFourBit, wire_type)?;
        self.0.try_get_u64_le().map_err(|_| too_short(8, self.0.len()))
    }

    /// Passes over a field that we do not know.
    pub fn skip(&mut self, wire_type: WireType) -> Result<(), Error> {
        match wire_type {
            WireType::LengthDelimited => self.message(wire_type).map(drop),
            _ => skip_scalar(&mut self.0, wire_type),
        }
    }
}

fn next_field(from: &mut impl Buf) -> Result<Option<(u32, WireType)>, Error> {
    if !from.has_remaining() {
        return Ok(None);
    }
    decode_key(from).map(Some).map_err(malformed)
}

/// The length in front of a length-delimited field, of which so many bytes are there.
fn delimited_len(from: &mut impl Buf, wire_type: WireType) -> Result<usize, Error> {
    expect(WireType::LengthDelimited, wire_type)?;
    let len = decode_varint(from).map_err(malformed)?;
    match usize::try_from(len) {
        Ok(len) if len <= from.remaining() => Ok(len),
        _ => Err(too_short(len, from.remaining())),
    }
}

fn skip_scalar(from: &mut impl Buf, wire_type: WireType) -> Result<(), Error> {
    let len = match wire_type {
        WireType::Varint => return decode_varint(from).map(drop).map_err(malformed),
        WireType::SixtyFourBit => 8,
        WireType::ThirtyTwoBit => 4,
        _ => {
            return Err(Error::malformed(
                "malformed request message: a group, which proto3 has not",
            ));
        }
    };
    if len > from.remaining() {
        return Err(too_short(len as u64, from.remaining()));
    }
    from.advance(len);
    Ok(())
}

fn utf8<'a>(bytes: &'a [u8], what: &str) -> Result<&'a str, Error> {
    std::str::from_utf8(bytes).map_err(|_| Error::malformed(format!("{what} is not valid UTF-8")))
}

fn too_short(len: u64, left: usize) -> Error {
    Error::malformed(format!(
        "malformed request message: a field of {len} bytes where only {left} are left"
    ))
}

fn expect(expected: WireType, got: WireType) -> Result<(), Error> {
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
