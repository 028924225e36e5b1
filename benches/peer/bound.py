"""The least that requests can cost a server: small ones (`bare.py`), and large tensors, also where it hands them to
a process that runs Python.

    build/venv/bin/python benches/peer/bound.py

**Small requests.** A bare socket, Nereid and the real server, each asked by the same client that does as little.
What the bare socket takes, which waits, reads and sends back, is below what every server takes.

**600 KB.** Nothing here parses, schedules or answers for anybody: a process takes messages of 600 KB from a TCP
socket and sends each back. What it and its helper take of the processors is what no server for such requests gets
below, with any code, as long as tensors come over a socket and go to another process through shared memory. The lines:

- **echo**: the kernel copies the message in, and out.
- **and a copy**: it is copied once in between, into memory that another process has mapped.
- **and a process**: another process is woken for each message, and answers. It is Python, makes an array on the
  memory and does nothing with it.
- **in shared memory**: the same for tensors that are not in the message, but in memory of the client's. They are
  copied out of it for the process and back into it, for the process must not write where clients read.
- **words alone**, **and a copy beside them**: a message without a tensor, and the same with one copy of a tensor that
  lies in memory, as of an input in shared memory to an output there. What lies between the two is a copy that is
  made now and then, by a processor that slept; the last line is one that is made again and again.

A server that has many requests in flight has them all in memory, so the messages then go through as many buffers.
That this is itself written in Python adds some 5 µs to each line: few calls are made for a message.
"""

from __future__ import annotations

import argparse
import mmap
import os
import pathlib
import select
import signal
import socket
import statistics
import threading
import time

import bare
import numpy as np
import servers

TENSOR_BYTES = 600_000
# What is around a tensor, or stands for one that is not in the message.
WORDS = bytes(224)
BUFFER_BYTES = 1 << 20
WARM_UP_SECONDS = 0.3
# Whether the tensor is in the message, how often it is copied, and whether a process is asked.
WAYS = {
    "echo": (True, 0, False),
    "and a copy": (True, 1, False),
    "and a process": (True, 1, True),
    "in shared memory": (False, 2, True),
    "words alone": (False, 0, False),
    "and a copy beside them": (False, 1, False),
}


def shared(count: int) -> mmap.mmap:
    """Memory for so many messages, all of whose pages are there."""
    file = os.memfd_create("bound")
    os.ftruncate(file, count * BUFFER_BYTES)
    memory = mmap.mmap(file, count * BUFFER_BYTES)
    os.close(file)
    np.frombuffer(memory, np.uint8).fill(1)
    return memory


def client(port: int, in_flight: int, size: int, processors: set[int]) -> None:
    """Sends messages of a size and reads them back, so many at a time, until the other side is gone."""
    os.sched_setaffinity(0, processors)
    stream = socket.create_connection(("127.0.0.1", port))
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    room = threading.Semaphore(in_flight)

    def send() -> None:
        message = bytes(size)
        while room.acquire():
            stream.sendall(message)

    threading.Thread(target=send, daemon=True).start()
    buffer, at = memoryview(bytearray(size)), 0
    while count := stream.recv_into(buffer[at:]):
        at += count
        if at == size:
            at = 0
            room.release()


def model(asked: socket.socket, answers: socket.socket, memory: mmap.mmap) -> None:
    """What is left of a Python model when all is left out."""
    while asked.recv(256):
        np.frombuffer(memory, np.float32, TENSOR_BYTES // 4)
        answers.send(WORDS)


def forked(work, *arguments) -> int:
    """A process that does this."""
    process = os.fork()
    if process == 0:
        servers.end_with_parent()
        try:
            work(*arguments)
        except OSError:
            # Whoever is at the other end has what it wanted.
            pass
        os._exit(0)
    return process


class Echo:
    """The server's side of a line."""

    def __init__(self, way: str, in_flight: int):
        is_sent, self.copies, self.asks_process = WAYS[way]
        self.size = len(WORDS) + (TENSOR_BYTES if is_sent else 0)
        self.received = memoryview(shared(in_flight))
        memory = shared(in_flight)
        self.memory = memoryview(memory)
        processors = os.sched_getaffinity(0)
        if in_flight == 1:
            # Where server and process take turns, one processor is the cheapest place for both.
            os.sched_setaffinity(0, {min(processors)})
        self.helpers = []
        self.poll = select.epoll()
        if self.asks_process:
            (self.asks, asked), (self.hears, answers) = socket.socketpair(), socket.socketpair()
            self.helpers.append(forked(model, asked, answers, memory))
            self.hears.setblocking(False)
            self.poll.register(self.hears, select.EPOLLIN | select.EPOLLET)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.client = forked(client, listener.getsockname()[1], in_flight, self.size, processors)
            self.stream, _ = listener.accept()
        self.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream.setblocking(False)
        self.poll.register(self.stream, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)

    def cpu_ns(self) -> int:
        """What this process and its helper have had of the processors."""
        clocks = [time.CLOCK_PROCESS_CPUTIME_ID, *(~each << 3 | servers.CPUCLOCK_SCHED for each in self.helpers)]
        return sum(map(time.clock_gettime_ns, clocks))

    def whole(self, move, buffer: memoryview) -> None:
        """Moves a message over the socket."""
        at = 0
        while at < self.size:
            try:
                at += move(buffer[at:])
            except BlockingIOError:
                self.poll.poll()

    def answer(self, number: int) -> None:
        """Takes a message and sends it back."""
        start = number * BUFFER_BYTES
        message, tensor = slice(start, start + self.size), slice(start, start + TENSOR_BYTES)
        self.whole(self.stream.recv_into, self.received[message])
        if self.copies:
            self.memory[tensor] = self.received[tensor]
        if self.asks_process:
            self.ask()
        if self.copies > 1:
            self.received[tensor] = self.memory[tensor]
        memory = self.memory if self.copies == 1 else self.received
        self.whole(self.stream.send, memory[message])

    def ask(self) -> None:
        """Waits for the process to say something."""
        self.asks.send(WORDS)
        while True:
            try:
                self.hears.recv(256)
                return
            except BlockingIOError:
                self.poll.poll()

    def end(self) -> None:
        """Ends the processes."""
        for process in (self.client, *self.helpers):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)


def measure(way: str, in_flight: int, seconds: float) -> float:
    """CPU time for a message, in microseconds."""
    echo = Echo(way, in_flight)
    began, count = None, 0
    start = time.perf_counter()
    try:
        while True:
            echo.answer(count % in_flight)
            count += 1
            now = time.perf_counter()
            if began is None and now - start > WARM_UP_SECONDS:
                began, count, start = echo.cpu_ns(), 0, now
            elif began is not None and now - start > seconds:
                return (echo.cpu_ns() - began) / count / 1e3
    finally:
        echo.end()


def measure_apart(*line) -> float:
    """The same in a process of its own, so that each line begins with the same memory."""
    read, write = os.pipe()
    os.waitpid(forked(lambda: os.write(write, repr(measure(*line)).encode())), 0)
    os.close(write)
    with open(read) as answer:
        return float(answer.read())


def copy_again(seconds: float) -> float:
    """What a copy takes that is made again and again, in microseconds."""
    source, target = (memoryview(shared(1))[:TENSOR_BYTES] for _ in range(2))
    count, start = 0, time.perf_counter()
    while (now := time.perf_counter()) - start < seconds:
        target[:] = source
        count += 1
    return (now - start) / count * 1e6


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.7)
    parser.add_argument("--only", choices=("large", "small"), help="tensors of this size alone")
    parser.add_argument("--nereid", type=pathlib.Path, default=servers.NEREID, help="for the small ones")
    parser.add_argument("--flag", action="append", default=[], help="a further flag for Nereid")
    options = parser.parse_args()
    if options.only != "small":
        large(options.rounds, options.seconds)
    if options.only != "large":
        bare.table(options.nereid, tuple(options.flag), options.rounds, options.seconds)


def large(rounds: int, seconds: float) -> None:
    """Prints the lines of 600 KB, each by the median over the rounds."""
    lines = [(way, in_flight) for way in WAYS for in_flight in (1, 64)]
    found: dict = {line: [] for line in lines}
    copies = []
    for _ in range(rounds):
        for line in lines:
            found[line].append(measure_apart(*line, seconds))
        copies.append(copy_again(seconds))
    print("| 600 KB there and back | CPU µs | lowest to highest |\n|---|---|---|")
    for (way, in_flight), values in found.items():
        figures = f"{statistics.median(values):.0f} | {min(values):.0f}–{max(values):.0f}"
        print(f"| {way}, {in_flight} in flight | {figures} |")
    print(f"| a copy again and again | {statistics.median(copies):.0f} | {min(copies):.0f}–{max(copies):.0f} |")


if __name__ == "__main__":
    main()
