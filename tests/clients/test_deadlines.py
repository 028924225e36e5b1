"""Requests that wait in a batcher's queue and are given up: they are answered at once and never run."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from . import triton, wire

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


def test_a_connection_that_ends_takes_its_requests_along(server):
    """Twenty requests wait when their client goes."""
    before = triton.executions(server, "second")
    with wire.Connection(server) as connection:
        for _ in range(20):
            connection.call("ModelInfer", _request("second"))
    triton.infer("grpc", server, "second", ARRAY)
    inferences, _ = np.array(triton.executions(server, "second")) - before
    assert inferences == 1
