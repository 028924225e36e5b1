"""Pings, and the ages of connections."""

from __future__ import annotations

import struct
import time

import pytest
from tritonclient.grpc import service_pb2 as pb

from . import models, wire
from .test_grpc_wire import infer_request

PATIENT_SECONDS = 2
LIVE = wire.message(b"")


@pytest.fixture
def small(tmp_path):
    """A model that answers at once, and one that waits for company."""
    chosen = {
        "fp32": models.identity_models()["fp32"],
        "waits": models.Model(models.identity(models.batched(PATIENT_SECONDS * 1_000_000), dims="4")),
    }
    return models.write(tmp_path / "repository", chosen)


def _waiting_request() -> bytes:
    request = pb.ModelInferRequest(model_name="waits")
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 4])
    request.raw_input_contents.append(struct.pack("<4f", 1, 2, 3, 4))
    return wire.message(request.SerializeToString())


def _read_for(connection: wire.Connection, seconds: float) -> float:
    """Reads until the connection ends or the time has passed; returns how long it took."""
    started = time.monotonic()
    while not connection.closed and (left := started + seconds - time.monotonic()) > 0:
        connection.socket.settimeout(left)
        try:
            connection.read_frame()
        except TimeoutError:
            break
    connection.socket.settimeout(wire.WAIT_SECONDS_MAX)
    return time.monotonic() - started


PINGS = ("--grpc-keepalive-time=150", "--grpc-keepalive-timeout=300")
WITHOUT_CALLS = "--grpc-keepalive-permit-without-calls=1"


def test_who_does_not_answer_pings_is_let_go(start, small):
    """After the time-out, not before."""
    server = start(small, *PINGS, WITHOUT_CALLS)
    with wire.Connection(server) as silent:
        silent.answers_pings = False
        assert 0.4 < _read_for(silent, 10) < 5
        assert silent.pings == 1 and silent.closed


def test_who_answers_stays_and_is_not_pinged_for_ever(start, small):
    """Two pings with nothing between them are enough; a call allows more."""
    server = start(small, *PINGS, WITHOUT_CALLS)
    with wire.Connection(server) as connection:
        _read_for(connection, 2.5)
        assert connection.pings == 2 and not connection.closed
        assert connection.answer(connection.call("ServerLive", LIVE)).grpc_status == 0
        _read_for(connection, 2.5)
        assert connection.pings == 4 and not connection.closed


def test_pings_without_limit(start, small):
    """Where the limit is 0."""
    server = start(small, *PINGS, WITHOUT_CALLS, "--grpc-http2-max-pings-without-data=0")
    with wire.Connection(server) as connection:
        _read_for(connection, 2.5)
        assert connection.pings >= 4 and not connection.closed


def test_idle_connections_are_not_pinged_unless_allowed(start, small):
    """One with a call is."""
    server = start(small, *PINGS)
    with wire.Connection(server) as connection:
        _read_for(connection, 1)
        assert connection.pings == 0
        stream = connection.call("ModelInfer", _waiting_request())
        assert connection.answer(stream).grpc_status == 0
        assert connection.pings >= 1


def test_times_may_be_of_any_size(start, small):
    """None at all, and more than a clock can hold."""
    endless = 2**64 - 1
    for time_ms, age_ms in ((0, endless), (endless, endless)):
        flags = (f"--grpc-keepalive-time={time_ms}", f"--grpc-max-connection-age={age_ms}", WITHOUT_CALLS)
        server = start(small, *flags)
        with wire.Connection(server) as connection:
            _read_for(connection, 0.5)
            assert connection.answer(connection.call("ServerLive", LIVE)).grpc_status == 0


def test_an_old_connection_ends_after_its_calls(start, small):
    """The client is told first, and what is in flight is answered."""
    server = start(small, "--grpc-max-connection-age=500")
    with wire.Connection(server) as connection:
        assert connection.answer(connection.call("ModelInfer", infer_request())).grpc_status == 0
        stream = connection.call("ModelInfer", _waiting_request())
        assert connection.answer(stream).grpc_status == 0
        assert connection.goaway == 0
        _read_for(connection, 5)
        assert connection.closed
    with wire.Connection(server) as fresh:
        assert fresh.answer(fresh.call("ServerLive", LIVE)).grpc_status == 0


def test_grace_has_an_end(start, small):
    """A call that takes longer is cut off with its connection."""
    server = start(small, "--grpc-max-connection-age=300", "--grpc-max-connection-age-grace=300")
    with wire.Connection(server) as connection:
        stream = connection.call("ModelInfer", _waiting_request())
        assert _read_for(connection, 10) < PATIENT_SECONDS - 0.3
        assert connection.closed and connection.goaway == 0
        assert stream not in connection.answers


TOO_MANY = (11, b"too_many_pings")
PING = wire.frame(wire.PING, 0, 0, bytes(8))


def _ping(connection: wire.Connection, count: int, seconds_apart: float = 0.0) -> None:
    """Pings and reads what comes."""
    for _ in range(count):
        before = connection.pongs
        connection.send(PING)
        connection.read_until(lambda: connection.pongs > before)
        if not connection.closed:
            _read_for(connection, seconds_apart)


def _told(connection: wire.Connection) -> tuple[int | None, bytes]:
    """What the server said before it closed the connection."""
    connection.read_until(lambda: False)
    return connection.goaway, connection.goaway_text


@pytest.mark.parametrize("in_call", [False, True])
def test_who_pings_too_often_is_let_go(start, small, in_call):
    """As by the real server: the first ping is none too many, the fourth is answered and is the last."""
    server = start(small)
    with wire.Connection(server) as connection:
        if in_call:
            connection.call("ModelInfer", _waiting_request())
        _ping(connection, 3)
        assert connection.goaway is None and not connection.closed
        connection.send(PING)
        assert _told(connection) == TOO_MANY
        assert connection.pongs == 4
    with wire.Connection(server) as connection:
        # All at once.
        connection.send(PING * 100)
        assert _told(connection) == TOO_MANY


def test_who_is_sent_something_may_ping_anew(start, small):
    """Answers and pings by turns go on for ever."""
    server = start(small)
    with wire.Connection(server) as connection:
        for _ in range(10):
            _ping(connection, 3)
            assert connection.answer(connection.call("ServerLive", LIVE)).grpc_status == 0
        assert connection.pongs == 30 and connection.goaway is None


def test_pings_may_come_as_often_as_the_operator_says(start, small):
    """As many strikes, as far apart; on a connection without calls if those are permitted."""
    interval = "--grpc-http2-min-recv-ping-interval-without-data=100"
    server = start(small, interval, WITHOUT_CALLS, "--grpc-http2-max-ping-strikes=4")
    with wire.Connection(server) as connection:
        _ping(connection, 5, seconds_apart=0.15)
        _ping(connection, 5)
        assert connection.goaway is None and not connection.closed
        connection.send(PING)
        assert _told(connection) == TOO_MANY
    server = start(small, interval)
    with wire.Connection(server) as connection:
        _ping(connection, 3, seconds_apart=0.15)
        connection.send(PING)
        assert _told(connection) == TOO_MANY
