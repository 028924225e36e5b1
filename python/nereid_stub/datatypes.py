"""Element types: Triton's numbers, NumPy's and DLPack's names for them."""

from __future__ import annotations

import numpy as np

BYTES, BF16 = 13, 14

# By Triton's number. Bfloat16 has no NumPy type of its own.
NUMPY = {
    1: np.dtype(np.bool_),
    2: np.dtype(np.uint8),
    3: np.dtype(np.uint16),
    4: np.dtype(np.uint32),
    5: np.dtype(np.uint64),
    6: np.dtype(np.int8),
    7: np.dtype(np.int16),
    8: np.dtype(np.int32),
    9: np.dtype(np.int64),
    10: np.dtype(np.float16),
    11: np.dtype(np.float32),
    12: np.dtype(np.float64),
    BYTES: np.dtype(np.object_),
    BF16: np.dtype(np.uint16),
}
_OF_NUMPY = {dtype: number for number, dtype in NUMPY.items() if number != BF16}
# DLPack's (code, bits), by Triton's number.
_DLPACK = {
    1: (6, 8),
    2: (1, 8),
    3: (1, 16),
    4: (1, 32),
    5: (1, 64),
    6: (0, 8),
    7: (0, 16),
    8: (0, 32),
    9: (0, 64),
    10: (2, 16),
    11: (2, 32),
    12: (2, 64),
    BF16: (4, 16),
}
_OF_DLPACK = {code: number for number, code in _DLPACK.items()}


def of_numpy(dtype):
    """Triton's number of a NumPy type; `None` when there is none."""
    number = _OF_NUMPY.get(dtype)
    return BYTES if number is None and dtype.kind == "S" else number


def to_dlpack(number: int):
    """DLPack's (code, bits)."""
    return _DLPACK[number]


def of_dlpack(code: int, bits: int, lanes: int):
    """Triton's number; `None` when there is none."""
    return _OF_DLPACK.get((code, bits)) if lanes == 1 else None
