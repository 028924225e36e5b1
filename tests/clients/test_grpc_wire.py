"""What broken and hostile clients send to the gRPC port. After each, another client is served."""

from __future__ import annotations

import select
import socket
import struct
import time
from urllib.parse import unquote

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from . import models, triton, wire
from .wire import (
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame,
)  # fmt: skip

HEALTH = "/grpc.health.v1.Health/Check"
LIVE = wire.message(b"")
PAUSE = "--request-pause-max-secs=1"
TINY_FRAMES = 1 << 19
UNREAD_FRAMES = 1 << 14
# A handle of each would be 32 bytes, in a list that doubles as it grows. Some lie in HTTP/2's own lists.
BYTES_PER_FRAME_MAX = 56


@pytest.fixture(autouse=True)
def served_afterwards(server):
    """Whatever a test did, others do not notice."""
    yield
    assert server.is_running(), server.log_tail()
    array = np.arange(3, dtype=np.float32)
    result = triton.infer("grpc", server, "fp32", array)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), array)


def infer_request(elements: int = 4, model: str = "fp32") -> bytes:
    """A ModelInfer message."""
    request = service_pb2.ModelInferRequest(model_name=model)
    given = request.inputs.add(name="INPUT0", datatype="FP32")
    given.shape.extend([elements])
    request.raw_input_contents.append(np.arange(elements, dtype="<f4").tobytes())
    return wire.message(request.SerializeToString())


def test_a_plain_call_is_answered(server):
    """The frames that the other tests vary are good ones."""
    with wire.Connection(server) as connection:
        answer = connection.answer(connection.call("ModelInfer", infer_request()))
    assert (answer.headers[":status"], answer.grpc_status) == ("200", 0)
    response = service_pb2.ModelInferResponse.FromString(answer.data[5:])
    assert response.raw_output_contents[0] == np.arange(4, dtype="<f4").tobytes()


GARBAGE = {
    "wrong preface": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "random bytes": bytes(np.random.default_rng(0).integers(0, 256, 4096, np.uint8)),
    "data on stream 0": wire.PREFACE + frame(SETTINGS, 0, 0) + frame(DATA, 0, 0, b"x"),
    "settings of odd length": wire.PREFACE + frame(SETTINGS, 0, 0, b"abc"),
    "headers of an even stream": wire.PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, 5, 2, b"\x82"),
    "broken header block": wire.PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, 5, 1, b"\xff" * 20),
    "lone continuation": wire.PREFACE + frame(SETTINGS, 0, 0) + frame(CONTINUATION, 4, 1, b""),
    "oversized frame": wire.PREFACE + frame(SETTINGS, 0, 0) + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
    "window of zero": wire.PREFACE + frame(SETTINGS, 0, 0) + frame(WINDOW_UPDATE, 0, 0, bytes(4)),
    "ping of odd length": wire.PREFACE + frame(SETTINGS, 0, 0) + frame(PING, 0, 0, b"abc"),
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_broken_frames_end_the_connection(server, garbage):
    """And only that one."""
    with socket.create_connection(("127.0.0.1", server.grpc_port), timeout=wire.WAIT_SECONDS_MAX) as raw:
        try:
            raw.sendall(GARBAGE[garbage])
            while raw.recv(65536):
                pass
        except (ConnectionResetError, BrokenPipeError):
            pass


BROKEN_CALLS = {
    "message longer than the stream": ("ModelInfer", wire.message(b"abc", length=100), {3}),
    "message cut inside its header": ("ModelInfer", b"\0\0", {3}),
    "4 GB announced": ("ModelInfer", wire.message(b"abc", length=0xFFFFFFFF), {8}),
    "compressed, but the head does not say how": ("ModelInfer", wire.message(b"abc", flag=1), {13}),
    "a flag that means nothing": ("ModelInfer", wire.message(b"abc", flag=2), {3}),
    "no protobuf": ("ModelInfer", wire.message(b"\xff" * 9), {3, 13}),
    "no message": ("ModelInfer", b"", {3, 13}),
    "unknown method": ("NoSuchMethod", LIVE, {12}),
    "unknown service": ("/no.such.Service/Call", LIVE, {12}),
    "compressed, other call": ("ServerLive", wire.message(b"abc", flag=1), {12, 13}),
    "message cut short, other call": ("ServerLive", wire.message(b"abc", length=100), {3, 13}),
    "no protobuf in a stream": ("ModelStreamInfer", wire.message(b"abc", length=100), {3, 13}),
}


@pytest.mark.parametrize("name", BROKEN_CALLS)
def test_broken_calls_have_a_status(server, name):
    """Their connection goes on."""
    method, body, statuses = BROKEN_CALLS[name]
    with wire.Connection(server) as connection:
        answer = connection.answer(connection.call(method, body))
        assert answer.grpc_status in statuses, answer.headers
        again = connection.answer(connection.call("ServerLive", LIVE))
        assert again.grpc_status == 0


@pytest.mark.parametrize("piece", ["n%", "{ "])
@pytest.mark.parametrize("call", ["ModelInfer", "ModelConfig"])
def test_a_message_is_as_long_as_a_client_takes(server, call, piece):
    """Names come back in it; gRPC's own client drops what has headers of more than 8 KiB."""
    name = piece * 50_000
    with grpc.insecure_channel(server.grpc_address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            if call == "ModelInfer":
                stub.ModelInfer(service_pb2.ModelInferRequest(model_name=name), timeout=wire.WAIT_SECONDS_MAX)
            else:
                stub.ModelConfig(service_pb2.ModelConfigRequest(name=name), timeout=wire.WAIT_SECONDS_MAX)
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND
    assert f"'{name[:1000]}" in raised.value.details() and raised.value.details().endswith("…")


SECOND_MESSAGES = {
    "in the same frame": [infer_request() * 2],
    "in a frame of its own": [infer_request(), infer_request()],
    "begun only": [infer_request() + b"\0\0"],
}


@pytest.mark.parametrize("name", SECOND_MESSAGES)
def test_a_second_message_is_refused(server, name):
    """A unary call has one. The code is the one that gRPC names for it."""
    *first, last = SECOND_MESSAGES[name]
    with wire.Connection(server) as connection:
        stream = connection.new_stream()
        headers = wire.request_headers(wire.SERVICE + "ModelInfer")
        connection.send(
            frame(HEADERS, END_HEADERS, stream, headers),
            *(frame(DATA, 0, stream, body) for body in first),
            frame(DATA, END_STREAM, stream, last),
        )
        answer = connection.answer(stream)
        assert (answer.grpc_status, answer.data) == (12, b"")
        assert "more than one request message" in answer.headers["grpc-message"]
        assert connection.answer(connection.call("ServerLive", LIVE)).grpc_status == 0


def test_a_second_message_is_refused_by_other_calls(server):
    """If it has come when the first is read."""
    with wire.Connection(server) as connection:
        answer = connection.answer(connection.call("ServerLive", LIVE * 2))
        assert (answer.grpc_status, answer.data) == (12, b"")
        assert "more than one request message" in unquote(answer.headers["grpc-message"])


def test_a_call_is_answered_before_its_client_has_ended_it(server):
    """As the real server does; the end may also come later, in a frame that holds nothing."""
    with wire.Connection(server) as connection:
        open_ended = connection.call("ModelInfer", infer_request(), end=False)
        assert connection.answer(open_ended).grpc_status == 0
        ended_apart = connection.call("ModelInfer", infer_request(), end=False)
        connection.send(frame(DATA, END_STREAM, ended_apart))
        assert connection.answer(ended_apart).grpc_status == 0
        for method in ("ServerLive", HEALTH):
            assert connection.answer(connection.call(method, LIVE, end=False)).grpc_status == 0


def test_another_content_type_is_refused(server):
    """With the HTTP status that gRPC names for it."""
    with wire.Connection(server) as connection:
        answer = connection.answer(connection.call("ServerLive", LIVE, content_type="text/plain"))
    assert answer.headers[":status"] == "415"


def test_oversized_headers_are_refused(server):
    """64 KB of header fields in frames of legal size."""
    block = wire.request_headers(wire.SERVICE + "ServerLive", more=(("x-large", "a" * 65_000),))
    pieces = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
    with wire.Connection(server) as connection:
        stream = connection.new_stream()
        connection.send(frame(HEADERS, END_STREAM, stream, pieces[0]))
        for piece in pieces[1:-1]:
            connection.send(frame(CONTINUATION, 0, stream, piece))
        connection.send(frame(CONTINUATION, END_HEADERS, stream, pieces[-1]))
        answer = connection.answer(stream)
        assert connection.closed or answer.reset is not None or answer.headers[":status"] == "431"


def test_a_flood_of_continuations_ends_the_connection(server):
    """Before it has sent 64 MB."""
    with wire.Connection(server) as connection:
        connection.send(frame(HEADERS, 0, 1, wire.request_headers("/a")))
        piece = frame(CONTINUATION, 0, 1, wire.request_headers("/a", more=(("x", "a" * 15_000),)))
        for _ in range(4096):
            connection.send(piece)
            if connection.closed:
                break
        connection.read_until(lambda: connection.goaway is not None)
        assert connection.closed or connection.goaway is not None


def test_rapid_reset_does_no_harm(server):
    """Thousands of calls that are reset as soon as they are made; the server may hang up or keep pace."""
    block = wire.request_headers(wire.SERVICE + "ModelInfer")
    with wire.Connection(server) as connection:
        for _ in range(50):
            frames = []
            for _ in range(200):
                stream = connection.new_stream()
                frames.append(frame(HEADERS, END_HEADERS, stream, block))
                frames.append(frame(RST_STREAM, 0, stream, struct.pack(">I", 8)))
            connection.send(*frames)
        ping = frame(PING, 0, 0, bytes(8))
        connection.send(ping)
        connection.read_until(lambda: connection.goaway is not None or connection.pongs)


def test_a_flood_of_pings_is_answered(start, tmp_path):
    """Where any number is allowed; their answers are read, late."""
    chosen = {"fp32": models.identity_models()["fp32"]}
    server = start(models.write(tmp_path / "repository", chosen), "--grpc-http2-max-ping-strikes=0")
    with wire.Connection(server) as connection:
        for _ in range(20):
            connection.send(frame(PING, 0, 0, bytes(8)) * 500)
            connection.read_until(lambda: connection.pongs >= 1)
        connection.read_until(lambda: connection.pongs == 10_000)
        assert connection.goaway is None and not connection.closed


def test_many_streams_on_one_connection(server):
    """All are open before the first is complete."""
    with wire.Connection(server) as connection:
        streams = [connection.call("ModelInfer", infer_request(), end=False) for _ in range(1500)]
        connection.send(*(frame(DATA, END_STREAM, stream) for stream in streams))
        for stream in streams:
            assert connection.answer(stream).grpc_status == 0


def test_tiny_frames_cost_what_they_hold(start, tmp_path):
    """A message that comes byte by byte, each in a frame of its own."""
    folder = models.write(tmp_path / "repository", {"fp32": models.identity_models()["fp32"]})
    server = start(folder, "--grpc-http2-max-ping-strikes=0")
    body = infer_request(TINY_FRAMES // 4)
    server.forget_peak()
    before = server.memory_bytes()
    with wire.Connection(server) as connection:
        stream = connection.new_stream()
        connection.send(frame(HEADERS, END_HEADERS, stream, wire.request_headers(wire.SERVICE + "ModelInfer")))
        # Not more at once than may lie unread: what a busy machine reads late is another matter.
        for first in range(0, len(body), UNREAD_FRAMES):
            connection.send(*(frame(DATA, 0, stream, bytes([byte])) for byte in body[first : first + UNREAD_FRAMES]))
            pongs = connection.pongs
            connection.send(frame(PING, 0, 0, bytes(8)))
            connection.read_until(lambda pongs=pongs: connection.pongs > pongs)
        connection.send(frame(DATA, END_STREAM, stream))
        answer = connection.answer(stream)
    assert answer.grpc_status == 0
    response = service_pb2.ModelInferResponse.FromString(answer.data[5:])
    assert response.raw_output_contents[0] == np.arange(TINY_FRAMES // 4, dtype="<f4").tobytes()
    assert server.peak_bytes() - before < TINY_FRAMES * BYTES_PER_FRAME_MAX


def test_a_client_that_never_reads_holds_nobody_up(server):
    """Its windows are shut; 200 requests of another client go through, of the same model."""
    with wire.Connection(server, window=0) as connection:
        for _ in range(32):
            connection.call("ModelInfer", infer_request(100_000))
        array = np.arange(1000, dtype=np.float32)
        for _ in range(200):
            result = triton.infer("http", server, "fp32", array)
            np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), array)


def test_half_open_connections_hold_nobody_up(server):
    """Many that say nothing, or half of a preface, or half of a call."""
    starts = [b"", wire.PREFACE[:10], wire.PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, 0, 1, b"")[:5]]
    opened = []
    for number in range(300):
        raw = socket.create_connection(("127.0.0.1", server.grpc_port), timeout=wire.WAIT_SECONDS_MAX)
        raw.sendall(starts[number % 3])
        opened.append(raw)
    with wire.Connection(server) as connection:
        assert connection.answer(connection.call("ModelInfer", infer_request())).grpc_status == 0
    for raw in opened:
        raw.close()


def test_health_and_settings_are_acknowledged(server):
    """The standard health service; many SETTINGS frames."""
    with wire.Connection(server) as connection:
        connection.send(frame(SETTINGS, 0, 0) * 100)
        answer = connection.answer(connection.call(HEALTH, wire.message(b"")))
        assert answer.grpc_status == 0 and answer.data == wire.message(b"\x08\x01")


PARTS = {
    "header fields": [frame(HEADERS, END_STREAM, 1, b"\x83")],
    "header fields that go on": [frame(HEADERS, 0, 1, b"\x83"), *[frame(CONTINUATION, 0, 1)] * 4],
    "a frame's head": [frame(PING, 0, 0, bytes(8))[:5]],
    "a frame": [frame(HEADERS, END_HEADERS, 1, b"\x83" * 10)[:-1]],
    "a tensor's frame": [frame(DATA, 0, 1, bytes(100))[:-1]],
}


@pytest.mark.parametrize("name", PARTS)
def test_who_does_not_end_what_he_began_is_hung_up_on(start, tmp_path, name):
    """However slowly he goes on. Who rests between calls is not."""
    server = start(models.write(tmp_path / "repository", {"fp32": models.identity_models()["fp32"]}), PAUSE)
    begun = socket.create_connection(("127.0.0.1", server.grpc_port), timeout=wire.WAIT_SECONDS_MAX)
    with begun, wire.Connection(server) as resting:
        assert resting.answer(resting.call("ModelInfer", infer_request())).grpc_status == 0
        begun.sendall(wire.PREFACE + frame(SETTINGS, 0, 0))
        at = time.monotonic()
        # Nothing in between: what a server says is acknowledged by nobody.
        assert not any(is_hung_up(begun, piece, 0.1) for piece in PARTS[name])
        while not is_hung_up(begun, b"", 0.1):
            assert time.monotonic() - at < wire.WAIT_SECONDS_MAX
        assert time.monotonic() - at > 0.9
        assert resting.answer(resting.call("ModelInfer", infer_request())).grpc_status == 0


def is_hung_up(raw: socket.socket, piece: bytes, seconds: float) -> bool:
    """Sends a piece, and tells whether the other side is gone some time later."""
    try:
        raw.sendall(piece)
        readable, _, _ = select.select([raw], [], [], seconds)
        return bool(readable) and raw.recv(1 << 16) == b""
    except (BrokenPipeError, ConnectionResetError):
        return True
