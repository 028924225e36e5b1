"""Requests and responses, of the model itself and of those that it calls."""

from __future__ import annotations

import collections
import enum
import json
import threading

from . import native, wire
from .channel import Waiter
from .errors import TritonModelException
from .native import InferenceRequest, InferenceResponse

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


def parameters_text(parameters) -> str:
    """The parameters that a model gives, as JSON; empty without any."""
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


def is_cancelled(request: InferenceRequest) -> bool:
    """Whether nobody waits for a request's answer any more."""
    sender = request._sender
    if request._number is None or (sender is not None and sender._is_closed):
        return False
    return _is_cancelled(request._number)


def response_sender(request: InferenceRequest) -> InferenceResponseSender:
    """What sends responses to a request, from any thread, also after `execute` has returned."""
    if request._number is None:
        raise TritonModelException("a request that the model made itself has no response sender")
    sender = request._sender
    if sender is None:
        sender = request._sender = InferenceResponseSender(request)
    return sender


def run(request: InferenceRequest, is_decoupled: bool):
    """Runs a request and returns its response, or an iterator over its responses."""
    call = Call(request, is_decoupled)
    return ResponseIterator(call) if is_decoupled else call.only()


def run_async(request: InferenceRequest, is_decoupled: bool):
    """The same, to be awaited."""
    import asyncio

    loop, here = asyncio.get_running_loop(), threading.get_ident()
    future = loop.create_future()

    def first_is_there():
        # Mostly the loop has read it itself, and need not be woken.
        (loop.call_soon if threading.get_ident() == here else loop.call_soon_threadsafe)(arrived)

    call = Call(request, is_decoupled, first_is_there)

    def arrived():
        if not future.done():
            future.set_result(ResponseIterator(call) if is_decoupled else call.only())

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
            is_final = flags == RESPONSE_COMPLETE_FINAL
            writer.bytes += native.response_bytes(
                self._number, response, self._wanted, is_final, channel.arena.memory, channel
            )
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
            channel.gone.append(wire.DROPPED, self._number, AT_ONCE)


class Call:
    """A call of another model."""

    def __init__(self, request: InferenceRequest, is_decoupled: bool, on_first=None):
        if not can_call:
            raise TritonModelException("BLS is only supported during the 'execute' function.")
        self._responses: collections.deque = collections.deque()
        self._waiter = Waiter()
        self._is_over = False
        self._on_first = on_first
        bits = wire.DECOUPLED if is_decoupled else 0
        if threading.get_ident() in executing:
            bits |= wire.WHILE_EXECUTING
        self._number = channel.call(request, bits, self._answer)

    def _answer(self, number: int, response: InferenceResponse, is_final: bool) -> None:
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
