//! The library's functions, made safe: modules, what goes into them and what comes out.

use std::{
    ffi::c_void,
    path::Path,
    ptr::{NonNull, null_mut},
    slice,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;

use super::{
    elements::element_of,
    library::Library,
    table::{self, Options, Outcome, Results, Text, Value},
};
use crate::{
    device::{DeviceSlice, LibraryMemory},
    inference::{DataType, Shape},
};

/// What torch itself says of a failure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct TorchError(pub String);

impl TorchError {
    /// Whether it says that a device has no memory left.
    pub fn is_out_of_memory(&self) -> bool {
        self.0.contains("out of memory")
    }
}

/// What a model file says of its `forward`.
pub(super) struct Forward {
    pub arguments: Vec<Argument>,
    /// What its results are, each one of the table's `KIND_…`; none where the file does not tell their
    /// number.
    pub results: Vec<u32>,
    /// Whether it may keep something from one run to the next.
    pub is_stateful: bool,
}

/// One argument of a `forward`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Argument {
    pub name: String,
    /// In TorchScript's words.
    pub type_name: String,
    /// One of the table's `KIND_…`.
    pub kind: u32,
    pub has_default: bool,
    /// Whether `forward` may write into the tensor that it is given.
    pub is_written: bool,
}

/// Reads a model file, but not the weights.
pub(super) fn inspect(library: &Library, path: &Path) -> Result<Forward, TorchError> {
    let table = library.table;
    let path = path.to_string_lossy();
    let mut arguments = null_mut();
    // SAFETY: the path lives through the call, which writes the place.
    check(library, unsafe { (table.inspect)(Text::of(&path), &mut arguments) })?;
    // SAFETY: the call succeeded, so there are as many arguments as it says; they are given back
    // when their texts have been copied, and not used again.
    unsafe {
        let list = match (*arguments).len {
            0 => &[],
            len => slice::from_raw_parts((*arguments).data, len),
        };
        let copied = list.iter().map(|argument| Argument {
            name: argument.name.to_string(),
            type_name: argument.type_name.to_string(),
            kind: argument.kind,
            has_default: argument.has_default,
            is_written: argument.is_written,
        });
        let is_stateful = (*arguments).stateful;
        let results = match (*arguments).results_len {
            0 => Vec::new(),
            len => slice::from_raw_parts((*arguments).results, len).to_vec(),
        };
        let arguments_there = copied.collect();
        (table.free_arguments)(arguments);
        Ok(Forward { arguments: arguments_there, results, is_stateful })
    }
}

/// A loaded module.
pub(super) struct Module {
    library: &'static Library,
    pointer: NonNull<table::Module>,
    /// Held by the run of a module that keeps something: torch guards what a module keeps by nothing.
    alone: Option<Mutex<()>>,
}

// SAFETY: torch ties no module to a thread.
unsafe impl Send for Module {}
// SAFETY: a module may run on many threads at once if its `forward` keeps nothing; one that may keep
// something runs on one at a time.
unsafe impl Sync for Module {}

impl Module {
    pub fn load(
        library: &'static Library,
        path: &Path,
        options: &Options,
        is_stateful: bool,
    ) -> Result<Self, TorchError> {
        let path = path.to_string_lossy();
        let mut module = null_mut();
        // SAFETY: path and options live through the call, which writes the place.
        check(library, unsafe { (library.table.load)(Text::of(&path), options, &mut module) })?;
        let pointer =
            NonNull::new(module).ok_or_else(|| TorchError("no module was returned".to_owned()))?;
        Ok(Self { library, pointer, alone: is_stateful.then(Mutex::default) })
    }

    /// Calls `forward`.
    pub fn forward(&self, inputs: Vec<Input<'_>>) -> Result<Arc<Outputs>, TorchError> {
        let values: Vec<Value> = inputs.into_iter().map(Input::into_value).collect();
        let mut results = null_mut();
        let _alone =
            self.alone.as_ref().map(|alone| alone.lock().unwrap_or_else(PoisonError::into_inner));
        // SAFETY: the module is alive, and so are the dimensions and names that the values point to,
        // since `Input` borrows them; each owner keeps its bytes until the other side releases it.
        let outcome = unsafe {
            (self.library.table.forward)(
                self.pointer.as_ptr(),
                values.as_ptr(),
                values.len(),
                &mut results,
            )
        };
        check(self.library, outcome)?;
        let results =
            NonNull::new(results).ok_or_else(|| TorchError("nothing was returned".to_owned()))?;
        Ok(Arc::new(Outputs { library: self.library, results }))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: `load` returned the pointer, and this is its last use.
        unsafe { (self.library.table.free_module)(self.pointer.as_ptr()) };
    }
}

/// One argument of a call, or one entry of the dictionary that is its only argument.
pub(super) struct Input<'a> {
    name: &'a str,
    /// One of the table's `KIND_…`.
    kind: u32,
    element: i32,
    dims: &'a [i64],
    start: *const u8,
    len: usize,
    /// Stays until torch lets go of it, which for what a module keeps may be long after the call.
    keeper: Box<dyn Send>,
}

impl<'a> Input<'a> {
    /// Of bytes on the host.
    pub fn new(name: &'a str, kind: u32, datatype: DataType, dims: &'a [i64], data: Bytes) -> Self {
        let element = element_of(datatype).unwrap_or_default();
        let (start, len) = (data.as_ptr(), data.len());
        Self { name, kind, element, dims, start, len, keeper: Box::new(data) }
    }

    /// A tensor in memory of the device that the module is on.
    pub fn on_device(
        name: &'a str,
        datatype: DataType,
        dims: &'a [i64],
        slice: &DeviceSlice,
    ) -> Self {
        let (kind, element) = (table::KIND_TENSOR, element_of(datatype).unwrap_or_default());
        let start = std::ptr::with_exposed_provenance(slice.address() as usize);
        let (len, keeper) = (slice.len(), Box::new(slice.clone()));
        Self { name, kind, element, dims, start, len, keeper }
    }

    fn into_value(self) -> Value {
        let Self { name, kind, element, dims, start, len, keeper } = self;
        Value {
            name: Text::of(name),
            kind,
            element,
            data: start,
            len,
            dims: dims.as_ptr(),
            rank: dims.len(),
            owner: Box::into_raw(Box::new(keeper)).cast(),
            release,
        }
    }
}

unsafe extern "C" fn release(owner: *mut c_void) {
    // SAFETY: `into_value` made it, and it is called once.
    drop(unsafe { Box::from_raw(owner.cast::<Box<dyn Send>>()) });
}

/// What a `forward` returned.
pub(super) struct Outputs {
    library: &'static Library,
    results: NonNull<Results>,
}

// SAFETY: the results are tensors and texts that nobody changes, and torch ties none to a thread.
unsafe impl Send for Outputs {}
// SAFETY: as above.
unsafe impl Sync for Outputs {}

impl Outputs {
    /// Whether they are the entries of a dictionary, known by their names.
    pub fn are_dictionary(&self) -> bool {
        // SAFETY: the results are alive as long as `self`.
        unsafe { self.results.as_ref() }.dictionary
    }

    pub fn len(&self) -> usize {
        // SAFETY: as above.
        unsafe { self.results.as_ref() }.len
    }

    pub fn get(&self, index: usize) -> Option<Output<'_>> {
        self.iter().nth(index)
    }

    pub fn iter(&self) -> impl Iterator<Item = Output<'_>> {
        // SAFETY: there are as many values as the results say, alive as long as they.
        let values: &[Value] = unsafe {
            let Results { data, len, .. } = *self.results.as_ref();
            if len == 0 { &[] } else { slice::from_raw_parts(data, len) }
        };
        values.iter().map(Output)
    }
}

impl Drop for Outputs {
    fn drop(&mut self) {
        // SAFETY: `forward` returned them, and this is their last use.
        unsafe { (self.library.table.free_results)(self.results.as_ptr()) };
    }
}

/// One result, as long as [`Outputs`] are there.
pub(super) struct Output<'a>(&'a Value);

impl Output<'_> {
    pub fn kind(&self) -> u32 {
        self.0.kind
    }

    pub fn element(&self) -> i32 {
        self.0.element
    }

    /// The key in a dictionary.
    pub fn name(&self) -> String {
        // SAFETY: the text lives as long as the results.
        unsafe { self.0.name.to_string() }
    }

    /// The type of what cannot be sent, in TorchScript's words.
    pub fn type_name(&self) -> String {
        let text = Text { data: self.0.data, len: self.0.len };
        // SAFETY: of a result of this kind the data is a text, which lives as long as the results.
        if self.0.kind == table::KIND_OTHER { unsafe { text.to_string() } } else { String::new() }
    }

    pub fn dims(&self) -> &[i64] {
        match self.0.rank {
            0 => &[],
            // SAFETY: there are `rank` dimensions, alive as long as the results.
            rank => unsafe { slice::from_raw_parts(self.0.dims, rank) },
        }
    }
}

/// The memory of result `index`, which keeps all of them alive.
pub(super) fn share(outputs: &Arc<Outputs>, index: usize) -> Bytes {
    struct Owner(Arc<Outputs>, usize);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            let Some(value) = self.0.get(self.1) else { return &[] };
            let (start, len) = (value.0.data, value.0.len);
            // SAFETY: as in `Output::bytes`, and `self` holds the results.
            if len == 0 { &[] } else { unsafe { slice::from_raw_parts(start, len) } }
        }
    }
    Bytes::from_owner(Owner(outputs.clone(), index))
}

/// The shape of result `index` and its memory, which keeps all of them alive.
pub(super) fn memory(outputs: &Arc<Outputs>, index: usize) -> Option<(Shape, LibraryMemory)> {
    let output = outputs.get(index)?;
    let (start, len) = (output.0.data, output.0.len);
    let address = start.expose_provenance() as u64;
    // SAFETY: the result has this much memory where its module is, which `forward` has written or, on a
    // stream, will have, and stays as long as the results.
    let memory = unsafe { LibraryMemory::new(address, len, Box::new(outputs.clone())) };
    Some((output.dims().into(), memory))
}

fn check(library: &Library, outcome: Outcome) -> Result<(), TorchError> {
    if outcome == table::SUCCESS {
        return Ok(());
    }
    // SAFETY: the text is copied before any other call on this thread.
    Err(TorchError(unsafe { (library.table.last_error)().to_string() }))
}
