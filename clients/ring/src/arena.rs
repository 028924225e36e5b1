//! Who has which bytes of the arena.

use std::{
    collections::BTreeMap,
    fmt,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError},
};

use nereid_ring::{Header, Memory, Span};

/// Blocks begin at multiples of this: a cache line, and enough for every vector register.
const ALIGNMENT: u64 = 64;

/// The mapped memory, and what of its arena is free.
pub struct Arena {
    pub memory: Memory,
    pub header: Header,
    /// Free bytes: how many begin where. No two of them touch.
    free: Mutex<BTreeMap<u64, u64>>,
}

/// Bytes of the arena that belong to whoever holds this.
pub struct Block {
    arena: Arc<Arena>,
    span: Span,
}

impl Arena {
    /// Of the arena, the bytes from `first` on are free.
    pub fn new(memory: Memory, header: Header, first: u64) -> Arc<Self> {
        let free = BTreeMap::from([(first, header.arena_bytes.saturating_sub(first))]);
        Arc::new(Self { memory, header, free: Mutex::new(free) })
    }

    /// The first free bytes in a row that are enough.
    pub fn allocate(self: &Arc<Self>, bytes: usize) -> Option<Block> {
        let length = bytes as u64;
        let taken = length.max(1).checked_next_multiple_of(ALIGNMENT)?;
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let (&offset, &room) = free.iter().find(|(_, room)| **room >= taken)?;
        free.remove(&offset);
        if room > taken {
            free.insert(offset + taken, room - taken);
        }
        Some(Block { arena: self.clone(), span: Span { offset, length } })
    }

    fn give_back(&self, span: Span) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut start, mut length) = (span.offset, span.length.max(1).next_multiple_of(ALIGNMENT));
        if let Some((&before, &room)) = free.range(..start).next_back()
            && before + room == start
        {
            free.remove(&before);
            (start, length) = (before, room + length);
        }
        if let Some(behind) = free.remove(&(start + length)) {
            length += behind;
        }
        free.insert(start, length);
    }
}

impl Block {
    /// Where it lies, as requests tell it.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Where it begins in this process.
    pub fn address(&self) -> *mut u8 {
        self.arena.memory.pointer(self.at(), self.len())
    }

    fn at(&self) -> usize {
        (self.arena.header.arena_at + self.span.offset) as usize
    }

    fn len(&self) -> usize {
        self.span.length as usize
    }

    /// The bytes of `span`, if they lie in this block.
    pub fn part(&self, span: Span) -> Option<&[u8]> {
        let start = usize::try_from(span.offset.checked_sub(self.span.offset)?).ok()?;
        let end = start.checked_add(usize::try_from(span.length).ok()?)?;
        self.get(start..end)
    }
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let start = self.arena.memory.pointer(self.at(), self.len());
        // SAFETY: the bytes lie within the mapping, which `arena` keeps, and belong to this block alone.
        // The server writes to them only while a request names them, and then the block is with the
        // request, whose answers do not lie over each other.
        unsafe { std::slice::from_raw_parts(start, self.len()) }
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [u8] {
        let start = self.arena.memory.pointer(self.at(), self.len());
        // SAFETY: as in `deref`, and `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(start, self.len()) }
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of the arena from {} on", self.span.length, self.span.offset)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.arena.give_back(self.span);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_is_joined_and_given_out_again() {
        let header = Header::plan(1, 1, 4096).unwrap();
        let (memory, _file) = Memory::create(header.total_bytes as usize).unwrap();
        let arena = Arena::new(memory, header, 64);
        let mut blocks: Vec<_> =
            [1, 64, 65, 0].into_iter().map(|bytes| arena.allocate(bytes).unwrap()).collect();
        let starts: Vec<_> = blocks.iter().map(|block| block.span().offset).collect();
        assert_eq!(starts, [64, 128, 192, 320]);
        blocks[1].fill(7);
        assert!(blocks[1].iter().all(|&byte| byte == 7) && blocks[0][0] == 0);
        let inner = Span { offset: 130, length: 2 };
        assert_eq!(blocks[1].part(inner), Some(&[7, 7][..]));
        assert_eq!(blocks[2].part(inner), None);
        assert!(arena.allocate(4096).is_none());
        for at in [1, 1, 0, 0] {
            blocks.remove(at);
        }
        assert_eq!(arena.allocate(4096 - 64).unwrap().span().offset, 64);
    }
}
