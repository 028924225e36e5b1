//! Reading and writing little-endian records. Reading takes any bytes.

/// Bytes that are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: expected {expected}, got {got}")]
pub struct Malformed {
    /// The thing at fault.
    pub what: &'static str,
    /// What it should have been.
    pub expected: String,
    /// What it is.
    pub got: String,
}

impl Malformed {
    pub(crate) fn new(what: &'static str, expected: impl ToString, got: impl ToString) -> Self {
        Self { what, expected: expected.to_string(), got: got.to_string() }
    }
}

/// Takes fields off the front of some bytes.
pub(crate) struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
    taken: usize,
}

impl<'a> Reader<'a> {
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, rest: bytes, taken: 0 }
    }

    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let Some((front, rest)) = self.rest.split_at_checked(count) else {
            let expected = format!("{count} more bytes after the first {}", self.taken);
            return Err(Malformed::new(self.what, expected, self.rest.len()));
        };
        self.rest = rest;
        self.taken += count;
        Ok(front)
    }

    pub fn text(&mut self, count: usize) -> Result<&'a str, Malformed> {
        let bytes = self.bytes(count)?;
        std::str::from_utf8(bytes)
            .map_err(|_| Malformed::new(self.what, "a name in UTF-8", format!("{bytes:?}")))
    }

    /// Takes what is missing to a multiple of eight since the beginning.
    pub fn align(&mut self) -> Result<(), Malformed> {
        self.bytes(self.taken.next_multiple_of(8) - self.taken).map(|_| ())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    pub fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_le_bytes)
    }

    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn i64(&mut self) -> Result<i64, Malformed> {
        self.array().map(i64::from_le_bytes)
    }
}

/// Appends fields; lengths that a record cannot tell are refused at the end.
pub(crate) struct Writer<'a> {
    target: &'a mut Vec<u8>,
    start: usize,
    too_long: Option<Malformed>,
}

impl<'a> Writer<'a> {
    pub fn new(target: &'a mut Vec<u8>) -> Self {
        let start = target.len();
        Self { target, start, too_long: None }
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.target.extend_from_slice(bytes);
    }

    pub fn align(&mut self) {
        let written = self.target.len() - self.start;
        self.target.resize(self.start + written.next_multiple_of(8), 0);
    }

    pub fn u8(&mut self, value: u8) {
        self.bytes(&value.to_le_bytes());
    }

    pub fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    pub fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    pub fn i64(&mut self, value: i64) {
        self.bytes(&value.to_le_bytes());
    }

    /// A length of up to `most` in a field of two bytes.
    pub fn length16(&mut self, what: &'static str, length: usize, most: usize) {
        self.limit(what, length, most.min(usize::from(u16::MAX)));
        self.u16(u16::try_from(length).unwrap_or(u16::MAX));
    }

    /// A length in a field of one byte.
    pub fn length8(&mut self, what: &'static str, length: usize) {
        self.limit(what, length, usize::from(u8::MAX));
        self.u8(u8::try_from(length).unwrap_or(u8::MAX));
    }

    /// A length in a field of four bytes.
    pub fn length32(&mut self, what: &'static str, length: usize) {
        self.limit(what, length, u32::MAX as usize);
        self.u32(u32::try_from(length).unwrap_or(u32::MAX));
    }

    fn limit(&mut self, what: &'static str, length: usize, most: usize) {
        if length > most && self.too_long.is_none() {
            self.too_long = Some(Malformed::new(what, format!("at most {most}"), length));
        }
    }

    /// Writes how many bytes there are into the first four, and says whether all of it could be told.
    pub fn finish(self, what: &'static str, most: usize) -> Result<(), Malformed> {
        if let Some(too_long) = self.too_long {
            return Err(too_long);
        }
        let written = self.target.len() - self.start;
        let size = u32::try_from(written).ok().filter(|_| written <= most);
        let size =
            size.ok_or_else(|| Malformed::new(what, format!("at most {most} bytes"), written))?;
        if let Some(place) = self.target.get_mut(self.start..self.start + 4) {
            place.copy_from_slice(&size.to_le_bytes());
        }
        Ok(())
    }
}
