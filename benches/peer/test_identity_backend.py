"""The identity back end of the peer bench gives back what it is given, one by one and in batches.

build/venv/bin/python -m pytest benches/peer
"""

from __future__ import annotations

import pathlib
import sys
import threading
import time

import numpy
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import load  # noqa: E402
import servers  # noqa: E402

pytestmark = pytest.mark.skipif(
    not servers.peer_is_usable(), reason="scripts/setup_peer.sh has not been run"
)


@pytest.fixture(scope="module")
def triton(tmp_path_factory):
    """The real server with the bench's models."""
    repository = load.write_repository(tmp_path_factory.mktemp("repository"))
    with servers.Server("triton-check", servers.TRITON, repository) as server:
        yield server


def infer(library, client, model: str, rows: numpy.ndarray) -> numpy.ndarray:
    """The answer to one request."""
    tensor = library.InferInput("INPUT0", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    return client.infer(model, [tensor]).as_numpy("OUTPUT0")


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("model", list(load.MODELS))
@pytest.mark.parametrize("shape", [(1, 1), (1, 16), (7, 3), (64, 5), (1, 150_000)])
def test_the_output_is_the_input(triton, protocol, model, shape):
    """Whatever the shape, protocol and batching."""
    library = grpcclient if protocol == "grpc" else httpclient
    address = triton.grpc_address if protocol == "grpc" else triton.http_address
    rows = numpy.random.default_rng(1).random(shape, dtype=numpy.float32)
    with library.InferenceServerClient(address) as client:
        numpy.testing.assert_array_equal(infer(library, client, model, rows), rows)


def test_batches_are_formed_and_counted(triton):
    """Requests of several clients share an execution, and each gets its own rows back."""
    clients, requests = 16, 40
    before = triton.get_json("/v2/models/identity_batched/stats")["model_stats"][0]
    wrong = []

    def ask(number: int) -> None:
        with grpcclient.InferenceServerClient(triton.grpc_address) as client:
            for request in range(requests):
                rows = numpy.full((1, 8), number * 1000 + request, dtype=numpy.float32)
                answer = infer(grpcclient, client, "identity_batched", rows)
                if not numpy.array_equal(answer, rows):
                    wrong.append((number, request))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    # A back end reports its statistics after it has answered.
    deadline = time.monotonic() + 5
    done = before["inference_count"] + clients * requests
    while True:
        after = triton.get_json("/v2/models/identity_batched/stats")["model_stats"][0]
        if after["inference_count"] >= done or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    assert not wrong
    assert after["inference_count"] == done
    assert 0 < after["execution_count"] - before["execution_count"] < clients * requests
    rows_counted = sum(each["batch_size"] * each["compute_infer"]["count"] for each in after["batch_stats"])
    assert rows_counted == after["inference_count"]
