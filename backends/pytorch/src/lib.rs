//! The library that links libtorch, so that the server need not: TorchScript modules behind the
//! table of C functions in `table.rs`, which the server loads at run time.
//!
//! Tensors and switches are tch's; `libtorch` adds what tch lacks, and what it does not give back:
//! values that it cannot convert, and arguments of a call that fails. Nothing of this library may
//! panic or throw into its caller: every function of the table ends in [`guarded`].
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

mod libtorch;
mod module;
mod switches;
// Each side uses its part.
#[allow(dead_code)]
#[path = "../../../src/backend/pytorch/table.rs"]
mod table;
mod values;

use std::{
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind},
};

use table::{Argument, Arguments, GpuMemory, Options, Outcome, Results, Table, Text, Value};
use tch::TchError;

/// The version of torch that tch 0.24 is made for.
const TORCH_VERSION: &str = "2.11.0";

/// Why a call failed.
struct Failure(String);

impl From<TchError> for Failure {
    fn from(error: TchError) -> Self {
        let text = match error {
            TchError::Torch(text) => text,
            other => other.to_string(),
        };
        // Behind it torch lists the frames of its own C++.
        let end = text.find("\nException raised from ").unwrap_or(text.len());
        Self(text[..end].trim().to_owned())
    }
}

/// The table; see [`table::Entry`].
#[unsafe(no_mangle)]
pub extern "C" fn nereid_pytorch_table() -> *const Table {
    static TABLE: Table = Table {
        version: table::VERSION,
        torch_version: TORCH_VERSION_TEXT,
        last_error,
        gpu_count,
        gpu_memory,
        inspect,
        free_arguments,
        load,
        free_module,
        forward,
        free_results,
    };
    &raw const TABLE
}

const TORCH_VERSION_TEXT: Text = Text { data: TORCH_VERSION.as_ptr(), len: TORCH_VERSION.len() };

thread_local! {
    static LAST_ERROR: RefCell<String> = const { RefCell::new(String::new()) };
}

unsafe extern "C" fn last_error() -> Text {
    LAST_ERROR.with_borrow(|text| Text { data: text.as_ptr(), len: text.len() })
}

unsafe extern "C" fn gpu_count() -> i32 {
    libtorch::gpu_count()
}

unsafe extern "C" fn gpu_memory(gpu: i32, out: *mut GpuMemory) -> Outcome {
    guarded(|| {
        let (reserved_bytes, allocated_bytes) = libtorch::gpu_memory(gpu)?;
        // SAFETY: the caller's place.
        unsafe { *out = GpuMemory { reserved_bytes, allocated_bytes } };
        Ok(())
    })
}

unsafe extern "C" fn inspect(path: Text, out: *mut *mut Arguments) -> Outcome {
    guarded(|| {
        // SAFETY: the caller's text.
        let found = libtorch::inspect(&unsafe { path.to_string() })?;
        let arguments = Box::new(Inspected::new(found));
        // SAFETY: the caller's place; the table's `Arguments` stand first in what is pointed to.
        unsafe { *out = Box::into_raw(arguments).cast() };
        Ok(())
    })
}

unsafe extern "C" fn free_arguments(arguments: *mut Arguments) {
    // SAFETY: `inspect` has made it, and this is its last use.
    drop(unsafe { Box::from_raw(arguments.cast::<Inspected>()) });
}

unsafe extern "C" fn load(
    path: Text,
    options: *const Options,
    out: *mut *mut table::Module,
) -> Outcome {
    guarded(|| {
        // SAFETY: the caller's text and options.
        let (path, options) = unsafe { (path.to_string(), *options) };
        let module = Box::new(module::Module::load(&path, options)?);
        // SAFETY: the caller's place.
        unsafe { *out = Box::into_raw(module).cast() };
        Ok(())
    })
}

unsafe extern "C" fn free_module(module: *mut table::Module) {
    // What torch throws here has nobody to go to.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: `load` has made it, and this is its last use.
        drop(unsafe { Box::from_raw(module.cast::<module::Module>()) });
        libtorch::empty_host_memory();
        if libtorch::gpu_count() > 0 {
            let _ = libtorch::empty_cache();
        }
    }));
}

unsafe extern "C" fn forward(
    module: *const table::Module,
    inputs: *const Value,
    inputs_len: usize,
    out: *mut *mut Results,
) -> Outcome {
    let inputs = match inputs_len {
        // Then there need be no pointer.
        0 => Vec::new(),
        // SAFETY: the caller's array.
        _ => unsafe { std::slice::from_raw_parts(inputs, inputs_len) }.to_vec(),
    };
    guarded(|| {
        // SAFETY: `load` has made the module.
        let module = unsafe { &*module.cast::<module::Module>() };
        let results = module.forward(inputs)?;
        // SAFETY: the caller's place.
        unsafe { *out = results.as_ptr() };
        Ok(())
    })
}

unsafe extern "C" fn free_results(results: *mut Results) {
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: `forward` has made it, and this is its last use.
        unsafe { libtorch::free_results(results) };
    }));
}

/// The arguments of a `forward` with the strings that they point to.
#[repr(C)]
struct Inspected {
    // First, so that a pointer to one is a pointer to the other.
    arguments: Arguments,
    _list: Vec<Argument>,
    _found: libtorch::Forward,
}

impl Inspected {
    fn new(found: libtorch::Forward) -> Self {
        let list: Vec<Argument> = found
            .arguments
            .iter()
            .map(|argument| Argument {
                name: Text::of(&argument.name),
                type_name: Text::of(&argument.type_name),
                kind: argument.kind,
                has_default: argument.has_default,
                is_written: argument.is_written,
            })
            .collect();
        let arguments = Arguments {
            data: list.as_ptr(),
            len: list.len(),
            results: found.results.as_ptr(),
            results_len: found.results.len(),
            stateful: found.stateful,
        };
        Self { arguments, _list: list, _found: found }
    }
}

/// Runs the body of a function of the table; a failure is kept for `last_error`.
fn guarded(body: impl FnOnce() -> Result<(), Failure>) -> Outcome {
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return table::SUCCESS,
        Ok(Err(Failure(text))) => text,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            text.unwrap_or("it panicked without a message").to_owned()
        }
    };
    LAST_ERROR.set(failure);
    table::SUCCESS + 1
}
