"""Starting and stopping: signals, requests in flight, bad flags, broken repositories, `nereid check`."""

from __future__ import annotations

import contextlib
import pathlib
import signal
import socket
import subprocess
import threading
import time

import numpy as np
import pytest
import servers
import tritonclient.grpc as triton_grpc
from tritonclient.grpc import service_pb2

from . import models, python_server, triton, wire

IDLE_STOP_SECONDS_MAX = 1.0
STOP_SECONDS_MAX = 15
DESCRIPTORS = 200
ARRAY = np.ones((1, 4), dtype=np.float32)


@pytest.fixture
def small(tmp_path):
    """A repository of three models."""
    every = models.identity_models()
    chosen = {name: every[name] for name in ("fp32", "second", "patient")}
    return models.write(tmp_path / "repository", chosen)


def _stop(server) -> float:
    started = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(STOP_SECONDS_MAX)
    return time.monotonic() - started


def test_idle_connections_do_not_delay_the_end(start, small):
    """Keep-alive connections of both protocols are open."""
    server = start(small)
    client = triton_grpc.InferenceServerClient(server.grpc_address)
    assert client.is_server_live()
    silent = socket.create_connection(("127.0.0.1", server.grpc_port))
    with silent, socket.create_connection(("127.0.0.1", server.http_port)) as raw:
        raw.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 200")
        assert _stop(server) < IDLE_STOP_SECONDS_MAX
    client.close()
    assert server.process.returncode == 0


def _is_ready(raw: socket.socket) -> bool:
    try:
        raw.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: a\r\n\r\n")
        return raw.recv(1000).startswith(b"HTTP/1.1 200")
    except (ConnectionResetError, BrokenPipeError):
        return False


def test_a_signal_ends_the_start(start, tmp_path):
    """Though a model would take a minute more to load; nothing of its process is left."""
    source = "import time\n\nclass TritonPythonModel:\n    def initialize(self, args):\n        time.sleep(60)\n"
    python_server.write(tmp_path / "repository", "slow", python_server.WAY, source)
    server = start(tmp_path / "repository", python_server.INTERPRETER, wait=lambda _: None)
    python_server.wait_until(lambda: python_server.processes(server))
    processes = python_server.processes(server).values()
    _stop(server)
    assert server.process.returncode == 0, server.log_tail()
    python_server.wait_until(lambda: not any(pathlib.Path(f"/proc/{each}").exists() for each in processes))


@pytest.mark.parametrize("way", ["http", "grpc", "grpc_stream"])
def test_a_request_in_flight_is_answered_before_the_end(start, small, way):
    """It waits in a batcher's queue for a second when the signal comes; the server is not ready then."""
    server = start(small)
    got = []
    asking = threading.Thread(target=lambda: got.append(triton.infer(way, server, "second", ARRAY)))
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=5) as raw:
        assert _is_ready(raw)
        asking.start()
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        # The signal takes a moment to arrive; the request in flight leaves it most of a second.
        while _is_ready(raw):
            assert not got, "ready until the request in flight was answered"
    assert server.process.wait(STOP_SECONDS_MAX) == 0
    asking.join(STOP_SECONDS_MAX)
    assert got, "the request was not answered"
    np.testing.assert_array_equal(got[0].as_numpy("OUTPUT0"), ARRAY)


def test_the_end_is_told_before_the_last_answer(start, small):
    """GOAWAY comes at once, so that a client goes elsewhere with its next call, and then the answer."""
    server = start(small)
    with wire.Connection(server) as connection:
        request = service_pb2.ModelInferRequest(model_name="second")
        request.inputs.add(name="INPUT0", datatype="FP32").shape.extend(ARRAY.shape)
        request.raw_input_contents.append(ARRAY.tobytes())
        stream = connection.call("ModelInfer", wire.message(request.SerializeToString()))
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        connection.read_until(lambda: connection.goaway is not None)
        assert connection.goaway == 0 and stream not in connection.answers
        answer = connection.answer(stream)
        assert answer.grpc_status == 0
        assert service_pb2.ModelInferResponse.FromString(answer.data[5:]).raw_output_contents == [ARRAY.tobytes()]
        connection.read_until(lambda: False)
        assert connection.closed
    assert server.process.wait(STOP_SECONDS_MAX) == 0


def test_the_exit_timeout_ends_the_wait(start, small):
    """The request in flight would wait for a minute."""
    server = start(small, "--exit-timeout-secs=1")
    client = triton_grpc.InferenceServerClient(server.grpc_address)
    told = threading.Event()
    given = triton.tensor(triton_grpc, "INPUT0", "FP32", ARRAY)
    client.async_infer("patient", [given], lambda result, error: told.set())
    time.sleep(0.3)
    assert _stop(server) < 5
    assert told.wait(5)
    client.close()


def test_one_broken_model_leaves_the_others(start, small):
    """With --exit-on-error=false; readiness is not strict here."""
    models.write(small, {"broken": models.Model("no_such_field: 1")})
    server = start(small, "--exit-on-error=false", "--strict-readiness=false")
    client = triton_grpc.InferenceServerClient(server.grpc_address)
    assert not client.is_model_ready("broken")
    client.close()
    np.testing.assert_array_equal(
        triton.infer("grpc", server, "fp32", ARRAY[0]).as_numpy("OUTPUT0"), ARRAY[0]
    )


def test_one_broken_model_ends_the_start_by_default(binary, small):
    """As --exit-on-error is true; what is wrong with the model is told."""
    models.write(small, {"broken": models.Model("no_such_field: 1")})
    status, output = _nereid(binary, f"--model-repository={small}", *PORTS, *LOOPBACK)
    assert status != 0 and "broken/config.pbtxt:1:1" in output and "no_such_field" in output


def _warmed(name: str, dims: int, data: str) -> str:
    inputs = f'{{ key: "INPUT0" value: {{ data_type: TYPE_FP32 dims: [ {dims} ] {data} }} }}'
    return models.identity(models.batched(), dims="4") + (
        f'model_warmup [{{ name: "{name}" batch_size: 2 count: 3 inputs: {inputs} }}]\n'
    )


def test_a_model_that_cannot_be_warmed_up_is_not_served(start, small):
    """The sample and the input are named; those that can are served."""
    configs = {
        "zeros": _warmed("all zero", 4, "zero_data: true"),
        "numbers": _warmed("at random", 4, "random_data: true"),
        "from_file": _warmed("from a file", 4, 'input_data_file: "data"'),
        "short_file": _warmed("cut off", 4, 'input_data_file: "short"'),
        "wrong_shape": _warmed("too wide", 5, "zero_data: true"),
    }
    models.write(small, {name: models.Model(config) for name, config in configs.items()})
    for name, file, content in (("from_file", "data", bytes(16)), ("short_file", "short", bytes(15))):
        (small / name / "warmup").mkdir()
        (small / name / "warmup" / file).write_bytes(content)
    server = start(small, "--exit-on-error=false", "--strict-readiness=false")
    client = triton_grpc.InferenceServerClient(server.grpc_address)
    ready = {name for name in configs if client.is_model_ready(name)}
    client.close()
    assert ready == {"zeros", "numbers", "from_file"}
    log = server.log.read_text()
    assert "'cut off'" in log and "expects 16 bytes, but short has 15" in log
    assert "'too wide'" in log and "INPUT0" in log


def _nereid(binary, *arguments) -> tuple[int, str]:
    done = subprocess.run([binary, *arguments], capture_output=True, text=True, timeout=30)
    return done.returncode, done.stdout + done.stderr


LOOPBACK = ("--http-address=127.0.0.1", "--grpc-address=127.0.0.1")
PORTS = ("--http-port=0", "--grpc-port=0", "--metrics-port=0")


@pytest.mark.parametrize("arguments, word", [
    (["--no-such-flag"], "--no-such-flag"),
    (["--http-port=seventy"], "seventy"),
    (["--io-driver=carrier-pigeon"], "carrier-pigeon"),
    (["--model-control-mode=sometimes"], "sometimes"),
    ([], "--model-repository"),
    (["--model-repository=models", "--log-file=/no/such/folder/log"], "/no/such/folder/log"),
])  # fmt: skip
def test_bad_flags_are_named(binary, arguments, word):
    """On standard error, with a failure as exit status."""
    status, output = _nereid(binary, *arguments)
    assert status != 0 and word in output


def test_a_missing_repository_is_named(binary, tmp_path):
    """By its path."""
    status, output = _nereid(binary, f"--model-repository={tmp_path}/absent", *PORTS, *LOOPBACK)
    assert status != 0 and f"{tmp_path}/absent" in output


def test_a_port_that_is_taken_is_named(binary, small):
    """With the service that wanted it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        flags = (f"--http-port={port}", "--grpc-port=0", "--metrics-port=0", *LOOPBACK)
        status, output = _nereid(binary, f"--model-repository={small}", *flags)
    assert status != 0 and f"127.0.0.1:{port}" in output and "HTTP" in output


@pytest.mark.parametrize("flag", [[], ["--model-repository"]])
def test_check_accepts_a_good_repository(binary, small, flag):
    """Without a word of error, named by itself or as it is for serving."""
    status, output = _nereid(binary, "check", *flag, small)
    assert status == 0 and "0 error(s)" in output


def test_check_names_back_ends_that_the_server_lacks(binary, small):
    """Which a model of the repository asks for; there may be more of them than one."""
    models.write(small, {name: models.Model(f'backend: "{name}"\n') for name in ("vllm", "fil")})
    status, output = _nereid(binary, "check", small)
    assert status != 0 and "no back end 'vllm'" in output and "no back end 'fil'" in output


@pytest.mark.parametrize("config, place", [
    ('backend: "identity"\nno_such_field: 1\n', "2:1"),
    ('backend: "identity"\ninput [{ name: "a" data_type: TYPE_FP33 dims: [ 1 ] }]\n', "2:31"),
    ('backend: "identity"\n  max_batch_size: "x"\n', "2:19"),
])  # fmt: skip
def test_check_points_at_the_fault(binary, small, config, place):
    """file:line:column."""
    models.write(small, {"broken": models.Model(config)})
    status, output = _nereid(binary, "check", small)
    assert status != 0
    assert f"broken/config.pbtxt:{place}" in output


def test_more_connections_than_descriptors_allow_are_closed_at_once(driver, binary, small, tmp_path):
    """Those that are open go on, and when one of them ends there is room again."""
    few = tmp_path / "nereid-with-few-descriptors"
    few.write_text(f'#!/bin/sh\nulimit -n {DESCRIPTORS}\nexec {binary} "$@"\n')
    few.chmod(0o755)
    flags = (f"--io-driver={driver}", "--reactors=2")
    with servers.Server("nereid-few", few, small, flags, tmp_path / "server.log") as server:
        with contextlib.ExitStack() as stack:
            opened = []
            for _ in range(2 * DESCRIPTORS):
                raw = stack.enter_context(socket.create_connection(("127.0.0.1", server.http_port)))
                raw.settimeout(STOP_SECONDS_MAX)
                opened.append((raw, _is_ready(raw)))
            served = [raw for raw, ready in opened if ready]
            # The connection by which the start was watched may still count.
            assert DESCRIPTORS // 2 - 1 <= len(served) <= DESCRIPTORS // 2
            assert all(_is_ready(raw) for raw in served)
            served[0].close()
            assert _eventually(lambda: _is_ready_on_a_new_connection(server))
        assert "as many as the limit of open descriptors" in server.log_tail()


def _is_ready_on_a_new_connection(server) -> bool:
    with socket.create_connection(("127.0.0.1", server.http_port), STOP_SECONDS_MAX) as raw:
        return _is_ready(raw)


def _eventually(holds) -> bool:
    deadline = time.monotonic() + STOP_SECONDS_MAX
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.01)
    return False
