"""What goes over the socket between the server and the process of a model instance.

The layout is described in README.md beside this package; `src/backend/python/wire/` is its other end.
All numbers are little-endian. A frame is a header of 8 bytes (length of the body, kind) and a body whose
length is a multiple of 8.
"""

from __future__ import annotations

import struct

HEADER = struct.Struct("<IB3x")

# From the server.
START, EXECUTE, REPLY, CALL_RESPONSE, FREE, FINALIZE, ASK_READY, FLUSH, TRIM = range(1, 10)
# From the model's process.
STARTED, RESPONSES, EXECUTED, CALL, CANCEL_CALL, ASK, LOG, IS_READY, FINALIZED = range(32, 41)
# What nothing refers to any more: lent memory, requests, metrics, families of metrics.
FREED, DROPPED, METRICS_GONE, FAMILIES_GONE = range(48, 52)

# Where a tensor's bytes are.
INLINE, SENDER, RECEIVER = range(3)

# Bits of a response.
FINAL, PRESENT, FAILED = 1, 2, 4

# Bits of a call: any number of responses is taken; `execute` waits for it.
DECOUPLED, WHILE_EXECUTING = 1, 2

# What can be asked for.
(
    IS_CANCELLED,
    LOAD_MODEL,
    UNLOAD_MODEL,
    IS_MODEL_READY,
    NEW_FAMILY,
    NEW_METRIC,
    METRIC_INCREMENT,
    METRIC_SET,
    METRIC_OBSERVE,
    METRIC_VALUE,
) = range(10)

FLAG = struct.Struct("<B")
COUNT = struct.Struct("<I")
NUMBER = struct.Struct("<Q")
VALUE = struct.Struct("<d")
_U16 = struct.Struct("<H")
_NO_TEXT = bytes(4)
_TENSOR = struct.Struct("<BBB")
# The lengths at its end are those of the three texts behind it, if the first two are empty and the
# correlation id is a number.
REQUEST = struct.Struct("<QQQIHHBIII")
REQUEST_LENGTHS_BYTES = 12
RESPONSE = struct.Struct("<QBBH")
CALL_HEAD = struct.Struct("<QBqQQIHHBQ")
ASK_HEAD = struct.Struct("<QBBH")
RANK_MAX = 32
# By the number of dimensions: these, and then the length of the bytes in the frame, or where they are.
_IN_FRAME = [struct.Struct(f"<{rank}qI") for rank in range(RANK_MAX + 1)]
_IN_MEMORY = [struct.Struct(f"<{rank}qQQ") for rank in range(RANK_MAX + 1)]
_ZEROES = [bytes(count) for count in range(8)]
# What comes before a tensor's dimensions, and the names of a call, by what they say: models give the same
# tensors and make the same calls again and again.
_heads: dict = {}
_calls: dict = {}
_KEPT_MAX = 256


class Malformed(Exception):
    """A frame that is not of the described form."""


class Writer:
    """Frames on their way out, one behind the other."""

    __slots__ = ("bytes", "_start")

    def __init__(self):
        self.bytes = bytearray()
        self._start = 0

    def begin(self, kind: int) -> None:
        """Begins a frame."""
        self._start = len(self.bytes)
        self.bytes += HEADER.pack(0, kind)

    def end(self) -> None:
        """Ends the frame."""
        self.align()
        COUNT.pack_into(self.bytes, self._start, len(self.bytes) - self._start - HEADER.size)

    def align(self) -> None:
        """Fills up to a multiple of 8."""
        self.bytes += _ZEROES[-len(self.bytes) & 7]

    def pack(self, layout: struct.Struct, *values) -> None:
        """Appends numbers."""
        self.bytes += layout.pack(*values)

    def name(self, text: str) -> None:
        """Appends a short text."""
        encoded = text.encode()
        self.bytes += _U16.pack(len(encoded))
        self.bytes += encoded

    def text(self, text: str) -> None:
        """Appends a text of any length."""
        if not text:
            self.bytes += _NO_TEXT
            return
        try:
            encoded = text.encode(errors="surrogateescape")
        except UnicodeEncodeError:
            # Halves of surrogate pairs, which are no characters.
            encoded = text.encode(errors="replace")
        self.bytes += COUNT.pack(len(encoded))
        self.bytes += encoded

    def inline(self, name: str, datatype: int, shape, data) -> None:
        """Appends a tensor and its bytes."""
        self.bytes += _head(name, datatype, len(shape), INLINE)
        self.bytes += _IN_FRAME[len(shape)].pack(*shape, len(data))
        self.bytes += _ZEROES[-len(self.bytes) & 7]
        self.bytes += data

    def in_memory(self, name: str, datatype: int, shape, place: int, offset: int, length: int) -> None:
        """Appends a tensor whose bytes are in shared memory."""
        self.bytes += _head(name, datatype, len(shape), place)
        self.bytes += _IN_MEMORY[len(shape)].pack(*shape, offset, length)


def _head(name: str, datatype: int, rank: int, place: int) -> bytes:
    key = (name, datatype, rank, place)
    head = _heads.get(key)
    if head is None:
        encoded = name.encode()
        head = _U16.pack(len(encoded)) + encoded + _TENSOR.pack(datatype, rank, place)
        _keep(_heads, key, head)
    return head


def call_names(model: str, request_id: str, correlation, parameters: str, outputs: list) -> bytes:
    """What comes before the tensors of a call; `correlation` is a sequence's name, or `None`."""
    key = (model, request_id, correlation, parameters, *outputs)
    names = _calls.get(key)
    if names is None:
        writer = Writer()
        writer.name(model)
        writer.name(request_id)
        if correlation is not None:
            writer.name(correlation)
        writer.text(parameters)
        for name in outputs:
            writer.name(name)
        names = bytes(writer.bytes)
        if not request_id and correlation is None and not parameters:
            # The others are hardly ever the same.
            _keep(_calls, key, names)
    return names


def _keep(kept: dict, key: tuple, value: bytes) -> None:
    if len(kept) >= _KEPT_MAX:
        kept.clear()
    kept[key] = value


class Reader:
    """The body of a frame."""

    __slots__ = ("body", "at")

    def __init__(self, body: bytearray):
        self.body = body
        self.at = 0

    def unpack(self, layout: struct.Struct) -> tuple:
        """Takes numbers."""
        values = layout.unpack_from(self.body, self.at)
        self.at += layout.size
        return values

    def name(self) -> str:
        """Takes a short text."""
        (length,) = _U16.unpack_from(self.body, self.at)
        begin = self.at + 2
        self.at = begin + length
        return self.body[begin : self.at].decode()

    def text(self) -> str:
        """Takes a text of any length."""
        (length,) = COUNT.unpack_from(self.body, self.at)
        begin = self.at + 4
        self.at = begin + length
        return self.body[begin : self.at].decode(errors="surrogateescape")

    def tensor(self) -> tuple:
        """Takes a tensor: name, type, shape, place and either (body, begin, end) or (offset, length)."""
        body = self.body
        (length,) = _U16.unpack_from(body, self.at)
        begin = self.at + 2
        at = begin + length
        name = body[begin:at].decode()
        datatype, rank, place = body[at : at + 3]
        if rank > RANK_MAX:
            raise Malformed(f"tensor '{name}' has {rank} dimensions")
        at += 3
        if place != INLINE:
            values = _IN_MEMORY[rank].unpack_from(body, at)
            self.at = at + 8 * rank + 16
            return name, datatype, values[:-2], place, values[-2:]
        values = _IN_FRAME[rank].unpack_from(body, at)
        # The header before the body is 8 bytes, so that this is aligned as it is in the frame.
        begin = (at + 8 * rank + 4 + 7) & ~7
        self.at = end = begin + values[-1]
        return name, datatype, values[:-1], place, (body, begin, end)
