"""tritonserver's flags, and what becomes of those that have no effect yet."""

from __future__ import annotations

import signal
import subprocess
import time

import numpy as np
import pytest

from . import models, triton

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
        "--allow-gpu-metrics=false", "--grpc-infer-allocation-pool-size=8", "--id", "me",
        "--grpc-http2-max-ping-strikes=2", "--min-supported-compute-capability=7.5", "--enable-peer-access=0",
        "--model-load-gpu-limit=0:0.9", "--device=none",
    )  # fmt: skip
    server = start(small, *flags)
    lines = [line for line in server.log.read_text().splitlines() if "accepted, without effect: " in line]
    named = [line.partition("without effect: ")[2].split(":")[0] for line in lines]
    given = {flag.split("=")[0] for flag in flags if flag.startswith("--")} - {"--device"}
    assert sorted(named) == sorted(given)
    assert all(line.startswith("W") for line in lines)


@pytest.mark.parametrize(
    "flag,told",
    [
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


def test_a_second_signal_ends_the_delay(start, small):
    """For those who do not want to wait."""
    server = start(small, "--shutdown-delay-secs=60")
    server.process.send_signal(signal.SIGTERM)
    while server._answers_ready():
        time.sleep(0.01)
    server.process.send_signal(signal.SIGINT)
    server.process.wait(STOP_SECONDS_MAX)
    assert server.process.returncode == 0


def test_forwarded_headers_do_not_disturb_a_request(start, small):
    """Of either protocol; what the pattern lets through are parameters of the request."""
    server = start(small, "--http-header-forward-pattern=.*", "--grpc-header-forward-pattern=.*")
    for way in ("grpc", "http"):
        headers = {"my-header": "1", "priority": "x"}
        result = triton.infer(way, server, "fp32", ARRAY, headers=headers)
        np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), ARRAY)
