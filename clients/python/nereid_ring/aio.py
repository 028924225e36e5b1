"""A ring for asyncio."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping

import numpy as np

from ._library import RingError, failure
from .ring import Answer, Pending, Ring


class AsyncRing:
    """A connection to a server, and the memory shared with it, in the event loop that made it."""

    def __init__(self, path: str | os.PathLike, *, arena_bytes: int = 64 << 20, requests: int = 256):
        """Connects to the server whose `--ring-socket` is `path`; the options are those of `Ring`."""
        self._ring = Ring(path, arena_bytes=arena_bytes, requests=requests)
        self._loop = asyncio.get_running_loop()
        self._pointer = self._ring._handle.pointer
        self._descriptor = self._ring._library.nrd_descriptor(self._pointer)
        self._loop.add_reader(self._descriptor, self._heard)
        self._failure: RingError | None = None

    async def __aenter__(self) -> AsyncRing:
        return self

    async def __aexit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; arrays stay what they are until they are gone."""
        self._loop.remove_reader(self._descriptor)
        self._end(RingError("the ring is closed"))
        self._ring.close()

    def empty(self, shape: int | tuple[int, ...], dtype) -> np.ndarray:
        """As `Ring.empty`."""
        return self._ring.empty(shape, dtype)

    def array(self, values) -> np.ndarray:
        """As `Ring.array`."""
        return self._ring.array(values)

    async def infer(self, model: str, inputs: Mapping[str, np.ndarray], outputs=(), **options) -> Answer:
        """As `Ring.infer`. A request whose task is cancelled is given up."""
        answers = self.stream(model, inputs, outputs, **options)
        try:
            async for answer in answers:
                return answer
        finally:
            await answers.aclose()
        raise RingError(f"model '{model}' has answered with nothing")

    async def stream(
        self, model: str, inputs: Mapping[str, np.ndarray], outputs=(), **options
    ) -> AsyncIterator[Answer]:
        """As `Ring.stream`."""
        event = asyncio.Event()
        pending = self._ring.submit(model, inputs, outputs, on_event=event.set, **options)
        self._ring._library.nrd_wake(self._pointer)
        self._take()
        try:
            while True:
                while pending.answers:
                    answer = pending.answers.popleft()
                    if isinstance(answer, RingError):
                        raise answer
                    yield answer
                if pending.is_over:
                    return
                if self._failure is not None:
                    raise self._failure
                event.clear()
                await event.wait()
        finally:
            if not pending.is_over and self._failure is None:
                self._ring.cancel(pending)

    def _heard(self) -> None:
        if self._ring._library.nrd_hear(self._pointer) < 0:
            # What the server put before it left is taken first.
            gone = failure()
            self._take()
            self._loop.remove_reader(self._descriptor)
            self._end(gone)
            return
        self._take()

    def _take(self) -> None:
        """Takes what is there, and asks to be rung for what comes."""
        try:
            while self._ring._take(0) or self._armed():
                pass
        except RingError as error:
            self._end(error)

    def _armed(self) -> bool:
        is_there = self._ring._library.nrd_arm(self._pointer)
        if is_there < 0:
            raise failure()
        return bool(is_there)

    def _end(self, error: RingError) -> None:
        self._failure = self._failure or error
        waiting: list[Pending] = list(self._ring._pending.values())
        for pending in waiting:
            pending.add(None, False)
