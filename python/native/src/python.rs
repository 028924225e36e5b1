//! What the native half uses of the Python half.

use pyo3::{
    intern,
    prelude::*,
    sync::PyOnceLock,
    types::{PyModule, PyString, PyType},
};

static DLPACK: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
static STRINGS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
static REQUESTS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
static MODEL_ERROR: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static TRITON_ERROR: PyOnceLock<Py<PyType>> = PyOnceLock::new();

fn module<'py>(
    py: Python<'py>,
    kept: &'static PyOnceLock<Py<PyModule>>,
    name: &str,
) -> PyResult<&'py Bound<'py, PyModule>> {
    Ok(kept.get_or_try_init(py, || py.import(name).map(Bound::unbind))?.bind(py))
}

/// `nereid_stub.dlpack`.
pub fn dlpack(py: Python<'_>) -> PyResult<&Bound<'_, PyModule>> {
    module(py, &DLPACK, "nereid_stub.dlpack")
}

/// `nereid_stub.strings`.
pub fn strings(py: Python<'_>) -> PyResult<&Bound<'_, PyModule>> {
    module(py, &STRINGS, "nereid_stub.strings")
}

/// `nereid_stub.requests`.
pub fn requests(py: Python<'_>) -> PyResult<&Bound<'_, PyModule>> {
    module(py, &REQUESTS, "nereid_stub.requests")
}

/// A `TritonModelException`.
pub fn model_error(py: Python<'_>, message: &str) -> PyErr {
    match MODEL_ERROR.import(py, "nereid_stub.errors", "TritonModelException") {
        Ok(kind) => PyErr::from_type(kind.clone(), (message.to_owned(),)),
        Err(error) => error,
    }
}

/// A text of Python's.
///
/// # Errors
/// When it has what is no character: halves of surrogate pairs.
pub fn text_of(text: &Bound<'_, PyString>) -> PyResult<Box<str>> {
    Ok(text.to_cow()?.into())
}

/// A text as it is sent: bytes that a text of Python's stands for come out as they were; halves of
/// surrogate pairs, which are no characters, as question marks.
pub fn text_bytes(text: &Bound<'_, PyString>) -> PyResult<Vec<u8>> {
    if let Ok(text) = text.to_cow() {
        return Ok(text.into_owned().into_bytes());
    }
    text.call_method1("encode", ("utf-8", "surrogateescape"))
        .or_else(|_| text.call_method1("encode", ("utf-8", "replace")))?
        .extract()
}

/// Whether an object is a `TritonError`.
pub fn is_error(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    object.is_instance(TRITON_ERROR.import(object.py(), "nereid_stub.errors", "TritonError")?)
}

/// A `TritonError`.
pub fn error(py: Python<'_>, message: &str, code: u8) -> PyResult<Py<PyAny>> {
    let kind = TRITON_ERROR.import(py, "nereid_stub.errors", "TritonError")?;
    Ok(kind.call1((message, code))?.unbind())
}

/// The parameters that a model gives, as JSON; empty without any.
pub fn parameters(py: Python<'_>, given: Option<Bound<'_, PyAny>>) -> PyResult<Box<str>> {
    let Some(given) = given else { return Ok(Box::default()) };
    let text = match given.cast_into::<PyString>() {
        Ok(text) => text,
        Err(error) => requests(py)?
            .call_method1(intern!(py, "parameters_text"), (error.into_inner(),))?
            .cast_into()?,
    };
    text_of(&text)
}
