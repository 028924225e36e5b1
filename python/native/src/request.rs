//! Requests as models have them: those that the server sent, and those that models make to call others.

use std::sync::{
    Mutex,
    atomic::{AtomicU32, Ordering},
};

use pyo3::{
    exceptions::PyTypeError,
    intern,
    prelude::*,
    types::{PyBytes, PyInt, PyList, PySet, PyString},
};

use crate::{
    frame::{self, Frame, Malformed, Reader},
    lock,
    memory::Memory,
    python,
    response::InferenceResponse,
    room::Room,
    tensor::{self, Tensor, by_name},
};

/// What becomes of a request when `execute` returns: it ends, or it is scheduled again.
const RELEASE_ALL: u32 = 1;
const RELEASE_RESCHEDULE: u32 = 2;
/// The kind of the frame with responses.
const RESPONSES: u8 = 33;

/// A request, to the model or by it.
#[pyclass(module = "c_python_backend_utils", frozen, subclass, weakref)]
pub struct InferenceRequest {
    inputs: Py<PyList>,
    outputs: Vec<Box<str>>,
    request_id: Box<str>,
    correlation: Correlation,
    model_name: Py<PyString>,
    model_version: i64,
    flags: AtomicU32,
    timeout: u64,
    parameters: Box<str>,
    /// Its context as JSON, of a request that the server sent, or what the model gave.
    trace: Mutex<Trace>,
    /// By which the server knows it; a request that the model makes has none.
    number: Option<u64>,
    /// What sends responses to it, if the model asked for that.
    sender: Mutex<Option<Py<PyAny>>>,
    release_flags: AtomicU32,
}

/// The sequence that a request belongs to.
enum Correlation {
    Number(u64),
    Name(Box<str>),
}

/// The trace that a request is noted in.
enum Trace {
    Context(Box<str>),
    Given(Py<PyAny>),
}

#[pymethods]
impl InferenceRequest {
    #[new]
    #[pyo3(signature = (
        request_id = None, correlation_id = Correlation::Number(0), inputs = None,
        requested_output_names = None, model_name = None, model_version = -1, flags = 0, timeout = 0,
        preferred_memory = None, trace = None, parameters = None,
    ))]
    #[expect(clippy::too_many_arguments, reason = "they are those of Triton's class")]
    fn new(
        py: Python<'_>,
        request_id: Option<&str>,
        #[pyo3(from_py_with = Correlation::given)] correlation_id: Correlation,
        inputs: Option<&Bound<'_, PyAny>>,
        requested_output_names: Option<&Bound<'_, PyAny>>,
        model_name: Option<Bound<'_, PyString>>,
        model_version: i64,
        flags: u32,
        timeout: u64,
        preferred_memory: Option<&Bound<'_, PyAny>>,
        trace: Option<Bound<'_, PyAny>>,
        parameters: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        // Outputs come in the host's memory, wherever they are preferred.
        let _ = preferred_memory;
        let missing = |name| {
            let text =
                format!("__init__(): incompatible constructor arguments. '{name}' must be given");
            PyTypeError::new_err(text)
        };
        let inputs = inputs.ok_or_else(|| missing("inputs"))?;
        let names = requested_output_names.ok_or_else(|| missing("requested_output_names"))?;
        let model_name = model_name.ok_or_else(|| missing("model_name"))?;
        let request_id = request_id.unwrap_or_default();
        let whose = || format!("request with id '{request_id}' and model name '{model_name}'");

        let missing_tensor = || format!("Input tensor for {} should not be empty.", whose());
        let list = tensor::list_of(inputs, "inputs", missing_tensor)?;
        let mut outputs = Vec::new();
        for name in names.try_iter()? {
            let name = python::text_of(name?.cast::<PyString>()?)?;
            if name.is_empty() {
                let message = format!("Requested output name for {} should not be empty.", whose());
                return Err(python::model_error(py, &message));
            }
            if !outputs.contains(&name) {
                outputs.push(name);
            }
        }
        let trace = match trace {
            Some(trace) if trace.is_truthy()? => Trace::Given(trace.unbind()),
            _ => Trace::Context(Box::default()),
        };
        Ok(Self {
            inputs: list.unbind(),
            outputs,
            request_id: request_id.into(),
            correlation: correlation_id,
            model_name: model_name.unbind(),
            model_version,
            flags: flags.into(),
            timeout,
            parameters: python::parameters(py, parameters)?,
            trace: Mutex::new(trace),
            number: None,
            sender: Mutex::default(),
            release_flags: RELEASE_ALL.into(),
        })
    }

    /// Its tensors.
    fn inputs(&self, py: Python<'_>) -> Py<PyList> {
        self.inputs.clone_ref(py)
    }

    /// The client's name for it.
    fn request_id(&self) -> &str {
        &self.request_id
    }

    /// The sequence that it belongs to; 0 when to none.
    fn correlation_id<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match &self.correlation {
            Correlation::Number(number) => Ok(number.into_pyobject(py)?.into_any()),
            Correlation::Name(name) => Ok(PyString::new(py, name).into_any()),
        }
    }

    /// The outputs that are wanted.
    fn requested_output_names<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PySet>> {
        PySet::new(py, self.outputs.iter().map(|name| &**name))
    }

    /// Whether it begins or ends a sequence.
    fn flags(&self) -> u32 {
        self.flags.load(Ordering::Relaxed)
    }

    /// Says whether it begins or ends a sequence.
    fn set_flags(&self, flags: u32) {
        self.flags.store(flags, Ordering::Relaxed);
    }

    /// How long it may take, in microseconds; 0 without limit.
    fn timeout(&self) -> u64 {
        self.timeout
    }

    /// Its parameters as JSON; empty without any.
    fn parameters(&self) -> &str {
        &self.parameters
    }

    /// Its trace.
    fn trace<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let context = match &*lock(&self.trace) {
            Trace::Given(trace) => return Ok(trace.bind(py).clone()),
            Trace::Context(context) => context.clone(),
        };
        let trace = python::requests(py)?
            .getattr(intern!(py, "InferenceTrace"))?
            .call1((&*context, self.number.unwrap_or(0)))?;
        *lock(&self.trace) = Trace::Given(trace.clone().unbind());
        Ok(trace)
    }

    /// Says whether the request ends with this execution or is to be scheduled again.
    fn set_release_flags(&self, py: Python<'_>, flags: u32) -> PyResult<()> {
        if ![RELEASE_ALL, RELEASE_RESCHEDULE].contains(&flags) {
            let message = format!("the release flags {flags} are unknown");
            return Err(python::model_error(py, &message));
        }
        self.release_flags.store(flags, Ordering::Relaxed);
        Ok(())
    }

    /// Whether nobody waits for the answer any more.
    fn is_cancelled<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        Self::python(slf, "is_cancelled")
    }

    /// What sends responses to it, from any thread, also after `execute` has returned.
    fn get_response_sender<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        Self::python(slf, "response_sender")
    }

    /// Runs the request and returns its response; with `decoupled`, an iterator over its responses.
    #[pyo3(signature = (decoupled = false))]
    fn exec<'py>(slf: &Bound<'py, Self>, decoupled: bool) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        python::requests(py)?.call_method1(intern!(py, "run"), (slf, decoupled))
    }

    /// The same, to be awaited.
    #[pyo3(signature = (decoupled = false))]
    fn async_exec<'py>(slf: &Bound<'py, Self>, decoupled: bool) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        python::requests(py)?.call_method1(intern!(py, "run_async"), (slf, decoupled))
    }

    /// By which the server knows it; `None` of a request that the model makes.
    #[getter]
    fn _number(&self) -> Option<u64> {
        self.number
    }

    /// What sends responses to it, if the model asked for that.
    #[getter(_sender)]
    fn sender(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        lock(&self.sender).as_ref().map(|sender| sender.clone_ref(py))
    }

    #[setter(_sender)]
    fn set_sender(&self, sender: Option<Py<PyAny>>) {
        let before = std::mem::replace(&mut *lock(&self.sender), sender);
        drop(before);
    }

    #[getter]
    fn _release_flags(&self) -> u32 {
        self.release_flags.load(Ordering::Relaxed)
    }

    /// The names of the outputs that are wanted.
    #[getter]
    fn _outputs(&self) -> Vec<&str> {
        self.outputs.iter().map(|name| &**name).collect()
    }

    /// The body of the frame that calls the model: `number` is the call's, `bits` say of which kind it is.
    fn _call(
        &self,
        py: Python<'_>,
        number: u64,
        bits: u8,
        memory: &Bound<'_, Memory>,
        channel: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyBytes>> {
        let inputs = self.inputs.bind(py);
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&number.to_le_bytes());
        bytes.push(bits);
        bytes.extend_from_slice(&self.model_version.to_le_bytes());
        bytes.extend_from_slice(&self.timeout.to_le_bytes());
        let (correlation, name) = match &self.correlation {
            Correlation::Number(number) => (*number, None),
            Correlation::Name(name) => (0, Some(name)),
        };
        bytes.extend_from_slice(&correlation.to_le_bytes());
        bytes.extend_from_slice(&self.flags().to_le_bytes());
        for count in [inputs.len(), self.outputs.len()] {
            let count = u16::try_from(count).map_err(|_| {
                Malformed::new_err(format!(
                    "a call has {count} tensors, at most 65535 are possible"
                ))
            })?;
            bytes.extend_from_slice(&count.to_le_bytes());
        }
        bytes.push(name.is_some().into());
        bytes.extend_from_slice(&self.traced_as(py)?.to_le_bytes());
        frame::put_name(&mut bytes, &self.model_name.bind(py).to_cow()?)?;
        frame::put_name(&mut bytes, &self.request_id)?;
        if let Some(name) = name {
            frame::put_name(&mut bytes, name)?;
        }
        frame::put_text(&mut bytes, self.parameters.as_bytes());
        for output in &self.outputs {
            frame::put_name(&mut bytes, output)?;
        }
        let room = Room::new(channel);
        let written = inputs.iter().try_for_each(|input| {
            input.cast::<Tensor>()?.get().write(&mut bytes, memory.get(), &room)
        });
        room.settle(written)?;
        Ok(PyBytes::new(py, &bytes).unbind())
    }
}

impl InferenceRequest {
    /// Whether its response ends it.
    fn just_ends(&self) -> bool {
        lock(&self.sender).is_none() && self._release_flags() == RELEASE_ALL
    }

    /// The number of the request in whose trace a call is noted; 0 without one.
    fn traced_as(&self, py: Python<'_>) -> PyResult<u64> {
        let given = match &*lock(&self.trace) {
            Trace::Given(trace) => trace.clone_ref(py),
            Trace::Context(_) => return Ok(self.number.unwrap_or(0)),
        };
        given.bind(py).getattr(intern!(py, "_number"))?.extract()
    }

    /// Calls a function of the Python half with it.
    fn python<'py>(slf: &Bound<'py, Self>, function: &str) -> PyResult<Bound<'py, PyAny>> {
        python::requests(slf.py())?.getattr(function)?.call1((slf,))
    }

    fn read(
        py: Python<'_>,
        frame: &Bound<'_, Frame>,
        reader: &mut Reader<'_>,
        memory: &Memory,
        model_name: &Bound<'_, PyString>,
    ) -> PyResult<Self> {
        let (number, timeout, correlation) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let (flags, inputs, outputs) = (reader.u32()?, reader.u16()?, reader.u16()?);
        let is_named = reader.u8()? != 0;
        let text = |text| PyResult::Ok(Box::<str>::from(frame::utf8(text)?));
        let request_id = text(reader.text()?)?;
        let correlation = if is_named {
            Correlation::Name(text(reader.name()?)?)
        } else {
            Correlation::Number(correlation)
        };
        let parameters = text(reader.text()?)?;
        let trace = Trace::Context(text(reader.text()?)?);
        let mut names = Vec::with_capacity(outputs.into());
        for _ in 0..outputs {
            names.push(text(reader.name()?)?);
        }
        let tensors = PyList::empty(py);
        for _ in 0..inputs {
            tensors.append(Bound::new(py, Tensor::read(py, frame, reader, memory)?)?)?;
        }
        Ok(Self {
            inputs: tensors.unbind(),
            outputs: names,
            request_id,
            correlation,
            model_name: model_name.clone().unbind(),
            model_version: -1,
            flags: flags.into(),
            timeout,
            parameters,
            trace: Mutex::new(trace),
            number: Some(number),
            sender: Mutex::default(),
            release_flags: RELEASE_ALL.into(),
        })
    }
}

impl Correlation {
    fn given(id: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(name) = id.cast::<PyString>() {
            return Ok(Self::Name(python::text_of(name)?));
        }
        match id.cast::<PyInt>() {
            Ok(number) => Ok(Self::Number(number.extract()?)),
            Err(_) => Err(python::model_error(id.py(), "Correlation ID must be integer or string")),
        }
    }
}

/// The requests in a frame.
///
/// # Errors
/// When it is not of the described form.
pub fn read_requests<'py>(
    frame: &Bound<'py, Frame>,
    memory: &Memory,
    model_name: &Bound<'py, PyString>,
) -> PyResult<Bound<'py, PyList>> {
    let py = frame.py();
    let mut reader = Reader::new(frame.get().body());
    let requests = PyList::empty(py);
    for _ in 0..reader.u32()? {
        let request = InferenceRequest::read(py, frame, &mut reader, memory, model_name)?;
        requests.append(Bound::new(py, request)?)?;
    }
    Ok(requests)
}

/// What `execute` returned, if that is a response for each request, and no request has a sender or is to be
/// scheduled again.
pub fn one_for_each<'a, 'py>(
    requests: &Bound<'py, PyList>,
    returned: &'a Bound<'py, PyAny>,
) -> Option<&'a Bound<'py, PyList>> {
    let responses = returned.cast_exact::<PyList>().ok()?;
    let is_one = |request: Bound<'_, PyAny>, response: Bound<'_, PyAny>| {
        request.cast::<InferenceRequest>().is_ok_and(|request| request.get().just_ends())
            && response.cast::<InferenceResponse>().is_ok()
    };
    let are_as_many = requests.len() == responses.len();
    (are_as_many && requests.iter().zip(responses.iter()).all(|(a, b)| is_one(a, b)))
        .then_some(responses)
}

/// Appends a frame with responses: one or `None` for each request. What goes from here on is held until they
/// are sent, for they name parts of it.
///
/// # Errors
/// When a tensor cannot be written.
pub fn put_responses(
    bytes: &mut Vec<u8>,
    requests: &Bound<'_, PyList>,
    responses: &Bound<'_, PyList>,
    memory: &Memory,
    channel: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let room = Room::new(channel);
    let written = put_each(bytes, requests, responses, memory, &room);
    room.settle(written)?;
    memory.gone().hold();
    Ok(())
}

fn put_each(
    bytes: &mut Vec<u8>,
    requests: &Bound<'_, PyList>,
    responses: &Bound<'_, PyList>,
    memory: &Memory,
    room: &Room<'_, '_>,
) -> PyResult<()> {
    let start = frame::begin(bytes, RESPONSES);
    let at = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    let mut count = 0_u32;
    for (request, response) in requests.iter().zip(responses.iter()) {
        if response.is_none() {
            continue;
        }
        let request = request.cast::<InferenceRequest>()?.get();
        let response = response.cast::<InferenceResponse>()?.get();
        let number = request.number.unwrap_or(0);
        response.write(bytes, number, &request.outputs, true, memory, room)?;
        count += 1;
    }
    if let Some(place) = bytes.get_mut(at..at + 4) {
        place.copy_from_slice(&count.to_le_bytes());
    }
    frame::end(bytes, start);
    Ok(())
}

/// A frame with the responses that `execute` returned: one or `None` for each request.
#[pyfunction]
pub fn responses_frame<'py>(
    requests: &Bound<'py, PyList>,
    responses: &Bound<'py, PyList>,
    memory: &Bound<'py, Memory>,
    channel: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyBytes>> {
    let mut bytes = Vec::new();
    put_responses(&mut bytes, requests, responses, memory.get(), channel)?;
    Ok(PyBytes::new(channel.py(), &bytes))
}

/// The input of a request, or of what has `inputs()` as one, with this name, or `None`.
#[pyfunction]
pub fn get_input_tensor_by_name<'py>(
    inference_request: &Bound<'py, PyAny>,
    name: &Bound<'py, PyAny>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = name.py();
    match inference_request.cast::<InferenceRequest>() {
        Ok(request) => by_name(request.get().inputs.bind(py), name),
        Err(_) => by_name(&inference_request.call_method0(intern!(py, "inputs"))?, name),
    }
}

/// The output of a response, or of what has `output_tensors()` as one, with this name, or `None`.
#[pyfunction]
pub fn get_output_tensor_by_name<'py>(
    inference_response: &Bound<'py, PyAny>,
    name: &Bound<'py, PyAny>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = name.py();
    match inference_response.cast::<InferenceResponse>() {
        Ok(response) => by_name(response.get().tensors(py), name),
        Err(_) => by_name(&inference_response.call_method0(intern!(py, "output_tensors"))?, name),
    }
}
