"""The memory that the server and this process share, and who has which part of it.

The lower half is given out by the server, the upper half here. A part is given back by whoever got it,
with a message; what was given out comes back as soon as nothing refers to it any more.
"""

from __future__ import annotations

import bisect
import ctypes
import mmap
import threading

from . import native

ALIGNMENT = 64
# Pages of this much of a half are kept though they are free; of more until the server says that nobody has
# used them for a while.
KEPT_BYTES = 16 << 20


class Free:
    """Ranges that are free; the lowest that is large enough is taken first."""

    def __init__(self, start: int, end: int):
        self._starts = [start]
        self._ends = [end]

    def take(self, length: int):
        """The start of a range of `length` bytes; `None` when there is none."""
        length = -(-length // ALIGNMENT) * ALIGNMENT
        for index, start in enumerate(self._starts):
            rest = self._ends[index] - start - length
            if rest > 0:
                self._starts[index] = start + length
                return start
            if rest == 0:
                del self._starts[index], self._ends[index]
                return start
        return None

    def ranges(self) -> list:
        """All of them: start and end."""
        return list(zip(self._starts, self._ends))

    def give(self, start: int, length: int) -> None:
        """Frees a range."""
        end = start + -(-length // ALIGNMENT) * ALIGNMENT
        index = bisect.bisect_left(self._starts, start)
        joins_last = index > 0 and self._ends[index - 1] == start
        joins_next = index < len(self._starts) and self._starts[index] == end
        if joins_last and joins_next:
            self._ends[index - 1] = self._ends[index]
            del self._starts[index], self._ends[index]
        elif joins_last:
            self._ends[index - 1] = end
        elif joins_next:
            self._starts[index] = start
        else:
            self._starts.insert(index, start)
            self._ends.insert(index, end)


class Arena:
    """The mapping."""

    def __init__(self, file: int, size: int):
        self._memory = mmap.mmap(file, size)
        self.size = size
        self.half = size // 2
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        # What nothing refers to any more, to be told to the server.
        self.gone = native.Gone()
        self.memory = native.Memory(self.address, size, self.gone)
        self._lock = threading.Lock()
        self._free = Free(self.half, size)
        self._given: dict = {}
        # Up to where free pages are kept.
        self._kept = self.half + KEPT_BYTES

    def take(self, length: int):
        """Takes `length` bytes for the server to read; `None` when there is no room."""
        with self._lock:
            offset = self._free.take(length)
            if offset is not None:
                self._given[offset] = length
                self._kept = max(self._kept, offset + length)
        return offset

    def give(self, offset: int) -> None:
        """Takes back what the server has read."""
        length = self._given.pop(offset)
        with self._lock:
            self._give_back_pages(offset, offset + length)
            self._free.give(offset, length)

    def free_bytes(self) -> int:
        """What `take` has left, in whatever pieces."""
        with self._lock:
            return sum(end - start for start, end in self._free.ranges())

    def trim(self, kept: int) -> None:
        """Gives the pages of what is free beyond `kept` back to the system, and of what will be."""
        with self._lock:
            self._kept = kept
            for start, end in self._free.ranges():
                self._give_back_pages(start, end)

    def _give_back_pages(self, start: int, end: int) -> None:
        page = mmap.PAGESIZE
        first = -(-max(start, self._kept) // page) * page
        whole = end // page * page - first
        if whole > 0:
            self._memory.madvise(mmap.MADV_REMOVE, first, whole)
