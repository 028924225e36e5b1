//! Where tensors lie: arenas on memfd, buffers in them, and the budget that bounds all of it.
//!
//! A [`Buffer`] is written by one owner, then frozen into `Bytes`, which are shared by reference
//! count; the last reference gives the memory back to its pool. This room knows nothing of requests.

mod pool;

pub use pool::{Buffer, BufferPool, Exhausted, Reservation};

/// Gives pages that are free in the process's heap back to the system. The C library keeps them
/// otherwise, for each thread that ever allocated, and a model that is gone would go on costing
/// memory. Takes time, so not for reactors.
pub fn give_back_free_pages() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
