//! Tensors as models have them.

use std::sync::Mutex;

use pyo3::{
    exceptions::PyTypeError,
    intern,
    prelude::*,
    types::{PyBytes, PyList, PyString, PyTuple},
};

use crate::{
    datatype::{self, BF16, BYTES},
    frame::{self, Frame, INLINE, Malformed, OF_RECEIVER, OF_SENDER, RANK_MAX, Reader},
    lock,
    memory::{Lent, Memory},
    numpy::{Array, NumPy, class_name},
    python,
    room::Room,
};

/// Tensors of up to so many bytes travel in the message.
const INLINE_BYTES_MAX: usize = 8192;
/// DLPack's number of GPUs.
const CUDA: i32 = 2;

/// A tensor with a name.
#[pyclass(module = "c_python_backend_utils", frozen, subclass, weakref)]
pub struct Tensor {
    name: Box<str>,
    datatype: u8,
    shape: Vec<isize>,
    /// Locked for no longer than it takes to copy a reference.
    elements: Mutex<Elements>,
}

/// Where a tensor's elements are.
enum Elements {
    /// In a contiguous array.
    Array(Py<PyAny>),
    /// In memory that the server has lent.
    Lent(Py<Lent>),
    /// In a frame that came.
    InFrame { frame: Py<Frame>, begin: usize, length: usize },
    /// In what was given by DLPack, maybe on a GPU.
    Imported(Py<PyAny>),
}

#[pymethods]
impl Tensor {
    #[new]
    fn new(name: &Bound<'_, PyAny>, array: Bound<'_, PyAny>) -> PyResult<Self> {
        let py = name.py();
        let numpy = NumPy::get(py)?;
        let (Ok(text), Some(fields)) = (name.cast::<PyString>(), numpy.array(&array)) else {
            return Err(PyTypeError::new_err(format!(
                "__init__(): incompatible constructor arguments. The following argument types are \
                 supported:\n    1. c_python_backend_utils.Tensor(arg0: str, arg1: numpy.ndarray)\n\n\
                 Invoked with: {}, {}",
                name.repr()?,
                array.repr()?
            )));
        };
        if text.len()? == 0 {
            return Err(python::model_error(py, "Tensor name cannot be an empty string."));
        }
        let Some(datatype) = fields.datatype() else {
            return Err(python::model_error(py, "NumPy dtype is not supported."));
        };
        let shape = fields.shape();
        let is_contiguous = fields.is_contiguous();
        let array = if is_contiguous {
            array
        } else {
            py.import("numpy")?.call_method1(intern!(py, "ascontiguousarray"), (array,))?
        };
        Ok(Self::of(python::text_of(text)?, datatype, shape, Elements::Array(array.unbind())))
    }

    /// The tensor's name.
    fn name(&self) -> &str {
        &self.name
    }

    /// Its dimensions.
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, &self.shape)
    }

    /// Triton's number of its element type.
    fn triton_dtype(&self) -> u8 {
        self.datatype
    }

    /// Whether it is in the host's memory.
    fn is_cpu(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(!self.is_on_gpu(py)?)
    }

    /// Its elements; a view where they already are in the host's memory.
    fn as_numpy<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        if self.datatype == BF16 {
            return Err(python::model_error(
                py,
                "Tensor dtype is BF16 and cannot be converted to NumPy. Use to_dlpack() and from_dlpack() \
                 instead.",
            ));
        }
        if self.is_on_gpu(py)? {
            return Err(python::model_error(
                py,
                "Tensor is stored in GPU and cannot be converted to NumPy.",
            ));
        }
        self.array(py)
    }

    /// A DLPack capsule that shares its memory.
    fn to_dlpack<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        if self.datatype == BYTES {
            return Err(python::model_error(
                py,
                "DLPack does not have support for string tensors.",
            ));
        }
        if self.is_on_gpu(py)? {
            return Err(python::model_error(
                py,
                "a tensor that came from a GPU cannot be handed on in DLPack's form",
            ));
        }
        let array = self.array(py)?;
        python::dlpack(py)?.call_method1(intern!(py, "export"), (array, self.datatype))
    }

    #[pyo3(signature = (*, stream = None, max_version = None, dl_device = None, copy = None))]
    fn __dlpack__<'py>(
        &self,
        py: Python<'py>,
        stream: Option<&Bound<'py, PyAny>>,
        max_version: Option<&Bound<'py, PyAny>>,
        dl_device: Option<&Bound<'py, PyAny>>,
        copy: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let _ = (max_version, dl_device, copy);
        if stream.is_some() {
            return Err(python::model_error(
                py,
                "DLPack: a tensor in the host's memory has no stream",
            ));
        }
        self.to_dlpack(py)
    }

    fn __dlpack_device__(&self, py: Python<'_>) -> PyResult<(i32, i32)> {
        const HOST: (i32, i32) = (1, 0);
        match self.elements(py) {
            Elements::Imported(imported) if is_on_gpu(imported.bind(py))? => {
                let id = imported.bind(py).getattr(intern!(py, "device_id"))?;
                Ok((CUDA, id.extract()?))
            }
            _ => Ok(HOST),
        }
    }

    /// A tensor that shares the memory of a DLPack capsule, or of what has `__dlpack__`.
    #[staticmethod]
    fn from_dlpack(py: Python<'_>, name: &str, tensor: &Bound<'_, PyAny>) -> PyResult<Self> {
        if name.is_empty() {
            return Err(python::model_error(py, "Tensor name cannot be an empty string."));
        }
        let imported = python::dlpack(py)?.call_method1(intern!(py, "imported"), (tensor,))?;
        let datatype = imported.getattr(intern!(py, "datatype"))?.extract()?;
        let shape = imported.getattr(intern!(py, "shape"))?.extract()?;
        Ok(Self::of(name.into(), datatype, shape, Elements::Imported(imported.unbind())))
    }
}

impl Tensor {
    /// Its name.
    pub fn named(&self) -> &str {
        &self.name
    }

    fn of(name: Box<str>, datatype: u8, shape: Vec<isize>, elements: Elements) -> Self {
        Self { name, datatype, shape, elements: Mutex::new(elements) }
    }

    fn elements(&self, py: Python<'_>) -> Elements {
        match &*lock(&self.elements) {
            Elements::Array(array) => Elements::Array(array.clone_ref(py)),
            Elements::Lent(lent) => Elements::Lent(lent.clone_ref(py)),
            Elements::InFrame { frame, begin, length } => {
                Elements::InFrame { frame: frame.clone_ref(py), begin: *begin, length: *length }
            }
            Elements::Imported(imported) => Elements::Imported(imported.clone_ref(py)),
        }
    }

    fn is_on_gpu(&self, py: Python<'_>) -> PyResult<bool> {
        match self.elements(py) {
            Elements::Imported(imported) => is_on_gpu(imported.bind(py)),
            _ => Ok(false),
        }
    }

    /// Its elements, of a tensor in the host's memory.
    fn array<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let elements = match self.elements(py) {
            Elements::Array(array) => return Ok(array.into_bound(py)),
            Elements::Imported(imported) => {
                return imported.bind(py).call_method0(intern!(py, "array"));
            }
            elements => elements,
        };
        let array = self.view(py, &elements)?;
        let new = Elements::Array(array.clone().unbind());
        let old = std::mem::replace(&mut *lock(&self.elements), new);
        // Only now, for a destructor may run.
        drop(old);
        Ok(array)
    }

    fn view<'py>(&self, py: Python<'py>, elements: &Elements) -> PyResult<Bound<'py, PyAny>> {
        let (data, length, base) = match elements {
            Elements::Array(array) | Elements::Imported(array) => {
                return Ok(array.bind(py).clone());
            }
            Elements::Lent(lent) => {
                let held = lent.get();
                (held.data(), held.length(), lent.bind(py).clone().into_any())
            }
            Elements::InFrame { frame, begin, length } => {
                (frame.get().data(*begin), *length, frame.bind(py).clone().into_any())
            }
        };
        if self.datatype == BYTES {
            // SAFETY: the server has held the length against what is there, and `base` keeps it.
            let encoded = unsafe { std::slice::from_raw_parts(data.cast_const(), length) };
            let encoded = PyBytes::new(py, encoded);
            let elements = python::strings(py)?
                .call_method1(intern!(py, "deserialize_bytes_tensor"), (encoded,))?;
            return elements
                .call_method1(intern!(py, "reshape"), (PyTuple::new(py, &self.shape)?,));
        }
        if byte_size(self.datatype, &self.shape) != Some(length) {
            return Err(Malformed::new_err(format!(
                "tensor '{}' of shape {:?} has {length} bytes",
                self.name, self.shape
            )));
        }
        let numpy = NumPy::get(py)?;
        if length == 0 {
            return numpy.new_array(py, self.datatype, &self.shape);
        }
        // SAFETY: `base` keeps as many bytes at the address; they are the model's alone.
        unsafe { numpy.view(py, self.datatype, &self.shape, data, base) }
    }

    /// A tensor out of a frame.
    ///
    /// # Errors
    /// When it is not of the described form.
    pub fn read(
        py: Python<'_>,
        frame: &Bound<'_, Frame>,
        reader: &mut Reader<'_>,
        memory: &Memory,
    ) -> PyResult<Self> {
        let name: Box<str> = frame::utf8(reader.name()?)?.into();
        let (datatype, rank, place) = (reader.u8()?, usize::from(reader.u8()?), reader.u8()?);
        if !datatype::is_known(datatype) {
            return Err(Malformed::new_err(format!(
                "tensor '{name}' has the unknown type {datatype}"
            )));
        }
        if rank > RANK_MAX {
            return Err(Malformed::new_err(format!("tensor '{name}' has {rank} dimensions")));
        }
        let mut shape = Vec::with_capacity(rank);
        for _ in 0..rank {
            shape.push(reader.u64()?.cast_signed() as isize);
        }
        let elements = match place {
            INLINE => {
                let length = reader.u32()? as usize;
                let begin = reader.aligned();
                reader.take(length)?;
                Elements::InFrame { frame: frame.clone().unbind(), begin, length }
            }
            OF_SENDER => {
                let lent = memory.lent(py, reader.u64()?, reader.u64()?)?;
                Elements::Lent(Py::new(py, lent)?)
            }
            _ => {
                return Err(Malformed::new_err(format!("tensor '{name}' lies in place {place}")));
            }
        };
        Ok(Self::of(name, datatype, shape, elements))
    }

    /// Writes it into a frame: by reference where its bytes are in what the server has lent, in the frame
    /// where they are few, else into shared memory.
    ///
    /// # Errors
    /// When there is no room, or its elements cannot be had.
    pub fn write(&self, bytes: &mut Vec<u8>, memory: &Memory, room: &Room<'_, '_>) -> PyResult<()> {
        let py = room.py();
        if let Elements::Imported(imported) = self.elements(py)
            && is_on_gpu(imported.bind(py))?
        {
            let imported = imported.bind(py);
            let length: usize = imported.getattr(intern!(py, "byte_size"))?.extract()?;
            let offset = room.take(length)?;
            let target = memory.address_of(offset);
            imported.call_method1(intern!(py, "copy_to_host"), (target,))?;
            self.put_head(bytes, OF_SENDER)?;
            put_range(bytes, offset, length);
            return Ok(());
        }
        let array = self.array(py)?;
        if self.datatype == BYTES {
            let encoded = python::strings(py)?
                .call_method1(intern!(py, "serialize_byte_tensor"), (array,))?;
            let encoded = encoded.cast_into::<PyBytes>()?;
            let encoded = encoded.as_bytes();
            return self.put(bytes, memory, room, encoded.as_ptr(), encoded.len());
        }
        let fields = NumPy::get(py)?.array(&array);
        // An array can be given another size where it is, though nobody should.
        let size = |fields: Array<'_>| {
            let length = byte_size(self.datatype, &self.shape)?;
            let holds = byte_size(self.datatype, &fields.shape())? == length;
            (holds && fields.is_contiguous()).then_some((fields.data(), length))
        };
        let Some((data, length)) = fields.and_then(size) else {
            let message =
                format!("the elements of tensor '{}' no longer have its shape", self.name);
            return Err(python::model_error(py, &message));
        };
        if length > INLINE_BYTES_MAX
            && let Some(offset) = memory.offset_of(data, length)
        {
            self.put_head(bytes, OF_RECEIVER)?;
            put_range(bytes, offset, length);
            return Ok(());
        }
        self.put(bytes, memory, room, data, length)
    }

    /// Writes `length` bytes, which whoever calls holds.
    fn put(
        &self,
        bytes: &mut Vec<u8>,
        memory: &Memory,
        room: &Room<'_, '_>,
        data: *const u8,
        length: usize,
    ) -> PyResult<()> {
        let py = room.py();
        if length <= INLINE_BYTES_MAX {
            self.put_head(bytes, INLINE)?;
            bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
            frame::align(bytes);
            if length > 0 {
                // SAFETY: the bytes are held, and nobody who could change them runs meanwhile.
                bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(data, length) });
            }
            return Ok(());
        }
        let offset = room.take(length)?;
        // SAFETY: the bytes are held.
        unsafe { memory.fill(py, offset, data, length)? };
        self.put_head(bytes, OF_SENDER)?;
        put_range(bytes, offset, length);
        Ok(())
    }

    fn put_head(&self, bytes: &mut Vec<u8>, place: u8) -> PyResult<()> {
        frame::put_name(bytes, &self.name)?;
        let rank = u8::try_from(self.shape.len()).unwrap_or(u8::MAX);
        if usize::from(rank) > RANK_MAX {
            return Err(Malformed::new_err(format!(
                "tensor '{}' has {} dimensions, at most {RANK_MAX} are possible",
                self.name,
                self.shape.len()
            )));
        }
        bytes.extend_from_slice(&[self.datatype, rank, place]);
        for &dimension in &self.shape {
            bytes.extend_from_slice(&(dimension as i64).to_le_bytes());
        }
        Ok(())
    }
}

fn is_on_gpu(imported: &Bound<'_, PyAny>) -> PyResult<bool> {
    let device_type = imported.getattr(intern!(imported.py(), "device_type"))?;
    Ok(device_type.extract::<i32>()? == CUDA)
}

fn put_range(bytes: &mut Vec<u8>, offset: u64, length: usize) {
    bytes.extend_from_slice(&offset.to_le_bytes());
    bytes.extend_from_slice(&(length as u64).to_le_bytes());
}

/// How many bytes the elements of such a tensor have; `None` when no memory holds them.
fn byte_size(datatype: u8, shape: &[isize]) -> Option<usize> {
    let count = |count: usize, &dimension: &isize| {
        usize::try_from(dimension).ok().and_then(|dimension| count.checked_mul(dimension))
    };
    shape.iter().try_fold(datatype::size(datatype), count)
}

/// The tensors that a model gives as the argument `name`; `missing` is what it is told where one is `None`.
///
/// # Errors
/// When there is something else.
pub fn list_of<'py>(
    given: &Bound<'py, PyAny>,
    name: &str,
    missing: impl Fn() -> String,
) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(given.py());
    for tensor in given.try_iter()? {
        let tensor = tensor?;
        if tensor.is_none() {
            return Err(python::model_error(given.py(), &missing()));
        }
        if tensor.cast::<Tensor>().is_err() {
            return Err(PyTypeError::new_err(format!(
                "__init__(): incompatible constructor arguments. expected {name} to be \
                 List[c_python_backend_utils.Tensor], got an element of {}",
                class_name(&tensor)
            )));
        }
        list.append(tensor)?;
    }
    Ok(list)
}

/// The first of these tensors with this name, or `None`.
///
/// # Errors
/// When something else is among them.
pub fn by_name<'py>(
    tensors: &Bound<'py, PyAny>,
    name: &Bound<'_, PyAny>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let Ok(name) = name.cast::<PyString>() else { return Ok(None) };
    // Halves of surrogate pairs are in no tensor's name.
    let Ok(name) = name.to_cow() else { return Ok(None) };
    for each in tensors.try_iter()? {
        let each = each?;
        let is_it = each.cast::<Tensor>()?.get().named() == name;
        if is_it {
            return Ok(Some(each));
        }
    }
    Ok(None)
}
