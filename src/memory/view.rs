use std::{fmt, sync::Arc};

use bytes::Bytes;

use super::pool::{BufferPool, Exhausted};

/// Memory that a client shares with the server, mapped as long as it is held.
pub trait ClientMemory: Send + Sync + 'static {
    /// Where the bytes from `at` on lie, of which there are `len` within.
    fn pointer(&self, at: usize, len: usize) -> *mut u8;

    /// What it is called.
    fn name(&self) -> &str;
}

/// A part of a client's memory that lies within it, for as long as it is held.
pub struct ClientView<M> {
    memory: Arc<M>,
    at: usize,
    len: usize,
}

impl<M: ClientMemory> ClientView<M> {
    /// The `len` bytes from `at` on, which the caller has seen to lie within.
    pub(super) fn new(memory: Arc<M>, at: usize, len: usize) -> Self {
        Self { memory, at, len }
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes where they lie. The client can change them at any time, so nothing may rest on having
    /// looked at them before.
    pub fn in_place(self) -> Bytes {
        Bytes::from_owner(self)
    }

    /// The `len` bytes from `start` on, if they lie within.
    pub fn slice(&self, start: usize, len: usize) -> Option<Self> {
        let end = start.checked_add(len)?;
        (end <= self.len).then(|| Self::new(self.memory.clone(), self.at + start, len))
    }

    /// A copy of the bytes, which the client cannot change any more.
    ///
    /// # Errors
    /// When the budget is used up.
    pub fn copied(&self, pool: &BufferPool) -> Result<Bytes, Exhausted> {
        let mut buffer = pool.allocate(self.len)?;
        // SAFETY: the view lies within the memory, and the buffer is as long and apart from it. A client
        // that writes meanwhile gets a mixture of its own bytes.
        unsafe { std::ptr::copy_nonoverlapping(self.pointer(), buffer.as_mut_ptr(), self.len) };
        Ok(buffer.freeze())
    }

    /// Copies `bytes`, of which there are at most as many as the view has, to its start.
    ///
    /// # Panics
    /// When there are more.
    pub fn write(&self, bytes: &[u8]) {
        assert!(bytes.len() <= self.len, "more bytes than the view has");
        // SAFETY: the view lies within the memory, which may be written. The bytes may lie there too: then
        // they may overlap, which `copy` allows.
        unsafe { std::ptr::copy(bytes.as_ptr(), self.pointer(), bytes.len()) };
    }

    /// Whether `bytes` begin where the view does.
    pub fn begins_with(&self, bytes: &[u8]) -> bool {
        std::ptr::eq(bytes.as_ptr(), self.pointer())
    }

    /// Where the first of the bytes lies.
    pub(super) fn pointer(&self) -> *mut u8 {
        self.memory.pointer(self.at, self.len)
    }

    /// The memory that it is a part of.
    pub(super) fn memory(&self) -> &M {
        &self.memory
    }

    /// Where in the memory it begins.
    pub(super) fn at(&self) -> usize {
        self.at
    }
}

impl<M> Clone for ClientView<M> {
    fn clone(&self) -> Self {
        Self { memory: self.memory.clone(), at: self.at, len: self.len }
    }
}

impl<M: ClientMemory> AsRef<[u8]> for ClientView<M> {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the view lies within the memory, which it keeps mapped and which keeps its pages: those
        // of a ring are sealed, those of a region are replaced when the client takes them away. That the
        // client may write meanwhile is told where the bytes are handed out.
        unsafe { std::slice::from_raw_parts(self.pointer(), self.len) }
    }
}

impl<M: ClientMemory> fmt::Debug for ClientView<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}..][..{}]", self.memory.name(), self.at, self.len)
    }
}
