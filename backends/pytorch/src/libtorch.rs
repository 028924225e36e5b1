//! The functions of the C++ sources, made safe.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    ptr::NonNull,
    sync::{Once, OnceLock},
};

use tch::Tensor;
use torch_sys::{C_tensor, CIValue, CModule_};

use crate::{
    Failure,
    table::{Results, Text},
};

unsafe extern "C" {
    fn nereid_torch_inspect(
        path: *const c_char,
        context: *mut c_void,
        visit: Visit,
        returns: unsafe extern "C" fn(*mut c_void, u32),
        stateful: *mut bool,
    ) -> *mut c_char;
    fn nereid_torch_tensor(
        data: *const c_void,
        dims: *const i64,
        rank: usize,
        element: c_int,
        gpu: c_int,
        copied: bool,
        owner: *mut c_void,
        release: unsafe extern "C" fn(*mut c_void),
        tensor: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn nereid_torch_load(
        path: *const c_char,
        place: c_int,
        module: *mut *mut CModule_,
    ) -> *mut c_char;
    fn nereid_torch_forward(
        module: *mut CModule_,
        arguments: *const *mut CIValue,
        count: usize,
        gpu: c_int,
        results: *mut *mut Results,
    ) -> *mut c_char;
    fn nereid_torch_free_results(results: *mut Results);
    fn nereid_torch_strings(
        texts: *const Text,
        count: usize,
        list: *mut *mut CIValue,
    ) -> *mut c_char;
    fn nereid_torch_dictionary(
        names: *const Text,
        tensors: *const *mut C_tensor,
        count: usize,
        dictionary: *mut *mut CIValue,
    ) -> *mut c_char;
    fn nereid_torch_gpu_count() -> c_int;
    fn nereid_torch_enter(inference_mode: bool) -> *mut c_void;
    fn nereid_torch_leave(mode: *mut c_void);
    fn nereid_torch_set_executor(enabled: bool);
    fn nereid_torch_set_cudnn(enabled: bool);
    fn nereid_torch_new_stream(gpu: c_int, stream: *mut i64) -> *mut c_char;
    fn nereid_torch_use_stream(gpu: c_int, stream: i64) -> *mut c_char;
    fn nereid_torch_gpu_memory(gpu: c_int, reserved: *mut u64, allocated: *mut u64) -> *mut c_char;
    fn nereid_torch_empty_cache() -> *mut c_char;
    fn nereid_torch_keep_host_memory();
    fn nereid_torch_empty_host_memory();
    fn free(memory: *mut c_void);
}

type Visit = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char, u32, bool, bool);

/// One argument of a `forward`, as [`table::Argument`](crate::table::Argument) has it.
pub struct Argument {
    pub name: String,
    pub type_name: String,
    pub kind: u32,
    pub has_default: bool,
    pub is_written: bool,
}

/// What a model file says of its `forward`.
#[derive(Default)]
pub struct Forward {
    /// Its arguments, without the module itself.
    pub arguments: Vec<Argument>,
    /// The kinds of its results, if their number is known.
    pub results: Vec<u32>,
    /// Whether it may keep something from one run to the next.
    pub stateful: bool,
}

/// Reads a model file, but not the weights.
pub fn inspect(path: &str) -> Result<Forward, Failure> {
    unsafe extern "C" fn visit(
        context: *mut c_void,
        name: *const c_char,
        type_name: *const c_char,
        kind: u32,
        has_default: bool,
        is_written: bool,
    ) {
        // SAFETY: `nereid_torch_inspect` passes its context on, and strings that live through the call.
        let (arguments, name, type_name) = unsafe {
            let arguments = &mut (*context.cast::<Forward>()).arguments;
            (arguments, CStr::from_ptr(name), CStr::from_ptr(type_name))
        };
        let text = |text: &CStr| text.to_string_lossy().into_owned();
        let (name, type_name) = (text(name), text(type_name));
        arguments.push(Argument { name, type_name, kind, has_default, is_written });
    }

    unsafe extern "C" fn returns(context: *mut c_void, kind: u32) {
        // SAFETY: `nereid_torch_inspect` passes its context on.
        unsafe { (*context.cast::<Forward>()).results.push(kind) };
    }

    let path = path_of(path)?;
    let (mut forward, mut stateful) = (Forward::default(), false);
    let context = (&raw mut forward).cast();
    // SAFETY: both functions are called with this context, during this call only, which writes the switch.
    check(unsafe { nereid_torch_inspect(path.as_ptr(), context, visit, returns, &mut stateful) })?;
    Ok(Forward { stateful, ..forward })
}

/// Where arguments and results are.
#[derive(Clone, Copy)]
pub struct Memory {
    /// The GPU; less than zero on the host.
    pub gpu: c_int,
    /// Whether arguments are copied before they are used.
    pub copied: bool,
}

/// A tensor over memory that `release(owner)` gives back, which happens in any case.
///
/// # Safety
/// At `data` are the elements of a contiguous tensor of `dims`, until `release` is called; torch may
/// write them.
pub unsafe fn tensor_over(
    data: *const u8,
    dims: &[i64],
    element: c_int,
    memory: Memory,
    owner: *mut c_void,
    release: unsafe extern "C" fn(*mut c_void),
) -> Result<Tensor, Failure> {
    let mut tensor = std::ptr::null_mut();
    // SAFETY: the caller's promise; the dimensions live through the call, which writes the tensor.
    unsafe {
        check(nereid_torch_tensor(
            data.cast(),
            dims.as_ptr(),
            dims.len(),
            element,
            memory.gpu,
            memory.copied,
            owner,
            release,
            &mut tensor,
        ))?;
        Ok(Tensor::from_ptr(tensor))
    }
}

/// A module's pointer, which is given back with it.
pub struct Script(NonNull<CModule_>);

// SAFETY: torch ties no module to a thread.
unsafe impl Send for Script {}
// SAFETY: the caller of the table's `forward` vouches for runs at the same time.
unsafe impl Sync for Script {}

impl Script {
    /// Loads a file; `place` is one of the table's numbers for a device.
    pub fn load(path: &str, place: i32) -> Result<Self, Failure> {
        let path = path_of(path)?;
        let mut module = std::ptr::null_mut();
        // SAFETY: the path lives through the call, which writes the place.
        check(unsafe { nereid_torch_load(path.as_ptr(), place, &mut module) })?;
        made(module).map(Self)
    }

    /// Calls `forward`. The results are the caller's to free, by [`free_results`].
    pub fn forward(&self, arguments: Vec<IValue>, gpu: c_int) -> Result<NonNull<Results>, Failure> {
        let pointers: Vec<*mut CIValue> = arguments.iter().map(|it| it.0.as_ptr()).collect();
        let mut results = std::ptr::null_mut();
        // SAFETY: module and arguments are alive; the call takes what the arguments hold and writes the
        // place.
        check(unsafe {
            nereid_torch_forward(
                self.0.as_ptr(),
                pointers.as_ptr(),
                pointers.len(),
                gpu,
                &mut results,
            )
        })?;
        made(results)
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // SAFETY: `load` has made it, and this is its last use.
        unsafe { torch_sys::atm_free(self.0.as_ptr()) };
    }
}

/// # Safety
/// [`Script::forward`] has made them, and this is their last use.
pub unsafe fn free_results(results: *mut Results) {
    // SAFETY: the caller's promise.
    unsafe { nereid_torch_free_results(results) };
}

/// A value of torch's, which is given back with it.
pub struct IValue(NonNull<CIValue>);

impl IValue {
    pub fn integer(value: i64) -> Result<Self, Failure> {
        // SAFETY: it takes a number.
        made(unsafe { torch_sys::ati_int(value) }).map(Self)
    }

    pub fn number(value: f64) -> Result<Self, Failure> {
        // SAFETY: it takes a number.
        made(unsafe { torch_sys::ati_double(value) }).map(Self)
    }

    pub fn boolean(value: bool) -> Result<Self, Failure> {
        // SAFETY: it takes a number.
        made(unsafe { torch_sys::ati_bool(value.into()) }).map(Self)
    }

    pub fn tensor(tensor: Tensor) -> Result<Self, Failure> {
        // SAFETY: the tensor is alive; the value refers to what it refers to.
        made(unsafe { torch_sys::ati_tensor(tensor.as_ptr().cast_mut()) }).map(Self)
    }

    pub fn strings(strings: &[&[u8]]) -> Result<Self, Failure> {
        let text = |string: &&[u8]| Text { data: string.as_ptr(), len: string.len() };
        let texts: Vec<Text> = strings.iter().map(text).collect();
        let mut list = std::ptr::null_mut();
        // SAFETY: the texts live through the call, which writes the place.
        check(unsafe { nereid_torch_strings(texts.as_ptr(), texts.len(), &mut list) })?;
        made(list).map(Self)
    }

    pub fn dictionary(entries: &[(String, Tensor)]) -> Result<Self, Failure> {
        let names: Vec<Text> = entries.iter().map(|(name, _)| Text::of(name)).collect();
        let tensors: Vec<*mut C_tensor> =
            entries.iter().map(|(_, tensor)| tensor.as_ptr().cast_mut()).collect();
        let mut dictionary = std::ptr::null_mut();
        // SAFETY: names and tensors live through the call, which writes the place.
        check(unsafe {
            nereid_torch_dictionary(
                names.as_ptr(),
                tensors.as_ptr(),
                entries.len(),
                &mut dictionary,
            )
        })?;
        made(dictionary).map(Self)
    }
}

impl Drop for IValue {
    fn drop(&mut self) {
        // SAFETY: one of its makers has made it, and this is its last use.
        unsafe { torch_sys::ati_free(self.0.as_ptr()) };
    }
}

fn made<T>(pointer: *mut T) -> Result<NonNull<T>, Failure> {
    NonNull::new(pointer).ok_or_else(|| Failure("torch has made nothing".to_owned()))
}

/// The number of GPUs, which is settled when it is first asked for.
pub fn gpu_count() -> i32 {
    static COUNT: OnceLock<i32> = OnceLock::new();
    // SAFETY: it takes nothing and throws nothing.
    *COUNT.get_or_init(|| unsafe { nereid_torch_gpu_count() })
}

/// Inference mode, on or off, on this thread for as long as it lives.
pub struct Mode(*mut c_void);

impl Mode {
    pub fn enter(inference: bool) -> Self {
        // SAFETY: `drop` leaves it, on this thread: a pointer is not `Send`.
        Self(unsafe { nereid_torch_enter(inference) })
    }
}

impl Drop for Mode {
    fn drop(&mut self) {
        // SAFETY: `enter` has made it, and this is its last use.
        unsafe { nereid_torch_leave(self.0) };
    }
}

pub fn set_executor(enabled: bool) {
    // SAFETY: the switch is atomic.
    unsafe { nereid_torch_set_executor(enabled) };
}

/// # Safety
/// Nothing of torch runs meanwhile, since operators read the switch, which is no atomic one.
pub unsafe fn set_cudnn(enabled: bool) {
    // SAFETY: the caller's promise.
    unsafe { nereid_torch_set_cudnn(enabled) };
}

/// A stream on a GPU.
#[derive(Clone, Copy)]
pub struct GpuStream {
    gpu: i32,
    id: i64,
}

impl GpuStream {
    pub fn new(gpu: i32) -> Result<Self, Failure> {
        let mut id = 0;
        // SAFETY: the call writes the place.
        check(unsafe { nereid_torch_new_stream(gpu, &mut id) })?;
        Ok(Self { gpu, id })
    }

    /// One that torch has not made.
    pub fn of(gpu: i32, handle: u64) -> Self {
        // Handles are addresses, with the highest bit clear.
        Self { gpu, id: handle.cast_signed() }
    }

    /// Makes it the current stream of this thread.
    pub fn make_current(self) -> Result<(), Failure> {
        // SAFETY: torch never destroys the streams of its pool, and whoever gave another keeps it as long
        // as the module.
        check(unsafe { nereid_torch_use_stream(self.gpu, self.id) })
    }
}

/// Has torch keep the memory of tensors on the host when they are freed; once is enough.
pub fn keep_host_memory() {
    static KEPT: Once = Once::new();
    // SAFETY: it takes nothing; tensors that torch has made before know how to free themselves.
    KEPT.call_once(|| unsafe { nereid_torch_keep_host_memory() });
}

/// Gives back what is kept of the host's memory.
pub fn empty_host_memory() {
    // SAFETY: it may be called at any time.
    unsafe { nereid_torch_empty_host_memory() };
}

/// Gives back what torch keeps of the GPUs' memory without using it.
pub fn empty_cache() -> Result<(), Failure> {
    // SAFETY: it may be called at any time.
    check(unsafe { nereid_torch_empty_cache() })
}

/// What the caching allocator holds of a GPU's memory, and what of that tensors take; in bytes.
pub fn gpu_memory(gpu: i32) -> Result<(u64, u64), Failure> {
    let (mut reserved, mut allocated) = (0, 0);
    // SAFETY: the call writes both places.
    check(unsafe { nereid_torch_gpu_memory(gpu, &mut reserved, &mut allocated) })?;
    Ok((reserved, allocated))
}

fn path_of(path: &str) -> Result<CString, Failure> {
    CString::new(path).map_err(|_| Failure("its path holds a zero byte".to_owned()))
}

fn check(message: *mut c_char) -> Result<(), Failure> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: the message is a string that is ours to free, with its last use.
    unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        free(message.cast());
        Err(Failure(text.trim().to_owned()))
    }
}
