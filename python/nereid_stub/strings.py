"""String tensors: each element behind its length, as a little-endian `u32`."""

from __future__ import annotations

import struct

import numpy as np

_LENGTH = struct.Struct("<I")


def serialize_byte_tensor(input_tensor):
    """The bytes of a string tensor; what is not bytes becomes text in UTF-8. `None` for a tensor that holds
    neither objects nor bytes."""
    if input_tensor.size == 0:
        return b""
    if input_tensor.dtype != np.object_ and input_tensor.dtype.type != np.bytes_:
        return None
    pieces = []
    for element in input_tensor.ravel().tolist():
        encoded = element if type(element) is bytes else str(element).encode()
        pieces.append(_LENGTH.pack(len(encoded)))
        pieces.append(encoded)
    return b"".join(pieces)


def deserialize_bytes_tensor(encoded_tensor):
    """The elements of a string tensor, as a flat array of bytes objects."""
    encoded = memoryview(encoded_tensor)
    elements = []
    at, end = 0, len(encoded)
    while at < end:
        (length,) = _LENGTH.unpack_from(encoded, at)
        at += 4
        if at + length > end:
            raise ValueError(f"a string of {length} bytes reaches past the {end} bytes of its tensor")
        elements.append(bytes(encoded[at : at + length]))
        at += length
    array = np.empty(len(elements), dtype=np.object_)
    array[:] = elements
    return array
