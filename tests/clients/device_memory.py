"""Memory of a device that a client shares with the server by a handle: of a GPU by the driver (here its stand-in), or
what a device of the host takes for that."""

from __future__ import annotations

import base64
import ctypes
import mmap
import pathlib
import uuid

import numpy as np

HOST_HANDLE = b"nereid-host-shm\0"


class HostMemory:
    """A POSIX shared-memory object, which a device of the host opens as if it were its own."""

    flags = ("--device=host",)

    def __init__(self, byte_size: int):
        self.path = pathlib.Path(f"/dev/shm/nereid-test-{uuid.uuid4().hex[:12]}")
        self.path.write_bytes(bytes(byte_size))
        with open(self.path, "r+b") as file:
            self.bytes = mmap.mmap(file.fileno(), byte_size)
        self.handle = (HOST_HANDLE + f"/{self.path.name}".encode()).ljust(64, b"\0")

    def write(self, content: bytes, offset: int = 0) -> None:
        """Puts bytes there."""
        self.bytes[offset : offset + len(content)] = content

    def read(self, count: int, offset: int = 0) -> bytes:
        """Gives bytes from there."""
        return self.bytes[offset : offset + count]

    def close(self) -> None:
        """Gives it back."""
        self.path.unlink(missing_ok=True)


class CudaMemory:
    """Memory of the first GPU, by the driver itself."""

    def __init__(self, library: str, byte_size: int):
        self.driver = ctypes.CDLL(library)
        context = ctypes.c_void_p()
        self.address = ctypes.c_ulonglong()
        handle = ctypes.create_string_buffer(64)
        self._call("cuInit", 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self._call("cuCtxSetCurrent", context)
        self._call("cuMemAlloc_v2", ctypes.byref(self.address), ctypes.c_size_t(byte_size))
        self._call("cuIpcGetMemHandle", handle, self.address)
        self.handle = handle.raw
        self.write(bytes(byte_size))

    def _call(self, name: str, *arguments) -> None:
        result = getattr(self.driver, name)(*arguments)
        assert result == 0, f"{name} gave {result}"

    def write(self, content: bytes, offset: int = 0) -> None:
        """Puts bytes there."""
        to = ctypes.c_ulonglong(self.address.value + offset)
        self._call("cuMemcpyHtoD_v2", to, content, ctypes.c_size_t(len(content)))

    def read(self, count: int, offset: int = 0) -> bytes:
        """Gives bytes from there."""
        content = ctypes.create_string_buffer(count)
        source = ctypes.c_ulonglong(self.address.value + offset)
        self._call("cuMemcpyDtoH_v2", content, source, ctypes.c_size_t(count))
        return content.raw

    def close(self) -> None:
        """Gives it back."""
        self._call("cuMemFree_v2", self.address)


def encoded(memory) -> bytes:
    """A handle as `tritonclient` takes it."""
    return base64.b64encode(memory.handle)


def array(memory, shape: tuple[int, ...], offset: int = 0) -> np.ndarray:
    """Floats that lie there."""
    count = int(np.prod(shape)) * 4
    return np.frombuffer(memory.read(count, offset), dtype=np.float32).reshape(shape)
