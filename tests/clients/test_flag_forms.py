"""Flags by their other names and older forms, and what they switch off."""

from __future__ import annotations

import contextlib
import re
import socket

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from . import models, triton
from .python_server import wait_until

ARRAY = np.ones(4, dtype=np.float32)
needs_onnx = pytest.mark.skipif(not models.has_onnxruntime(), reason="ONNX Runtime is not installed")


@pytest.fixture
def small(tmp_path):
    """A repository of one model."""
    return models.write(tmp_path / "repository", {"fp32": models.identity_models()["fp32"]})


def _is_open(port: int) -> bool:
    with contextlib.suppress(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        return True
    return False


@pytest.mark.parametrize("service", ["http", "grpc", "metrics"])
def test_a_service_can_be_left_out(start, small, service):
    """The others are there."""
    other = "http" if service == "grpc" else "grpc"

    def wait_for_the_other(server) -> None:
        wait_until(lambda: _is_open(getattr(server, f"{other}_port")))

    server = start(small, f"--allow-{service}=false", wait=wait_for_the_other)
    wait_until(lambda: _serves(other, server))
    ports = {name: getattr(server, f"{name}_port") for name in ("http", "grpc", "metrics")}
    assert {name for name, port in ports.items() if not _is_open(port)} == {service}


def _serves(way: str, server) -> bool:
    try:
        return triton.infer(way, server, "fp32", ARRAY).as_numpy("OUTPUT0").tolist() == ARRAY.tolist()
    except Exception:
        return False


def test_repositories_have_another_name(start, small, tmp_path):
    """Of older releases; both may be given."""
    other = models.write(tmp_path / "other", {"second": models.Model(models.identity())})
    server = start(small, f"--model-store={other}")
    for model in ("fp32", "second"):
        triton.infer("grpc", server, model, ARRAY)


@needs_onnx
@pytest.mark.parametrize("flag", ["--disable-auto-complete-config", "--strict-model-config=true"])
def test_configurations_may_have_to_be_whole(start, small, flag):
    """The new form and the old: a model without one is not served, with one it is."""
    models.write(small, {"mlp": models.onnx_models()["mlp"]})
    lenient = ("--exit-on-error=false", "--strict-readiness=false")
    for flags, served in (((), True), ((flag,), False)):
        server = start(small, *lenient, *flags)
        with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
            assert [client.is_model_ready(model) for model in ("fp32", "mlp")] == [True, served]


def test_traces_are_set_by_older_flags_too(start, small, tmp_path):
    """Each is a setting of today's."""
    flags = {"file": tmp_path / "trace", "level": "TIMESTAMPS", "rate": 3, "count": 5, "log-frequency": 7}
    server = start(small, *(f"--trace-{name}={value}" for name, value in flags.items()))
    told = server.get_json("/v2/trace/setting")
    expected = {"trace_file": str(flags["file"]), "trace_level": ["TIMESTAMPS"], "trace_rate": "3", "trace_count": "5", "log_frequency": "7"}
    assert told.items() >= expected.items()


def test_the_log_begins_as_flags_say(start, small):
    """Which lines there are, and what is in front of them."""
    flags = ("--log-info=false", "--log-warning=false", "--log-error=false", "--log-verbose=1", "--log-format=ISO8601")
    # Warned of, if warnings were wanted.
    server = start(small, *flags, "--grpc-infer-allocation-pool-size=8")
    told = server.get_json("/v2/logging")
    expected = {"log_info": False, "log_warning": False, "log_error": False, "log_verbose_level": 1, "log_format": "ISO8601"}
    assert told.items() >= expected.items()
    levels = re.findall(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ([IWEV]) ", server.log.read_text(), re.MULTILINE)
    assert set(levels) <= {"V"}
    again = start(small, "--grpc-infer-allocation-pool-size=8")
    assert re.findall(r"^([IWEV])\d{4} ", again.log.read_text(), re.MULTILINE).count("W") == 1
