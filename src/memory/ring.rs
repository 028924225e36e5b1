use std::{fmt, os::fd::OwnedFd, sync::Arc};

use bytes::Bytes;
use nereid_ring::{Header, Malformed, Memory, MemoryError, Span};

use super::pool::{BufferPool, Exhausted, Reservation};

/// The memory that one client of the ring shares with the server. It is charged to the budget until
/// the last request that reads from it has ended, whether the client is still there or not.
pub struct RingMemory {
    /// Where what lies in it. The client cannot change this copy.
    pub header: Header,
    memory: Memory,
    _charge: Reservation,
}

/// Why a client gets no memory.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum RingMemoryError {
    #[error("{0}")]
    Budget(#[from] Exhausted),
    #[error("{0}")]
    System(#[from] MemoryError),
}

/// Bytes of a client's arena, for as long as they are held.
#[derive(Clone)]
pub struct RingView {
    memory: Arc<RingMemory>,
    at: usize,
    len: usize,
}

impl RingMemory {
    /// Makes the memory, with its header at the beginning, and the descriptor that the client is given.
    ///
    /// # Errors
    /// When the budget is used up, or the system refuses.
    pub fn create(
        header: Header,
        pool: &BufferPool,
    ) -> Result<(Arc<Self>, OwnedFd), RingMemoryError> {
        let bytes = usize::try_from(header.total_bytes).unwrap_or(usize::MAX);
        let mut charge = pool.reservation();
        charge.grow(bytes)?;
        let (memory, file) = Memory::create(bytes)?;
        memory.write(0, &header.encode());
        Ok((Arc::new(Self { header, memory, _charge: charge }), file))
    }

    /// The memory as such: its words and entries.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Where in the arena bytes lie, if they do.
    pub fn span_of(&self, bytes: &[u8]) -> Option<Span> {
        let Header { arena_at, arena_bytes, .. } = self.header;
        let arena = self.memory.pointer(arena_at as usize, arena_bytes as usize).addr();
        let (offset, length) = (bytes.as_ptr().addr().checked_sub(arena)?, bytes.len());
        let is_inside = offset.checked_add(length)? <= arena_bytes as usize;
        is_inside.then_some(Span { offset: offset as u64, length: length as u64 })
    }

    /// The bytes of the arena that a client names.
    ///
    /// # Errors
    /// When they do not lie within the arena; `what` they are is told then.
    pub fn view(self: &Arc<Self>, what: &'static str, span: Span) -> Result<RingView, Malformed> {
        let at = self.header.arena_range(what, span)?;
        // It is at most the length of the map, which is a `usize`.
        Ok(RingView { memory: self.clone(), at, len: span.length as usize })
    }
}

impl RingView {
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
    pub fn in_place(&self) -> Bytes {
        Bytes::from_owner(self.clone())
    }

    /// The `len` bytes from `start` on, if they lie within.
    pub fn slice(&self, start: usize, len: usize) -> Option<Self> {
        let end = start.checked_add(len)?;
        (end <= self.len).then(|| Self { memory: self.memory.clone(), at: self.at + start, len })
    }

    /// Where the first of the bytes lies.
    pub(super) fn pointer(&self) -> *mut u8 {
        self.memory.memory.pointer(self.at, self.len)
    }

    /// A copy of the bytes, which the client cannot change any more.
    ///
    /// # Errors
    /// When the budget is used up.
    pub fn copied(&self, pool: &BufferPool) -> Result<Bytes, Exhausted> {
        let mut buffer = pool.allocate(self.len)?;
        self.memory.memory.read(self.at, &mut buffer);
        Ok(buffer.freeze())
    }

    /// Copies `bytes`, of which there are at most as many as the view has, to its start.
    ///
    /// # Panics
    /// When there are more.
    pub fn write(&self, bytes: &[u8]) {
        assert!(bytes.len() <= self.len, "more bytes than the view has");
        self.memory.memory.write(self.at, bytes);
    }
}

impl AsRef<[u8]> for RingView {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the view lies within the memory, which it keeps mapped, and whose seals keep its
        // pages. That the client may write meanwhile is told where the bytes are handed out.
        unsafe { std::slice::from_raw_parts(self.pointer(), self.len) }
    }
}

impl fmt::Debug for RingView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ring[{}..][..{}]", self.at, self.len)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_view_keeps_the_memory_and_its_charge() {
        let pool = BufferPool::new(1 << 20, 1 << 20).unwrap();
        let header = Header::plan(8, 8, 4096).unwrap();
        let (memory, _file) = RingMemory::create(header, &pool).unwrap();
        let span = Span { offset: 4000, length: 96 };
        let view = memory.view("a tensor", span).unwrap();
        view.write(b"left by the client");
        let error = memory.view("a tensor", Span { offset: 4001, length: 96 }).unwrap_err();
        let expected = "a tensor: expected bytes within the arena of 4096, got 96 from 4001 on";
        assert_eq!(error.to_string(), expected);
        let bytes = view.in_place();
        drop((memory, view));
        assert_eq!(pool.used() as u64, header.total_bytes);
        assert_eq!(&bytes[..18], b"left by the client");
        drop(bytes);
        assert_eq!(pool.used(), 0);
    }

    #[test]
    fn who_asks_for_more_than_the_budget_gets_nothing() {
        let pool = BufferPool::new(4096, 1 << 20).unwrap();
        let header = Header::plan(8, 8, 2 << 20).unwrap();
        let error = RingMemory::create(header, &pool).err().unwrap();
        assert!(error.to_string().contains("would pass the budget of 1048576"), "{error}");
        assert_eq!(pool.used(), 0);
    }
}
