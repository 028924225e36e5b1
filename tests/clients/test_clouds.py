"""The endpoints that SageMaker and Vertex AI send requests to."""

from __future__ import annotations

import contextlib
import http.client
import json
import urllib.error
import urllib.request

import numpy as np
import pytest
import servers

from . import models, python_server

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


def exchange(port: int, path: str, mime: str, answers_alike: bool = True, **headers: str) -> None:
    """Tensors as bytes, in both directions: the content type says where they begin, of Vertex AI's answers a header,
    as with Triton."""
    described = {"name": "INPUT0", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}
    head = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()
    sent = {"content_type": f"{mime}{len(head)}", **headers}
    status, got, body = ask(port, path, head + ARRAY.tobytes(), **sent)
    assert status == 200, body
    if answers_alike:
        assert got["content-type"].startswith(mime) and got["inference-header-content-length"] is None
        length = int(got["content-type"].removeprefix(mime))
    else:
        assert got["content-type"] == "application/octet-stream"
        length = int(got["inference-header-content-length"])
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
    status, headers, body = ask(port, "/invocations")
    assert (status, headers["allow"], body) == (405, "POST", b'{"error":"Method Not Allowed"}')
    assert ask(port, "/v2/health/ready")[0] == 400


@pytest.mark.parametrize("kind", ["generate", "generate_stream"])
def test_sagemaker_generates(start, repository, monkeypatch, kind):
    """What /invocations does is the environment's to say."""
    monkeypatch.setenv("SAGEMAKER_TRITON_DEFAULT_MODEL_NAME", "two")
    monkeypatch.setenv("SAGEMAKER_TRITON_INFERENCE_TYPE", kind)
    (port,) = servers.free_ports(1)
    start(repository, "--allow-sagemaker", f"--sagemaker-port={port}")
    status, headers, body = ask(port, "/invocations", json.dumps({"INPUT0": ARRAY.tolist()}).encode())
    expected = {"generate": ("application/json", b""), "generate_stream": ("text/event-stream; charset=utf-8", b"data: ")}
    content_type, prefix = expected[kind]
    assert (status, headers["content-type"]) == (200, content_type)
    assert body.startswith(prefix)
    answer = json.loads(body.removeprefix(prefix))
    assert (answer["model_name"], answer["OUTPUT0"]) == ("two", ARRAY.tolist())
    status, _, body = ask(port, "/invocations", json.dumps(REQUEST).encode())
    assert status == 400, body


def call(port: int, method: str, path: str, body=None, **headers: str):
    """The status and the JSON of an answer, if it has one."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=data, headers=named, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            status, text = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read()
    return status, json.loads(text) if text else None


EXPLICIT = "--model-control-mode=explicit"


def test_sagemaker_with_several_models(start, repository, tmp_path):
    """Each comes as a folder: the model's own, or one that holds it. Names are SageMaker's."""
    (port,) = servers.free_ports(1)
    server = start(repository, EXPLICIT, "--allow-sagemaker", f"--sagemaker-port={port}")
    assert call(port, "GET", "/models") == (200, {"models": []})
    # The configuration of the first has the name of its folder, not that by which it is asked.
    own = models.write(tmp_path / "a1b2", {"model": models.Model('name: "model"\n' + models.identity())}) / "model"
    holding = models.write(tmp_path / "c3d4" / "model", {"inner": models.Model(models.identity())})
    assert call(port, "POST", "/models", {"model_name": "a1b2", "url": f"{own}"}) == (200, None)
    target = {"X_Amzn_SageMaker_Target_Model": "my-model.tar.gz"}
    assert call(port, "POST", "/models", {"model_name": "c3d4", "url": f"{holding}/"}, **target) == (200, None)
    listed = [{"modelName": "a1b2", "modelUrl": f"{own.parent}"}, {"modelName": "c3d4", "modelUrl": f"{holding}"}]
    assert call(port, "GET", "/models") == (200, {"models": listed})
    assert call(port, "GET", "/models/c3d4") == (200, listed[1])
    for name, model in [("a1b2", "a1b2"), ("c3d4", "my-model.tar.gz")]:
        status, answer = call(port, "POST", f"/models/{name}/invoke", REQUEST, **target)
        assert (status, answer["model_name"]) == (200, model)
        assert answer["outputs"][0]["data"] == ARRAY.tolist()
    exchange(port, "/models/a1b2/invoke", "application/vnd.sagemaker-triton.binary+json;json-header-size=")
    assert {each["name"] for each in call(server.http_port, "POST", "/v2/repository/index", {"ready": True})[1]} == {"a1b2", "my-model.tar.gz"}

    assert call(port, "DELETE", "/models/a1b2") == (200, None)
    for method, path in [("GET", "/models/a1b2"), ("DELETE", "/models/a1b2"), ("POST", "/models/a1b2/invoke")]:
        assert call(port, method, path, REQUEST if method == "POST" else None)[0] == 404
    assert call(port, "POST", "/models", {"model_name": "a1b2", "url": f"{own}"})[0] == 200
    assert call(port, "PUT", "/models", {})[0] == 405 and call(port, "GET", "/models/a/b/c")[0] == 400


def test_what_sagemaker_cannot_load_is_told(start, repository, tmp_path):
    """By the statuses that SageMaker knows; nothing of it stays."""
    (port,) = servers.free_ports(1)
    server = start(repository, EXPLICIT, "--allow-sagemaker", f"--sagemaker-port={port}")
    good = models.write(tmp_path / "good", {"model": models.Model(models.identity())})
    models.write(tmp_path / "bad", {"model": models.Model("no_such_field: 1")})
    models.write(tmp_path / "two", {name: models.Model(models.identity()) for name in ("x", "y")})
    (tmp_path / "link").symlink_to("/proc/self")
    (tmp_path / "empty").mkdir()
    for url, words in [
        (f"{tmp_path}/bad", "no_such_field"),
        (f"{tmp_path}/missing", "No such file or directory"),
        (f"{tmp_path}/empty", "expected the folder of one model"),
        (f"{tmp_path}/two", "expected the folder of one model"),
        ("/proc/self", "no models lie in folders of the system"),
        (f"{tmp_path}/link", "no models lie in folders of the system"),
        (f"{tmp_path}/good/../good", "expected an absolute path"),
        ("good", "expected an absolute path"),
        ("", "the member 'url' is missing"),
    ]:
        status, answer = call(port, "POST", "/models", {"model_name": "m", "url": url})
        assert status == 400 and words in answer["error"], (url, answer)
    assert call(port, "POST", "/models", {"model_name": "../m", "url": f"{good}"})[0] == 400
    assert call(port, "POST", "/models", {"model_name": "m", "url": f"{good}"})[0] == 200
    for name in ("m", "n"):
        status, answer = call(port, "POST", "/models", {"model_name": name, "url": f"{good}"})
        assert status == 409, answer
    assert [each["modelName"] for each in call(port, "GET", "/models")[1]["models"]] == ["m"]
    assert call(port, "POST", "/models/m/invoke", {"inputs": []})[0] == 400
    assert server.is_running()


def test_a_load_that_sagemaker_does_not_wait_for_is_no_model(start, repository, tmp_path):
    """One that fails after the call was given up can be loaded again; it was told to be loaded already."""
    (port,) = servers.free_ports(1)
    start(repository, EXPLICIT, python_server.INTERPRETER, "--allow-sagemaker", f"--sagemaker-port={port}")
    slow = "import time\nclass TritonPythonModel:\n    def initialize(self, args):\n        time.sleep(2)\n        raise OSError('late')\n"
    python_server.write(tmp_path / "slow", "model", models.identity().replace("identity", "python"), slow)
    load = {"model_name": "m", "url": f"{tmp_path}/slow"}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=1)) as impatient:
        impatient.request("POST", "/models", json.dumps(load))
        with pytest.raises(TimeoutError):
            impatient.getresponse()
    assert call(port, "GET", "/models/m")[0] == 200
    python_server.wait_until(lambda: call(port, "GET", "/models/m")[0] == 404)
    status, answer = call(port, "POST", "/models", load)
    assert status == 400 and "late" in answer["error"]


@pytest.mark.parametrize("flags", [("--http-restricted-api=model-repository:key=value",), ()])
def test_sagemakers_models_may_be_closed(start, repository, tmp_path, flags):
    """To those without a header, and to all unless clients control what is loaded."""
    (port,) = servers.free_ports(1)
    control = [EXPLICIT] if flags else []
    start(repository, *control, "--allow-sagemaker", f"--sagemaker-port={port}", *flags)
    folder = models.write(tmp_path / "good", {"model": models.Model(models.identity())})
    load = {"model_name": "m", "url": f"{folder}"}
    status, answer = call(port, "POST", "/models", load)
    if not flags:
        assert status == 400 and "is not allowed if polling is enabled" in answer["error"]
        return
    assert status == 403 and "expecting header 'key'" in answer["error"]
    assert call(port, "GET", "/models")[0] == 403
    assert call(port, "POST", "/models", load, key="value")[0] == 200
    assert call(port, "POST", "/models/m/invoke", REQUEST)[0] == 200


def test_sagemaker_loads_an_ensemble_with_its_models(start, repository, tmp_path):
    """The ensemble alone has SageMaker's name, and its models go with it."""
    step = '{ model_name: "inner" model_version: -1 input_map { key: "INPUT0" value: "INPUT0" } output_map { key: "OUTPUT0" value: "OUTPUT0" } }'
    ensemble = models.identity(f'ensemble_scheduling {{ step [ {step} ] }}').replace('backend: "identity"', 'platform: "ensemble"')
    folder = models.write(tmp_path / "e5f6", {"whole": models.Model(ensemble), "inner": models.Model(models.identity())})
    (port,) = servers.free_ports(1)
    server = start(repository, EXPLICIT, "--allow-sagemaker", f"--sagemaker-port={port}")
    assert call(port, "POST", "/models", {"model_name": "e5f6", "url": f"{folder}"}) == (200, None)
    status, answer = call(port, "POST", "/models/e5f6/invoke", REQUEST)
    assert (status, answer["model_name"], answer["outputs"][0]["data"]) == (200, "e5f6", ARRAY.tolist())
    assert call(port, "DELETE", "/models/e5f6") == (200, None)
    assert call(server.http_port, "POST", "/v2/repository/index", {"ready": True})[1] == []


@pytest.mark.parametrize("by", ["flags", "environment"])
def test_vertex_ai(start, repository, monkeypatch, by):
    """Health, inference of the model that a flag names, and calls by redirection."""
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/v1/endpoints/5:predict")
    monkeypatch.setenv("AIP_HEALTH_ROUTE", "/v1/endpoints/5")
    (port,) = servers.free_ports(1)
    flags = [f"--vertex-ai-port={port}", "--allow-vertex-ai=true"]
    if by == "environment":
        flags = []
        monkeypatch.setenv("AIP_MODE", "PREDICTION")
        monkeypatch.setenv("AIP_HTTP_PORT", str(port))
    start(repository, "--vertex-ai-default-model=one", *flags)
    path = "/v1/endpoints/5:predict"
    assert ask(port, "/v1/endpoints/5")[0] == 200
    body = json.dumps(REQUEST).encode()
    assert json.loads(ask(port, path, body)[2])["model_name"] == "one"
    mime = "application/vnd.vertex-ai-triton.binary+json;json-header-size="
    exchange(port, path, mime, answers_alike=False)
    header = "x_vertex_ai_triton_redirect"
    exchange(port, path, mime, answers_alike=False, **{header: "v2/models/two/infer"})
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
