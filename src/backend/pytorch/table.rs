//! The table of C functions between the server and the library that links libtorch. Both sides
//! compile this very file: the back end `pytorch`, and the package in `backends/pytorch/`.
//!
//! Whatever changes here raises [`VERSION`]. The version stays the table's first field, so that it
//! can be read of any table.

use std::ffi::c_void;

/// The version of everything in this file.
pub const VERSION: u32 = 3;

/// The symbol of the function that returns the table, of type [`Entry`].
pub const ENTRY: &std::ffi::CStr = c"nereid_pytorch_table";

/// Returns the table, which lives as long as the process.
pub type Entry = unsafe extern "C" fn() -> *const Table;

/// What every function returns: [`SUCCESS`], or anything else for a failure that
/// [`Table::last_error`] tells.
pub type Outcome = i32;

/// The [`Outcome`] of a call that did what it should.
pub const SUCCESS: Outcome = 0;

/// The functions. All may be called from any thread, but one module by one thread at a time unless
/// its maker knows that its `forward` keeps nothing.
#[repr(C)]
pub struct Table {
    /// [`VERSION`] of the side that made the table.
    pub version: u32,
    /// The version of torch that the library was compiled for, such as `2.11.0`.
    pub torch_version: Text,
    /// Why the last call on this thread failed; valid until the next call on this thread.
    pub last_error: unsafe extern "C" fn() -> Text,
    /// The number of GPUs that torch can use; zero too where torch was built for the host alone.
    pub gpu_count: unsafe extern "C" fn() -> i32,
    /// What torch holds of a GPU's memory.
    pub gpu_memory: unsafe extern "C" fn(gpu: i32, memory: *mut GpuMemory) -> Outcome,
    /// Reads the arguments that the `forward` of a model file takes.
    pub inspect: unsafe extern "C" fn(path: Text, arguments: *mut *mut Arguments) -> Outcome,
    /// Gives back what [`inspect`](Self::inspect) returned.
    pub free_arguments: unsafe extern "C" fn(arguments: *mut Arguments),
    /// Loads a model file.
    pub load: unsafe extern "C" fn(
        path: Text,
        options: *const Options,
        module: *mut *mut Module,
    ) -> Outcome,
    /// Unloads a module.
    pub free_module: unsafe extern "C" fn(module: *mut Module),
    /// Calls `forward`. The inputs are its arguments in order or, where [`Options::dictionary`] was
    /// set, the entries of its only one. The call takes over each [`Value::owner`], even when it fails.
    pub forward: unsafe extern "C" fn(
        module: *const Module,
        inputs: *const Value,
        inputs_len: usize,
        results: *mut *mut Results,
    ) -> Outcome,
    /// Gives back what [`forward`](Self::forward) returned, the memory of its tensors included.
    pub free_results: unsafe extern "C" fn(results: *mut Results),
}

// SAFETY: nobody writes a table, and its text is as static as it is.
unsafe impl Sync for Table {}

/// What torch's caching allocator holds of a GPU's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GpuMemory {
    /// All that it has taken from the driver.
    pub reserved_bytes: u64,
    /// What of that tensors take.
    pub allocated_bytes: u64,
}

/// A module that has been loaded.
#[repr(C)]
pub struct Module {
    private: [u8; 0],
}

/// UTF-8 that somebody else owns.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Text {
    /// The first byte; anything when `len` is zero.
    pub data: *const u8,
    /// The number of bytes.
    pub len: usize,
}

/// How to load and run a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Options {
    /// A GPU by its ordinal, [`HOST`] or [`AS_SAVED`].
    pub device: i32,
    /// The CUDA handle of the stream that `forward` is to put its work on; arguments and results then lie in
    /// the GPU's memory, and nothing waits for the work. Zero for a call that gives and takes memory of
    /// the host, and waits.
    pub stream: u64,
    /// Whether `forward` gets copies of its arguments, because it may keep them for its next run.
    pub copied_arguments: bool,
    /// Whether the one argument of `forward` is a dictionary from names to tensors.
    pub dictionary: bool,
    /// Whether it runs in torch's inference mode.
    pub inference_mode: bool,
    /// Whether torch may optimise it.
    pub optimized_execution: bool,
    /// Whether torch gives unused memory of a GPU back after each run.
    pub cache_cleaning: bool,
    /// The threads that share the work of one operator; zero leaves torch's own choice.
    pub intra_op_threads: i32,
    /// The threads that share a module's forked tasks, of the whole process; zero leaves torch's own
    /// choice.
    pub inter_op_threads: i32,
    /// Switches of the whole process: on, off, or left as they are.
    pub tensor_fuser: Switch,
    /// As [`tensor_fuser`](Self::tensor_fuser).
    pub jit_profiling: Switch,
    /// As [`tensor_fuser`](Self::tensor_fuser).
    pub jit_executor: Switch,
    /// As [`tensor_fuser`](Self::tensor_fuser).
    pub cudnn: Switch,
}

/// [`Options::device`]: the host's processors.
pub const HOST: i32 = -1;
/// [`Options::device`]: each tensor of the module where it was when it was saved.
pub const AS_SAVED: i32 = -2;

/// A switch that may be left as it is: [`ON`], [`OFF`] or [`UNCHANGED`].
pub type Switch = i32;
/// See [`Switch`].
pub const OFF: Switch = 0;
/// See [`Switch`].
pub const ON: Switch = 1;
/// See [`Switch`].
pub const UNCHANGED: Switch = -1;

/// The arguments of a `forward`, without the module itself.
#[repr(C)]
pub struct Arguments {
    /// The first of them.
    pub data: *const Argument,
    /// Their number.
    pub len: usize,
    /// What its results are, each one of the `KIND_…`; none where the file does not tell their number.
    pub results: *const u32,
    /// The number of results.
    pub results_len: usize,
    /// Whether `forward` may keep something from one run to the next.
    pub stateful: bool,
}

/// One argument of a `forward`.
#[repr(C)]
pub struct Argument {
    /// Its name.
    pub name: Text,
    /// Its type in TorchScript's words, such as `Tensor` or `Dict[str, Tensor]`.
    pub type_name: Text,
    /// Its type: one of the `KIND_…`.
    pub kind: u32,
    /// Whether it can be left out.
    pub has_default: bool,
    /// Whether `forward` may write into the tensor that it is given.
    pub is_written: bool,
}

/// None of those below.
pub const KIND_OTHER: u32 = 0;
/// A tensor; of an argument, one that may be none, too.
pub const KIND_TENSOR: u32 = 1;
/// A list of strings.
pub const KIND_STRINGS: u32 = 2;
/// A dictionary from strings to tensors.
pub const KIND_DICTIONARY: u32 = 3;
/// An integer; its value has the eight bytes of an `i64`.
pub const KIND_INTEGER: u32 = 4;
/// A floating-point number; its value has the eight bytes of an `f64`.
pub const KIND_NUMBER: u32 = 5;
/// A truth value; its value has one byte.
pub const KIND_BOOLEAN: u32 = 6;

/// An argument or a result of `forward`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Value {
    /// The key, where it is an entry of a dictionary.
    pub name: Text,
    /// What `data` holds: one of the `KIND_…`.
    pub kind: u32,
    /// The type of a tensor's elements by torch's own number (`c10::ScalarType`).
    pub element: i32,
    /// The elements, little-endian and row-major; strings each behind its length as a `u32`; of a result
    /// of [`KIND_OTHER`], its type in TorchScript's words.
    pub data: *const u8,
    /// The number of bytes.
    pub len: usize,
    /// The size of each dimension; of strings, their number.
    pub dims: *const i64,
    /// The number of dimensions.
    pub rank: usize,
    /// What keeps the memory of an input; null for a result.
    pub owner: *mut c_void,
    /// Releases `owner`, which it is called with once, from any thread.
    pub release: unsafe extern "C" fn(owner: *mut c_void),
}

/// The results of a `forward`: one, or the elements of its tuple, list or dictionary.
#[repr(C)]
pub struct Results {
    /// The first of them.
    pub data: *const Value,
    /// Their number.
    pub len: usize,
    /// Whether they are a dictionary's.
    pub dictionary: bool,
}

impl Text {
    /// The text of a string, for as long as that is alive.
    pub fn of(text: &str) -> Self {
        Self { data: text.as_ptr(), len: text.len() }
    }

    /// # Safety
    /// The text is alive for as long as the result is used.
    pub unsafe fn to_string(self) -> String {
        if self.len == 0 {
            return String::new();
        }
        // SAFETY: the maker vouches for `len` bytes, and the caller for their life.
        let bytes = unsafe { std::slice::from_raw_parts(self.data, self.len) };
        String::from_utf8_lossy(bytes).into_owned()
    }
}
