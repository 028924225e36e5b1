"""Packed gRPC messages, by grpcio and by hand."""

from __future__ import annotations

import contextlib
import gzip
import zlib

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from . import models, triton, wire

BOMB_BYTES = 256 << 20
MEMORY_BYTES = 32 << 20
ALGORITHMS = {"gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}
FLAG = "--grpc-infer-response-compression-level"
SMALL, LARGE = np.zeros(4, np.float32), np.zeros(500_000, np.float32)


def _request(array: np.ndarray, model: str = "fp32") -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name="INPUT0", datatype="FP32", shape=array.shape)
    request.raw_input_contents.append(array.tobytes())
    return request


@pytest.mark.parametrize("packing", ALGORITHMS)
@pytest.mark.parametrize("array", [SMALL, LARGE], ids=["small", "large"])
def test_a_packed_request_is_read(server, packing, array):
    """Both unary and in a stream."""
    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
        inputs = [triton.tensor(triton_grpc, "INPUT0", "FP32", array)]
        result = client.infer("fp32", inputs, compression_algorithm=packing)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), array)
    with grpc.insecure_channel(server.grpc_address, compression=ALGORITHMS[packing]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answers = list(stub.ModelStreamInfer(iter([_request(array), _request(SMALL)])))
    assert [each.error_message for each in answers] == ["", ""]
    sizes = [len(each.infer_response.raw_output_contents[0]) for each in answers]
    assert sizes == [array.nbytes, SMALL.nbytes]


@pytest.mark.parametrize("packing", ALGORITHMS)
def test_other_calls_may_be_packed_too(server, packing):
    """Those that carry no tensors."""
    with grpc.insecure_channel(server.grpc_address, compression=ALGORITHMS[packing]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ModelMetadata(pb.ModelMetadataRequest(name="fp32")).name == "fp32"


@pytest.mark.parametrize("packing", ["gzip", "deflate"])
def test_a_bomb_is_refused(start, tmp_path, packing):
    """Zeros that unpack to far more than the server's memory; it lives on, and takes no more than that."""
    repository = models.write(tmp_path / "repository", {"fp32": models.identity_models()["fp32"]})
    flags = ("--pinned-memory-pool-byte-size", "--memory-budget-byte-size")
    server = start(repository, *(f"{flag}={MEMORY_BYTES}" for flag in flags))
    before = server.memory_bytes()
    packed = _bomb(packing)
    for method in ("ModelInfer", "ModelStreamInfer"):
        with _connection(server) as connection:
            stream = connection.call(method, wire.message(packed, flag=1), more=(("grpc-encoding", packing),))
            answer = connection.answer(stream)
            assert answer.grpc_status == 14 and "budget" in answer.headers["grpc-message"], answer.headers
            live = connection.answer(connection.call("ServerLive", wire.message(b"")))
            assert live.grpc_status == 0
    assert server.memory_bytes() - before < 4 * MEMORY_BYTES


def _connection(server) -> wire.Connection:
    """One that knows the server's window, so that large messages may follow at once."""
    connection = wire.Connection(server)
    assert connection.answer(connection.call("ServerLive", wire.message(b""))).grpc_status == 0
    return connection


def _bomb(packing: str) -> bytes:
    packer = zlib.compressobj(1, wbits=31 if packing == "gzip" else 15)
    block = bytes(1 << 24)
    return b"".join(packer.compress(block) for _ in range(BOMB_BYTES >> 24)) + packer.flush()


DAMAGED = {
    "cut": (lambda packed: packed[:-4], "gzip", 3),
    "followed": (lambda packed: packed + b"x", "gzip", 3),
    "not packed": (lambda _: b"plain text", "gzip", 3),
    "another way": (lambda packed: packed, "deflate", 3),
    "empty": (lambda _: b"", "gzip", 3),
    "unknown way": (lambda packed: packed, "br", 12),
}


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_messages_have_a_status(server, name, method):
    """The connection goes on."""
    change, encoding, status = DAMAGED[name]
    body = change(gzip.compress(_request(SMALL).SerializeToString()))
    with wire.Connection(server) as connection:
        stream = connection.call(method, wire.message(body, flag=1), more=(("grpc-encoding", encoding),))
        answer = connection.answer(stream)
        assert answer.grpc_status == status, answer.headers
        if status == 12:
            assert answer.headers["grpc-accept-encoding"] == "identity,deflate,gzip"
        good = gzip.compress(_request(SMALL).SerializeToString())
        stream = connection.call("ModelInfer", wire.message(good, flag=1), more=(("grpc-encoding", "gzip"),))
        assert connection.answer(stream).grpc_status == 0


@pytest.mark.parametrize("level,encoding", [("low", "gzip"), ("medium", "deflate"), ("high", "deflate")])
def test_responses_are_packed_as_asked(start, tmp_path, level, encoding):
    """For those who accept it, and where packing makes them smaller."""
    repository = models.write(tmp_path / "repository", {"fp32": models.identity_models()["fp32"]})
    server = start(repository, f"{FLAG}={level}")
    noise = np.random.default_rng(0).integers(0, 1 << 32, 1000, np.uint32).view(np.float32)
    accepts = (("grpc-accept-encoding", "identity, deflate, gzip"),)
    with _connection(server) as connection:
        for method in ("ModelInfer", "ModelStreamInfer"):
            for array, packed in ((LARGE, 1), (SMALL, None), (noise, 0)):
                body = wire.message(_request(array).SerializeToString())
                answer = connection.answer(connection.call(method, body, more=accepts))
                assert answer.grpc_status == 0
                assert answer.headers["grpc-encoding"] == encoding
                if packed is not None:
                    assert answer.data[0] == packed
                assert len(answer.data) < 10_000
            body = wire.message(_request(LARGE).SerializeToString())
            answer = connection.answer(connection.call(method, body))
            assert "grpc-encoding" not in answer.headers and answer.data[0] == 0
    for way in ("grpc", "grpc_stream", "grpc_aio"):
        np.testing.assert_array_equal(triton.infer(way, server, "fp32", LARGE).as_numpy("OUTPUT0"), LARGE)
