"""Models of ONNX Runtime, against the same library called directly."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from . import models, onnx_file, triton

pytestmark = pytest.mark.skipif(
    not models.has_onnxruntime(), reason="the ONNX Runtime back end is not installed: NEREID_BACKEND_DIR names it"
)
every_way = pytest.mark.parametrize("way", triton.WAYS)
TOLERANCE = 1e-5


def direct(model: bytes, x: np.ndarray) -> np.ndarray:
    """What ONNX Runtime itself answers."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def random(*shape: int) -> np.ndarray:
    """Numbers around zero."""
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


@every_way
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_model_answers_as_it_does_directly(server, way, rows):
    """Served without a config.pbtxt."""
    x = random(rows, 4)
    got = triton.infer(way, server, "mlp", x, input_name="x").as_numpy("y")
    np.testing.assert_allclose(got, direct(onnx_file.mlp(), x), atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (4, 300)])
def test_shapes_may_vary(server, shape):
    """From request to request."""
    got = triton.infer("grpc", server, "relu", random(*shape), input_name="x").as_numpy("y")
    np.testing.assert_array_equal(got, np.maximum(random(*shape), 0))


@every_way
def test_strings_pass_through(server, way):
    """Empty ones and long ones."""
    config = server.get_json("/v2/models/onnx_strings/config")
    x = np.array([b"", "grün".encode(), b"x" * 5000], dtype=np.object_)
    x = x.reshape(3, 1) if config["max_batch_size"] and config["input"][0]["dims"] != [] else x
    x = x if len(config["input"][0]["dims"]) + bool(config["max_batch_size"]) == x.ndim else x.reshape(3)
    got = triton.infer(way, server, "onnx_strings", x, "BYTES", input_name="x").as_numpy("y")
    np.testing.assert_array_equal(got, x)


def test_the_configuration_is_completed(server):
    """Names, types and shapes come from the model."""
    config = server.get_json("/v2/models/mlp/config")
    assert config["backend"] == "onnxruntime" and config["max_batch_size"] > 0
    assert (config["input"][0]["name"], config["input"][0]["data_type"]) == ("x", "TYPE_FP32")
    assert [int(dim) for dim in config["input"][0]["dims"]] == [4]
    assert [int(dim) for dim in config["output"][0]["dims"]] == [3]


def test_versions_are_models_of_their_own(server):
    """Each has its weights; the latest answers when none is named."""
    x = random(2, 4)
    for version, seed in (("1", 1), ("2", 2), ("", 2)):
        result = triton.infer("grpc", server, "mlp_versions", x, input_name="x", model_version=version)
        np.testing.assert_allclose(
            result.as_numpy("y"), direct(onnx_file.mlp(seed), x), atol=TOLERANCE, rtol=TOLERANCE
        )


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_classes_are_the_best_scores_with_labels(server, way):
    """Two of three, best first."""
    module = triton.WAYS[way][0]
    x = random(1, 4)
    scores = direct(onnx_file.mlp(), x)[0]
    outputs = [module.InferRequestedOutput("y", class_count=2)]
    result = triton.infer(way, server, "mlp_labels", x, input_name="x", outputs=outputs)
    labels = ["ant", "bee", "cat"]
    best = np.argsort(-scores)[:2]
    got = [each.decode().split(":") for each in result.as_numpy("y").flatten()]
    assert [(int(index), label) for _, index, label in got] == [(index, labels[index]) for index in best]
    np.testing.assert_allclose([float(score) for score, *_ in got], scores[best], atol=1e-4)


def test_version_policies(server):
    """Without a framework: named versions, and the latest alone."""

    def versions(model):
        return server.get_json(f"/v2/models/{model}")["versions"]

    assert versions("versions") == ["1", "3"]
    assert versions("latest") == ["2"]
