use std::{os::fd::OwnedFd, sync::Arc};

use nereid_ring::{Header, Malformed, Memory, MemoryError, Span};

use super::{
    pool::{BufferPool, Exhausted, Reservation},
    view::{ClientMemory, ClientView},
};

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

/// Bytes of a client's arena.
pub type RingView = ClientView<RingMemory>;

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
        Ok(RingView::new(self.clone(), at, span.length as usize))
    }
}

impl ClientMemory for RingMemory {
    fn pointer(&self, at: usize, len: usize) -> *mut u8 {
        self.memory.pointer(at, len)
    }

    fn name(&self) -> &str {
        "ring"
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
        drop(memory);
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
