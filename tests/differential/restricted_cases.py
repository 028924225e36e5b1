"""Calls of a server that answers most of them only to those who send a header."""

from __future__ import annotations

import json
import struct

from google.protobuf import json_format
from tritonclient.grpc import service_pb2 as pb

from .cases import GrpcCase, HttpCase, StreamCase

SETUP = "restricted"
# HTTP's health stays open: by it the tests see that a server has started.
FLAGS = (
    "--http-restricted-api=metadata,model-config,model-repository,shared-memory:admin-key=let me",
    "--http-restricted-api=inference,trace:Infer-Key=1=2",
    "--http-restricted-api=statistics,logging:other=yes",
    "--grpc-restricted-protocol=health,metadata,model-config,model-repository,shared-memory:admin-key=let me",
    "--grpc-restricted-protocol=inference:infer-key=1=2",
)
HTTP_KEYS = {"admin": ("admin-key", "let me"), "infer": ("Infer-Key", "1=2")}
GRPC_KEYS = {
    "admin": ("triton-grpc-protocol-admin-key", "let me"),
    "infer": ("triton-grpc-protocol-infer-key", "1=2"),
}
INPUT = {"name": "INPUT0", "datatype": "FP32", "shape": [2]}
FLOATS = struct.pack("<2f", 1.5, -2.25)


def cases() -> list:
    """Closed, opened by the right header, and closed to a wrong one."""
    return [*_http(), *_grpc()]


def _http() -> list[HttpCase]:
    body = json.dumps({"inputs": [{**INPUT, "data": [1.5, -2.25]}]}).encode()
    return [
        HttpCase(f"restricted/http/{name}", path, method, sent, headers, SETUP)
        for name, method, path, sent, headers in (
            ("live", "GET", "/v2/health/live", b"", ()),
            ("model_ready", "GET", "/v2/models/identity/ready", b"", ()),
            ("metadata", "GET", "/v2", b"", ()),
            ("metadata_wrong_method", "POST", "/v2", b"", ()),
            ("metadata_wrong_value", "GET", "/v2", b"", (("admin-key", "Let Me"),)),
            ("metadata_wrong_key", "GET", "/v2", b"", (HTTP_KEYS["infer"],)),
            ("model_metadata", "GET", "/v2/models/identity", b"", ()),
            ("model_metadata_of_version", "GET", "/v2/models/identity/versions/1", b"", ()),
            ("model_metadata_opened", "GET", "/v2/models/identity", b"", (("ADMIN-KEY", "let me"),)),
            ("model_metadata_unknown", "GET", "/v2/models/nothing", b"", ()),
            ("config", "GET", "/v2/models/identity/config", b"", ()),
            ("stats", "GET", "/v2/models/identity/stats", b"", ()),
            ("all_stats", "GET", "/v2/models/stats", b"", ()),
            ("index", "POST", "/v2/repository/index", b"", ()),
            ("load", "POST", "/v2/repository/models/identity/load", b"", ()),
            ("system_shm", "GET", "/v2/systemsharedmemory/status", b"", ()),
            ("cuda_shm", "GET", "/v2/cudasharedmemory/status", b"", ()),
            ("trace", "GET", "/v2/trace/setting", b"", ()),
            ("model_trace", "GET", "/v2/models/identity/trace/setting", b"", ()),
            ("logging", "GET", "/v2/logging", b"", ()),
            ("infer", "POST", "/v2/models/identity/infer", body, ()),
            ("infer_opened", "POST", "/v2/models/identity/infer", body, (HTTP_KEYS["infer"],)),
            ("infer_unknown", "POST", "/v2/models/nothing/infer", body, ()),
            ("infer_wrong_method", "GET", "/v2/models/identity/infer", b"", ()),
            ("generate", "POST", "/v2/models/identity/generate", b"{}", ()),
        )
    ]


def _grpc() -> list:
    infer = json_format.ParseDict({"model_name": "identity", "inputs": [INPUT]}, pb.ModelInferRequest())
    infer.raw_input_contents.append(FLOATS)
    health = "/grpc.health.v1.Health/"
    found: list = [
        GrpcCase(f"restricted/grpc/{name}", method, message, SETUP, metadata)
        for name, method, message, metadata in (
            ("live", "ServerLive", pb.ServerLiveRequest(), ()),
            ("live_opened", "ServerLive", pb.ServerLiveRequest(), (GRPC_KEYS["admin"],)),
            ("live_without_prefix", "ServerLive", pb.ServerLiveRequest(), (("admin-key", "let me"),)),
            ("live_wrong_value", "ServerLive", pb.ServerLiveRequest(), ((GRPC_KEYS["admin"][0], "x"),)),
            ("ready", "ServerReady", pb.ServerReadyRequest(), ()),
            ("model_ready", "ModelReady", pb.ModelReadyRequest(name="identity"), ()),
            ("metadata", "ServerMetadata", pb.ServerMetadataRequest(), ()),
            ("model_metadata", "ModelMetadata", pb.ModelMetadataRequest(name="nothing"), ()),
            ("config", "ModelConfig", pb.ModelConfigRequest(name="identity"), ()),
            ("stats", "ModelStatistics", pb.ModelStatisticsRequest(name="nothing"), ()),
            ("index", "RepositoryIndex", pb.RepositoryIndexRequest(), ()),
            ("load", "RepositoryModelLoad", pb.RepositoryModelLoadRequest(), ()),
            ("unload", "RepositoryModelUnload", pb.RepositoryModelUnloadRequest(), ()),
            ("system_shm", "SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(), ()),
            ("cuda_shm", "CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest(), ()),
            ("infer", "ModelInfer", infer, ()),
            ("infer_opened", "ModelInfer", infer, (GRPC_KEYS["infer"],)),
            ("infer_wrong_key", "ModelInfer", infer, (GRPC_KEYS["admin"],)),
        )
    ]
    found += [
        GrpcCase("restricted/grpc/health", "Check", b"", SETUP, (), health),
        GrpcCase("restricted/grpc/health_opened", "Check", b"", SETUP, (GRPC_KEYS["admin"],), health),
        StreamCase("restricted/grpc/stream", (infer,), (), SETUP),
        StreamCase("restricted/grpc/stream_opened", (infer,), (GRPC_KEYS["infer"],), SETUP),
    ]
    return found
