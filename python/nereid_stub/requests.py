"""Requests and responses, of the model itself and of those that it calls."""

from __future__ import annotations

import collections
import enum
import json
import threading

from . import tensor as tensors
from . import wire
from .channel import Waiter
from .errors import TritonError, TritonModelException
from .tensor import Tensor

REQUEST_RELEASE_ALL, REQUEST_RELEASE_RESCHEDULE = 1, 2
RESPONSE_COMPLETE_FINAL = 1
# For what the server should hear of before the next message.
AT_ONCE = 1 << 40

# The channel to the server, and whether the model can call others by now. Set by the host.
channel = None
can_call = False
# The threads in which `execute` runs now.
executing: set = set()


class MemoryType(enum.IntEnum):
    """Where a tensor can be, by Triton's numbers."""

    TRITONSERVER_MEMORY_GPU = 0
    TRITONSERVER_MEMORY_CPU = 1


class PreferredMemory:
    """Where the outputs of a call are wanted. They come in the host's memory."""

    def __init__(self, preferred_memory: MemoryType, preferred_device_id: int = 0):
        self._preferred_memory = preferred_memory
        self._preferred_device_id = preferred_device_id


class InferenceTrace:
    """The trace that a request belongs to."""

    __slots__ = ("_context", "_number")

    def __init__(self, context: str = "", number: int = 0):
        self._context = context
        # That of the request, by which the server knows it.
        self._number = number

    def get_context(self):
        """Its context as JSON, or `None`."""
        return self._context or None


NO_TRACE = InferenceTrace()


def _parameters_text(parameters) -> str:
    if not parameters:
        return ""
    for key, value in parameters.items():
        if not isinstance(key, str):
            raise TritonModelException(f"Expect parameters keys to have type str, found type {type(key)}")
        if not isinstance(value, (bool, int, float, str)):
            raise TritonModelException(
                f"Expect parameters values to have type bool/int/float/str, found type {type(value)}"
            )
    return json.dumps(parameters)


class InferenceResponse:
    """A response: tensors, or an error."""

    __slots__ = ("_outputs", "_error", "_parameters")

    def __init__(self, output_tensors=(), error: TritonError = None, parameters=None):
        self._outputs = list(output_tensors)
        for output in self._outputs:
            if output is None:
                raise TritonModelException("Output tensor for inference response should not be empty.")
            if not isinstance(output, Tensor):
                raise TypeError(
                    "__init__(): incompatible constructor arguments. expected output_tensors to be "
                    f"List[c_python_backend_utils.Tensor], got an element of {type(output)}"
                )
        if error is not None and not isinstance(error, TritonError):
            raise TypeError(
                "__init__(): incompatible constructor arguments. expected error to be "
                f"c_python_backend_utils.TritonError, got {type(error)}"
            )
        self._error = error
        self._parameters = parameters if isinstance(parameters, str) else _parameters_text(parameters)

    def output_tensors(self) -> list:
        """Its tensors."""
        return self._outputs

    def has_error(self) -> bool:
        """Whether it is an error."""
        return self._error is not None

    def error(self):
        """The error, or `None`."""
        return self._error

    def parameters(self) -> str:
        """Its parameters as JSON; empty without any."""
        return self._parameters


class InferenceRequest:
    """A request, to the model or by it."""

    __slots__ = (
        "_inputs",
        "_request_id",
        "_correlation_id",
        "_outputs",
        "_model_name",
        "_model_version",
        "_flags",
        "_timeout",
        "_priority",
        "_trace",
        "_parameters",
        "_number",
        "_sender",
        "_release_flags",
        "__weakref__",
    )

    def __init__(
        self,
        request_id="",
        correlation_id=0,
        inputs=None,
        requested_output_names=None,
        model_name=None,
        model_version=-1,
        flags=0,
        timeout=0,
        preferred_memory=None,
        trace=None,
        parameters=None,
    ):
        for name, value in (
            ("inputs", inputs),
            ("requested_output_names", requested_output_names),
            ("model_name", model_name),
        ):
            if value is None:
                raise TypeError(f"__init__(): incompatible constructor arguments. '{name}' must be given")
        if not isinstance(correlation_id, (int, str)):
            raise TritonModelException("Correlation ID must be integer or string")
        self._inputs = list(inputs)
        if any(each is None for each in self._inputs):
            raise TritonModelException(
                f"Input tensor for request with id '{request_id}' and model name '{model_name}' should not be empty."
            )
        self._outputs = list(dict.fromkeys(requested_output_names))
        if "" in self._outputs:
            raise TritonModelException(
                f"Requested output name for request with id '{request_id}' and model name '{model_name}' should not "
                "be empty."
            )
        self._request_id = request_id
        self._correlation_id = correlation_id
        self._model_name = model_name
        self._model_version = model_version
        self._flags = flags
        self._timeout = timeout
        self._priority = 0
        self._trace = trace or NO_TRACE
        self._parameters = _parameters_text(parameters)
        self._number = None
        self._sender = None
        self._release_flags = REQUEST_RELEASE_ALL

    def inputs(self) -> list:
        """Its tensors."""
        return self._inputs

    def request_id(self) -> str:
        """The client's name for it."""
        return self._request_id

    def correlation_id(self):
        """The sequence that it belongs to; 0 when to none."""
        return self._correlation_id

    def requested_output_names(self) -> set:
        """The outputs that are wanted."""
        return set(self._outputs)

    def flags(self) -> int:
        """Whether it begins or ends a sequence."""
        return self._flags

    def set_flags(self, flags: int) -> None:
        """Says whether it begins or ends a sequence."""
        self._flags = flags

    def timeout(self) -> int:
        """How long it may take, in microseconds; 0 without limit."""
        return self._timeout

    def parameters(self) -> str:
        """Its parameters as JSON; empty without any."""
        return self._parameters

    def trace(self) -> InferenceTrace:
        """Its trace."""
        if type(self._trace) is str:
            self._trace = InferenceTrace(self._trace, self._number)
        return self._trace

    def set_release_flags(self, flags: int) -> None:
        """Says whether the request ends with this execution or is to be scheduled again."""
        if flags not in (REQUEST_RELEASE_ALL, REQUEST_RELEASE_RESCHEDULE):
            raise TritonModelException(f"the release flags {flags} are unknown")
        self._release_flags = flags

    def is_cancelled(self) -> bool:
        """Whether nobody waits for the answer any more."""
        if self._number is None or (self._sender is not None and self._sender._is_closed):
            return False
        return _is_cancelled(self._number)

    def get_response_sender(self) -> InferenceResponseSender:
        """What sends responses to it, from any thread, also after `execute` has returned."""
        if self._number is None:
            raise TritonModelException("a request that the model made itself has no response sender")
        if self._sender is None:
            self._sender = InferenceResponseSender(self)
        return self._sender

    def exec(self, decoupled: bool = False):
        """Runs the request and returns its response; with `decoupled`, an iterator over its responses."""
        call = Call(self, decoupled)
        return ResponseIterator(call) if decoupled else call.only()

    def async_exec(self, decoupled: bool = False):
        """The same, to be awaited."""
        import asyncio

        loop, here = asyncio.get_running_loop(), threading.get_ident()
        future = loop.create_future()

        def first_is_there():
            # Mostly the loop has read it itself, and need not be woken.
            (loop.call_soon if threading.get_ident() == here else loop.call_soon_threadsafe)(arrived)

        call = Call(self, decoupled, first_is_there)

        def arrived():
            if not future.done():
                future.set_result(ResponseIterator(call) if decoupled else call.only())

        def ended(_):
            channel.unlisten(loop)
            if future.cancelled():
                call.cancel()

        channel.listen(loop)
        future.add_done_callback(ended)
        return future


def _is_cancelled(number: int) -> bool:
    (is_cancelled,) = channel.ask(wire.IS_CANCELLED, (number,)).unpack(wire.NUMBER)
    return bool(is_cancelled)


def read_request(reader: wire.Reader, model_name: str, is_decoupled: bool) -> InferenceRequest:
    """A request out of a frame of the server."""
    request = InferenceRequest.__new__(InferenceRequest)
    number, timeout, correlation, flags, inputs, outputs, is_text, *lengths = reader.unpack(wire.REQUEST)
    request._number = number
    request._timeout = timeout
    request._flags = flags
    request._correlation_id = correlation
    if is_text or any(lengths):
        reader.at -= wire.REQUEST_LENGTHS_BYTES
        request._request_id = reader.text()
        if is_text:
            request._correlation_id = reader.name()
        request._parameters = reader.text()
        request._trace = reader.text()
    else:
        request._request_id = request._parameters = request._trace = ""
    request._outputs = [reader.name() for _ in range(outputs)]
    arena = channel.arena
    request._inputs = [tensors.read(reader, arena) for _ in range(inputs)]
    request._model_name = model_name
    request._model_version = -1
    request._priority = 0
    request._release_flags = REQUEST_RELEASE_ALL
    request._sender = InferenceResponseSender(request) if is_decoupled else None
    return request


def write_response(writer: wire.Writer, number: int, response, wanted, is_final: bool) -> None:
    """Writes a response; outputs that nobody wanted are left out."""
    flags = wire.FINAL if is_final else 0
    if response is None:
        writer.pack(wire.RESPONSE, number, flags, 0, 0)
        return
    error = response._error
    if error is not None:
        writer.pack(wire.RESPONSE, number, flags | wire.PRESENT | wire.FAILED, error._code, 0)
        writer.text(error._message)
        return
    outputs = [each for each in response._outputs if each._name in wanted]
    writer.pack(wire.RESPONSE, number, flags | wire.PRESENT, 0, len(outputs))
    writer.text(response._parameters)
    for output in outputs:
        tensors.write(writer, output, channel.take)


def read_response(reader: wire.Reader) -> tuple:
    """A call's number, a response to it out of a frame of the server, and whether it is the last."""
    number, flags, code, count = reader.unpack(wire.RESPONSE)
    is_final = bool(flags & wire.FINAL)
    if not flags & wire.PRESENT:
        return number, InferenceResponse(), is_final
    if flags & wire.FAILED:
        return number, InferenceResponse(error=TritonError(reader.text(), code)), is_final
    response = InferenceResponse.__new__(InferenceResponse)
    response._parameters = reader.text()
    response._error = None
    arena = channel.arena
    response._outputs = [tensors.read(reader, arena) for _ in range(count)]
    return number, response, is_final


class InferenceResponseSender:
    """Sends the responses to one request."""

    __slots__ = ("_number", "_wanted", "_is_closed", "_sent", "_lock")

    # Whether the model may send any number of responses. Set by the host.
    is_decoupled = False

    def __init__(self, request: InferenceRequest):
        self._number = request._number
        self._wanted = request._outputs
        self._is_closed = False
        self._sent = 0
        self._lock = threading.Lock()

    def is_cancelled(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return False if self._is_closed else _is_cancelled(self._number)

    def send(self, response: InferenceResponse = None, flags: int = 0) -> None:
        """Sends a response, or with the flag TRITONSERVER_RESPONSE_COMPLETE_FINAL the end."""
        if flags not in (0, RESPONSE_COMPLETE_FINAL):
            raise TritonModelException("Unable to send response. Unsupported flag provided.")
        if flags == 0 and response is None:
            raise TritonModelException(
                "Inference Response object must be provided when the response flags is set to zero."
            )
        if response is not None and not isinstance(response, InferenceResponse):
            raise TypeError(
                f"send(): incompatible function arguments. expected an InferenceResponse, got {type(response)}"
            )
        with self._lock:
            self.note(response, flags)
            writer = wire.Writer()
            writer.begin(wire.RESPONSES)
            writer.pack(wire.COUNT, 1)
            write_response(writer, self._number, response, self._wanted, flags == RESPONSE_COMPLETE_FINAL)
            writer.end()
            channel.send(writer)

    def note(self, response, flags: int) -> None:
        """Holds a response against those that were sent before."""
        if not InferenceResponseSender.is_decoupled:
            if response is not None and self._sent > 0:
                raise TritonModelException(
                    "Unable to send response. Non-decoupled model cannot send more than one response."
                )
            if response is None and self._sent == 0:
                raise TritonModelException(
                    "Unable to send response. Non-decoupled model cannot send complete final before sending a "
                    "response."
                )
        if self._is_closed:
            raise TritonModelException("Unable to send response. Response sender has been closed.")
        self._is_closed = flags == RESPONSE_COMPLETE_FINAL
        self._sent += 1

    def __del__(self):
        # A model that lets go of a request has ended it; the server learns it like returned memory.
        if not self._is_closed:
            channel.gone.append((wire.DROPPED, self._number, AT_ONCE))


class Call:
    """A call of another model."""

    def __init__(self, request: InferenceRequest, is_decoupled: bool, on_first=None):
        if not can_call:
            raise TritonModelException("BLS is only supported during the 'execute' function.")
        self._responses: collections.deque = collections.deque()
        self._waiter = Waiter()
        self._is_over = False
        self._on_first = on_first
        self._number = channel.call(
            lambda writer, number: _write_call(writer, number, request, is_decoupled), self._answer
        )

    def _answer(self, reader: wire.Reader) -> None:
        number, response, is_final = read_response(reader)
        self._responses.append(response)
        if is_final:
            channel.end_call(number)
            self._is_over = True
        self._waiter.give()
        if self._on_first is not None:
            on_first, self._on_first = self._on_first, None
            on_first()

    def next(self):
        """The next response; `None` after the last."""
        while True:
            if self._responses:
                return self._responses.popleft()
            if self._is_over:
                # The last may have come between the two looks.
                return self._responses.popleft() if self._responses else None
            waiter = self._waiter
            if waiter.is_ready:
                waiter = self._waiter = Waiter()
            if not self._responses and not self._is_over:
                channel.wait(waiter)

    def only(self) -> InferenceResponse:
        """The response of a call that has only one."""
        try:
            return self.next()
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Lets go of the responses that have not come."""
        if not self._is_over:
            channel.cancel_call(self._number)


def _write_call(writer: wire.Writer, number: int, request: InferenceRequest, is_decoupled: bool) -> None:
    correlation = request._correlation_id
    is_text = isinstance(correlation, str)
    writer.pack(
        wire.CALL_HEAD,
        number,
        (wire.DECOUPLED if is_decoupled else 0)
        | (wire.WHILE_EXECUTING if threading.get_ident() in executing else 0),
        request._model_version,
        request._timeout,
        0 if is_text else correlation,
        request._flags,
        len(request._inputs),
        len(request._outputs),
        is_text,
        request.trace()._number,
    )
    writer.bytes += wire.call_names(
        request._model_name,
        request._request_id,
        correlation if is_text else None,
        request._parameters,
        request._outputs,
    )
    for each in request._inputs:
        tensors.write(writer, each, channel.take)


class ResponseIterator:
    """The responses of a call, in the order in which they come."""

    def __init__(self, call: Call):
        self._call = call
        self._seen: list = []
        self._is_done = False

    def __iter__(self):
        if self._is_done:
            # A second walk goes over what the first has seen.
            return iter(self._seen)
        return self

    def __next__(self) -> InferenceResponse:
        response = None if self._is_done else self._call.next()
        if response is None:
            self._is_done = True
            raise StopIteration("Iteration is done for the responses.")
        self._seen.append(response)
        return response

    def cancel(self) -> None:
        """Lets go of the responses that have not come."""
        self._call.cancel()
