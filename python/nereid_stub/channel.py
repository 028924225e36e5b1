"""The sockets from and to the server, read by whichever thread waits for something.

No thread exists for reading alone: the first that waits reads for all, and hands over when it has what it
waited for. So a request that comes to an idle process is read by the thread that runs it.
"""

from __future__ import annotations

import collections
import os
import select
import socket
import struct
import threading
import time

from . import native, wire
from .arena import Arena
from .errors import TritonModelException

# So many bytes that nothing refers to any more are told to the server at once, fewer with the next message.
RETURNED_BYTES_MAX = 4 << 20
ROOM_SECONDS_MAX = 10.0


class Waiter:
    """What a thread waits for."""

    __slots__ = ("value", "is_ready", "_bell")

    def __init__(self):
        self.value = None
        self.is_ready = False
        # Made by a thread that has to rest: most read for themselves.
        self._bell = None

    def give(self, value=None) -> None:
        """Ends the waiting."""
        self.value = value
        self.is_ready = True
        self.wake()

    def wake(self) -> None:
        """Lets it look again."""
        bell = self._bell
        if bell is not None:
            bell.set()

    def prepare(self) -> None:
        """Says that it may rest: what comes from now on wakes it."""
        self._bell = threading.Event()

    def rest(self, seconds_max=None) -> None:
        """Sleeps until woken."""
        self._bell.wait(seconds_max)
        self._bell.clear()


class Channel:
    """The way to the server and back."""

    def __init__(self, inbound: socket.socket, outbound: socket.socket, arena: Arena):
        self.arena = arena
        self.requests: collections.deque = collections.deque()
        self.gone = arena.gone
        self._inbound = inbound
        self._outbound = outbound
        self._sending = threading.Lock()
        self._leading = threading.Lock()
        self._waiters: set = set()
        self._listening: dict = {}
        self._inbox = native.Inbox()
        self._numbers = iter(range(1, 1 << 62))
        self._asked: dict = {}
        self._calls: dict = {}
        self._for_requests = None
        self._for_room = Waiter()
        self.on_ask_ready = None
        os.register_at_fork(after_in_child=self._leave)

    def _leave(self) -> None:
        # What the model forks has nothing to say to the server.
        self._inbound.close()
        self._outbound.close()
        self.gone.clear()

    # --- Out

    def send(self, writer: wire.Writer) -> None:
        """Sends frames, and what goes back with them."""
        with self._sending:
            if self.gone:
                writer.bytes += self.gone.frames()
            self._outbound.sendall(writer.bytes)

    def give_back(self, at_least: int = 0) -> None:
        """Tells the server what nothing refers to any more, if it is more than so many bytes."""
        if self.gone.bytes() > at_least:
            self.send(wire.Writer())

    def take(self, byte_size: int) -> int:
        """Shared memory for the server to read. Waits for room, for a while."""
        offset = self.arena.take(byte_size)
        if offset is None and byte_size <= self.arena.half:
            deadline = time.monotonic() + ROOM_SECONDS_MAX
            while offset is None and time.monotonic() < deadline:
                self._for_room = Waiter()
                self.wait(self._for_room, 0.1)
                offset = self.arena.take(byte_size)
        if offset is None:
            raise TritonModelException(
                f"no room for a tensor of {byte_size} bytes in shared memory: what a model instance has sent and the "
                f"server still holds may have {self.arena.half} bytes, half of shm-limit-byte-size"
            )
        return offset

    # --- In

    def wait(self, waiter: Waiter, seconds_max=None) -> bool:
        """Returns when `waiter` has what it waits for; tells whether it has. With a limit it returns after
        about so long at the latest."""
        if waiter.is_ready:
            return True
        if self._leading.acquire(False):
            try:
                while not waiter.is_ready and self._read(seconds_max):
                    pass
            finally:
                self._stop_leading()
            return waiter.is_ready
        waiter.prepare()
        self._waiters.add(waiter)
        try:
            while not waiter.is_ready:
                if not self._leading.acquire(False):
                    waiter.rest(seconds_max)
                else:
                    try:
                        while not waiter.is_ready and self._read(seconds_max):
                            pass
                    finally:
                        self._waiters.discard(waiter)
                        self._stop_leading()
                if seconds_max is not None:
                    break
        finally:
            self._waiters.discard(waiter)
            self.wake_another()
        return waiter.is_ready

    def _stop_leading(self) -> None:
        """Leaves the reading to another thread that waits."""
        self._leading.release()
        self.wake_another()

    def wake_another(self) -> None:
        """Lets another thread that waits read."""
        if self._waiters:
            for other in list(self._waiters)[:1]:
                other.wake()

    def listen(self, loop) -> None:
        """Lets an event loop read while one of its tasks waits. To be taken back as often."""
        count = self._listening.get(loop, 0)
        self._listening[loop] = count + 1
        if count == 0:
            loop.add_reader(self._inbound.fileno(), self._read_if_free)

    def unlisten(self, loop) -> None:
        """Takes a `listen` back."""
        count = self._listening[loop] - 1
        if count:
            self._listening[loop] = count
        else:
            del self._listening[loop]
            loop.remove_reader(self._inbound.fileno())

    def _read_if_free(self) -> None:
        if self._leading.acquire(False):
            try:
                self._read(0)
            finally:
                self._stop_leading()

    def _read(self, seconds_max=None) -> bool:
        """Reads what has come, waiting if nothing has; false when nothing came in time."""
        if seconds_max is not None and not select.select([self._inbound], [], [], seconds_max)[0]:
            return False
        self.dispatch(self._inbox.receive(self._inbound.fileno()))
        return True

    def dispatch(self, frames: list) -> None:
        """Gives frames that have come, kinds and bodies, to those that they are for."""
        for kind, body in frames:
            self._dispatch(kind, body)

    def _dispatch(self, kind: int, body) -> None:
        if kind == wire.EXECUTE or kind == wire.START or kind == wire.FINALIZE:
            self.requests.append((kind, body))
            waiter = self._for_requests
            if waiter is not None:
                waiter.give()
            return
        if kind == wire.CALL_RESPONSE:
            number, response, is_final = native.read_response(body, self.arena.memory)
            answer = self._calls.get(number)
            if answer is not None:
                answer(number, response, is_final)
            return
        reader = wire.Reader(body)
        if kind == wire.FREE:
            (count,) = reader.unpack(wire.COUNT)
            for (offset,) in wire.NUMBER.iter_unpack(reader.body[reader.at : reader.at + 8 * count]):
                self.arena.give(offset)
            self._for_room.give()
        elif kind == wire.REPLY:
            (number,) = reader.unpack(wire.NUMBER)
            waiter = self._asked.pop(number, None)
            if waiter is not None:
                waiter.give(reader)
        elif kind == wire.ASK_READY:
            self.on_ask_ready(reader)
        elif kind == wire.FLUSH:
            self.give_back()
        elif kind == wire.TRIM:
            self.arena.trim(*reader.unpack(wire.NUMBER))
        else:
            raise native.Malformed(f"the server sent a frame of the unknown kind {kind}")

    # --- Conversations

    def read_for_all(self) -> None:
        """Reads whenever nobody else does; never returns."""
        self.wait(Waiter())

    def next_request(self) -> tuple:
        """The next thing that the server wants of the model."""
        requests = self.requests
        while not requests:
            if self.gone:
                self.give_back(RETURNED_BYTES_MAX)
            if self._leading.acquire(False):
                try:
                    while not requests:
                        self._read()
                finally:
                    self._stop_leading()
            else:
                self._for_requests = Waiter()
                if not requests:
                    self.wait(self._for_requests)
                self._for_requests = None
        return requests.popleft()

    def ask(self, what: int, numbers=(), values=(), texts=()) -> wire.Reader:
        """Asks the server and waits for the answer.

        Raises TritonModelException with the server's words when it refuses."""
        number = next(self._numbers)
        waiter = self._asked[number] = Waiter()
        writer = wire.Writer()
        writer.begin(wire.ASK)
        writer.pack(wire.ASK_HEAD, number, what, len(numbers), len(values))
        writer.bytes += struct.pack(f"<{len(numbers)}Q{len(values)}d", *numbers, *values)
        writer.pack(wire.FLAG, len(texts))
        for text in texts:
            writer.text(text)
        writer.end()
        self.send(writer)
        self.wait(waiter)
        reader = waiter.value
        (is_refused,) = reader.unpack(wire.FLAG)
        if is_refused:
            raise TritonModelException(reader.text())
        return reader

    def call(self, request, bits: int, answer) -> int:
        """Begins a call of another model, of the kind that `bits` say: `answer(number, response, is_final)` takes
        each response."""
        number = next(self._numbers)
        self._calls[number] = answer
        try:
            writer = wire.Writer()
            writer.begin(wire.CALL)
            writer.bytes += request._call(number, bits, self.arena.memory, self)
            writer.end()
            self.send(writer)
        except BaseException:
            del self._calls[number]
            raise
        return number

    def end_call(self, number: int) -> None:
        """Forgets a call that has its last response."""
        self._calls.pop(number, None)

    def cancel_call(self, number: int) -> None:
        """Tells the server that nobody waits for a call's responses any more."""
        if number in self._calls:
            writer = wire.Writer()
            writer.begin(wire.CANCEL_CALL)
            writer.pack(wire.NUMBER, number)
            writer.end()
            self.send(writer)
