"""What goes over the socket between the server and the process of a model instance.

The layout is described in README.md beside this package; `src/backend/python/wire/` is its other end.
All numbers are little-endian. A frame is a header of 8 bytes (length of the body, kind) and a body whose
length is a multiple of 8.
"""

from __future__ import annotations

import struct

HEADER = struct.Struct("<IB3x")

# From the server.
START, EXECUTE, REPLY, CALL_RESPONSE, FREE, FINALIZE, ASK_READY, FLUSH = range(1, 9)
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
_TENSOR = struct.Struct("<BBB")
_RANGE = struct.Struct("<QQ")
REQUEST = struct.Struct("<QQQIHHB")
RESPONSE = struct.Struct("<QBBH")
CALL_HEAD = struct.Struct("<QBqQQIHHBQ")
ASK_HEAD = struct.Struct("<QBBH")
_DIMS = [struct.Struct(f"<{count}q") for count in range(33)]


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
        self.bytes += bytes(-len(self.bytes) % 8)

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
        encoded = text.encode(errors="surrogateescape")
        self.bytes += COUNT.pack(len(encoded))
        self.bytes += encoded

    def tensor(self, name: str, datatype: int, shape, place: int) -> None:
        """Appends what comes before a tensor's bytes."""
        self.name(name)
        self.bytes += _TENSOR.pack(datatype, len(shape), place)
        self.bytes += _DIMS[len(shape)].pack(*shape)

    def inline(self, data) -> None:
        """Appends a tensor's bytes."""
        self.bytes += COUNT.pack(len(data))
        self.align()
        self.bytes += data

    def range(self, offset: int, length: int) -> None:
        """Appends where a tensor's bytes are in shared memory."""
        self.bytes += _RANGE.pack(offset, length)


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
        """Takes a tensor: name, type, shape, place and either its bytes or (offset, length)."""
        name = self.name()
        datatype, rank, place = _TENSOR.unpack_from(self.body, self.at)
        self.at += 3
        if rank >= len(_DIMS):
            raise Malformed(f"tensor '{name}' has {rank} dimensions")
        shape = _DIMS[rank].unpack_from(self.body, self.at)
        self.at += 8 * rank
        if place != INLINE:
            return name, datatype, shape, place, self.unpack(_RANGE)
        (length,) = COUNT.unpack_from(self.body, self.at)
        # The header before the body is 8 bytes, so that this is aligned as it is in the frame.
        begin = (self.at + 4 + 7) & ~7
        self.at = begin + length
        return name, datatype, shape, place, memoryview(self.body)[begin : self.at]
