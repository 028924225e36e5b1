"""A ring for one thread that waits."""

from __future__ import annotations

import collections
import ctypes
import os
from collections.abc import Iterator, Mapping

import numpy as np

from . import _library, _tensors
from ._library import RingError, failure
from ._memory import Handle

# Beside the outputs, for what an answer says of them.
_AREA_BYTES = 64 << 10
# How long the library waits before Python may look at signals.
_PATIENCE_US = 100_000
_STATUS = [
    "OK", "Unknown", "Internal", "Not found", "Invalid argument", "Unavailable", "Unsupported",
    "Already exists", "Cancelled",
]  # fmt: skip
_SEQUENCE_START, _SEQUENCE_END = 1, 2


class Answer(Mapping):
    """The outputs of a request by name, as arrays that lie where the server wrote them."""

    def __init__(self, model: str, version: int, id: str, outputs: dict[str, np.ndarray]):
        self.model, self.version, self.id = model, version, id
        self._outputs = outputs

    def __getitem__(self, name: str) -> np.ndarray:
        return self._outputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)

    def __repr__(self) -> str:
        return f"<answer of {self.model} {self.version}: {', '.join(self)}>"


class Pending:
    """A request in flight: what it keeps alive, and the answers that nobody has taken yet."""

    def __init__(self, token: int, buffers: list, on_event=None):
        self.token = token
        self.answers: collections.deque[Answer | RingError] = collections.deque()
        self.is_over = False
        self._buffers = buffers
        self._on_event = on_event

    def add(self, answer: Answer | RingError | None, is_final: bool) -> None:
        if answer is not None:
            self.answers.append(answer)
        self.is_over = self.is_over or is_final
        if self._on_event is not None:
            self._on_event()

    def array(self, tensor: _library.Tensor) -> np.ndarray:
        shape = tuple(tensor.dims[axis] for axis in range(tensor.rank))
        address, size = tensor.data or 0, tensor.bytes
        for buffer in self._buffers:
            start = ctypes.addressof(buffer)
            if start <= address and address + size <= start + len(buffer):
                return _tensors.array_of(buffer, address - start, size, tensor.datatype, shape)
        raise RingError(f"output '{tensor.name.decode()}' does not lie in the request's memory")


class Ring:
    """A connection to a server, and the memory shared with it."""

    def __init__(
        self, path: str | os.PathLike, *, arena_bytes: int = 64 << 20, requests: int = 256, spin: bool = False
    ):
        """Connects to the server whose `--ring-socket` is `path`.

        `arena_bytes` is for all arrays in use at a time, `requests` may be in flight. With `spin` the
        client looks for answers all the time while it waits, and asks the server to do the like.
        """
        self._library = _library.library()
        self._handle = Handle(path, arena_bytes, requests, spin)
        self._pending: dict[int, Pending] = {}
        self._is_open = True

    def __enter__(self) -> Ring:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; arrays stay what they are until they are gone."""
        self._library.nrd_hang_up(self._handle.pointer)
        self._is_open = False
        self._pending.clear()

    def empty(self, shape: int | tuple[int, ...], dtype) -> np.ndarray:
        """An array in the arena, of any contents. As an input it is not copied."""
        dtype = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        buffer = self._handle.allocate(max(1, count * dtype.itemsize))
        return np.frombuffer(buffer, dtype, count).reshape(shape)

    def array(self, values) -> np.ndarray:
        """An array in the arena with the contents of another."""
        values = np.asarray(values)
        copy = self.empty(values.shape, values.dtype)
        copy[...] = values
        return copy

    def infer(self, model: str, inputs: Mapping[str, np.ndarray], outputs=(), **options) -> Answer:
        """Sends a request and waits for its answer. The options are those of `submit`."""
        pending = self.submit(model, inputs, outputs, **options)
        answer = self._next_of(pending)
        if answer is None:
            raise RingError(f"model '{model}' has answered with nothing")
        return answer

    def stream(self, model: str, inputs: Mapping[str, np.ndarray], outputs=(), **options) -> Iterator[Answer]:
        """Sends a request and gives its answers as they come, for models that answer any number of times."""
        pending = self.submit(model, inputs, outputs, **options)
        try:
            while (answer := self._next_of(pending)) is not None:
                yield answer
        finally:
            if not pending.is_over:
                self.cancel(pending)

    def submit(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        outputs=(),
        *,
        version: str = "",
        id: str = "",
        area_bytes: int | None = None,
        parameters: Mapping[str, bool | int | float | str] | None = None,
        sequence: int | str = 0,
        sequence_start: bool = False,
        sequence_end: bool = False,
        priority: int = 0,
        timeout: float = 0,
        deadline: float = 0,
        on_event=None,
    ) -> Pending:
        """Puts a request into the ring.

        Inputs that lie in the arena are not copied. `outputs` are names, none for all, or a mapping from
        names to arrays of the arena that the server is to write to, numbers of classes to answer instead,
        or None. Other outputs go to an area of `area_bytes`, which is guessed from the inputs if it is not
        given. `timeout` is how many seconds the request may wait in the model's queue, `deadline` after
        how many nobody waits for it. `on_event` is called when something came of it.
        """
        if not self._is_open:
            raise RingError("the ring is closed")
        buffers: list = []
        tensors = [self._tensor(name, np.asarray(array), buffers) for name, array in inputs.items()]
        if area_bytes is None:
            area_bytes = _AREA_BYTES + 2 * sum(tensor.bytes for tensor in tensors)
        area = self._handle.allocate(area_bytes)
        buffers.append(area)
        wanted = self._wanted(outputs, buffers)
        named = [_parameter(name, value) for name, value in (parameters or {}).items()]
        is_text = isinstance(sequence, str)
        request = _library.Request(
            model=model.encode(),
            version=version.encode(),
            id=id.encode(),
            sequence_name=sequence.encode() if is_text else None,
            sequence=0 if is_text else sequence,
            flags=_SEQUENCE_START * sequence_start | _SEQUENCE_END * sequence_end,
            priority=priority,
            timeout_us=round(timeout * 1e6),
            deadline_us=round(deadline * 1e6),
            area=ctypes.addressof(area),
            area_bytes=area_bytes,
            inputs=(_library.Tensor * len(tensors))(*tensors),
            input_count=len(tensors),
            outputs=(_library.Wanted * len(wanted))(*wanted),
            output_count=len(wanted),
            parameters=(_library.Parameter * len(named))(*named),
            parameter_count=len(named),
        )
        token = ctypes.c_uint64()
        if self._library.nrd_submit(self._handle.pointer, ctypes.byref(request), ctypes.byref(token)) < 0:
            raise failure()
        pending = Pending(token.value, buffers, on_event)
        self._pending[token.value] = pending
        return pending

    def wait(self, pending: Pending) -> Answer | None:
        """The next answer to a request that was put; `None` after the last."""
        return self._next_of(pending)

    def cancel(self, pending: Pending) -> None:
        """Asks the server to give a request up. Its memory is free when the server has said so."""
        if self._is_open and self._library.nrd_cancel(self._handle.pointer, pending.token) < 0:
            raise failure()

    def _next_of(self, pending: Pending) -> Answer | None:
        while not pending.answers:
            if pending.is_over:
                return None
            self._take(_PATIENCE_US)
        answer = pending.answers.popleft()
        if isinstance(answer, RingError):
            raise answer
        return answer

    def _take(self, patience_us: int) -> bool:
        """Takes a completion to the request that it is of."""
        completion = _library.Completion()
        got = self._library.nrd_next(self._handle.pointer, patience_us, ctypes.byref(completion))
        if got < 0:
            raise failure()
        if got == 0:
            return False
        is_final = bool(completion.is_final)
        find = self._pending.pop if is_final else self._pending.get
        pending = find(completion.token, None)
        if pending is not None:
            pending.add(_answer(completion, pending), is_final)
        return True

    def _tensor(self, name: str, array: np.ndarray, buffers: list) -> _library.Tensor:
        number, shape = _tensors.number_of(array), array.shape
        if number == _tensors.BYTES:
            array = self._copied(_tensors.packed(array))
        elif not self._handle.holds(array):
            array = self.array(array)
        buffers.append(_buffer(array))
        return _library.Tensor(
            name=name.encode(),
            datatype=number,
            rank=len(shape),
            dims=(ctypes.c_int64 * len(shape))(*shape),
            data=array.ctypes.data,
            bytes=array.nbytes,
        )

    def _copied(self, data: bytes) -> np.ndarray:
        return self.array(np.frombuffer(data, np.uint8))

    def _wanted(self, outputs, buffers: list) -> list[_library.Wanted]:
        if not isinstance(outputs, Mapping):
            return [_library.Wanted(name=name.encode()) for name in outputs]
        wanted = []
        for name, place in outputs.items():
            if isinstance(place, np.ndarray):
                if not self._handle.holds(place):
                    raise ValueError(f"the array for output '{name}' does not lie in the arena in one piece")
                buffers.append(_buffer(place))
                address = place.ctypes.data
                wanted.append(_library.Wanted(name=name.encode(), place=address, bytes=place.nbytes))
            else:
                wanted.append(_library.Wanted(name=name.encode(), classes=place or 0))
        return wanted


def _buffer(array: np.ndarray):
    """The memory that an array of the arena lies in."""
    base = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base.obj if isinstance(base, memoryview) else base


def _parameter(name: str, value) -> _library.Parameter:
    if isinstance(value, bool):
        return _library.Parameter(name=name.encode(), kind=1, integer=value)
    if isinstance(value, int):
        return _library.Parameter(name=name.encode(), kind=2, integer=value)
    if isinstance(value, float):
        return _library.Parameter(name=name.encode(), kind=4, number=value)
    return _library.Parameter(name=name.encode(), kind=5, text=str(value).encode())


def _answer(completion: _library.Completion, pending: Pending) -> Answer | RingError | None:
    if completion.status:
        message = completion.message.decode("utf-8", "replace")
        known = completion.status < len(_STATUS)
        return RingError(message, _STATUS[completion.status] if known else "Unknown")
    if not completion.has_answer:
        return None
    found = [completion.outputs[index] for index in range(completion.output_count)]
    outputs = {tensor.name.decode(): pending.array(tensor) for tensor in found}
    return Answer(completion.model.decode(), completion.version, completion.id.decode(), outputs)
