/// Ends the process without what its libraries have registered for its end, which must not run while a
/// thread is still inside of one of them.
pub fn end_at_once(is_success: bool) -> ! {
    // SAFETY: `_exit` takes any status, touches no memory of this process and does not return.
    unsafe { libc::_exit(i32::from(!is_success)) }
}
