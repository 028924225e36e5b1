#!/usr/bin/env python3
"""What the Python half of a model's process costs by itself, without a server.

    make bench-python-stub

That is `make python-native`, which puts the native half beside the Python half, and then this program.

The other end of the sockets is this program, which sends the same frame again and again. Printed is the CPU
time of one request to an identity model, 64 B in the message and 600 KB in shared memory, and of one call of
another model, less that of the same bytes sent and received by bare sockets: so all of it is Python, the
model's own lines included.
"""

from __future__ import annotations

import os
import pathlib
import socket
import struct
import sys
import threading
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "python"))

import triton_python_backend_utils as pb_utils
from nereid_stub import arena, channel, host, requests, wire

ROUNDS, REPEATS = 7, 10_000
MEMORY = 64 << 20
FP32 = 11
# The parts of frames that are read natively, as python/README.md has them.
REQUEST, RESPONSE = struct.Struct("<QQQIHHBIII"), struct.Struct("<QBBH")
INLINE, LENT = 0, 1
FINAL, PRESENT = 1, 2
FINALIZE = wire.HEADER.pack(0, wire.FINALIZE)


class TritonPythonModel:
    """The identity of the peer bench."""

    def execute(self, asked):
        """Gives each request its input."""
        responses = []
        for request in asked:
            values = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", values)]))
        return responses


class Bench:
    """A model's process and, at the other ends of its sockets, the server that this plays."""

    def __init__(self):
        inbound, self.to_model = socket.socketpair()
        outbound, self.from_model = socket.socketpair()
        self.bare = inbound, outbound
        memory = os.memfd_create("bench")
        os.ftruncate(memory, MEMORY)
        self.channel = channel.Channel(inbound, outbound, arena.Arena(memory, MEMORY))
        self.host = host.Host(self.channel)
        self.host._model = TritonPythonModel()
        requests.can_call = True
        requests.executing.add(threading.get_ident())
        self.turns = self.host._turns()
        self.calls = 0

    def request(self, frame: bytes) -> bytes:
        """Runs one request; returns what the model's process says."""
        self.to_model.send(frame)
        # What it has to be sent behind, for the turns to end.
        self.to_model.send(FINALIZE)
        self.turns.run()
        return self.from_model.recv(1 << 16)

    def call(self, values: np.ndarray) -> bytes:
        """Has the model call another, whose answer is there already."""
        self.calls += 1
        self.to_model.send(answer(self.calls))
        tensor = pb_utils.Tensor("INPUT0", values)
        call = pb_utils.InferenceRequest(
            model_name="identity", requested_output_names=["OUTPUT0"], inputs=[tensor]
        )
        response = call.exec()
        pb_utils.get_output_tensor_by_name(response, "OUTPUT0").as_numpy()
        return self.from_model.recv(1 << 16)

    def bare_sockets(self, frame: bytes, said: bytes) -> None:
        """Sends the same bytes both ways."""
        inbound, outbound = self.bare
        self.to_model.send(frame)
        inbound.recv(1 << 16)
        outbound.send(said)
        self.from_model.recv(1 << 16)


def frame_of(kind: int, body: bytes) -> bytes:
    """A frame with this body."""
    body += bytes(-len(body) % 8)
    return wire.HEADER.pack(len(body), kind) + body


def named(name: str) -> bytes:
    """A name, as it is written."""
    return struct.pack("<H", len(name)) + name.encode()


def inline(body: bytes, name: str) -> bytes:
    """`body` and behind it a tensor of 64 bytes."""
    body += named(name) + bytes([FP32, 2, INLINE]) + struct.pack("<qqI", 1, 16, 64)
    return body + bytes(-len(body) % 8) + bytes(64)


def request(is_large: bool) -> bytes:
    """A frame with one request."""
    body = wire.COUNT.pack(1) + REQUEST.pack(1, 0, 0, 0, 1, 1, 0, 0, 0, 0) + named("OUTPUT0")
    if is_large:
        body += named("INPUT0") + bytes([FP32, 2, LENT])
        return frame_of(wire.EXECUTE, body + struct.pack("<qqQQ", 1, 150_000, 0, 600_000))
    return frame_of(wire.EXECUTE, inline(body, "INPUT0"))


def answer(number: int) -> bytes:
    """A frame with the answer to a call."""
    body = RESPONSE.pack(number, FINAL | PRESENT, 0, 1) + bytes(4)
    return frame_of(wire.CALL_RESPONSE, inline(body, "OUTPUT0"))


def cpu_us(work) -> float:
    """The CPU time of one `work`, in the best round."""
    times = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        for _ in range(REPEATS):
            work()
        times.append((time.process_time() - begun) / REPEATS * 1e6)
    return min(times)


def main() -> None:
    """Prints a line for each."""
    bench = Bench()
    values = np.zeros((1, 16), np.float32)
    lines = {f"request, {size}": request(size != "64 B") for size in ("64 B", "600 KB")}
    for name, frame in lines.items():
        said = bench.request(frame)
        bare = cpu_us(lambda: bench.bare_sockets(frame, said))
        print(f"{name:<20} {cpu_us(lambda: bench.request(frame)) - bare:5.1f} µs")
    said = bench.call(values)
    bare = cpu_us(lambda: bench.bare_sockets(answer(bench.calls), said))
    print(f"{'call of a model':<20} {cpu_us(lambda: bench.call(values)) - bare:5.1f} µs")


main()
