//! The turns of a model: a batch of requests comes, `execute` runs, and its responses leave.

use std::{io, os::fd::RawFd};

use pyo3::{
    exceptions::{PyException, PyOSError},
    intern,
    prelude::*,
    types::{PyByteArray, PyInt, PyList, PySet, PyString},
};

use crate::{
    frame::{self, Frame},
    inbox::{EXECUTE, Inbox},
    memory::{Gone, Memory},
    python, request,
};

/// The kind of the frame after an execution.
const EXECUTED: u8 = 34;
/// Its body where every request has its response and none is to be scheduled again.
const ALL_ANSWERED: [u8; 16] = [0; 16];

/// What the turns of a model need: the model, and parts of the channel that stay the same.
#[pyclass(frozen)]
pub struct Turns {
    model_name: Py<PyString>,
    is_decoupled: bool,
    /// Whose `execute` runs, which it may change.
    model: Py<PyAny>,
    /// Called where it has none, to raise.
    cannot_execute: Py<PyAny>,
    /// Called with the requests, what `execute` returned and the exception that it raised, where that is not
    /// simply a response for each. Gives the frames that tell it.
    otherwise: Py<PyAny>,
    /// The threads in which `execute` runs, and the one in which it runs here.
    executing: Py<PySet>,
    thread: Py<PyInt>,
    channel: Py<PyAny>,
    inbound: Py<PyAny>,
    outbound: Py<PyAny>,
    leading: Py<PyAny>,
    sending: Py<PyAny>,
    waiters: Py<PySet>,
    kept: Py<PyAny>,
    take: Py<PyAny>,
    inbox: Py<Inbox>,
    memory: Py<Memory>,
    gone: Py<Gone>,
}

#[pymethods]
impl Turns {
    #[new]
    fn new(
        channel: &Bound<'_, PyAny>,
        model_name: Bound<'_, PyString>,
        is_decoupled: bool,
        model: Bound<'_, PyAny>,
        cannot_execute: Bound<'_, PyAny>,
        executing: Bound<'_, PySet>,
        otherwise: Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let py = channel.py();
        let part = |name: &str| PyResult::Ok(channel.getattr(name)?.unbind());
        let arena = channel.getattr("arena")?;
        let thread = py.import("threading")?.call_method0("get_ident")?;
        Ok(Self {
            model_name: model_name.unbind(),
            is_decoupled,
            model: model.unbind(),
            cannot_execute: cannot_execute.unbind(),
            otherwise: otherwise.unbind(),
            executing: executing.unbind(),
            thread: thread.cast_into()?.unbind(),
            channel: channel.clone().unbind(),
            inbound: part("_inbound")?,
            outbound: part("_outbound")?,
            leading: part("_leading")?,
            sending: part("_sending")?,
            waiters: channel.getattr("_waiters")?.cast_into()?.unbind(),
            kept: part("requests")?,
            take: part("take")?,
            inbox: channel.getattr("_inbox")?.cast_into()?.unbind(),
            memory: arena.getattr("memory")?.cast_into()?.unbind(),
            gone: arena.getattr("gone")?.cast_into()?.unbind(),
        })
    }

    /// Runs the model as often as there are requests for it, on the thread that this was made on. Returns
    /// what else the server wants of it: the kind and the body of a frame.
    fn run<'py>(&self, py: Python<'py>) -> PyResult<(u8, Bound<'py, PyAny>)> {
        loop {
            let (kind, body) = match self.read_alone(py)? {
                Some(frame) => (EXECUTE, frame.into_any()),
                None => {
                    self.channel.bind(py).call_method0(intern!(py, "next_request"))?.extract()?
                }
            };
            if kind != EXECUTE {
                return Ok((kind, body));
            }
            self.turn(py, body.cast_into()?)?;
        }
    }
}

impl Turns {
    /// Requests, if they are the next that comes and nobody else reads: so it is mostly. What else comes is
    /// the channel's.
    fn read_alone<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, Frame>>> {
        let leading = self.leading.bind(py);
        let kept = self.kept.bind(py);
        let has_gone = !self.gone.get().is_empty();
        if has_gone || !leading.call_method1(intern!(py, "acquire"), (false,))?.is_truthy()? {
            return Ok(None);
        }
        let found = if kept.is_empty()? { self.read(py) } else { Ok(None) };
        leading.call_method0(intern!(py, "release"))?;
        if !self.waiters.bind(py).is_empty() {
            self.channel.bind(py).call_method0(intern!(py, "wake_another"))?;
        }
        found
    }

    fn read<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, Frame>>> {
        let socket = descriptor(self.inbound.bind(py))?;
        let frames = self.inbox.bind(py).borrow_mut().receive(py, socket)?;
        if frames.len() == 1 {
            let (kind, body) = frames.get_item(0)?.extract::<(u8, Bound<'py, PyAny>)>()?;
            if kind == EXECUTE {
                return Ok(Some(body.cast_into()?));
            }
        }
        self.channel.bind(py).call_method1(intern!(py, "dispatch"), (frames,))?;
        Ok(None)
    }

    /// One turn.
    fn turn(&self, py: Python<'_>, frame: Bound<'_, Frame>) -> PyResult<()> {
        // Nothing refers to the requests any more when the answer leaves, so that memory which the model has
        // let go of goes back with it. The next request then lies where this one did, and not beside it in
        // twice as much of the processor's caches.
        let bytes = self.answer(py, frame)?;
        let sending = self.sending.bind(py);
        sending.call_method0(intern!(py, "acquire"))?;
        let sent = self.send(py, bytes);
        sending.call_method0(intern!(py, "release"))?;
        sent
    }

    /// Runs the model. Gives the frames that tell what came of it.
    fn answer(&self, py: Python<'_>, frame: Bound<'_, Frame>) -> PyResult<Vec<u8>> {
        let requests = match self.requests(py, frame) {
            Ok(requests) => requests,
            Err(error) => return self.otherwise(&PyList::empty(py), Err(error)),
        };
        let executing = self.executing.bind(py);
        executing.add(&self.thread)?;
        let returned = self.execute(&requests);
        executing.discard(&self.thread)?;
        let responses = match &returned {
            Ok(returned) if !self.is_decoupled => request::one_for_each(&requests, returned),
            _ => None,
        };
        let Some(responses) = responses else { return self.otherwise(&requests, returned) };
        let mut bytes = Vec::with_capacity(64 + 128 * requests.len());
        // Before the responses, so that the execution is counted when their clients have them.
        frame::frame(&mut bytes, EXECUTED, |bytes| bytes.extend_from_slice(&ALL_ANSWERED));
        let (memory, take) = (self.memory.get(), self.take.bind(py));
        match request::put_responses(&mut bytes, &requests, responses, memory, take) {
            Ok(()) => Ok(bytes),
            Err(error) => self.otherwise(&requests, Err(error)),
        }
    }

    fn execute<'py>(&self, requests: &Bound<'py, PyList>) -> PyResult<Bound<'py, PyAny>> {
        let py = requests.py();
        match self.model.bind(py).getattr_opt(intern!(py, "execute"))? {
            Some(execute) => execute.call1((requests,)),
            None => self.cannot_execute.bind(py).call0(),
        }
    }

    fn requests<'py>(
        &self,
        py: Python<'py>,
        frame: Bound<'py, Frame>,
    ) -> PyResult<Bound<'py, PyList>> {
        let model_name = self.model_name.bind(py);
        let requests = request::read_requests(&frame, self.memory.get(), model_name)?;
        if self.is_decoupled {
            for request in requests.iter() {
                python::requests(py)?.call_method1(intern!(py, "response_sender"), (request,))?;
            }
        }
        Ok(requests)
    }

    /// Has the Python half tell what came of an execution. What ends the process goes on doing so.
    fn otherwise(
        &self,
        requests: &Bound<'_, PyList>,
        returned: PyResult<Bound<'_, PyAny>>,
    ) -> PyResult<Vec<u8>> {
        let py = requests.py();
        let (returned, failure) = match returned {
            Ok(returned) => (Some(returned), None),
            Err(error) if error.is_instance_of::<PyException>(py) => {
                (None, Some(error.into_value(py)))
            }
            Err(error) => return Err(error),
        };
        let frames = self.otherwise.bind(py).call1((requests, returned, failure))?;
        Ok(frames.cast_into::<PyByteArray>()?.to_vec())
    }

    /// Sends frames, and with them what goes back.
    fn send(&self, py: Python<'_>, mut bytes: Vec<u8>) -> PyResult<()> {
        self.gone.get().put_frames(&mut bytes);
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let socket = descriptor(self.outbound.bind(py))?;
            match py.detach(|| send(socket, rest)) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => py.check_signals()?,
                Err(error) => return Err(PyOSError::new_err(error)),
            }
        }
        Ok(())
    }
}

/// The number of a socket, which a process that the model forked has closed.
fn descriptor(socket: &Bound<'_, PyAny>) -> PyResult<RawFd> {
    socket.call_method0(intern!(socket.py(), "fileno"))?.extract()
}

fn send(socket: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: there are as many bytes as said.
    let count =
        unsafe { libc::send(socket, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}
