//! Frames, in and out: their layout is in `python/README.md`.

use std::cell::UnsafeCell;

use pyo3::{create_exception, exceptions::PyException, prelude::*};

create_exception!(
    nereid_stub.native,
    Malformed,
    PyException,
    "A frame that is not of the described form."
);

/// The bytes before a frame's body.
pub const HEADER_BYTES: usize = 8;
/// More dimensions than a tensor can have.
pub const RANK_MAX: usize = 32;
/// Where a tensor's bytes are.
pub const INLINE: u8 = 0;
pub const OF_SENDER: u8 = 1;
pub const OF_RECEIVER: u8 = 2;

/// The body of a frame that came, aligned to 8 bytes. Arrays on it keep it alive.
#[pyclass(frozen)]
pub struct Frame {
    /// Models may write where their arrays lie.
    words: Box<[UnsafeCell<u64>]>,
    length: usize,
}

// SAFETY: what is read natively is read before a model sees an array, on one thread; after that it is NumPy's
// and the model's, as any other array.
unsafe impl Sync for Frame {}

impl Frame {
    /// A copy of a body.
    pub fn new(body: &[u8]) -> Self {
        let chunks = body.chunks(size_of::<u64>());
        let word = |chunk: &[u8]| {
            let mut word = [0; size_of::<u64>()];
            word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
            UnsafeCell::new(u64::from_ne_bytes(word))
        };
        Self { words: chunks.map(word).collect(), length: body.len() }
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        // SAFETY: there are at least so many bytes in the words, and any bytes are bytes.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.length) }
    }

    /// The address of a part of it, which is a model's to write; nothing here reads it again.
    pub fn data(&self, begin: usize) -> *mut u8 {
        self.words.as_ptr().cast::<u8>().wrapping_add(begin).cast_mut()
    }
}

/// Takes a frame's body apart.
pub struct Reader<'a> {
    body: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// From its beginning.
    pub fn new(body: &'a [u8]) -> Self {
        Self { body, at: 0 }
    }

    /// So many bytes.
    ///
    /// # Errors
    /// As of all others: when the body ends before.
    pub fn take(&mut self, length: usize) -> PyResult<&'a [u8]> {
        let end = self.at.saturating_add(length);
        let taken = self.body.get(self.at..end).ok_or_else(|| {
            Malformed::new_err(format!(
                "a frame of {} bytes ends where {length} more were expected at {}",
                self.body.len(),
                self.at
            ))
        })?;
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> PyResult<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    pub fn u8(&mut self) -> PyResult<u8> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub fn u16(&mut self) -> PyResult<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> PyResult<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> PyResult<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A short text's bytes.
    pub fn name(&mut self) -> PyResult<&'a [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }

    /// A text's bytes.
    pub fn text(&mut self) -> PyResult<&'a [u8]> {
        let length = self.u32()?;
        self.take(length as usize)
    }

    /// Where the next byte is, after zeroes up to a multiple of 8.
    pub fn aligned(&mut self) -> usize {
        self.at = self.at.next_multiple_of(8);
        self.at
    }
}

/// A text out of a frame.
///
/// # Errors
/// When it is none.
pub fn utf8(bytes: &[u8]) -> PyResult<&str> {
    str::from_utf8(bytes)
        .map_err(|error| Malformed::new_err(format!("a text is not UTF-8: {error}")))
}

/// Appends a frame whose body `write` appends.
pub fn frame(bytes: &mut Vec<u8>, kind: u8, write: impl FnOnce(&mut Vec<u8>)) {
    let start = begin(bytes, kind);
    write(bytes);
    end(bytes, start);
}

/// Begins a frame. Returns what [`end`] is to be given.
pub fn begin(bytes: &mut Vec<u8>, kind: u8) -> usize {
    let start = bytes.len();
    bytes.extend_from_slice(&[0, 0, 0, 0, kind, 0, 0, 0]);
    start
}

/// Ends a frame.
pub fn end(bytes: &mut Vec<u8>, start: usize) {
    align(bytes);
    let length = bytes.len() - start - HEADER_BYTES;
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
    if let Some(header) = bytes.get_mut(start..start + length.len()) {
        header.copy_from_slice(&length);
    }
}

/// Fills up to a multiple of 8.
pub fn align(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(8), 0);
}

/// Appends a short text.
///
/// # Errors
/// When it is too long for one.
pub fn put_name(bytes: &mut Vec<u8>, name: &str) -> PyResult<()> {
    let length = u16::try_from(name.len()).map_err(|_| {
        Malformed::new_err(format!(
            "a name has {} bytes, at most {} are possible",
            name.len(),
            u16::MAX
        ))
    })?;
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(name.as_bytes());
    Ok(())
}

/// Appends a text of any length.
pub fn put_text(bytes: &mut Vec<u8>, text: &[u8]) {
    bytes.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(text);
}
