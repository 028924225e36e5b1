//! Reading memory that a client may cut short under us.
//!
//! A page of a shared-memory object that was truncated after it was mapped raises SIGBUS when it is
//! touched, and so does one for which the system has no memory. The handler here finds the region in a
//! table without a lock, marks it and puts zero pages in the whole region's place; whoever used the region
//! asks for the mark afterwards. A fault elsewhere goes to whoever handled it before.

mod table;

use std::{io, sync::OnceLock};

use nix::{
    errno::Errno,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
};

use self::table::{Found, Table};

/// Regions that can be mapped at a time.
const REGIONS_MAX: usize = 1024;

static TABLE: Table<REGIONS_MAX> = Table::empty();

/// Who handled SIGBUS before.
static BEFORE: OnceLock<Result<SigAction, Errno>> = OnceLock::new();

/// Watches a mapped region for faults until it is dropped, which must be before it is unmapped.
#[derive(Debug)]
pub struct Watch(usize);

impl Watch {
    /// Watches the `len` bytes from the page that begins at `start` on.
    ///
    /// # Errors
    /// When too many regions are watched, or the system takes no handler.
    pub fn begin(start: usize, len: usize) -> io::Result<Self> {
        (*BEFORE.get_or_init(install))?;
        let slot = TABLE.put(start, len);
        let full = || io::Error::other(format!("{REGIONS_MAX} regions are registered already"));
        slot.map(Self).ok_or_else(full)
    }

    /// Whether a fault was met: what was read since then may be zeros.
    pub fn is_cut_short(&self) -> bool {
        TABLE.is_marked(self.0)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        TABLE.remove(self.0);
    }
}

/// Has [`on_fault`] handle SIGBUS, and tells who did before.
fn install() -> Result<SigAction, Errno> {
    let action = SigAction::new(
        SigHandler::SigAction(on_fault),
        SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK | SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    // SAFETY: the handler only reads statics, maps memory and calls the handler before it.
    unsafe { sigaction(Signal::SIGBUS, &action) }
}

extern "C" fn on_fault(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the system gives the handler of SIGBUS a valid description of the fault.
    let address = unsafe { (*info).si_addr() }.addr();
    let is_replaced = TABLE.find(address).is_some_and(replace);
    if !is_replaced {
        pass_on(signal, info, context);
    }
}

/// Puts zero pages in a region's place; `false` when the system has none.
fn replace(Found { slot, start, len }: Found) -> bool {
    // Before: other threads read zeros from here on without a fault of their own, and then ask for the mark.
    TABLE.mark(slot);
    // SAFETY: the region is mapped as long as its watch is, which whoever met the fault holds. Its
    // pages may be read and written before and after.
    let mapped = unsafe {
        libc::mmap(
            std::ptr::with_exposed_provenance_mut(start),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    mapped != libc::MAP_FAILED
}

/// Gives a fault that is not ours to the handler before, or lets it end the process.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let before = BEFORE.get().and_then(|before| before.as_ref().ok());
    match before.map(SigAction::handler) {
        Some(SigHandler::SigAction(handler)) => handler(signal, info, context),
        Some(SigHandler::Handler(handler)) => handler(signal),
        _ => {
            let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
            // SAFETY: the default action ends the process when the fault is met again.
            let _ = unsafe { sigaction(Signal::SIGBUS, &default) };
        }
    }
}
