"""Tensors in DLPack's form, in and out."""

from __future__ import annotations

import ctypes

import numpy as np

from . import cuda, datatypes
from .errors import TritonModelException

CPU, CUDA, CUDA_HOST = 1, 2, 3
_NAME, _USED = b"dltensor", b"used_dltensor"


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("type_code", ctypes.c_uint8),
        ("type_bits", ctypes.c_uint8),
        ("type_lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter)]

_python = ctypes.pythonapi
_python.PyCapsule_New.restype = ctypes.py_object
_python.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_python.PyCapsule_GetPointer.restype = ctypes.c_void_p
_python.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_python.PyCapsule_SetName.argtypes = [ctypes.py_object, ctypes.c_char_p]
# For destructors: the capsule is being taken down, so no new reference to it may be made.
_raw_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _python))
_raw_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _python)
)

# What was handed out, by address: the structure and all that its pointers lead to.
_handed_out: dict = {}


@_Deleter
def _let_go(managed):
    _handed_out.pop(ctypes.addressof(managed.contents), None)


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
def _capsule_gone(capsule):
    # One that was consumed has another name, and its consumer calls the deleter.
    if _raw_is_valid(capsule, _NAME):
        _handed_out.pop(_raw_pointer(capsule, _NAME), None)


def export(array: np.ndarray, datatype: int):
    """A capsule of an array in the host's memory."""
    code, bits = datatypes.to_dlpack(datatype)
    shape = (ctypes.c_int64 * max(array.ndim, 1))(*array.shape)
    managed = _Managed()
    managed.tensor = _Tensor(
        array.__array_interface__["data"][0], CPU, 0, array.ndim, code, bits, 1, shape, None, 0
    )
    managed.deleter = _let_go
    address = ctypes.addressof(managed)
    _handed_out[address] = (managed, shape, array)
    return _python.PyCapsule_New(address, _NAME, ctypes.cast(_capsule_gone, ctypes.c_void_p))


class Imported:
    """What a capsule held; let go of when the last array on it is gone."""

    def __init__(self, capsule):
        try:
            address = _python.PyCapsule_GetPointer(capsule, _NAME)
        except ValueError as error:
            raise TritonModelException(f"expected an unused DLPack capsule: {error}") from None
        self._managed = ctypes.cast(address, ctypes.POINTER(_Managed))
        tensor = self._managed.contents.tensor
        self.shape = tuple(tensor.shape[axis] for axis in range(tensor.rank))
        self.device_type, self.device_id = tensor.device_type, tensor.device_id
        self.datatype = datatypes.of_dlpack(tensor.type_code, tensor.type_bits, tensor.type_lanes)
        if self.datatype is None:
            raise TritonModelException("DLPack dtype is not supported.")
        if tensor.strides and not self._is_contiguous(tensor):
            raise TritonModelException(
                "DLPack tensor is not contiguous. Only contiguous DLPack tensors that are stored in C-Order are "
                "supported."
            )
        if self.device_type not in (CPU, CUDA, CUDA_HOST):
            raise TritonModelException(f"DLDevice type {self.device_type} is not support by Python backend.")
        self.address = (tensor.data or 0) + tensor.byte_offset
        size = datatypes.NUMPY[self.datatype].itemsize
        self.byte_size = size * int(np.prod(self.shape, dtype=np.int64))
        self.__array_interface__ = {
            "data": (self.address, False),
            "shape": (self.byte_size,),
            "typestr": "|u1",
            "version": 3,
        }
        # From here on it is this object that has to let go.
        _python.PyCapsule_SetName(capsule, _USED)
        self._owned = True

    def _is_contiguous(self, tensor) -> bool:
        expected = 1
        for axis in reversed(range(tensor.rank)):
            if self.shape[axis] != 1 and tensor.strides[axis] != expected:
                return False
            expected *= self.shape[axis]
        return True

    def array(self) -> np.ndarray:
        """The elements, of a tensor in the host's memory."""
        if self.byte_size == 0:
            return np.empty(self.shape, datatypes.NUMPY[self.datatype])
        return np.asarray(self).view(datatypes.NUMPY[self.datatype]).reshape(self.shape)

    def copy_to_host(self, target: int) -> None:
        """Copies the elements of a tensor on a GPU."""
        cuda.copy_to_host(target, self.address, self.byte_size, self.device_id)

    def __del__(self):
        if getattr(self, "_owned", False) and self._managed.contents.deleter:
            self._managed.contents.deleter(self._managed)


def imported(tensor) -> Imported:
    """What a DLPack capsule holds, or what has `__dlpack__`."""
    if hasattr(tensor, "__dlpack__") and hasattr(tensor, "__dlpack_device__"):
        on_gpu = tensor.__dlpack_device__()[0] == CUDA
        # 1 is the default stream of CUDA; what is in the host's memory has none.
        return Imported(tensor.__dlpack__(stream=1) if on_gpu else tensor.__dlpack__())
    if type(tensor).__name__ == "PyCapsule":
        return Imported(tensor)
    raise TritonModelException(
        "Provided tensor is not supported. Tensor must be a DLPack capsule         or have `__dlpack__` and "
        "`__dlpack_device__` attributes"
    )
