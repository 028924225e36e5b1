//! Responses as models have them.

use pyo3::{
    exceptions::PyTypeError,
    intern,
    prelude::*,
    types::{PyBytes, PyList, PyString},
};

use crate::{
    frame::{self, Frame, Reader},
    memory::Memory,
    numpy::class_name,
    python,
    room::Room,
    tensor::{self, Tensor},
};

/// Bits of a response: it is the last, there is one, it is an error.
const FINAL: u8 = 1;
const PRESENT: u8 = 2;
const FAILED: u8 = 4;

/// A response: tensors, or an error.
#[pyclass(module = "c_python_backend_utils", frozen, subclass, weakref)]
pub struct InferenceResponse {
    outputs: Py<PyList>,
    error: Option<Py<PyAny>>,
    parameters: Box<str>,
}

#[pymethods]
impl InferenceResponse {
    #[new]
    #[pyo3(signature = (output_tensors = None, error = None, parameters = None))]
    fn new(
        py: Python<'_>,
        output_tensors: Option<&Bound<'_, PyAny>>,
        error: Option<Bound<'_, PyAny>>,
        parameters: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let missing_tensor =
            || String::from("Output tensor for inference response should not be empty.");
        let outputs = match output_tensors {
            Some(tensors) => tensor::list_of(tensors, "output_tensors", missing_tensor)?,
            None => PyList::empty(py),
        };
        if let Some(error) = &error
            && !python::is_error(error)?
        {
            return Err(PyTypeError::new_err(format!(
                "__init__(): incompatible constructor arguments. expected error to be \
                 c_python_backend_utils.TritonError, got {}",
                class_name(error)
            )));
        }
        let parameters = python::parameters(py, parameters)?;
        Ok(Self { outputs: outputs.unbind(), error: error.map(Bound::unbind), parameters })
    }

    /// Its tensors.
    fn output_tensors(&self, py: Python<'_>) -> Py<PyList> {
        self.outputs.clone_ref(py)
    }

    /// Whether it is an error.
    fn has_error(&self) -> bool {
        self.error.is_some()
    }

    /// The error, or `None`.
    fn error(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.error.as_ref().map(|error| error.clone_ref(py))
    }

    /// Its parameters as JSON; empty without any.
    fn parameters(&self) -> &str {
        &self.parameters
    }
}

impl InferenceResponse {
    /// Its tensors.
    pub fn tensors<'a, 'py>(&'a self, py: Python<'py>) -> &'a Bound<'py, PyList> {
        self.outputs.bind(py)
    }

    /// Writes it; outputs that nobody wanted are left out.
    ///
    /// # Errors
    /// When a tensor cannot be written.
    pub fn write(
        &self,
        bytes: &mut Vec<u8>,
        number: u64,
        wanted: &[Box<str>],
        is_final: bool,
        memory: &Memory,
        room: &Room<'_, '_>,
    ) -> PyResult<()> {
        let py = room.py();
        let flags = PRESENT | if is_final { FINAL } else { 0 };
        bytes.extend_from_slice(&number.to_le_bytes());
        if let Some(error) = &self.error {
            let error = error.bind(py);
            let code: u8 = error.getattr(intern!(py, "_code"))?.extract()?;
            let message = error.getattr(intern!(py, "_message"))?.cast_into::<PyString>()?;
            bytes.extend_from_slice(&[flags | FAILED, code, 0, 0]);
            frame::put_text(bytes, &python::text_bytes(&message)?);
            return Ok(());
        }
        let at = bytes.len();
        bytes.extend_from_slice(&[flags, 0, 0, 0]);
        frame::put_text(bytes, self.parameters.as_bytes());
        let mut count: u16 = 0;
        for output in self.outputs.bind(py).iter() {
            let output = output.cast::<Tensor>()?.get();
            if wanted.iter().any(|name| **name == *output.named()) {
                output.write(bytes, memory, room)?;
                count = count.saturating_add(1);
            }
        }
        if let Some(place) = bytes.get_mut(at + 2..at + 4) {
            place.copy_from_slice(&count.to_le_bytes());
        }
        Ok(())
    }
}

/// The part of a frame that tells one response, or that there are no more: with `None`.
#[pyfunction]
pub fn response_bytes<'py>(
    number: u64,
    response: Option<&Bound<'py, InferenceResponse>>,
    wanted: Vec<String>,
    is_final: bool,
    memory: &Bound<'py, Memory>,
    channel: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyBytes>> {
    let wanted: Vec<Box<str>> = wanted.into_iter().map(Into::into).collect();
    let mut bytes = Vec::with_capacity(128);
    // The parts before it in its frame: a count of four bytes. The tensors' places depend on it.
    bytes.extend_from_slice(&1_u32.to_le_bytes());
    match response {
        Some(response) => {
            let room = Room::new(channel);
            let response = response.get();
            let written =
                response.write(&mut bytes, number, &wanted, is_final, memory.get(), &room);
            room.settle(written)?;
        }
        None => {
            bytes.extend_from_slice(&number.to_le_bytes());
            bytes.extend_from_slice(&[if is_final { FINAL } else { 0 }, 0, 0, 0]);
        }
    }
    Ok(PyBytes::new(channel.py(), &bytes))
}

/// The response to a call, out of a frame: the call's number, the response, and whether it is the last.
#[pyfunction]
pub fn read_response<'py>(
    frame: &Bound<'py, Frame>,
    memory: &Bound<'py, Memory>,
) -> PyResult<(u64, Bound<'py, InferenceResponse>, bool)> {
    let py = frame.py();
    let mut reader = Reader::new(frame.get().body());
    let number = reader.u64()?;
    let (flags, code, count) = (reader.u8()?, reader.u8()?, reader.u16()?);
    let outputs = PyList::empty(py);
    let mut response = InferenceResponse {
        outputs: outputs.clone().unbind(),
        error: None,
        parameters: Box::default(),
    };
    if flags & PRESENT != 0 {
        let text = frame::utf8(reader.text()?)?;
        if flags & FAILED == 0 {
            response.parameters = text.into();
            for _ in 0..count {
                let tensor = Tensor::read(py, frame, &mut reader, memory.get())?;
                outputs.append(Bound::new(py, tensor)?)?;
            }
        } else {
            response.error = Some(python::error(py, text, code)?);
        }
    }
    Ok((number, Bound::new(py, response)?, flags & FINAL != 0))
}
