//! Arguments between the table's form and torch's.

use tch::Tensor;

use crate::{
    Failure,
    libtorch::{IValue, Memory, tensor_over},
    table::{self, Value},
};

/// An argument of `forward`.
pub enum Argument {
    Tensor(Tensor),
    Other(IValue),
}

impl Argument {
    pub fn into_value(self) -> Result<IValue, Failure> {
        match self {
            Self::Tensor(tensor) => IValue::tensor(tensor),
            Self::Other(value) => Ok(value),
        }
    }
}

/// An argument of `forward`, and its key where it is an entry of a dictionary.
///
/// # Safety
/// The value is as the table's `forward` wants it, and not used again.
pub unsafe fn argument(value: Value, memory: Memory) -> (String, Result<Argument, Failure>) {
    // SAFETY: the caller's promise.
    let name = unsafe { value.name.to_string() };
    if value.kind == table::KIND_TENSOR {
        // SAFETY: the caller's promise.
        let tensor = unsafe {
            let dims = slice(value.dims, value.rank);
            tensor_over(value.data, dims, value.element, memory, value.owner, value.release)
        };
        return (name, tensor.map(Argument::Tensor));
    }
    // SAFETY: the caller's promise; what is no tensor lies on the host.
    let bytes = unsafe { slice(value.data, value.len) };
    let argument = match value.kind {
        table::KIND_STRINGS => strings(bytes).and_then(|strings| IValue::strings(&strings)),
        table::KIND_INTEGER => word(bytes).map(i64::from_le_bytes).and_then(IValue::integer),
        table::KIND_NUMBER => word(bytes).map(f64::from_le_bytes).and_then(IValue::number),
        table::KIND_BOOLEAN => IValue::boolean(bytes.first().is_some_and(|&byte| byte != 0)),
        other => Err(Failure(format!("an argument of the unknown kind {other}"))),
    };
    // SAFETY: nothing refers to the memory any more.
    unsafe { (value.release)(value.owner) };
    (name, argument.map(Argument::Other))
}

fn word(bytes: &[u8]) -> Result<[u8; 8], Failure> {
    bytes.try_into().map_err(|_| Failure(format!("a number of {} bytes, not 8", bytes.len())))
}

/// TorchScript's strings are bytes, whatever they are.
fn strings(mut rest: &[u8]) -> Result<Vec<&[u8]>, Failure> {
    let mut strings = Vec::new();
    while !rest.is_empty() {
        let split = rest.split_first_chunk::<4>().and_then(|(len, rest)| {
            rest.split_at_checked(usize::try_from(u32::from_le_bytes(*len)).ok()?)
        });
        let Some((string, tail)) = split else {
            return Err(Failure("a string is longer than the data".to_owned()));
        };
        strings.push(string);
        rest = tail;
    }
    Ok(strings)
}

/// # Safety
/// At `data` are `len` values, for as long as the result is used.
unsafe fn slice<'a, T>(data: *const T, len: usize) -> &'a [T] {
    if len == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(data, len) }
}
