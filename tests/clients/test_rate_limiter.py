"""The rate limiter through a real server: who waits for whom, and what could never run."""

from __future__ import annotations

import contextlib
import queue
import subprocess
import time

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from . import models, triton

LIMITED = "--rate-limit=execution_count"
EXPLICIT = "--model-control-mode=explicit"
# How long an instance is busy with one request.
BUSY_MS = 150


def _limited(resources: str, priority: int = 0, count: int = 1) -> str:
    limiter = f"rate_limiter {{ resources [{resources}] priority: {priority} }}"
    return f"instance_group [{{ count: {count} kind: KIND_CPU {limiter} }}]"


def _need(name: str, count: int, everywhere: bool = False) -> str:
    return f'{{ name: "{name}" global: {str(everywhere).lower()} count: {count} }}'


MODELS = {
    "a": models.Model(models.REPEAT + _limited(_need("R", 2))),
    "b": models.Model(models.REPEAT + _limited(_need("R", 2))),
    "small": models.Model(models.identity(_limited(_need("R", 1), count=2))),
    "everywhere": models.Model(models.identity(_limited(_need("G", 3, everywhere=True)))),
    "both": models.Model(models.identity(_limited(_need("R", 1, everywhere=True)))),
}


@pytest.fixture
def repository(tmp_path):
    """Models that share resources."""
    return models.write(tmp_path / "repository", MODELS)


def _run(server, names: list[str]) -> float:
    """Asks all at once, and says how many seconds all took together."""
    answers: queue.Queue = queue.Queue()
    arrays = {
        "IN": ("INT32", np.zeros(1, dtype=np.int32)),
        "DELAY": ("UINT32", np.zeros(1, dtype=np.uint32)),
        "WAIT": ("UINT32", np.full(1, BUSY_MS, dtype=np.uint32)),
    }
    inputs = [triton.tensor(triton_grpc, name, kind, array) for name, (kind, array) in arrays.items()]
    began = time.monotonic()
    with contextlib.ExitStack() as clients:
        for name in names:
            client = clients.enter_context(contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)))
            client.start_stream(lambda result, error: answers.put(error or result))
            client.async_stream_infer(name, inputs)
        for _ in names:
            answer = answers.get(timeout=20)
            assert not isinstance(answer, Exception), answer
        _settled(server, set(names))
        return time.monotonic() - began


def _settled(server, names: set[str]) -> None:
    """The response comes before the instance is free."""
    deadline = time.monotonic() + 20
    done = lambda name: triton.executions(server, name)[1]  # noqa: E731
    while any(done(name) == 0 for name in names):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_instances_that_share_a_resource_take_turns(start, repository):
    """Two that each need all of it run one after the other."""
    server = start(repository, EXPLICIT, LIMITED, "--load-model=a", "--load-model=b")
    assert _run(server, ["a", "b"]) >= 2 * BUSY_MS / 1000


def test_without_the_limiter_configurations_say_nothing(start, repository):
    """Also with resources that would not be enough."""
    server = start(repository, EXPLICIT, "--rate-limit-resource=R:1", "--load-model=a", "--load-model=both")
    np.testing.assert_array_equal(
        triton.infer("grpc", server, "both", np.ones(3, dtype=np.float32)).as_numpy("OUTPUT0"), np.ones(3)
    )


def test_a_model_that_could_never_run_is_not_loaded(start, repository):
    """In the words of the real server; what failed leaves nothing behind."""
    server = start(repository, EXPLICIT, LIMITED, "--rate-limit-resource=R:1", "--rate-limit-resource=G:2:7")
    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
        client.load_model("small")
        for name, expected in [
            (
                "a",
                'Invalid argument: Resource count for "R" is limited to 1 which will prevent scheduling of one or more '
                "model instances, the minimum required count is 2",
            ),
            (
                "everywhere",
                'Invalid argument: Resource count for "G" is limited to 2 which will prevent scheduling of one or more '
                "model instances, the minimum required count is 3",
            ),
            (
                "both",
                'Invalid argument: Resource "R" is present as both global and device-specific resource in the model '
                "configuration.",
            ),
        ]:
            with pytest.raises(InferenceServerException) as error:
                client.load_model(name)
            assert expected in error.value.message()
        client.unload_model("small")
        client.load_model("small")
    array = np.ones(3, dtype=np.float32)
    for _ in range(20):
        np.testing.assert_array_equal(triton.infer("grpc", server, "small", array).as_numpy("OUTPUT0"), array)


def test_a_waiting_request_can_be_given_up(start, repository):
    """Who leaves while the resource is another's runs nowhere, and the next gets its turn."""
    server = start(repository, EXPLICIT, LIMITED, "--load-model=a", "--load-model=small", "--rate-limit-resource=R:2")
    array = np.ones(3, dtype=np.float32)
    for _ in range(5):
        with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
            client.start_stream(lambda result, error: None)
            inputs = [
                triton.tensor(triton_grpc, "IN", "INT32", np.zeros(1, dtype=np.int32)),
                triton.tensor(triton_grpc, "DELAY", "UINT32", np.zeros(1, dtype=np.uint32)),
                triton.tensor(triton_grpc, "WAIT", "UINT32", np.full(1, BUSY_MS, dtype=np.uint32)),
            ]
            client.async_stream_infer("a", inputs)
            given = [triton.tensor(triton_grpc, "INPUT0", "FP32", array)]
            with contextlib.suppress(InferenceServerException):
                client.infer("small", given, client_timeout=0.02)
            client.stop_stream(cancel_requests=True)
    np.testing.assert_array_equal(triton.infer("grpc", server, "small", array).as_numpy("OUTPUT0"), array)


@pytest.mark.parametrize("value", ["R", "R:x", "R:1:global"])
def test_resources_that_are_malformed_end_the_start(binary, repository, value):
    """With what was expected."""
    command = [str(binary), f"--model-repository={repository}", f"--rate-limit-resource={value}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode != 0
    assert "expected <name>:<count>:<device> or <name>:<count>" in ended.stderr
