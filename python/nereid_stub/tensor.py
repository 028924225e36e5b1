"""The tensors of models."""

from __future__ import annotations

import numpy as np

from . import cuda, datatypes, dlpack, strings, wire
from .errors import TritonModelException

# Tensors of up to so many bytes travel in the message.
INLINE_BYTES_MAX = 8192


class Tensor:
    """A tensor with a name."""

    __slots__ = ("_name", "_datatype", "_shape", "_array", "_memory", "__weakref__")

    def __init__(self, name: str, array: np.ndarray):
        if not isinstance(name, str) or not isinstance(array, np.ndarray):
            raise TypeError(
                "__init__(): incompatible constructor arguments. The following argument types are supported:\n"
                "    1. c_python_backend_utils.Tensor(arg0: str, arg1: numpy.ndarray)\n\n"
                f"Invoked with: {name!r}, {array!r}"
            )
        if not name:
            raise TritonModelException("Tensor name cannot be an empty string.")
        datatype = datatypes.of_numpy(array.dtype)
        if datatype is None:
            raise TritonModelException("NumPy dtype is not supported.")
        self._name = name
        self._datatype = datatype
        self._shape = array.shape
        self._array = array if array.flags.c_contiguous else np.ascontiguousarray(array)
        self._memory = None

    @classmethod
    def _of_memory(cls, name: str, datatype: int, shape: tuple, memory) -> Tensor:
        tensor = cls.__new__(cls)
        tensor._name = name
        tensor._datatype = datatype
        tensor._shape = shape
        tensor._array = None
        tensor._memory = memory
        return tensor

    def name(self) -> str:
        """The tensor's name."""
        return self._name

    def shape(self) -> list:
        """Its dimensions."""
        return list(self._shape)

    def triton_dtype(self) -> int:
        """Triton's number of its element type."""
        return self._datatype

    def is_cpu(self) -> bool:
        """Whether it is in the host's memory."""
        return not self._is_on_gpu()

    def _is_on_gpu(self) -> bool:
        return isinstance(self._memory, dlpack.Imported) and self._memory.device_type == dlpack.CUDA

    def as_numpy(self) -> np.ndarray:
        """Its elements; a view where they already are in the host's memory."""
        if self._datatype == datatypes.BF16:
            raise TritonModelException(
                "Tensor dtype is BF16 and cannot be converted to NumPy. Use to_dlpack() and from_dlpack() instead."
            )
        if self._is_on_gpu():
            raise TritonModelException("Tensor is stored in GPU and cannot be converted to NumPy.")
        return self._elements()

    def _elements(self) -> np.ndarray:
        if self._array is None:
            self._array = self._view()
        return self._array

    def _view(self) -> np.ndarray:
        memory = self._memory
        if isinstance(memory, dlpack.Imported):
            return memory.array()
        if self._datatype == datatypes.BYTES:
            # The elements are copied out, so the memory can go back.
            self._memory = None
            raw = _in_frame(memory) if type(memory) is tuple else memory.bytes()
            return strings.deserialize_bytes_tensor(raw).reshape(self._shape)
        if type(memory) is not tuple:
            return memory.array(self._shape, datatypes.NAMES[self._datatype])
        dtype = datatypes.NUMPY[self._datatype]
        body, begin, _ = memory
        if 0 in self._shape:
            return np.empty(self._shape, dtype)
        return np.ndarray(self._shape, dtype, body, begin)

    def to_dlpack(self):
        """A DLPack capsule that shares its memory."""
        if self._datatype == datatypes.BYTES:
            raise TritonModelException("DLPack does not have support for string tensors.")
        if self._is_on_gpu():
            raise TritonModelException("a tensor that came from a GPU cannot be handed on in DLPack's form")
        return dlpack.export(self._elements(), self._datatype)

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        if stream is not None:
            raise TritonModelException("DLPack: a tensor in the host's memory has no stream")
        return self.to_dlpack()

    def __dlpack_device__(self) -> tuple:
        if self._is_on_gpu():
            return (dlpack.CUDA, self._memory.device_id)
        return (dlpack.CPU, 0)

    @staticmethod
    def from_dlpack(name: str, tensor) -> Tensor:
        """A tensor that shares the memory of a DLPack capsule, or of what has `__dlpack__`."""
        if not name:
            raise TritonModelException("Tensor name cannot be an empty string.")
        if hasattr(tensor, "__dlpack__") and hasattr(tensor, "__dlpack_device__"):
            on_gpu = tensor.__dlpack_device__()[0] == dlpack.CUDA
            # 1 is the default stream of CUDA; what is in the host's memory has none.
            capsule = tensor.__dlpack__(stream=1) if on_gpu else tensor.__dlpack__()
        elif type(tensor).__name__ == "PyCapsule":
            capsule = tensor
        else:
            raise TritonModelException(
                "Provided tensor is not supported. Tensor must be a DLPack capsule         or have `__dlpack__` and "
                "`__dlpack_device__` attributes"
            )
        imported = dlpack.Imported(capsule)
        return Tensor._of_memory(name, imported.datatype, imported.shape, imported)


def _in_frame(memory: tuple) -> memoryview:
    body, begin, end = memory
    return memoryview(body)[begin:end]


def read(reader: wire.Reader, arena) -> Tensor:
    """A tensor out of a frame of the server."""
    name, datatype, shape, place, data = reader.tensor()
    if datatype not in datatypes.NUMPY:
        raise wire.Malformed(f"tensor '{name}' has the unknown type {datatype}")
    if place == wire.SENDER:
        data = arena.lent(*data)
    elif place != wire.INLINE:
        raise wire.Malformed(f"tensor '{name}' lies in place {place}")
    return Tensor._of_memory(name, datatype, shape, data)


def write(writer: wire.Writer, tensor: Tensor, take) -> None:
    """Writes a tensor into a frame: by reference where its bytes are in what the server has lent, in the frame
    where they are few, else into shared memory, of which `take(byte_size)` gives an arena's offset."""
    arena = take.__self__.arena
    if tensor._datatype == datatypes.BYTES:
        data = strings.serialize_byte_tensor(tensor._elements())
        length = len(data)
    elif tensor._is_on_gpu():
        memory = tensor._memory
        offset = take(memory.byte_size)
        cuda.copy_to_host(arena.address + offset, memory.address, memory.byte_size, memory.device_id)
        writer.in_memory(tensor._name, tensor._datatype, tensor._shape, wire.SENDER, offset, memory.byte_size)
        return
    else:
        data = tensor._elements()
        length = data.nbytes
        offset = arena.offset_of(data) if length > INLINE_BYTES_MAX else None
        if offset is not None:
            writer.in_memory(tensor._name, tensor._datatype, tensor._shape, wire.RECEIVER, offset, length)
            return
    if length <= INLINE_BYTES_MAX:
        data = data if type(data) is bytes else data.tobytes()
        writer.inline(tensor._name, tensor._datatype, tensor._shape, data)
        return
    offset = take(length)
    if type(data) is bytes:
        arena.view[offset : offset + length] = data
    else:
        np.copyto(np.frombuffer(arena.view, np.uint8, length, offset), data.reshape(-1).view(np.uint8))
    writer.in_memory(tensor._name, tensor._datatype, tensor._shape, wire.SENDER, offset, length)
