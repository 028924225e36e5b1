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
_NO_TEXT = bytes(4)
ASK_HEAD = struct.Struct("<QBBH")
_ZEROES = [bytes(count) for count in range(8)]


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



class Reader:
    """The body of a frame."""

    __slots__ = ("body", "at")

    def __init__(self, body: bytes):
        self.body = body
        self.at = 0

    def unpack(self, layout: struct.Struct) -> tuple:
        """Takes numbers."""
        values = layout.unpack_from(self.body, self.at)
        self.at += layout.size
        return values

    def text(self) -> str:
        """Takes a text of any length."""
        (length,) = COUNT.unpack_from(self.body, self.at)
        begin = self.at + 4
        self.at = begin + length
        return self.body[begin : self.at].decode(errors="surrogateescape")
