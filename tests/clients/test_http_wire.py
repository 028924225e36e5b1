"""What broken and hostile clients send to the HTTP port. After each, another client is served."""

from __future__ import annotations

import json
import socket
import threading
import time

import numpy as np
import pytest

from . import models, triton

WAIT_SECONDS_MAX = 60
PIPELINED = 10_000
TINY_CHUNKS = 1 << 19
# A handle of each would be 32 bytes, in a list that doubles as it grows.
BYTES_PER_CHUNK_MAX = 24
# What a connection may keep that is not read: 512 KiB each way, and what its handling takes.
UNREAD_BYTES_MAX = 4 << 20
# An answer longer than what the system keeps of it for who does not read.
LONG_BYTES = 48 << 20
READY = b"GET /v2/health/ready HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(autouse=True)
def served_afterwards(server):
    """Whatever a test did, others do not notice."""
    yield
    assert server.is_running(), server.log_tail()
    result = triton.infer("http", server, "fp32", np.ones(3, np.float32))
    assert result.as_numpy("OUTPUT0").tolist() == [1, 1, 1]


def connect(server) -> socket.socket:
    """A connection to the HTTP port."""
    return socket.create_connection(("127.0.0.1", server.http_port), timeout=WAIT_SECONDS_MAX)


GARBAGE = {
    "zeros": bytes(4096),
    "random bytes": bytes(np.random.default_rng(1).integers(0, 256, 4096, np.uint8)) + b"\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500) + b"\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "two lengths": b"POST /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "negative length": b"POST /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    "broken chunk": b"POST /v2/models/fp32/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "endless header": b"GET / HTTP/1.1\r\nX: " + b"a" * (2 << 20),
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_ends_the_connection(server, garbage):
    """With or without an answer, which is no success."""
    with connect(server) as raw:
        got = b""
        try:
            raw.sendall(GARBAGE[garbage])
            raw.shutdown(socket.SHUT_WR)
            while piece := raw.recv(65536):
                got += piece
        except (ConnectionResetError, BrokenPipeError, OSError):
            pass
        assert not got.startswith(b"HTTP/1.1 2")


HEADS = {
    "no version": (b"GET /\r\n\r\n", 400),
    "no colon": (b"GET /v2 HTTP/1.1\r\nHost a\r\n\r\n", 400),
    "a method that is none": (b"G\0T /v2 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "two lengths": (GARBAGE["two lengths"], 400),
    "negative length": (GARBAGE["negative length"], 400),
    "too many headers": (b"GET /v2 HTTP/1.1\r\n" + b"".join(b"X-%d: a\r\n" % each for each in range(300)) + b"\r\n", 431),
    "a long path": (b"GET /v2/models/" + b"a" * 70_000 + b"/ready HTTP/1.1\r\nHost: a\r\n\r\n", 414),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("before", [b"", READY * 3], ids=["alone", "behind others"])
def test_a_head_that_makes_no_sense_is_a_bad_request(server, head, before):
    """And what was asked before it has its answers."""
    sent, status = HEADS[head]
    with connect(server) as raw:
        raw.sendall(before + sent)
        got = b""
        try:
            while piece := raw.recv(1 << 16):
                got += piece
        except ConnectionResetError:
            pass
    expected = [200] * before.count(READY) + [status]
    assert [int(answer[:3]) for answer in got.split(b"HTTP/1.1 ")[1:]] == expected


def test_who_asks_much_and_reads_nothing_is_not_heard_any_further(start, tmp_path):
    """Answers that are twenty times as long as their requests wait in few buffers."""
    server = start(models.write(tmp_path / "repository", {"fp32": models.identity_models()["fp32"]}))
    ask = b"GET /v2/models/fp32/config HTTP/1.1\r\nHost: a\r\n\r\n" * 1000
    before = server.memory_bytes()
    with connect(server) as raw:
        raw.settimeout(1)
        try:
            for _ in range(400):
                raw.sendall(ask)
        except TimeoutError:
            pass
        assert server.memory_bytes() - before < UNREAD_BYTES_MAX
        # Who reads after all is answered.
        raw.settimeout(WAIT_SECONDS_MAX)
        assert raw.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_pipelined_requests_are_all_answered(server):
    """10,000 are sent before the first answer is waited for."""
    with connect(server) as raw:
        sender = threading.Thread(target=raw.sendall, args=(READY * PIPELINED,))
        sender.start()
        answers, tail = 0, b""
        while answers < PIPELINED:
            piece = raw.recv(1 << 20)
            assert piece, f"{answers} answers"
            tail += piece
            answers += tail.count(b"HTTP/1.1 200")
            # What is left may hold the beginning of the next status line.
            tail = tail[-11:]
        sender.join()
    assert answers == PIPELINED


def test_tiny_chunks_cost_what_they_hold(start, tmp_path):
    """A tensor that comes byte by byte, each in a chunk of its own."""
    server = start(models.write(tmp_path / "repository", {"fp32": models.identity_models()["fp32"]}))
    sent = np.arange(TINY_CHUNKS // 4, dtype=np.float32)
    described = {"name": "INPUT0", "datatype": "FP32", "shape": sent.shape, "parameters": {"binary_data_size": sent.nbytes}}
    head = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in head + sent.tobytes())
    server.forget_peak()
    before = server.memory_bytes()
    with connect(server) as raw:
        raw.sendall(
            b"POST /v2/models/fp32/infer HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"
            b"Inference-Header-Content-Length: %d\r\n\r\n" % len(head) + chunks + b"0\r\n\r\n"
        )
        got = b"".join(iter(lambda: raw.recv(1 << 20), b""))
    assert got.startswith(b"HTTP/1.1 200") and got.endswith(sent.tobytes())
    assert server.peak_bytes() - before < TINY_CHUNKS * BYTES_PER_CHUNK_MAX


def test_who_takes_nothing_of_an_answer_is_hung_up_on(start, tmp_path):
    """Who takes it slowly gets all of it."""
    folder = models.write(tmp_path / "repository", {"fp32": models.identity_models()["fp32"]})
    server = start(folder, "--request-pause-max-secs=3")
    sent = np.arange(LONG_BYTES // 4, dtype=np.float32)
    head = json.dumps({
        "inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": sent.shape, "parameters": {"binary_data_size": sent.nbytes}}],
        "parameters": {"binary_data_output": True},
    }).encode()
    request = b"POST /v2/models/fp32/infer HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    request += b"Content-Length: %d\r\nInference-Header-Content-Length: %d\r\n\r\n" % (len(head) + sent.nbytes, len(head))
    with connect(server) as idle, connect(server) as slow:
        for raw in (idle, slow):
            raw.sendall(request + head + sent.tobytes())
        got = b""
        # For longer than one may take nothing, and with pauses so much shorter that a busy machine makes no difference.
        for _ in range(12):
            time.sleep(0.5)
            got += slow.recv(1 << 20, socket.MSG_WAITALL)
        got += b"".join(iter(lambda: slow.recv(1 << 20), b""))
        assert got.startswith(b"HTTP/1.1 200") and got.endswith(sent.tobytes())
        taken = 0
        try:
            while piece := idle.recv(1 << 20):
                taken += len(piece)
        except ConnectionResetError:
            pass
        assert taken < sent.nbytes


def test_slow_and_silent_writers_hold_nobody_up(server):
    """300 connections that send nothing, half of a head, or half of a body."""
    starts = [
        b"",
        READY[:20],
        b"POST /v2/models/fp32/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{",
    ]
    opened = [connect(server) for _ in range(300)]
    for number, raw in enumerate(opened):
        raw.sendall(starts[number % 3])
    for _ in range(50):
        triton.infer("http", server, "fp32", np.ones(3, np.float32))
    # A slow head is a head all the same.
    for byte in READY[20:]:
        opened[1].sendall(bytes([byte]))
        time.sleep(0.002)
    assert opened[1].recv(100).startswith(b"HTTP/1.1 200")
    for raw in opened:
        raw.close()
