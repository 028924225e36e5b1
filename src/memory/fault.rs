//! Reading memory that a client may cut short under us.
//!
//! A page of a shared-memory object that was truncated after it was mapped raises SIGBUS when it is
//! touched. The handler here finds the region in a table without a lock, puts zero pages in the whole
//! region's place and marks it; whoever used the region asks for the mark afterwards. A fault
//! elsewhere goes to whoever handled it before.

use std::{
    io,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Regions that can be mapped at a time.
const SLOTS: usize = 1024;
/// In [`Slot::start`]: nobody has the slot.
const FREE: usize = 0;
/// In [`Slot::start`]: it is being filled in.
const TAKEN: usize = 1;

struct Slot {
    /// The region's address, or one of the above.
    start: AtomicUsize,
    len: AtomicUsize,
    is_cut_short: AtomicBool,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(FREE),
        len: AtomicUsize::new(0),
        is_cut_short: AtomicBool::new(false),
    }
}; SLOTS];

/// Who handled SIGBUS before.
static BEFORE: OnceLock<SigAction> = OnceLock::new();

/// Watches a mapped region for faults until it is dropped, which must be before it is unmapped.
#[derive(Debug)]
pub struct Watch(usize);

impl Watch {
    /// Watches the `len` bytes from the page that begins at `start` on.
    ///
    /// # Errors
    /// When too many regions are watched, or the system takes no handler.
    pub fn begin(start: usize, len: usize) -> io::Result<Self> {
        install()?;
        let free = TABLE.iter().position(|slot| {
            slot.start.compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok()
        });
        let index = free
            .ok_or_else(|| io::Error::other(format!("{SLOTS} regions are registered already")))?;
        let slot = &TABLE[index];
        slot.len.store(len, Ordering::Relaxed);
        slot.is_cut_short.store(false, Ordering::Relaxed);
        slot.start.store(start, Ordering::Release);
        Ok(Self(index))
    }

    /// Whether a fault was met: what was read since then may be zeros.
    pub fn is_cut_short(&self) -> bool {
        TABLE[self.0].is_cut_short.load(Ordering::Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        TABLE[self.0].start.store(FREE, Ordering::Release);
    }
}

fn install() -> io::Result<()> {
    if BEFORE.get().is_some() {
        return Ok(());
    }
    let action = SigAction::new(
        SigHandler::SigAction(on_fault),
        SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK | SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    // SAFETY: the handler only reads statics, maps memory and calls the handler before it.
    let before = unsafe { sigaction(Signal::SIGBUS, &action) }?;
    // A thread that was here at the same time has installed the same handler: the first is the one
    // that tells who came before.
    let _ = BEFORE.set(before);
    Ok(())
}

extern "C" fn on_fault(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the system gives the handler of SIGBUS a valid description of the fault.
    let address = unsafe { (*info).si_addr() }.addr();
    if !replace_region_at(address) {
        pass_on(signal, info, context);
    }
}

/// Puts zero pages in place of the region that holds `address`; `false` when there is none.
fn replace_region_at(address: usize) -> bool {
    for slot in &TABLE {
        let start = slot.start.load(Ordering::Acquire);
        let len = slot.len.load(Ordering::Relaxed);
        if start <= TAKEN || !(start..start.saturating_add(len)).contains(&address) {
            continue;
        }
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
        slot.is_cut_short.store(true, Ordering::Release);
        return mapped != libc::MAP_FAILED;
    }
    false
}

/// Gives a fault that is not ours to the handler before, or lets it end the process.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    match BEFORE.get().map(SigAction::handler) {
        Some(SigHandler::SigAction(handler)) => handler(signal, info, context),
        Some(SigHandler::Handler(handler)) => handler(signal),
        _ => {
            let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
            // SAFETY: the default action ends the process when the fault is met again.
            let _ = unsafe { sigaction(Signal::SIGBUS, &default) };
        }
    }
}
