"""Requests that wait in a batcher's queue and are given up: they are answered at once and never run."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
import urllib.parse

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from . import models, triton, wire
from .python_server import wait_until
from .test_observe import metrics

ARRAY = np.ones((1, 4), dtype=np.float32)


def executed(server) -> int:
    """Executions of the model whose queue holds requests for a minute."""
    return triton.executions(server, "patient")[1]


def test_a_deadline_ends_the_wait(server):
    """DEADLINE_EXCEEDED, long before the queue's delay is over."""
    before, started = executed(server), time.monotonic()
    with pytest.raises(InferenceServerException) as raised:
        triton.infer("grpc", server, "patient", ARRAY, client_timeout=0.3)
    assert raised.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert time.monotonic() - started < 10
    assert executed(server) == before


def test_the_server_keeps_the_deadline_by_itself(server):
    """The client sends grpc-timeout and waits on."""
    with wire.Connection(server) as connection:
        stream = connection.call("ModelInfer", _request("patient"), more=(("grpc-timeout", "200m"),))
        assert connection.answer(stream).grpc_status == 4


def _request(model: str) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="INPUT0", datatype="FP32").shape.extend(ARRAY.shape)
    request.raw_input_contents.append(ARRAY.tobytes())
    return wire.message(request.SerializeToString())


def test_a_cancelled_request_does_not_run(server):
    """The client takes it back while it waits; the batch that runs later is without it."""
    before = triton.executions(server, "second")
    client = triton_grpc.InferenceServerClient(server.grpc_address)
    given = triton.tensor(triton_grpc, "INPUT0", "FP32", ARRAY)
    told = threading.Event()
    call = client.async_infer("second", [given], lambda result, error: told.set())
    time.sleep(0.2)
    call.cancel()
    assert told.wait(10)
    client.close()
    triton.infer("grpc", server, "second", ARRAY)
    inferences, executions = np.array(triton.executions(server, "second")) - before
    assert (inferences, executions) == (1, 1)


BODIES = {
    "infer": {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]},
    "generate": {"INPUT0": [1, 1, 1, 1]},
    "generate_stream": {"INPUT0": [1, 1, 1, 1]},
}


def _waiting(server) -> tuple[int, int]:
    """How many requests wait, and how many have been given up."""
    page = metrics(server)
    pending = page['nv_inference_pending_request_count{model="patient",version="1"}']
    cancelled = page['nv_inference_request_failure{model="patient",reason="CANCELED",version="1"}']
    return int(pending), int(cancelled)


@pytest.mark.parametrize("call", BODIES)
def test_an_http_client_that_leaves_takes_its_requests_along(server, call):
    """Twenty wait in the queues of the event loops, each with its connection; the next finds them empty."""
    before, (_, given_up) = executed(server), _waiting(server)
    with contextlib.ExitStack() as connections:
        for _ in range(20):
            connection = http.client.HTTPConnection(server.http_address, timeout=20)
            connections.enter_context(contextlib.closing(connection))
            connection.request("POST", f"/v2/models/patient/{call}", json.dumps(BODIES[call]))
        wait_until(lambda: _waiting(server)[0] == 20)

    def next_is_alone() -> bool:
        # Connections come to the event loops in turn, those for the metrics too.
        for _ in range(2):
            with pytest.raises(InferenceServerException):
                triton.infer("grpc", server, "patient", ARRAY, client_timeout=0.1)
        return _waiting(server)[1] >= given_up + 20

    wait_until(next_is_alone)
    assert executed(server) == before


def test_a_connection_that_ends_takes_its_requests_along(server):
    """Twenty requests wait when their client goes."""
    before = triton.executions(server, "second")
    with wire.Connection(server) as connection:
        for _ in range(20):
            connection.call("ModelInfer", _request("second"))
    triton.infer("grpc", server, "second", ARRAY)
    inferences, _ = np.array(triton.executions(server, "second")) - before
    assert inferences == 1


def test_a_request_that_does_not_go_on_is_given_up(start, tmp_path):
    """By every protocol. One that goes on slowly is answered, and so is a stream that rests between its requests."""
    server = start(models.write(tmp_path / "repository", {"fp32": models.identity_models()["fp32"]}), "--request-pause-max-secs=1")
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=20) as raw:
        raw.sendall(b"POST /v2/models/fp32/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{")
        answer = raw.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.1 400") and b"the request's body paused for over 1s" in answer
    request = service_pb2.ModelInferRequest(model_name="fp32", raw_input_contents=[bytes(16)])
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[4])
    body = wire.message(request.SerializeToString())
    with wire.Connection(server) as connection:
        all_begun = [(method, begun) for method in ("ModelInfer", "ModelStreamInfer", "ModelConfig") for begun in (body[:3], body[:20])]
        for method, begun in (*all_begun, ("ModelInfer", b""), ("ModelConfig", b"")):
            answer = connection.answer(connection.call(method, begun, end=False))
            told = urllib.parse.unquote(answer.headers["grpc-message"])
            assert (answer.grpc_status, told) == (3, "the request's message paused for over 1s"), method
        slow = connection.call("ModelInfer", body[:10], end=False)
        # Its client has no time for it before the slow one is there.
        behind = connection.call("ModelInfer", b"", end=False)
        for piece in (body[10:20], body[20:30], body[30:]):
            # In parts of frames too.
            whole = wire.frame(wire.DATA, 0, slow, piece)
            for part in (whole[:-2], whole[-2:]):
                time.sleep(0.4)
                connection.send(part)
        connection.send(wire.frame(wire.DATA, wire.END_STREAM, behind, body))
        assert (connection.answer(slow).grpc_status, connection.answer(behind).grpc_status) == (0, 0)
        rested = connection.call("ModelStreamInfer", body, end=False)
        time.sleep(1.5)
        connection.send(wire.frame(wire.DATA, wire.END_STREAM, rested, body))
        answer = connection.answer(rested)
        assert (answer.grpc_status, answer.data.count(b"OUTPUT0")) == (0, 2)
