"""The one place where the example clients talk to the server, over HTTP or gRPC."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

Tensors = Mapping[str, np.ndarray]

DEFAULT_URLS = {"http": "127.0.0.1:8000", "grpc": "127.0.0.1:8001"}
ASSETS = Path(__file__).resolve().parents[2] / "build" / "examples" / "assets"
IN_FLIGHT_MAX = 8


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
    kinds = {"http": HttpConnection, "grpc": GrpcConnection}
    return kinds[protocol](url or DEFAULT_URLS[protocol])


def argument_parser(description: str) -> argparse.ArgumentParser:
    """The options that every example client shares."""
    parser = argparse.ArgumentParser(
        description=description.strip().splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--protocol", choices=["http", "grpc"], default="http", help="how to reach the server")
    parser.add_argument("--url", help=f"host:port of the server, if not {' or '.join(DEFAULT_URLS.values())}")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="the folder that fetch_models.py filled")
    return parser


def run(main: Callable[[], None]) -> None:
    """Runs an example and puts what went wrong into one line."""
    try:
        main()
    except (InferenceServerException, OSError) as error:
        sys.exit(f"error: {error}")
