"""The five ways in which tritonclient asks for an inference, behind one signature."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import urllib.request

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio

from . import models

WAIT_SECONDS_MAX = 60


def values(datatype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """A tensor with values that tell their order and size."""
    count = int(np.prod(shape))
    steps = np.arange(seed, seed + count)
    if datatype == "BYTES":
        texts = [f"text {step}\0é".encode() * (step % 3) for step in steps]
        return np.array(texts, dtype=np.object_).reshape(shape)
    return (steps % 2 if datatype == "BOOL" else steps % 100).astype(models.TYPES[datatype][1]).reshape(shape)


def tensor(client, name: str, datatype: str, array: np.ndarray, **options):
    """An input for the given client module."""
    made = client.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, **options)
    return made


def http(server, **request):
    """tritonclient.http."""
    with contextlib.closing(triton_http.InferenceServerClient(server.http_address)) as client:
        return client.infer(**request)


def grpc(server, **request):
    """tritonclient.grpc."""
    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
        return client.infer(**request)


def http_aio(server, **request):
    """tritonclient.http.aio."""
    return asyncio.run(_aio(triton_http_aio, server.http_address, request))


def grpc_aio(server, **request):
    """tritonclient.grpc.aio."""
    return asyncio.run(_aio(triton_grpc_aio, server.grpc_address, request))


async def _aio(module, address, request):
    async with module.InferenceServerClient(address) as client:
        return await client.infer(**request)


def grpc_stream(server, **request):
    """tritonclient.grpc over ModelStreamInfer."""
    return grpc_stream_many(server, [request])[0]


def grpc_stream_many(server, requests: list[dict]) -> list:
    """Answers to many requests on one stream, in the order in which they come."""
    answers: queue.Queue = queue.Queue()
    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        for request in requests:
            client.async_stream_infer(**request)
        got = [answers.get(timeout=WAIT_SECONDS_MAX) for _ in requests]
    for answer in got:
        if isinstance(answer, Exception):
            raise answer
    return got


WAYS = {
    "http": (triton_http, http),
    "grpc": (triton_grpc, grpc),
    "http_aio": (triton_http_aio, http_aio),
    "grpc_aio": (triton_grpc_aio, grpc_aio),
    "grpc_stream": (triton_grpc, grpc_stream),
}


def infer(way: str, server, model: str, array: np.ndarray, datatype: str = "FP32", **request):
    """Sends one tensor by one of the ways and returns the client's result."""
    module, send = WAYS[way]
    name = request.pop("input_name", "INPUT0")
    return send(server, model_name=model, inputs=[tensor(module, name, datatype, array)], **request)


def executions(server, model: str) -> tuple[int, int]:
    """How many inferences, and how many executions, the server counts for a model."""
    stats = server.get_json(f"/v2/models/{model}/stats")["model_stats"][0]
    return int(stats["inference_count"]), int(stats["execution_count"])


def pending(server, model: str) -> int:
    """How many requests wait for a model, by the metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics") as page:
        lines = page.read().decode().splitlines()
    counts = [line.split()[-1] for line in lines if line.startswith(f'nv_inference_pending_request_count{{model="{model}",')]
    return sum(int(float(count)) for count in counts)
