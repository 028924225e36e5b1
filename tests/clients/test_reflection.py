"""Server reflection, as grpcurl asks for it."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

VERSIONS = ("v1", "v1alpha")


def _field(number: int, text: str) -> bytes:
    """A text field of a message."""
    return bytes([number << 3 | 2, len(text)]) + text.encode()


def _fields(message: bytes):
    """The fields of a message whose fields all have a length, or are a number."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        key = number()
        if key & 7 == 0:
            yield key >> 3, number()
        else:
            size = number()
            yield key >> 3, message[at : at + size]
            at += size


def _ask(server, version: str, *requests: bytes) -> list[dict[int, bytes]]:
    path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    with grpc.insecure_channel(server.grpc_address) as channel:
        answers = list(channel.stream_stream(path)(iter(requests), timeout=10))
    return [dict(_fields(answer)) for answer in answers]


@pytest.mark.parametrize("version", VERSIONS)
def test_services_are_listed(server, version):
    """All four."""
    answer = _ask(server, version, _field(7, ""))[0]
    names = {dict(_fields(service))[1].decode() for _, service in _fields(answer[6])}
    reflection = {f"grpc.reflection.{each}.ServerReflection" for each in VERSIONS}
    assert names == {"inference.GRPCInferenceService", "grpc.health.v1.Health"} | reflection


@pytest.mark.parametrize("version", VERSIONS)
def test_descriptors_are_whole(server, version):
    """They build without anything else, and have every call."""
    symbol = "inference.GRPCInferenceService"
    unknown, known = _ask(server, version, _field(4, "no.such.Symbol"), _field(4, symbol))
    assert dict(_fields(unknown[7]))[1] == grpc.StatusCode.NOT_FOUND.value[0]
    files = [descriptor_pb2.FileDescriptorProto.FromString(file) for _, file in _fields(known[4])]
    pool = descriptor_pool.DescriptorPool()
    for file in reversed(files):
        pool.Add(file)
    methods = pool.FindServiceByName(symbol).methods_by_name
    assert {"ModelInfer", "ModelStreamInfer", "RepositoryIndex"} <= set(methods)
    assert methods["ModelInfer"].input_type.full_name == "inference.ModelInferRequest"
