use std::{
    io,
    ops::{Deref, DerefMut},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use crossbeam_queue::ArrayQueue;
use memmap2::MmapRaw;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::gather::Destination;
use crate::inference::Error;

/// Buffers are aligned to this: the widest vector registers and a cache line.
const ALIGNMENT: usize = 64;
/// The smallest class of the arena; whatever is smaller takes one of these.
const CLASS_MIN: usize = 4 << 10;
/// The largest class of the arena; whatever is larger comes from the heap.
const CLASS_MAX: usize = 64 << 20;
const CLASSES: usize = (CLASS_MAX / CLASS_MIN).ilog2() as usize + 1;

/// A bounded supply of tensor memory: an arena on a memfd, which can be pinned and handed to other
/// processes, and the heap when the arena is used up or a buffer too large for it. Both are charged
/// against one budget.
///
/// The arena is cut into power-of-two blocks on demand; a block that comes back serves its own size
/// again. Taking and giving back is lock-free and can happen on any thread.
#[derive(Clone)]
pub struct BufferPool(Arc<Inner>);

struct Inner {
    arena: MmapRaw,
    file: OwnedFd,
    /// Bytes of the arena that have been cut into blocks.
    cut: AtomicUsize,
    /// Offsets of free blocks, by class.
    free: [ArrayQueue<usize>; CLASSES],
    used: AtomicUsize,
    budget: usize,
}

/// The budget is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a buffer of {asked} bytes would pass the budget of {budget} bytes, of which {used} are in use"
)]
pub struct Exhausted {
    /// The bytes asked for.
    pub asked: usize,
    /// The bytes in use.
    pub used: usize,
    /// The most bytes that may be in use.
    pub budget: usize,
}

impl From<Exhausted> for Error {
    fn from(exhausted: Exhausted) -> Self {
        Self::OutOfBudget { limit: exhausted.budget }
    }
}

impl BufferPool {
    /// Reserves an arena of `arena_bytes`, whose pages are taken only as they are used, and allows
    /// `budget_bytes` in arena and heap together.
    ///
    /// # Errors
    /// When the system refuses the memory.
    pub fn new(arena_bytes: usize, budget_bytes: usize) -> io::Result<Self> {
        let file =
            memfd_create("nereid-arena", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let arena_bytes = arena_bytes.next_multiple_of(CLASS_MIN).max(CLASS_MIN);
        nix::unistd::ftruncate(&file, i64::try_from(arena_bytes).map_err(io::Error::other)?)?;
        let arena = MmapRaw::map_raw(&file)?;
        let free = std::array::from_fn(|class| {
            ArrayQueue::new((arena_bytes / (CLASS_MIN << class)).max(1))
        });
        Ok(Self(Arc::new(Inner {
            arena,
            file,
            cut: AtomicUsize::new(0),
            free,
            used: AtomicUsize::new(0),
            budget: budget_bytes,
        })))
    }

    /// A buffer of exactly `len` bytes, whose contents are whatever was there.
    ///
    /// # Errors
    /// When the budget is used up.
    pub fn allocate(&self, len: usize) -> Result<Buffer, Exhausted> {
        let inner = &self.0;
        inner.charge(len)?;
        let place = match inner.take_block(len) {
            Some(offset) => Place::Arena { offset },
            None => Place::Heap { block: HeapBlock::new(len) },
        };
        Ok(Buffer { pool: self.clone(), len, place })
    }

    /// A charge against the budget, of nothing yet, for memory that was not taken from the pool.
    pub fn reservation(&self) -> Reservation {
        Reservation { pool: self.clone(), bytes: 0 }
    }

    /// Bytes of all buffers and reservations that are alive.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// The size of the arena.
    pub fn arena_bytes(&self) -> usize {
        self.0.arena.len()
    }

    /// Where the arena lies, to pin it. It stays there as long as the pool.
    pub fn arena_address(&self) -> NonNull<u8> {
        NonNull::new(self.0.arena.as_mut_ptr()).unwrap_or(NonNull::dangling())
    }

    /// The most bytes that may be in use.
    pub fn budget(&self) -> usize {
        self.0.budget
    }

    /// The file behind the arena, to pin it or to hand it to another process.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.0.file.as_fd()
    }
}

impl Inner {
    fn charge(&self, len: usize) -> Result<(), Exhausted> {
        let used = self.used.fetch_add(len, Ordering::Relaxed);
        if used.saturating_add(len) > self.budget {
            self.used.fetch_sub(len, Ordering::Relaxed);
            return Err(Exhausted { asked: len, used, budget: self.budget });
        }
        Ok(())
    }

    fn take_block(&self, len: usize) -> Option<usize> {
        let class = class_of(len)?;
        if let Some(offset) = self.free[class].pop() {
            return Some(offset);
        }
        let size = CLASS_MIN << class;
        self.cut
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |cut| {
                let end = cut.checked_add(size)?;
                (end <= self.arena.len()).then_some(end)
            })
            .ok()
    }

    fn give_block(&self, offset: usize, len: usize) {
        let class = class_of(len).expect("a block of the arena has a class");
        let returned = self.free[class].push(offset);
        debug_assert!(returned.is_ok(), "a class never has more blocks than its queue has places");
    }
}

/// The class whose blocks hold `len` bytes; `None` when none does.
fn class_of(len: usize) -> Option<usize> {
    if len > CLASS_MAX {
        return None;
    }
    let size = len.max(CLASS_MIN).next_power_of_two();
    Some((size / CLASS_MIN).ilog2() as usize)
}

/// Bytes that are charged against a pool's budget though they lie elsewhere, such as in the buffers
/// that a request was received in. Dropping it gives them back.
pub struct Reservation {
    pool: BufferPool,
    bytes: usize,
}

impl Reservation {
    /// Charges `bytes` more.
    ///
    /// # Errors
    /// When the budget is used up.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Exhausted> {
        self.pool.0.charge(bytes)?;
        self.bytes += bytes;
        Ok(())
    }

    /// What is charged.
    pub fn pool(&self) -> &BufferPool {
        &self.pool
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.pool.0.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Memory with one owner, who may write it.
pub struct Buffer {
    pool: BufferPool,
    len: usize,
    place: Place,
}

enum Place {
    Arena { offset: usize },
    Heap { block: HeapBlock },
}

impl Buffer {
    /// Shares the memory read-only; the last reference gives it back.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }

    fn pointer(&self) -> NonNull<u8> {
        match &self.place {
            Place::Arena { offset } => {
                // SAFETY: `take_block` gave out `offset`, which with the block's length lies inside
                // the mapping, and the pool that this buffer holds keeps the mapping alive.
                unsafe { NonNull::new_unchecked(self.pool.0.arena.as_mut_ptr().add(*offset)) }
            }
            Place::Heap { block } => block.pointer,
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the block is at least `len` bytes, initialised (the kernel zeroes the arena, the
        // heap block is allocated zeroed), and only this buffer refers to it.
        unsafe { std::slice::from_raw_parts(self.pointer().as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.pointer().as_ptr(), self.len) }
    }
}

impl Destination for Buffer {
    fn size(&self) -> usize {
        self.len
    }

    unsafe fn write(&self, at: usize, bytes: &[u8]) {
        // SAFETY: the caller says that the range lies inside and is nobody else's, so it cannot
        // overlap `bytes`; the pointer comes from the mapping or the allocator, not from a reference.
        unsafe {
            let target = self.pointer().as_ptr().add(at);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len());
        }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Place::Arena { offset } = self.place {
            self.pool.0.give_block(offset, self.len);
        }
        self.pool.0.used.fetch_sub(self.len, Ordering::Relaxed);
    }
}

/// Aligned heap memory for what the arena cannot hold.
struct HeapBlock {
    pointer: NonNull<u8>,
    layout: std::alloc::Layout,
}

impl HeapBlock {
    fn new(len: usize) -> Self {
        let layout = std::alloc::Layout::from_size_align(len.max(1), ALIGNMENT)
            .expect("the budget keeps lengths far below isize::MAX");
        // SAFETY: the layout is not empty.
        let pointer = unsafe { std::alloc::alloc_zeroed(layout) };
        let pointer =
            NonNull::new(pointer).unwrap_or_else(|| std::alloc::handle_alloc_error(layout));
        Self { pointer, layout }
    }
}

impl Drop for HeapBlock {
    fn drop(&mut self) {
        // SAFETY: `new` allocated the pointer with this very layout, and nobody else frees it.
        unsafe { std::alloc::dealloc(self.pointer.as_ptr(), self.layout) };
    }
}

// SAFETY: the block is plain memory with one owner; nothing ties it to a thread.
unsafe impl Send for HeapBlock {}
// SAFETY: shared access only reads.
unsafe impl Sync for HeapBlock {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_reused_and_the_budget_is_given_back() {
        let pool = BufferPool::new(1 << 20, 1 << 20).unwrap();
        let first = pool.allocate(5000).unwrap();
        let address = first.pointer();
        assert_eq!(address.as_ptr() as usize % ALIGNMENT, 0);
        drop(first);
        assert_eq!(pool.used(), 0);
        let again = pool.allocate(6000).unwrap();
        assert_eq!(again.pointer(), address);
    }

    #[test]
    fn what_the_arena_cannot_hold_comes_from_the_heap() {
        let pool = BufferPool::new(8 << 10, 1 << 20).unwrap();
        let buffers: Vec<_> = (0..4).map(|_| pool.allocate(4096).unwrap()).collect();
        let heap = buffers.iter().filter(|buffer| matches!(buffer.place, Place::Heap { .. }));
        assert_eq!(heap.count(), 2);
        assert_eq!(pool.used(), 4 * 4096);
    }

    #[test]
    fn over_budget_is_refused_with_the_figures() {
        let pool = BufferPool::new(1 << 20, 10_000).unwrap();
        let held = pool.allocate(6_000).unwrap().freeze();
        let refused = pool.allocate(6_000).err();
        assert_eq!(refused, Some(Exhausted { asked: 6_000, used: 6_000, budget: 10_000 }));
        drop(held);
        assert!(pool.allocate(6_000).is_ok());
    }

    #[test]
    fn a_reservation_counts_until_it_is_dropped() {
        let pool = BufferPool::new(1 << 20, 100).unwrap();
        let mut reservation = pool.reservation();
        reservation.grow(60).unwrap();
        assert_eq!(reservation.grow(60), Err(Exhausted { asked: 60, used: 60, budget: 100 }));
        assert_eq!(pool.used(), 60);
        drop(reservation);
        assert_eq!(pool.used(), 0);
    }

    #[test]
    fn a_frozen_buffer_keeps_its_bytes_until_the_last_slice_is_gone() {
        let pool = BufferPool::new(1 << 20, 1 << 20).unwrap();
        let mut buffer = pool.allocate(8).unwrap();
        buffer.copy_from_slice(b"triton!!");
        let bytes = buffer.freeze();
        let tail = bytes.slice(6..);
        drop(bytes);
        assert_eq!(pool.used(), 8);
        assert_eq!(&tail[..], b"!!");
        drop(tail);
        assert_eq!(pool.used(), 0);
    }
}
