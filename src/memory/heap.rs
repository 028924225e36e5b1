//! How the C library keeps memory that was freed.

/// How much freed memory each of the C library's arenas keeps at its end for the next allocation.
#[cfg(target_env = "gnu")]
const KEPT_BYTES: libc::c_int = 64 << 20;

/// Pieces of the heap from this size on get pages of their own, which go back to the system as soon as
/// they are free: a model's weights, not the frames that a tensor arrives in.
#[cfg(target_env = "gnu")]
const OWN_PAGES_BYTES: libc::c_int = 4 << 20;

/// Fixes what the C library keeps of the heap. Receive buffers of large tensors come and go with each
/// request; left to itself it gives their pages back and faults them in again, which with 600 KB
/// tensors, 8 in flight, took up to half of the server's time.
pub fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_TRIM_THRESHOLD, KEPT_BYTES), (libc::M_MMAP_THRESHOLD, OWN_PAGES_BYTES)]
    {
        // SAFETY: it takes no pointers; the C library has its own lock.
        if unsafe { libc::mallopt(parameter, value) } == 0 {
            log::debug!("the C library does not take {value} for its parameter {parameter}");
        }
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
