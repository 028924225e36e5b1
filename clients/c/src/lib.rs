//! The client of the ring for C: `include/nereid_ring.h` says what each function does.
//!
//! Blocks of the arena are known by their addresses here; a request names them by pointers, and who
//! calls keeps them until the request is done.
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks, missing_docs)]

mod completed;
mod told;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    ffi::{CStr, CString, c_char, c_int, c_void},
    os::fd::{AsFd as _, AsRawFd as _},
    ptr,
    time::Duration,
};

use nereid_ring_client::{Block, Error, Options, Ring, Span};

use self::{
    completed::{CCompletion, Held},
    told::CRequest,
};

thread_local! {
    static ERROR: RefCell<CString> = RefCell::default();
}

/// A connection, its blocks by their addresses, and the completion that the caller looks at.
pub struct CRing {
    ring: Ring,
    blocks: BTreeMap<usize, Block>,
    held: Held,
}

/// `nrd_options`.
#[repr(C)]
pub struct COptions {
    arena_bytes: u64,
    requests: u32,
    spin: u32,
}

impl CRing {
    /// Where in the arena `bytes` bytes from an address on lie.
    fn span(&self, what: &str, start: *const c_void, bytes: usize) -> Result<Span, Error> {
        let address = start.addr();
        let found = self.blocks.range(..=address).next_back().and_then(|(first, block)| {
            let offset = block.span().offset + (address - first) as u64;
            let span = Span { offset, length: bytes as u64 };
            block.part(span).map(|_| span)
        });
        found.ok_or_else(|| Error::NotInBlocks { what: what.to_owned() })
    }

    /// Where in this process a part of the arena lies, if it lies in a block.
    fn address(&self, span: Span) -> Option<*const c_void> {
        self.blocks.values().find_map(|block| block.part(span)).map(|part| part.as_ptr().cast())
    }
}

fn fail(error: &impl ToString) -> c_int {
    let text = CString::new(error.to_string().replace('\0', " ")).unwrap_or_default();
    ERROR.with_borrow_mut(|last| *last = text);
    -1
}

fn outcome<T>(result: Result<T, Error>, value: impl FnOnce(T) -> c_int) -> c_int {
    result.map_or_else(|error| fail(&error), value)
}

/// Text of the caller's; an empty one for NULL.
///
/// # Safety
/// It is NULL or a C string that lives as long as `'a`.
unsafe fn text<'a>(pointer: *const c_char) -> Result<&'a str, Error> {
    if pointer.is_null() {
        return Ok("");
    }
    // SAFETY: the caller says so.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().map_err(|_| Error::NotAValue {
        what: "a text that is not UTF-8".to_owned(),
        got: format!("{text:?}"),
    })
}

/// Elements of the caller's; none for NULL.
///
/// # Safety
/// It is NULL or leads to `count` elements that live as long as `'a`.
unsafe fn elements<'a, T>(pointer: *const T, count: usize) -> &'a [T] {
    match pointer.is_null() {
        true => &[],
        // SAFETY: the caller says so.
        false => unsafe { std::slice::from_raw_parts(pointer, count) },
    }
}

/// See the header.
///
/// # Safety
/// `path` is a C string; `options` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrd_connect(path: *const c_char, options: *const COptions) -> *mut CRing {
    // SAFETY: the caller passes what the header says.
    let (path, told) = unsafe { (text(path), options.as_ref()) };
    let options = told.map_or_else(Options::default, |told| Options {
        arena_bytes: told.arena_bytes,
        requests: told.requests,
        spin: told.spin != 0,
    });
    match path.and_then(|path| Ring::connect(path, &options)) {
        Ok(ring) => {
            let (blocks, held) = (BTreeMap::new(), Held::default());
            Box::into_raw(Box::new(CRing { ring, blocks, held }))
        }
        Err(error) => {
            fail(&error);
            ptr::null_mut()
        }
    }
}

/// See the header.
///
/// # Safety
/// `ring` is NULL or from [`nrd_connect`], and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrd_close(ring: *mut CRing) {
    if !ring.is_null() {
        // SAFETY: `nrd_connect` made it, and the caller gives it up.
        drop(unsafe { Box::from_raw(ring) });
    }
}

/// See the header.
///
/// # Safety
/// As for [`nrd_allocate`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrd_hang_up(ring: *mut CRing) {
    // SAFETY: the caller says so.
    unsafe { &*ring }.ring.hang_up();
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn nrd_error() -> *const c_char {
    ERROR.with_borrow(|last| last.as_ptr())
}

/// See the header.
///
/// # Safety
/// `ring` is from [`nrd_connect`], and no other thread uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrd_allocate(ring: *mut CRing, bytes: usize) -> *mut c_void {
    // SAFETY: the caller says so.
    let ring = unsafe { &mut *ring };
    match ring.ring.allocate(bytes) {
        Ok(block) => {
            let address = block.address();
            ring.blocks.insert(address.addr(), block);
            address.cast()
        }
        Err(error) => {
            fail(&error);
            ptr::null_mut()
        }
    }
}

/// See the header.
///
/// # Safety
/// As for [`nrd_allocate`]; `memory` is NULL or from there, and no request in flight names it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrd_free(ring: *mut CRing, memory: *mut c_void) {
    // SAFETY: the caller says so.
    unsafe { &mut *ring }.blocks.remove(&memory.addr());
}

/// See the header.
///
/// # Safety
/// As for [`nrd_allocate`]; `request` and what it leads to is valid, its memory is left alone until its
/// last completion, and `token` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrd_submit(
    ring: *mut CRing,
    request: *const CRequest,
    token: *mut u64,
) -> c_int {
    // SAFETY: the caller says so.
    let (ring, told) = unsafe { (&mut *ring, &*request) };
    // SAFETY: the caller says that what it leads to is valid.
    let submitted = unsafe { told.read(ring) }.and_then(|request| {
        // SAFETY: the caller leaves the request's memory alone.
        unsafe { ring.ring.submit_lent(&request) }
    });
    outcome(submitted, |submitted| {
        if !token.is_null() {
            // SAFETY: the caller says that it can be written.
            unsafe { *token = submitted };
        }
        0
    })
}

/// See the header.
///
/// # Safety
/// As for [`nrd_allocate`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrd_wake(ring: *mut CRing) {
    // SAFETY: the caller says so.
    unsafe { &*ring }.ring.ring();
}

/// See the header.
///
/// # Safety
/// As for [`nrd_allocate`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrd_cancel(ring: *mut CRing, token: u64) -> c_int {
    // SAFETY: the caller says so.
    outcome(unsafe { &mut *ring }.ring.cancel(token), |()| 0)
}

/// See the header.
///
/// # Safety
/// As for [`nrd_allocate`]; `completion` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrd_next(
    ring: *mut CRing,
    patience_us: i64,
    completion: *mut CCompletion,
) -> c_int {
    // SAFETY: the caller says so.
    let ring = unsafe { &mut *ring };
    let next = match u64::try_from(patience_us) {
        Ok(0) => ring.ring.try_next(),
        Ok(patience) => ring.ring.next(Some(Duration::from_micros(patience))),
        Err(_) => ring.ring.next(None),
    };
    outcome(next, |next| {
        let Some(next) = next else { return 0 };
        let told = Held::new(&next, |span| ring.address(span));
        ring.held = told;
        // SAFETY: the caller says that it can be written.
        unsafe { *completion = ring.held.told(&next) };
        1
    })
}

/// See the header.
///
/// # Safety
/// As for [`nrd_allocate`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrd_in_flight(ring: *const CRing) -> usize {
    // SAFETY: the caller says so.
    unsafe { &*ring }.ring.in_flight()
}

/// See the header.
///
/// # Safety
/// As for [`nrd_allocate`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrd_descriptor(ring: *const CRing) -> c_int {
    // SAFETY: the caller says so.
    unsafe { &*ring }.ring.as_fd().as_raw_fd()
}

/// See the header.
///
/// # Safety
/// As for [`nrd_allocate`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrd_arm(ring: *mut CRing) -> c_int {
    // SAFETY: the caller says so.
    outcome(unsafe { &*ring }.ring.arm(), c_int::from)
}

/// See the header.
///
/// # Safety
/// As for [`nrd_allocate`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrd_hear(ring: *mut CRing) -> c_int {
    // SAFETY: the caller says so.
    outcome(unsafe { &*ring }.ring.hear(), |()| 0)
}
