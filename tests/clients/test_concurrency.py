"""Many requests at a time: each answer belongs to its request, and batches are made."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http

from . import triton

THREADS = 8
REQUESTS_PER_THREAD = 60
MODELS = ["fp32", "fp32_batched", "gather"]


def _own_tensor(model: str, number: int) -> np.ndarray:
    # Sizes differ too, so that an answer in the wrong place cannot be taken for the right one.
    size = 1 + number % 5
    shape = (size,) if model == "fp32" else (1, size)
    return np.full(shape, number, dtype=np.float32)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("model", MODELS)
def test_threads_get_their_own_answers(server, protocol, model):
    """One client for each thread, all at once."""
    module = {"http": triton_http, "grpc": triton_grpc}[protocol]
    address = {"http": server.http_address, "grpc": server.grpc_address}[protocol]

    def work(thread: int):
        # grpc would share one connection among all clients of an address.
        own = {"channel_args": [("grpc.use_local_subchannel_pool", 1)]} if protocol == "grpc" else {}
        with contextlib.closing(module.InferenceServerClient(address, **own)) as client:
            for step in range(REQUESTS_PER_THREAD):
                array = _own_tensor(model, thread * REQUESTS_PER_THREAD + step)
                given = triton.tensor(module, "INPUT0", "FP32", array)
                result = client.infer(model, [given], request_id=f"{thread}-{step}")
                np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), array)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))


@pytest.mark.parametrize("model", MODELS)
def test_calls_that_share_a_connection_get_their_own_answers(server, model):
    """500 unary calls in flight on one HTTP/2 connection."""

    async def one(client, number):
        array = _own_tensor(model, number)
        given = triton.tensor(triton_grpc_aio, "INPUT0", "FP32", array)
        result = await client.infer(model, [given], request_id=str(number))
        assert result.get_response().id == str(number)
        np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), array)

    async def all_of_them():
        async with triton_grpc_aio.InferenceServerClient(server.grpc_address) as client:
            await asyncio.gather(*(one(client, number) for number in range(500)))

    asyncio.run(all_of_them())


@pytest.mark.parametrize("model", MODELS)
def test_a_stream_answers_in_order(server, model):
    """300 requests on one stream, none waited for."""
    requests = []
    for number in range(300):
        given = triton.tensor(triton_grpc, "INPUT0", "FP32", _own_tensor(model, number))
        requests.append({"model_name": model, "inputs": [given], "request_id": str(number)})
    for number, answer in enumerate(triton.grpc_stream_many(server, requests)):
        assert answer.get_response().id == str(number)
        np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), _own_tensor(model, number))


def test_requests_are_put_into_batches(server):
    """By the server's count there are fewer executions than inferences."""
    before = triton.executions(server, "gather")

    async def all_of_them():
        async with triton_grpc_aio.InferenceServerClient(server.grpc_address) as client:
            given = triton.tensor(triton_grpc_aio, "INPUT0", "FP32", np.ones((1, 4), np.float32))
            await asyncio.gather(*(client.infer("gather", [given]) for _ in range(128)))

    asyncio.run(all_of_them())
    inferences, executions = np.array(triton.executions(server, "gather")) - before
    assert inferences == 128
    assert executions <= 32


def test_large_and_small_requests_do_not_mix(server):
    """4 MB tensors and single numbers in flight together."""

    def work(number):
        array = np.full(1_000_000 if number % 4 == 0 else 1, number, dtype=np.float32)
        result = triton.infer(("http", "grpc")[number % 2], server, "fp32", array)
        np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), array)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(64)))
