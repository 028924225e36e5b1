"""The endpoints that SageMaker and Vertex AI send requests to."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import numpy as np
import pytest
import servers

from . import models

ARRAY = np.array([1.0, 2.5], dtype=np.float32)
REQUEST = {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [2], "data": ARRAY.tolist()}]}


@pytest.fixture
def repository(tmp_path):
    """Two models."""
    found = {name: models.Model(models.identity()) for name in ("one", "two")}
    return models.write(tmp_path / "repository", found)


def ask(port: int, path: str, body: bytes | None = None, **headers: str):
    """The status, the headers and the body of an answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=body, headers=named)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def exchange(port: int, path: str, mime: str, **headers: str) -> None:
    """Tensors as bytes, in both directions: the content type says where they begin."""
    described = {"name": "INPUT0", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}
    head = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()
    sent = {"content_type": f"{mime}{len(head)}", **headers}
    status, got, body = ask(port, path, head + ARRAY.tobytes(), **sent)
    assert status == 200 and got["content-type"].startswith(mime), body
    assert got["inference-header-content-length"] is None
    length = int(got["content-type"].removeprefix(mime))
    assert json.loads(body[:length])["outputs"][0]["name"] == "OUTPUT0"
    np.testing.assert_array_equal(np.frombuffer(body[length:], np.float32), ARRAY)
    status, _, body = ask(port, path, head, **{**sent, "content_type": f"{mime}{len(head) + 1}"})
    assert status == 400 and b"inference header size should be in range" in body


def test_sagemaker(start, repository, monkeypatch):
    """Health and inference of the model that the environment names."""
    monkeypatch.setenv("SAGEMAKER_TRITON_DEFAULT_MODEL_NAME", "two")
    (port,) = servers.free_ports(1)
    start(repository, "--allow-sagemaker=true", f"--sagemaker-port={port}")
    assert ask(port, "/ping")[0] == 200
    status, headers, body = ask(port, "/invocations", json.dumps(REQUEST).encode())
    answer = json.loads(body)
    assert (status, answer["model_name"], answer["outputs"][0]["data"]) == (200, "two", ARRAY.tolist())
    assert headers["content-type"] == "application/json"
    exchange(port, "/invocations", "application/vnd.sagemaker-triton.binary+json;json-header-size=")
    assert ask(port, "/invocations")[0] == 405
    assert ask(port, "/v2/health/ready")[0] == 400


def test_vertex_ai(start, repository, monkeypatch):
    """Health, inference of the model that a flag names, and calls by redirection."""
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/v1/endpoints/5:predict")
    monkeypatch.setenv("AIP_HEALTH_ROUTE", "/v1/endpoints/5")
    (port,) = servers.free_ports(1)
    start(repository, "--allow-vertex-ai=true", f"--vertex-ai-port={port}", "--vertex-ai-default-model=one")
    path = "/v1/endpoints/5:predict"
    assert ask(port, "/v1/endpoints/5")[0] == 200
    body = json.dumps(REQUEST).encode()
    assert json.loads(ask(port, path, body)[2])["model_name"] == "one"
    mime = "application/vnd.vertex-ai-triton.binary+json;json-header-size="
    exchange(port, path, mime)
    header = "x_vertex_ai_triton_redirect"
    exchange(port, path, mime, **{header: "v2/models/two/infer"})
    for call, expected in [
        ("v2", b'"name":"triton"'),
        ("v2/models/two/config", b'"name":"two"'),
        ("v2/models/stats", b'"model_stats"'),
        ("metrics", b"nv_inference_request_success"),
    ]:
        status, _, body = ask(port, path, b"", **{header: call})
        assert status == 200 and expected in body, call
    assert ask(port, path, b"", **{header: "v2/no/such"})[0] == 400
    assert ask(port, "/v2", b"")[0] == 400


def test_what_the_cloud_does_not_say_is_named(start, repository, monkeypatch):
    """A path that is missing ends the start; a model that is not clear is the answer's."""
    monkeypatch.delenv("AIP_PREDICT_ROUTE", raising=False)
    server = start(repository, "--allow-vertex-ai=true", wait=lambda server: server.process.wait(20))
    assert server.process.returncode != 0
    assert "AIP_PREDICT_ROUTE is not defined for Vertex AI endpoint" in server.log.read_text()
    (port,) = servers.free_ports(1)
    start(repository, "--allow-sagemaker", f"--sagemaker-port={port}")
    status, _, body = ask(port, "/invocations", json.dumps(REQUEST).encode())
    assert status == 400 and b"only a single model" in body
