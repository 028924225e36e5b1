//! Where tensors lie: arenas on memfd, buffers in them, and the budget that bounds all of it.
//!
//! A [`Buffer`] is written by one owner, then frozen into `Bytes`, which are shared by reference
//! count; the last reference gives the memory back to its pool. This room knows nothing of requests.

mod pool;

pub use pool::{Buffer, BufferPool, Exhausted, Reservation};

/// Pieces of the heap from this size on go back to the system as soon as they are free.
#[cfg(target_env = "gnu")]
const HEAP_PIECE_MAX: libc::c_int = 4 << 20;

/// Bounds what the C library keeps of the heap for each thread that ever freed memory. Left to itself
/// it learns from each large piece that it is given back, such as a model's weights, to keep twice as
/// much from then on, up to 64 MiB. Tensors do not lie there.
pub fn bound_free_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointers; the C library has its own lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, HEAP_PIECE_MAX);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 2 * HEAP_PIECE_MAX);
    }
}

/// Gives pages that are free in the heap back to the system: a model that is gone would go on costing
/// memory. Takes time, so not for reactors.
pub fn give_back_free_pages() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
