//! Values between the table's form and torch's.

use std::ffi::c_void;

use tch::{IValue, Tensor};

use crate::{
    Failure,
    libtorch::{Memory, own, tensor_over},
    table::{self, Results, Text, Value},
};

/// An argument of `forward`, and its key where it is an entry of a dictionary.
///
/// # Safety
/// The value is as the table's `forward` wants it, and not used again.
pub unsafe fn input(value: Value, memory: Memory) -> (String, Result<IValue, Failure>) {
    // SAFETY: the caller's promise.
    let name = unsafe { value.name.to_string() };
    if value.kind == table::KIND_TENSOR {
        // SAFETY: the caller's promise.
        let tensor = unsafe {
            let dims = slice(value.dims, value.rank);
            tensor_over(value.data, dims, value.element, memory, value.owner, value.release)
        };
        return (name, tensor.map(IValue::Tensor));
    }
    // SAFETY: the caller's promise; what is no tensor lies on the host.
    let bytes = unsafe { slice(value.data, value.len) };
    let argument = match value.kind {
        table::KIND_STRINGS => strings(bytes).map(IValue::StringList),
        table::KIND_INTEGER => word(bytes).map(i64::from_le_bytes).map(IValue::Int),
        table::KIND_NUMBER => word(bytes).map(f64::from_le_bytes).map(IValue::Double),
        table::KIND_BOOLEAN => Ok(IValue::Bool(bytes.first().is_some_and(|&byte| byte != 0))),
        other => Err(Failure(format!("an argument of the unknown kind {other}"))),
    };
    // SAFETY: nothing refers to the memory any more.
    unsafe { (value.release)(value.owner) };
    (name, argument)
}

fn word(bytes: &[u8]) -> Result<[u8; 8], Failure> {
    bytes.try_into().map_err(|_| Failure(format!("a number of {} bytes, not 8", bytes.len())))
}

fn strings(mut rest: &[u8]) -> Result<Vec<String>, Failure> {
    let mut strings = Vec::new();
    while !rest.is_empty() {
        let split = rest.split_first_chunk::<4>().and_then(|(len, rest)| {
            rest.split_at_checked(usize::try_from(u32::from_le_bytes(*len)).ok()?)
        });
        let Some((string, tail)) = split else {
            return Err(Failure("a string is longer than the data".to_owned()));
        };
        let string = std::str::from_utf8(string).ok().filter(|string| !string.contains('\0'));
        let string = string.ok_or_else(|| {
            let index = strings.len();
            Failure(format!("string {index} is not UTF-8 without zero bytes, as TorchScript wants"))
        })?;
        strings.push(string.to_owned());
        rest = tail;
    }
    Ok(strings)
}

/// The results of one `forward`, which they keep alive.
#[repr(C)]
pub struct Outputs {
    // First, so that a pointer to one is a pointer to the other.
    results: Results,
    values: Vec<Value>,
    held: Vec<Held>,
}

/// A result with what its value in the table points to.
struct Held {
    name: String,
    kind: u32,
    element: i32,
    data: Data,
    dims: Vec<i64>,
}

enum Data {
    Tensor { tensor: Tensor, len: usize },
    Strings(Vec<u8>),
    Nothing,
}

/// What `forward` returned, as one result, or as those in its tuple, list or dictionary.
pub fn outputs(returned: IValue, memory: Memory) -> Result<Box<Outputs>, Failure> {
    let dictionary = matches!(returned, IValue::GenericDict(_));
    let held = match returned {
        IValue::Tuple(values) => values.into_iter().map(|value| held(value, memory)).collect(),
        IValue::TensorList(tensors) => {
            tensors.into_iter().map(|given| tensor(given, memory)).collect()
        }
        IValue::GenericDict(entries) => entries
            .into_iter()
            .map(|(key, value)| {
                let IValue::String(name) = key else {
                    return Ok(Held::other("Dict without strings for keys"));
                };
                Ok(Held { name, ..held(value, memory)? })
            })
            .collect(),
        one => held(one, memory).map(|held| vec![held]),
    };
    let held: Vec<Held> = held?;
    let values: Vec<Value> = held.iter().map(Held::value).collect();
    let results = Results { data: values.as_ptr(), len: values.len(), dictionary };
    Ok(Box::new(Outputs { results, values, held }))
}

fn held(value: IValue, memory: Memory) -> Result<Held, Failure> {
    Ok(match value {
        IValue::Tensor(value) => return tensor(value, memory),
        IValue::StringList(strings) => Held::strings(strings.iter().map(String::as_str)),
        // What tch makes of a list of strings that torch returns.
        IValue::GenericList(values) => {
            let strings: Option<Vec<&str>> = values.iter().map(as_string).collect();
            match strings {
                Some(strings) => Held::strings(strings.into_iter()),
                None => Held::other("List"),
            }
        }
        IValue::None => Held::other("None"),
        IValue::Double(_) => Held::other("float"),
        IValue::Int(_) => Held::other("int"),
        IValue::Bool(_) => Held::other("bool"),
        IValue::String(_) => Held::other("str"),
        IValue::Tuple(_) => Held::other("Tuple"),
        IValue::TensorList(_) => Held::other("List[Tensor]"),
        IValue::IntList(_) => Held::other("List[int]"),
        IValue::DoubleList(_) => Held::other("List[float]"),
        IValue::BoolList(_) => Held::other("List[bool]"),
        IValue::GenericDict(_) => Held::other("Dict"),
        _ => Held::other("object"),
    })
}

fn as_string(value: &IValue) -> Option<&str> {
    match value {
        IValue::String(string) => Some(string),
        _ => None,
    }
}

fn tensor(given: Tensor, memory: Memory) -> Result<Held, Failure> {
    if given.is_sparse() || given.is_mkldnn() {
        return Ok(Held::other("Tensor that is not dense"));
    }
    let tensor = own(&given, memory)?;
    // SAFETY: the tensor is alive. Its type may be one that tch has no name for.
    let element = unsafe { torch_sys::at_scalar_type(tensor.as_ptr().cast_mut()) };
    let dims = tensor.size();
    let count: i64 = dims.iter().product();
    let len = usize::try_from(count).unwrap_or(0).saturating_mul(element_size(element));
    let data = Data::Tensor { tensor, len };
    Ok(Held { name: String::new(), kind: table::KIND_TENSOR, element, data, dims })
}

/// The bytes of an element by `c10::ScalarType`; zero for types that the server cannot send, which it
/// refuses by their number.
fn element_size(element: i32) -> usize {
    match element {
        0 | 1 | 11 => 1,
        2 | 5 | 15 | 27 => 2,
        3 | 6 | 28 => 4,
        4 | 7 | 29 => 8,
        _ => 0,
    }
}

impl Held {
    fn strings<'a>(strings: impl Iterator<Item = &'a str>) -> Self {
        let (mut bytes, mut count) = (Vec::new(), 0);
        for string in strings {
            // Torch's strings fit in memory, and lengths on the wire have 32 bits.
            let len = u32::try_from(string.len()).unwrap_or(u32::MAX);
            bytes.extend_from_slice(&len.to_le_bytes());
            bytes.extend_from_slice(&string.as_bytes()[..len as usize]);
            count += 1;
        }
        Self {
            name: String::new(),
            kind: table::KIND_STRINGS,
            element: 0,
            data: Data::Strings(bytes),
            dims: vec![count],
        }
    }

    fn other(type_name: &str) -> Self {
        Self {
            name: type_name.to_owned(),
            kind: table::KIND_OTHER,
            element: 0,
            data: Data::Nothing,
            dims: Vec::new(),
        }
    }

    fn value(&self) -> Value {
        let (data, len) = match &self.data {
            Data::Tensor { tensor, len } => (tensor.data_ptr().cast_const().cast(), *len),
            Data::Strings(bytes) => (bytes.as_ptr(), bytes.len()),
            Data::Nothing => (std::ptr::null(), 0),
        };
        Value {
            name: Text::of(&self.name),
            kind: self.kind,
            element: self.element,
            data,
            len,
            dims: self.dims.as_ptr(),
            rank: self.dims.len(),
            owner: std::ptr::null_mut(),
            release: nothing,
        }
    }
}

unsafe extern "C" fn nothing(_: *mut c_void) {}

/// # Safety
/// At `data` are `len` values, for as long as the result is used.
unsafe fn slice<'a, T>(data: *const T, len: usize) -> &'a [T] {
    if len == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(data, len) }
}
