"""tritonserver's flags, and what becomes of those that have no effect yet."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import time
import urllib.request

import numpy as np
import pytest
import servers
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from . import models, python_server, triton, wire

DELAY_SECONDS = 2
STOP_SECONDS_MAX = 15
ARRAY = np.ones(4, dtype=np.float32)


@pytest.fixture
def small(tmp_path):
    """A repository of one model."""
    return models.write(tmp_path / "repository", {"fp32": models.identity_models()["fp32"]})


def test_flags_without_effect_are_named_in_the_log(start, small):
    """Once each, whether their value follows a sign or a space."""
    flags = (
        "--cuda-memory-pool-byte-size", "0:67108864", "--cuda-memory-pool-byte-size=1:67108864",
        "--grpc-infer-allocation-pool-size=8",
        "--buffer-manager-thread-count=2", "--min-supported-compute-capability=7.5", "--enable-peer-access=0",
        "--model-load-gpu-limit=0:0.9", "--device=none",
    )  # fmt: skip
    server = start(small, *flags)
    lines = [line for line in server.log.read_text().splitlines() if "accepted, without effect: " in line]
    named = [line.partition("without effect: ")[2].split(":")[0] for line in lines]
    given = {flag.split("=")[0] for flag in flags if flag.startswith("--")} - {"--device"}
    assert sorted(named) == sorted(given)
    assert all(line.startswith("W") for line in lines)


def test_the_server_is_called_what_it_is_told(start, small):
    """In both protocols."""
    server = start(small, "--id=mine")
    with contextlib.closing(triton_http.InferenceServerClient(server.http_address)) as client:
        assert client.get_server_metadata()["name"] == "mine"
    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
        assert client.get_server_metadata().name == "mine"


def test_a_flag_may_be_given_twice(start, small):
    """As in the real server: the last counts, lists grow, a folder is read once and levels of traces add up."""
    flags = (
        f"--model-repository={small}", "--id=one", "--id=two", "--log-verbose=1", "--log-verbose=0",
        "--trace-config=triton,file=/dev/null", "--trace-config=rate=10", "--trace-config=rate=20",
        "--trace-config=level=TIMESTAMPS", "--trace-config=level=TENSORS", "--trace-config=level=OFF",
        "--model-control-mode=explicit", "--model-control-mode=none",
    )  # fmt: skip
    server = start(small, *flags)
    assert server.get_json("/v2")["name"] == "two"
    assert server.get_json("/v2/logging")["log_verbose_level"] == 0
    traced = server.get_json("/v2/trace/setting")
    assert (traced["trace_rate"], traced["trace_level"]) == ("20", ["TIMESTAMPS", "TENSORS"])
    with contextlib.closing(triton_http.InferenceServerClient(server.http_address)) as client:
        told = [(model["name"], model["state"]) for model in client.get_model_repository_index()]
    assert told == [("fp32", "READY")]


def test_a_port_may_be_shared_by_servers(start, small, monkeypatch):
    """With the flags that allow it; each of the two is asked in time."""
    http, grpc, *metrics = servers.free_ports(4)
    monkeypatch.setattr(servers, "free_ports", lambda _: (http, grpc, metrics.pop()))
    flags = ("--reuse-http-port=true", "--reuse-grpc-port=true")
    both = [start(small, *flags, "--id", name) for name in ("one", "two")]
    seen: dict[str, set] = {"http": set(), "grpc": set()}
    deadline = time.monotonic() + 20
    while any(len(names) < 2 for names in seen.values()) and time.monotonic() < deadline:
        with contextlib.closing(triton_http.InferenceServerClient(f"127.0.0.1:{http}")) as client:
            seen["http"].add(client.get_server_metadata()["name"])
        channel = [("grpc.use_local_subchannel_pool", 1)]
        with contextlib.closing(triton_grpc.InferenceServerClient(f"127.0.0.1:{grpc}", channel_args=channel)) as client:
            seen["grpc"].add(client.get_server_metadata().name)
    assert seen == {"http": {"one", "two"}, "grpc": {"one", "two"}}
    assert all(server.is_running() for server in both)


def test_a_body_may_be_as_large_as_the_flag_says(start, small):
    """And no larger, whether its length is announced or not."""
    server = start(small, "--http-max-input-size=1000")
    head = b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1],"data":[1]}]'
    for size, chunked, status in [(1000, False, 200), (1001, False, 400), (1000, True, 200), (1001, True, 400)]:
        body = head + b" " * (size - len(head) - 1) + b"}"
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=10)
        connection.request("POST", "/v2/models/fp32/infer", iter([body]) if chunked else body, encode_chunked=chunked)
        answer = connection.getresponse()
        text = answer.read().decode()
        assert answer.status == status and (status == 200 or "1000 bytes" in text), text
        connection.close()


def test_metrics_may_have_an_address_of_their_own(start, small):
    """Apart from that of HTTP. Of a flag that comes again, the last value counts."""
    server = start(small, "--metrics-address=127.0.0.2")
    with urllib.request.urlopen(f"http://127.0.0.2:{server.metrics_port}/metrics", timeout=10) as page:
        assert b"nv_inference_count" in page.read()
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10)


@pytest.mark.parametrize(
    "flag,told",
    [
        ("--sagemaker-safe-port-range=9-1", "expected <port>-<port>, got '9-1'"),
        ("--vertex-ai-thread-count=often", "expected <integer>, got 'often'"),
        ("--http-restricted-api=health", "expected <api>,<api>:<header>=<value>, got 'health'"),
        ("--grpc-restricted-protocol=all:a=b", "got 'all'"),
        ("--grpc-header-forward-pattern=(", "unclosed group"),
        ("--grpc-keepalive-time=soon", "invalid digit"),
        ("--grpc-infer-response-compression-level=best", "expected none, low, medium or high, got 'best'"),
        ("--grpc-use-ssl=maybe", "expected true, on, 1, false, off or 0, got 'maybe'"),
        ("--no-such-flag", "unexpected argument"),
    ],
)
def test_bad_values_are_refused_with_the_flag_that_has_them(binary, small, flag, told):
    """As bad flags always were: a message and exit code 2."""
    ended = subprocess.run([binary, f"--model-repository={small}", flag], capture_output=True, text=True, timeout=20)
    assert ended.returncode == 2
    assert flag.split("=")[0] in ended.stderr and told in ended.stderr


@pytest.mark.parametrize(
    "flags,told",
    [
        (("--grpc-use-ssl=1",), "--grpc-server-cert is missing"),
        (("--grpc-use-ssl=1", "--grpc-server-cert=/no/such", "--grpc-server-key=/no/such"), "cannot read '/no/such'"),
        (
            ("--allow-sagemaker", "--sagemaker-safe-port-range=1-2"),
            "cannot listen to HTTP requests at port 0, allowed port range is [1, 2]",
        ),
        (("--http-restricted-api=health:a=b", "--http-restricted-api=health:c=d"), "'health' is restricted twice"),
    ],
)
def test_flags_that_do_not_go_together_end_the_start(binary, small, flags, told):
    """Before a model is loaded."""
    ports = [f"--{each}=0" for each in ("http-port", "grpc-port", "metrics-port")]
    addresses = [f"--{each}-address=127.0.0.1" for each in ("http", "grpc", "metrics")]
    command = [binary, f"--model-repository={small}", *ports, *addresses, *flags]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert ended.returncode == 1 and told in ended.stderr, ended.stderr


def test_the_log_says_in_tritons_words_what_was_started(start, small):
    """By which scripts know that a server is there."""
    log = start(small).log.read_text()
    for service in ("GRPCInferenceService", "HTTPService", "Metrics Service"):
        assert f'"Started {service} at 127.0.0.1:' in log


def test_before_it_stops_the_server_says_that_it_is_not_ready(start, small):
    """And serves until the delay has passed."""
    server = start(small, f"--shutdown-delay-secs={DELAY_SECONDS}")
    started = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    while server._answers_ready():
        assert time.monotonic() < started + 1
    for way in ("grpc", "http", "grpc_stream"):
        result = triton.infer(way, server, "fp32", ARRAY)
        np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), ARRAY)
    server.process.wait(STOP_SECONDS_MAX)
    assert DELAY_SECONDS - 0.1 < time.monotonic() - started < DELAY_SECONDS + 3
    assert server.process.returncode == 0


def test_the_health_service_tells_of_the_end(start, small):
    """NOT_SERVING while the delay lasts, for the server and for the inference service; others are not known."""
    server = start(small, "--shutdown-delay-secs=60")
    with wire.Connection(server) as connection:

        def health(service: str) -> tuple[int, bytes]:
            name = service.encode()
            asked = b"\x0a" + bytes([len(name)]) + name if name else b""
            answer = connection.answer(connection.call("/grpc.health.v1.Health/Check", wire.message(asked)))
            return answer.grpc_status, answer.data[5:]

        serving, not_serving, not_found = (0, b"\x08\x01"), (0, b"\x08\x02"), (5, b"")
        names = ("", "inference.GRPCInferenceService", "no.such.Service")
        assert [health(name) for name in names] == [serving, serving, not_found]
        server.process.send_signal(signal.SIGTERM)
        while server._answers_ready():
            time.sleep(0.01)
        assert [health(name) for name in names] == [not_serving, not_serving, not_found]
        server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(STOP_SECONDS_MAX) == 0


def test_a_second_signal_ends_the_delay(start, small):
    """For those who do not want to wait."""
    server = start(small, "--shutdown-delay-secs=60")
    server.process.send_signal(signal.SIGTERM)
    while server._answers_ready():
        time.sleep(0.01)
    server.process.send_signal(signal.SIGINT)
    server.process.wait(STOP_SECONDS_MAX)
    assert server.process.returncode == 0


@pytest.mark.parametrize("way", ["http", "http_aio", "grpc", "grpc_aio"])
def test_forwarded_headers_are_parameters_that_a_model_sees(start, tmp_path, way):
    """Beside the request's own; names are in lower case."""
    source = python_server.ECHO + """
class TritonPythonModel:
    def execute(self, requests):
        return [output(request.parameters()) for request in requests]
"""
    python_server.write(tmp_path / "repository", "told", python_server.WAY, source)
    patterns = [f"--{kind}-header-forward-pattern=^my-" for kind in ("http", "grpc")]
    server = start(tmp_path / "repository", python_server.INTERPRETER, *patterns)
    headers = {"my-one" if "grpc" in way else "My-One": "1", "my-two": "zwei", "not-my": "3"}
    asked = {"input_name": "WAY", "datatype": "BYTES", "headers": headers, "parameters": {"own": 7}}
    answer = triton.infer(way, server, "told", np.array([b""], np.object_), **asked)
    assert json.loads(answer.as_numpy("OUTPUT")[0]) == {"my-one": "1", "my-two": "zwei", "own": 7}


def test_forwarded_headers_do_not_disturb_a_request(start, small):
    """Of either protocol; what the pattern lets through are parameters of the request."""
    server = start(small, "--http-header-forward-pattern=.*", "--grpc-header-forward-pattern=.*")
    for way in ("grpc", "http"):
        headers = {"my-header": "1", "priority": "x"}
        result = triton.infer(way, server, "fp32", ARRAY, headers=headers)
        np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), ARRAY)
