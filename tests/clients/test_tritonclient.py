"""Every way of tritonclient: datatypes, request options, calls about models, and failures."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from . import models, triton

every_way = pytest.mark.parametrize("way", triton.WAYS)
MEGABYTE_ELEMENTS = 250_000


@pytest.fixture(params=["http", "grpc"])
def client(request, server):
    """A blocking client of either protocol."""
    made = {
        "http": lambda: triton_http.InferenceServerClient(server.http_address),
        "grpc": lambda: triton_grpc.InferenceServerClient(server.grpc_address),
    }[request.param]()
    with contextlib.closing(made):
        yield made


def _as_dict(client, answer):
    if isinstance(client, triton_http.InferenceServerClient):
        return answer
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(answer, preserving_proto_field_name=True)


@every_way
@pytest.mark.parametrize("datatype", models.TYPES)
@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
def test_a_tensor_of_every_type_comes_back(server, way, datatype, batched):
    """The identity of a tensor is the tensor, bit by bit."""
    array = triton.values(datatype, (3, 5) if batched else (7,))
    result = triton.infer(way, server, datatype.lower() + "_batched" * batched, array, datatype)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), array)


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True])
@pytest.mark.parametrize("datatype", [t for t in models.TYPES if t not in ("FP16", "BF16")])
def test_json_and_binary_tensors_are_the_same(server, datatype, binary_in, binary_out):
    """Over HTTP each side of a tensor may be JSON or bytes."""
    array = triton.values(datatype, (4,))
    if datatype == "BYTES":
        array = np.array([b"", b"plain", "\u00e9\n\"".encode(), b"x" * 300], dtype=np.object_)
    given = triton.tensor(triton_http, "INPUT0", datatype, array, binary_data=binary_in)
    wanted = triton_http.InferRequestedOutput("OUTPUT0", binary_data=binary_out)
    result = triton.http(server, model_name=datatype.lower(), inputs=[given], outputs=[wanted])
    got = result.as_numpy("OUTPUT0")
    if datatype == "BYTES" and not binary_out:
        got = np.array([each.encode() if isinstance(each, str) else each for each in got], dtype=np.object_)
    np.testing.assert_array_equal(got, array)


@every_way
def test_an_id_comes_back_and_only_requested_outputs_come(server, way):
    """Request id, choice of outputs, and parameters that the model does not know."""
    module, send = triton.WAYS[way]
    inputs = [
        triton.tensor(module, "INPUT0", "FP32", triton.values("FP32", (2, 3))),
        triton.tensor(module, "INPUT1", "INT32", triton.values("INT32", (2, 2))),
    ]
    outputs = [module.InferRequestedOutput("OUTPUT1")]
    result = send(
        server,
        model_name="two",
        inputs=inputs,
        outputs=outputs,
        request_id="request 7",
        parameters={"note": "hello", "count": 3, "flag": True},
    )
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), triton.values("INT32", (2, 2)))
    assert result.as_numpy("OUTPUT0") is None
    response = result.get_response()
    response = response if isinstance(response, dict) else {"id": response.id, "model_name": response.model_name}
    assert (response["id"], response["model_name"]) == ("request 7", "two")


@every_way
def test_an_output_is_asked_for_once(server, way):
    """As Triton 2.73 has it; the release that the differential tests recorded takes it twice."""
    outputs = [triton.WAYS[way][0].InferRequestedOutput("OUTPUT0") for _ in range(2)]
    with pytest.raises(InferenceServerException, match="output 'OUTPUT0' already exists in request"):
        triton.infer(way, server, "fp32", triton.values("FP32", (4,)), outputs=outputs)


@every_way
@pytest.mark.parametrize("megabytes", [1, 20])
def test_large_tensors_come_back(server, way, megabytes):
    """More than any window or buffer holds."""
    array = np.arange(megabytes * MEGABYTE_ELEMENTS, dtype=np.float32)
    result = triton.infer(way, server, "fp32", array)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), array)


@pytest.mark.parametrize("packing", ["gzip", "deflate"])
def test_http_bodies_can_be_packed(server, packing):
    """Both directions, by the client's own compression."""
    array = np.zeros(10_000, dtype=np.float32)
    result = triton.infer(
        "http", server, "fp32", array,
        request_compression_algorithm=packing, response_compression_algorithm=packing,
    )  # fmt: skip
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), array)


def test_the_server_tells_about_itself_and_its_models(server, client):
    """Health, metadata, configuration and statistics."""
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("fp32") and client.is_model_ready("fp32", "1")
    assert not client.is_model_ready("no_such_model") and not client.is_model_ready("fp32", "9")
    about = _as_dict(client, client.get_server_metadata())
    assert about["name"] and about["version"] and "statistics" in about["extensions"]
    about = _as_dict(client, client.get_model_metadata("bytes_batched"))
    assert about["inputs"][0]["datatype"] == "BYTES" and about["versions"] == ["1"]
    assert [int(dim) for dim in about["inputs"][0]["shape"]] == [-1, -1]
    config = _as_dict(client, client.get_model_config("fp32_batched"))
    config = config.get("config", config)
    assert config["max_batch_size"] == 8 and config["input"][0]["data_type"] == "TYPE_FP32"


def test_statistics_count_requests(server, client):
    """Each request of a batch counts, and so does each row of it."""

    def counts():
        stats = _as_dict(client, client.get_inference_statistics("two"))["model_stats"][0]
        done = stats.get("inference_stats", {}).get("success", {}).get("count", 0)
        return np.array([int(done), int(stats.get("inference_count", 0))])

    before = counts()
    for _ in range(3):
        inputs = [
            triton.tensor(triton_http, "INPUT0", "FP32", triton.values("FP32", (2, 3))),
            triton.tensor(triton_http, "INPUT1", "INT32", triton.values("INT32", (2, 2))),
        ]
        triton.http(server, model_name="two", inputs=inputs)
    assert (counts() - before).tolist() == [3, 6]


FAILURES = {
    "unknown model": ("nosuch", (4,), "FP32", {}, "404", "NOT_FOUND"),
    "unknown version": ("fp32", (4,), "FP32", {"model_version": "9"}, "404", "NOT_FOUND"),
    "wrong datatype": ("fp32", (4,), "INT32", {}, "400", "INVALID_ARGUMENT"),
    "wrong rank": ("fp32", (2, 2), "FP32", {}, "400", "INVALID_ARGUMENT"),
    "batch too large": ("fp32_batched", (9, 2), "FP32", {}, "400", "INVALID_ARGUMENT"),
    "wrong input name": ("fp32", (4,), "FP32", {"input_name": "OTHER"}, "400", "INVALID_ARGUMENT"),
}


@every_way
@pytest.mark.parametrize("failure", FAILURES)
def test_failures_are_exceptions_with_the_right_status(server, way, failure):
    """And the connection's next request goes through."""
    model, shape, datatype, request, http_status, grpc_status = FAILURES[failure]
    with pytest.raises(InferenceServerException) as raised:
        triton.infer(way, server, model, triton.values(datatype, shape), datatype, **request)
    expected = {"http": http_status, "grpc": f"StatusCode.{grpc_status}"}.get(way.split("_")[0])
    # A stream goes on after a failure, so that there the message is all.
    if way != "grpc_stream":
        assert raised.value.status() == expected
    assert raised.value.message()
