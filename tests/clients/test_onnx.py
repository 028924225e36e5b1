"""Models of ONNX Runtime, against the same library called directly."""

from __future__ import annotations

import concurrent.futures

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as triton_grpc

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


def test_a_models_file_may_have_a_name_of_its_own(start, tmp_path):
    """That of another is not taken for it."""
    config = 'backend: "onnxruntime" default_model_filename: "own.onnx"'
    repository = models.write(tmp_path / "repository", {"named": models.Model(config, {1: onnx_file.relu()})})
    (repository / "named" / "1" / "own.onnx").write_bytes(onnx_file.mlp())
    x = random(2, 4)
    got = triton.infer("grpc", start(repository), "named", x, input_name="x").as_numpy("y")
    np.testing.assert_allclose(got, direct(onnx_file.mlp(), x), atol=TOLERANCE, rtol=TOLERANCE)


def _ragged(datatype: str) -> str:
    """A configuration with a batch input of each kind."""
    told = [
        f'batch_input {{ kind: {kind} target_name: "{name}" data_type: TYPE_{datatype} source_input: "x" }}\n'
        f'output {{ name: "{name}_told" data_type: TYPE_{datatype} dims: -1 }}'
        for name, (kind, _) in onnx_file.BATCH_INPUTS.items()
    ]
    return """
        backend: "onnxruntime"
        max_batch_size: 8
        input { name: "x" data_type: TYPE_FP32 dims: [ -1, -1 ] allow_ragged_batch: true }
        input { name: "row" data_type: TYPE_%s dims: 1 }
        output { name: "y" data_type: TYPE_FP32 dims: -1 }
        batch_output { target_name: "y" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "x" }
        dynamic_batching { preferred_batch_size: 4 max_queue_delay_microseconds: 20000000 }
        %s
    """ % (datatype, "\n".join(told))


@pytest.mark.parametrize("datatype", ["FP32", "INT32"])
def test_requests_of_different_shapes_share_a_batch(start, tmp_path, datatype):
    """Each gets its own part of the output; the model is told of all of them, in every way that there is."""
    element = {"FP32": onnx_file.FLOAT, "INT32": onnx_file.INT32}[datatype]
    written = {"ragged": models.Model(_ragged(datatype), {1: onnx_file.ragged(element)})}
    server = start(models.write(tmp_path / "repository", written))
    # Rows, and the shape of each; no two have as many elements.
    shapes = [(1, 2, 3), (2, 1, 4), (1, 5, 1)]

    def ask(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        row = np.zeros((shape[0], 1), models.TYPES[datatype][1])
        inputs = [triton.tensor(triton_grpc, "x", "FP32", random(*shape)), triton.tensor(triton_grpc, "row", datatype, row)]
        result = triton.grpc(server, model_name="ragged", inputs=inputs)
        return {name: result.as_numpy(name) for name in ["y", *(f"{each}_told" for each in onnx_file.BATCH_INPUTS)]}

    with concurrent.futures.ThreadPoolExecutor(len(shapes)) as pool:
        results = dict(zip(shapes, pool.map(ask, shapes)))
    assert triton.executions(server, "ragged") == (4, 1)
    by_size = {int(np.prod(shape)): shape for shape in shapes}
    sizes = [int(size) for size in results[shapes[0]]["count_told"][0]]
    # In which order they came is not known, but that the server tells all kinds of the same one.
    assert sorted(sizes) == sorted(by_size)
    order = [by_size[size] for size in sizes]
    ends = np.cumsum(sizes).tolist()
    expected = {
        "count": sizes,
        "ends": ends,
        "bounds": [0, *ends],
        "longest": [0] * max(sizes),
        "flat_shapes": [dim for rows, *dims in order for dim in dims * rows],
    }
    for shape, got in results.items():
        rows, *dims = shape
        np.testing.assert_array_equal(got["y"], np.abs(random(*shape)))
        assert got["shapes_told"].tolist() == [dims] * rows
        for name, values in expected.items():
            assert got[f"{name}_told"].tolist() == [values] * rows, name


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


ALLOWED = """
    platform: "onnxruntime_onnx"
    max_batch_size: 8
    input { name: "x" data_type: TYPE_FP32 dims: 4 }
    output { name: "y" data_type: TYPE_FP32 dims: 4 }
    parameters { key: "allowed_batch_sizes" value { string_value: "3,8" } }
"""


@pytest.mark.parametrize("inline,device", [("on", "none"), ("off", "none"), ("off", "host")])
def test_batches_are_filled_up_to_an_allowed_size(start, tmp_path, inline, device):
    """The model sees zeros behind the client's rows, the client sees its own rows, and they alone are counted; also in
    the lanes of a device."""
    config = ALLOWED + f'parameters {{ key: "inline_execution" value {{ string_value: "{inline}" }} }}'
    repository = models.write(tmp_path / "repository", {"rows": models.Model(config, {1: onnx_file.rows()})})
    server = start(repository, f"--device={device}")
    for rows, seen in [(1, 3), (2, 3), (3, 3), (4, 8), (8, 8)]:
        x = random(rows, 4)
        got = triton.infer("grpc", server, "rows", x, input_name="x").as_numpy("y")
        assert got.shape == (rows, 4)
        np.testing.assert_allclose(got - x, 4 * seen, rtol=1e-4)
    assert triton.executions(server, "rows") == (18, 5)
    (told,) = server.get_json("/v2/models/rows/stats")["model_stats"]
    sizes = {each["batch_size"]: each["compute_infer"]["count"] for each in told["batch_stats"]}
    assert sizes == {3: 3, 8: 2}


def test_requests_that_share_a_batch_share_what_fills_it(start, tmp_path):
    """Two that come together are one batch of the next size."""
    batching = "dynamic_batching { preferred_batch_size: 4 max_queue_delay_microseconds: 5000000 }"
    config = f'{ALLOWED} {batching} parameters {{ key: "inline_execution" value {{ string_value: "off" }} }}'
    server = start(models.write(tmp_path / "repository", {"rows": models.Model(config, {1: onnx_file.rows()})}))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        inputs = [random(2, 4), 2 * random(2, 4)]
        results = pool.map(lambda x: triton.infer("http", server, "rows", x, input_name="x").as_numpy("y"), inputs)
        for x, got in zip(inputs, results):
            np.testing.assert_allclose(got - x, 4 * 8, rtol=1e-4)
    assert triton.executions(server, "rows") == (4, 1)


def test_models_that_allowed_sizes_do_not_suit_are_not_served(start, tmp_path):
    """Each is told why."""
    variable = ALLOWED.replace("dims: 4", "dims: -1")
    wrong = ALLOWED.replace("3,8", "3,4")
    written = {
        "variable": models.Model(variable, {1: onnx_file.relu()}),
        "wrong": models.Model(wrong, {1: onnx_file.rows()}),
    }
    server = start(models.write(tmp_path / "repository", written), "--exit-on-error=false", "--strict-readiness=false")
    with triton_grpc.InferenceServerClient(server.grpc_address) as client:
        reasons = {each.name: each.reason for each in client.get_model_repository_index().models}
    assert "needs inputs of fixed shape, unlike 'x'" in reasons["variable"]
    assert "must end with 'max_batch_size', 8" in reasons["wrong"]
