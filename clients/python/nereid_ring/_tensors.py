"""Arrays as tensors, and tensors as arrays."""

from __future__ import annotations

import numpy as np

try:
    from ml_dtypes import bfloat16
except ImportError:
    bfloat16 = None

BYTES, BF16 = 13, 14
_NUMBERS = {
    np.dtype(dtype): number
    for number, dtype in enumerate(
        [
            np.bool_, np.uint8, np.uint16, np.uint32, np.uint64, np.int8, np.int16, np.int32, np.int64,
            np.float16, np.float32, np.float64,
        ],
        start=1,
    )
}  # fmt: skip
_DTYPES = {number: dtype for dtype, number in _NUMBERS.items()}
# Who has not installed ml_dtypes gets the bits.
_DTYPES[BF16] = np.dtype(bfloat16 or np.uint16)


def number_of(array: np.ndarray) -> int:
    """The number of an array's type."""
    if array.dtype.kind in "OSU":
        return BYTES
    if array.dtype.name == "bfloat16":
        return BF16
    try:
        return _NUMBERS[array.dtype]
    except KeyError:
        raise TypeError(f"no tensor has the type {array.dtype}") from None


def packed(array: np.ndarray) -> bytes:
    """Strings as a tensor holds them, each behind its length."""
    pieces = []
    for element in array.reshape(-1):
        text = element.encode() if isinstance(element, str) else bytes(element)
        pieces += [len(text).to_bytes(4, "little"), text]
    return b"".join(pieces)


def unpacked(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """The strings of a tensor."""
    found, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        found.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    array = np.empty(len(found), dtype=object)
    array[:] = found
    return array.reshape(shape)


def array_of(buffer, offset: int, size: int, number: int, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor at `offset` of a buffer: where it lies, unless it holds strings."""
    if number == BYTES:
        return unpacked(bytes(memoryview(buffer)[offset : offset + size]), shape)
    dtype = _DTYPES[number]
    return np.frombuffer(buffer, dtype, size // dtype.itemsize, offset).reshape(shape)
