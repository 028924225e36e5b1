"""The requests of the differential tests to models whose answers are kept."""

from __future__ import annotations

import struct

from .cases import GrpcCase, HttpCase
from .grpc_cases import FOUR, FOUR_FLOATS, _request
from .repository import CACHED

FLAGS = ("--cache-config=local,size=1048576",)
OTHER = struct.pack("<4f", 1, 2, 3, 4)


def _infer(name: str, model: str, raw: bytes = FOUR_FLOATS, **more) -> GrpcCase:
    return GrpcCase(f"cache/infer/{name}", "ModelInfer", _request([FOUR], (raw,), model, **more), "cache")


def _get(name: str, path: str) -> HttpCase:
    return HttpCase(f"cache/{name}", path, setup="cache")


def cases():
    """What is asked twice is counted as a hit, and the answer is the same but for its id."""
    for model in CACHED:
        yield _infer(f"{model}_first", model, id="first")
        yield _infer(f"{model}_again", model, id="again")
        yield _infer(f"{model}_other", model, OTHER)
        yield _infer(f"{model}_output_named", model, outputs=[{"name": "OUTPUT0"}])
        yield _infer(f"{model}_bad", model, b"1234")
        yield _get(f"statistics_{model}", f"/v2/models/{model}/stats")
        yield _get(f"config_{model}", f"/v2/models/{model}/config")
    yield _infer("plain_first", "identity_batched")
    yield _infer("plain_again", "identity_batched")
    yield _get("statistics_plain", "/v2/models/identity_batched/stats")
