/// How much freed memory each of the C library's arenas keeps for the next allocation.
#[cfg(target_env = "gnu")]
const KEPT_BYTES: libc::c_int = 64 << 20;

/// Allocations from here on get pages of their own, which the system takes back at once. It is the
/// most that the C library allows.
#[cfg(target_env = "gnu")]
const OWN_PAGES_BYTES: libc::c_int = 32 << 20;

/// Keeps freed memory in the process. Receive buffers of large tensors come and go with each request;
/// by default the C library gives their pages back and faults them in again: with 600 KB tensors, 8
/// in flight, that took up to half of the server's time.
pub fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_TRIM_THRESHOLD, KEPT_BYTES), (libc::M_MMAP_THRESHOLD, OWN_PAGES_BYTES)]
    {
        // SAFETY: both parameters take any size, and the call locks what it changes.
        if unsafe { libc::mallopt(parameter, value) } == 0 {
            log::debug!("the C library does not take {value} for its parameter {parameter}");
        }
    }
}
