"""A connection and its memory: arrays of the arena keep it mapped, and give their bytes back when they go."""

from __future__ import annotations

import collections
import ctypes
import os

import numpy as np

from ._library import Options, failure, library


class Handle:
    """A ring of the C library, until the last array of its arena is gone."""

    def __init__(self, path: str | os.PathLike, arena_bytes: int, requests: int, spin: bool):
        options = Options(arena_bytes, requests, int(spin))
        self._library = library()
        self.pointer = self._library.nrd_connect(os.fsencode(path), ctypes.byref(options))
        if not self.pointer:
            raise failure()
        # Arrays go at any time and on any thread; what they had is given back by the ring's own.
        self.unused: collections.deque[int] = collections.deque()

    def allocate(self, size: int) -> ctypes.Array:
        """Bytes of the arena, which are given back when the last reference to them is gone."""
        while self.unused:
            self._library.nrd_free(self.pointer, self.unused.popleft())
        address = self._library.nrd_allocate(self.pointer, size)
        if not address:
            raise failure()
        buffer = (ctypes.c_char * size).from_address(address)
        buffer.owner = _Memory(self, address)
        return buffer

    def holds(self, array: np.ndarray) -> bool:
        """Whether an array lies in this arena, in one piece."""
        base = array
        while isinstance(base, np.ndarray) and base.base is not None:
            base = base.base
        base = base.obj if isinstance(base, memoryview) else base
        owner = getattr(base, "owner", None)
        return isinstance(owner, _Memory) and owner.handle is self and array.flags.c_contiguous

    def __del__(self):
        if getattr(self, "pointer", None):
            self._library.nrd_close(self.pointer)


class _Memory:
    def __init__(self, handle: Handle, address: int):
        self.handle, self.address = handle, address

    def __del__(self):
        self.handle.unused.append(self.address)
