"""The one place where the example clients talk to the server: over HTTP or gRPC, or through the ring."""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

Tensors = Mapping[str, np.ndarray]

DEFAULT_URLS = {"http": "127.0.0.1:8000", "grpc": "127.0.0.1:8001", "ring": "/run/nereid.ring"}
ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "build" / "examples" / "assets"
IN_FLIGHT_MAX = 8
# For all tensors of the requests in flight, and for the outputs of one.
ARENA_BYTES, AREA_BYTES = 512 << 20, 16 << 20


class Label(NamedTuple):
    """One entry of a classification: what the model sees and how sure it is."""

    score: float
    index: int
    name: str


class Connection(Protocol):
    """What an example needs of a server."""

    def infer(self, model: str, inputs: Tensors, output: str) -> np.ndarray:
        """Sends one request and waits for the tensor `output`."""

    def infer_each(self, model: str, requests: Iterable[Tensors], output: str) -> list[np.ndarray]:
        """Sends many requests at once, so that the server may put them in one batch."""

    def classify(self, model: str, inputs: Tensors, output: str, count: int) -> list[list[Label]]:
        """Asks for the best `count` classes of every row in place of the numbers themselves."""


class HttpConnection:
    def __init__(self, url: str):
        self.client = tritonclient.http.InferenceServerClient(url, concurrency=IN_FLIGHT_MAX)

    def infer(self, model: str, inputs: Tensors, output: str) -> np.ndarray:
        return self.client.infer(model, self._inputs(inputs)).as_numpy(output)

    def infer_each(self, model: str, requests: Iterable[Tensors], output: str) -> list[np.ndarray]:
        sent = [self.client.async_infer(model, self._inputs(inputs)) for inputs in requests]
        return [request.get_result().as_numpy(output) for request in sent]

    def classify(self, model: str, inputs: Tensors, output: str, count: int) -> list[list[Label]]:
        wanted = [tritonclient.http.InferRequestedOutput(output, class_count=count)]
        return labels(self.client.infer(model, self._inputs(inputs), outputs=wanted).as_numpy(output))

    def _inputs(self, tensors: Tensors) -> list[tritonclient.http.InferInput]:
        return [filled(tritonclient.http.InferInput, name, tensor) for name, tensor in tensors.items()]


class GrpcConnection:
    def __init__(self, url: str):
        self.client = tritonclient.grpc.InferenceServerClient(url)

    def infer(self, model: str, inputs: Tensors, output: str) -> np.ndarray:
        return self.client.infer(model, self._inputs(inputs)).as_numpy(output)

    def infer_each(self, model: str, requests: Iterable[Tensors], output: str) -> list[np.ndarray]:
        sent = []
        for inputs in requests:
            future: Future = Future()
            self.client.async_infer(model, self._inputs(inputs), callback=resolve(future))
            sent.append(future)
        return [future.result().as_numpy(output) for future in sent]

    def classify(self, model: str, inputs: Tensors, output: str, count: int) -> list[list[Label]]:
        wanted = [tritonclient.grpc.InferRequestedOutput(output, class_count=count)]
        return labels(self.client.infer(model, self._inputs(inputs), outputs=wanted).as_numpy(output))

    def _inputs(self, tensors: Tensors) -> list[tritonclient.grpc.InferInput]:
        return [filled(tritonclient.grpc.InferInput, name, tensor) for name, tensor in tensors.items()]


class RingConnection:
    """Tensors in memory that is shared with a server on this machine (`--ring-socket`)."""

    def __init__(self, path: str):
        sys.path.insert(0, str(ROOT / "clients" / "python"))
        from nereid_ring import Ring

        self.client = Ring(path, arena_bytes=ARENA_BYTES)

    def infer(self, model: str, inputs: Tensors, output: str) -> np.ndarray:
        return self.client.infer(model, inputs, [output], area_bytes=AREA_BYTES)[output]

    def infer_each(self, model: str, requests: Iterable[Tensors], output: str) -> list[np.ndarray]:
        sent, answers = deque(), []
        for inputs in requests:
            if len(sent) == IN_FLIGHT_MAX:
                answers.append(self._answer(sent.popleft(), output))
            sent.append(self.client.submit(model, inputs, [output], area_bytes=AREA_BYTES))
        return answers + [self._answer(request, output) for request in sent]

    def _answer(self, request, output: str) -> np.ndarray:
        # A copy, so that the shared memory is free for the next request.
        return self.client.wait(request)[output].copy()

    def classify(self, model: str, inputs: Tensors, output: str, count: int) -> list[list[Label]]:
        return labels(self.client.infer(model, inputs, {output: count}, area_bytes=AREA_BYTES)[output])


def filled(kind: type, name: str, tensor: np.ndarray):
    input_ = kind(name, list(tensor.shape), np_to_triton_dtype(tensor.dtype))
    input_.set_data_from_numpy(tensor)
    return input_


def resolve(future: Future):
    def answered(result, error):
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    return answered


def labels(answer: np.ndarray) -> list[list[Label]]:
    """Reads the strings `score:index:name` that the server answers a classification with."""
    rows = []
    for row in answer:
        parts = (entry.decode("utf-8").split(":", 2) for entry in row)
        rows.append([Label(float(score), int(index), name) for score, index, name in parts])
    return rows


def connect(protocol: str, url: str | None = None) -> Connection:
    kinds = {"http": HttpConnection, "grpc": GrpcConnection, "ring": RingConnection}
    return kinds[protocol](url or DEFAULT_URLS[protocol])


def argument_parser(description: str) -> argparse.ArgumentParser:
    """The options that every example client shares."""
    parser = argparse.ArgumentParser(
        description=description.strip().splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--protocol", choices=["http", "grpc", "ring"], default="http", help="how to reach the server")
    parser.add_argument("--url", help=f"host:port of the server, or the path of its ring, if not {' or '.join(DEFAULT_URLS.values())}")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="the folder that fetch_models.py filled")
    return parser


def run(main: Callable[[], None]) -> None:
    """Runs an example and puts what went wrong into one line."""
    try:
        main()
    except (InferenceServerException, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
