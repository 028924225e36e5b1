//! NumPy's arrays, by the table of functions that it offers to native code. The places in the table and
//! the beginnings of the structures are the same in NumPy 1 and 2.

use std::ffi::{c_char, c_int, c_void};

use pyo3::{exceptions::PyImportError, ffi, prelude::*, sync::PyOnceLock};

use crate::datatype;

/// Places in the table.
const ARRAY_TYPE: usize = 2;
const DESCRIPTOR_OF_TYPE: usize = 45;
const NEW_OF_DESCRIPTOR: usize = 94;
const SET_BASE: usize = 282;

/// Bits of an array's flags.
const C_CONTIGUOUS: c_int = 0x1;
const ALIGNED: c_int = 0x100;
const WRITEABLE: c_int = 0x400;

type DescriptorOfType = unsafe extern "C" fn(c_int) -> *mut ffi::PyObject;
type NewOfDescriptor = unsafe extern "C" fn(
    *mut ffi::PyTypeObject,
    *mut ffi::PyObject,
    c_int,
    *const isize,
    *const isize,
    *mut c_void,
    c_int,
    *mut ffi::PyObject,
) -> *mut ffi::PyObject;
type SetBase = unsafe extern "C" fn(*mut ffi::PyObject, *mut ffi::PyObject) -> c_int;

/// How every object begins.
#[repr(C)]
struct Head {
    references: isize,
    kind: *mut c_void,
}

/// How an array begins.
#[repr(C)]
struct ArrayFields {
    head: Head,
    data: *mut u8,
    rank: c_int,
    dimensions: *const isize,
    strides: *const isize,
    base: *mut c_void,
    descriptor: *const DescriptorFields,
    flags: c_int,
}

/// How the description of an element type begins.
#[repr(C)]
struct DescriptorFields {
    head: Head,
    kind_of_scalars: *mut c_void,
    kind: c_char,
    letter: c_char,
    byte_order: c_char,
    flags: c_char,
    number: c_int,
}

/// What is needed of NumPy.
pub struct NumPy {
    array: *mut ffi::PyTypeObject,
    descriptor_of_type: DescriptorOfType,
    new_of_descriptor: NewOfDescriptor,
    set_base: SetBase,
}

// SAFETY: addresses of what NumPy keeps for the life of the process; its functions are called by whoever is
// attached to the interpreter.
unsafe impl Send for NumPy {}
// SAFETY: as above.
unsafe impl Sync for NumPy {}

static NUMPY: PyOnceLock<NumPy> = PyOnceLock::new();

impl NumPy {
    /// The one of this process.
    ///
    /// # Errors
    /// When there is none, or one without its table.
    pub fn get(py: Python<'_>) -> PyResult<&'static Self> {
        NUMPY.get_or_try_init(py, || Self::load(py))
    }

    fn load(py: Python<'_>) -> PyResult<Self> {
        let module = py
            .import("numpy._core._multiarray_umath")
            .or_else(|_| py.import("numpy.core._multiarray_umath"))?;
        let capsule = module.getattr("_ARRAY_API")?;
        // SAFETY: the object is alive; what is no such capsule gives null and an exception.
        let table = unsafe { ffi::PyCapsule_GetPointer(capsule.as_ptr(), std::ptr::null()) };
        let table = table.cast::<*mut c_void>();
        if table.is_null() {
            return Err(PyErr::fetch(py));
        }
        // SAFETY: the table has these places in every NumPy since 1.7, and what is in them has these types.
        let numpy = unsafe {
            Self {
                array: (*table.add(ARRAY_TYPE)).cast(),
                descriptor_of_type: std::mem::transmute::<*mut c_void, DescriptorOfType>(
                    *table.add(DESCRIPTOR_OF_TYPE),
                ),
                new_of_descriptor: std::mem::transmute::<*mut c_void, NewOfDescriptor>(
                    *table.add(NEW_OF_DESCRIPTOR),
                ),
                set_base: std::mem::transmute::<*mut c_void, SetBase>(*table.add(SET_BASE)),
            }
        };
        let array = py.import("numpy")?.getattr("ndarray")?;
        if array.as_ptr() != numpy.array.cast() {
            return Err(PyImportError::new_err(
                "NumPy's table of functions is not of the known form",
            ));
        }
        Ok(numpy)
    }

    /// Elements that lie in memory of somebody's, whom the array keeps alive.
    ///
    /// # Safety
    /// For as long as `base` lives, `data` is the address of as many bytes as the array has, and nothing
    /// but Python code of the model writes them.
    ///
    /// # Errors
    /// When NumPy refuses.
    pub unsafe fn view<'py>(
        &self,
        py: Python<'py>,
        datatype: u8,
        shape: &[isize],
        data: *mut u8,
        base: Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let array = self.array_of(py, datatype, shape, data)?;
        // SAFETY: both are objects; the function takes the reference to the base, also where it fails.
        if unsafe { (self.set_base)(array.as_ptr(), base.into_ptr()) } != 0 {
            return Err(PyErr::fetch(py));
        }
        Ok(array)
    }

    /// An array of its own, with whatever elements.
    ///
    /// # Errors
    /// When NumPy refuses.
    pub fn new_array<'py>(
        &self,
        py: Python<'py>,
        datatype: u8,
        shape: &[isize],
    ) -> PyResult<Bound<'py, PyAny>> {
        self.array_of(py, datatype, shape, std::ptr::null_mut())
    }

    fn array_of<'py>(
        &self,
        py: Python<'py>,
        datatype: u8,
        shape: &[isize],
        data: *mut u8,
    ) -> PyResult<Bound<'py, PyAny>> {
        let number = datatype::numpy_number(datatype);
        let flags = if data.is_null() { 0 } else { C_CONTIGUOUS | ALIGNED | WRITEABLE };
        // SAFETY: the functions are NumPy's; they are given a known type, as many dimensions as said, and
        // either no memory or some that the caller vouches for. The description is taken over.
        unsafe {
            let descriptor = (self.descriptor_of_type)(number);
            let rank = c_int::try_from(shape.len()).unwrap_or(c_int::MAX);
            let array = (self.new_of_descriptor)(
                self.array,
                descriptor,
                rank,
                shape.as_ptr(),
                std::ptr::null(),
                data.cast(),
                flags,
                std::ptr::null_mut(),
            );
            Bound::from_owned_ptr_or_err(py, array)
        }
    }

    /// What an object is as an array; `None` when it is none.
    pub fn array<'a>(&self, object: &'a Bound<'_, PyAny>) -> Option<Array<'a>> {
        // SAFETY: the object is alive, and so is NumPy's type.
        let is_array = unsafe { ffi::PyObject_TypeCheck(object.as_ptr(), self.array) } != 0;
        // SAFETY: every array begins with these fields, which live as long as it does.
        is_array.then(|| Array(unsafe { &*object.as_ptr().cast::<ArrayFields>() }))
    }
}

/// The fields of an array that is held.
#[derive(Clone, Copy)]
pub struct Array<'a>(&'a ArrayFields);

impl Array<'_> {
    /// Its dimensions.
    pub fn shape(self) -> Vec<isize> {
        let rank = usize::try_from(self.0.rank).unwrap_or(0);
        if rank == 0 {
            return Vec::new();
        }
        // SAFETY: an array with dimensions has as many as it says.
        unsafe { std::slice::from_raw_parts(self.0.dimensions, rank) }.to_vec()
    }

    /// Where its elements begin.
    pub fn data(self) -> *mut u8 {
        self.0.data
    }

    /// Whether the elements lie one behind the other, the last dimension first.
    pub fn is_contiguous(self) -> bool {
        self.0.flags & C_CONTIGUOUS != 0
    }

    /// Triton's number of its element type; `None` when Triton has none.
    pub fn datatype(self) -> Option<u8> {
        // SAFETY: every array has a description of its type.
        let descriptor = unsafe { &*self.0.descriptor };
        let is_foreign = descriptor.byte_order == b'>' as c_char;
        if is_foreign { None } else { datatype::of_numpy_number(descriptor.number) }
    }
}

/// The name of a class, for messages.
pub fn class_name(object: &Bound<'_, PyAny>) -> String {
    object.get_type().as_any().str().map_or_else(|_| String::from("?"), |name| name.to_string())
}
