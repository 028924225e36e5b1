"""Which requests the dynamic batcher puts together, for arrivals that leave it no choice.

    build/venv/bin/python -m tests.differential.batches

records what the real Triton makes of them; the file it writes is committed, so that the tests run where the
real server is not installed. Every model takes half a second for a batch. While the first request, `hold`,
runs, the others come; what runs together afterwards ends together.
"""

from __future__ import annotations

import concurrent.futures
import json
import pathlib
import re
import shutil
import sys
import time

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

FOLDER = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[1] / "benches" / "peer"))

import servers  # noqa: E402

GOLDEN = FOLDER / "triton-2.51-batches.json"
RUN_SECONDS = 0.5
HOLD_SECONDS = 0.1
GAP_SECONDS = 0.012
WAIT_SECONDS_MAX = 60
# A busy machine holds a request back by as much as lies between two of a script, and then it is another
# script: what came out otherwise than expected is played again with all its times so many times as long.
STRETCHES = (1, 1, 4, 16)
TENSORS = """
input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] }]
output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] }]
parameters { key: "execute_delay_ms" value { string_value: "%d" } }
"""

_QUEUE = "default_queue_policy { %s default_timeout_microseconds: 150000 %s }"

# Options of a model, and the requests: a name, rows, and what else is to be known of it (width of a row,
# priority, timeout in microseconds, seconds to wait before it).
SCENARIOS: dict[str, tuple[str, list[tuple]]] = {
    "no_batching": ("max_batch_size: 8", [("a",), ("b",)]),
    "as_many_as_wait": ("max_batch_size: 8 dynamic_batching { }", [("a",), ("b",), ("c",), ("d",), ("e",)]),
    "rows_that_fit": (
        "max_batch_size: 8 dynamic_batching { }",
        [("a", 3), ("b", 3), ("c", 3), ("d", 1)],
    ),
    "shapes_apart": (
        "max_batch_size: 8 dynamic_batching { }",
        [("a", 1), ("b", 1), ("c", 1, {"width": 2}), ("d", 1)],
    ),
    "preferred": (
        "max_batch_size: 8 dynamic_batching { preferred_batch_size: [ 4 ] }",
        [("a",), ("b",), ("c",), ("d",), ("e",), ("f",), ("g",)],
    ),
    "preferred_missed": (
        "max_batch_size: 8 dynamic_batching { preferred_batch_size: [ 4, 8 ] }",
        [("a", 3), ("b", 3)],
    ),
    "priorities": (
        "max_batch_size: 2 dynamic_batching { priority_levels: 3 default_priority_level: 2 }",
        [
            ("a", 1),
            ("b", 1, {"priority": 3}),
            ("c", 1, {"priority": 1}),
            ("d", 1, {"priority": 3}),
            ("e", 1, {"priority": 1}),
            ("f", 1, {"priority": 9}),
        ],
    ),
    "queue_size": (
        "max_batch_size: 2 dynamic_batching { default_queue_policy { max_queue_size: 2 } }",
        [("a",), ("b",), ("c",), ("d",)],
    ),
    "reject": (
        "max_batch_size: 1 dynamic_batching { %s }" % (_QUEUE % ("timeout_action: REJECT", "")),
        [("a",), ("b", 1, {"timeout": 20000}), ("c", 1, {"after": 0.3})],
    ),
    "reject_override": (
        "max_batch_size: 1 dynamic_batching { %s }"
        % (_QUEUE % ("timeout_action: REJECT", "allow_timeout_override: true")),
        [("a", 1, {"timeout": 5_000_000}), ("b", 1, {"after": 0.3}), ("c", 1, {"timeout": 20_000})],
    ),
    "delay": (
        "max_batch_size: 1 dynamic_batching { %s }" % (_QUEUE % ("timeout_action: DELAY", "")),
        [("a",), ("b",), ("c", 1, {"after": 0.3})],
    ),
    "delay_before_lesser": (
        "max_batch_size: 1 dynamic_batching { priority_levels: 2 default_priority_level: 2 "
        "priority_queue_policy { key: 1 value { timeout_action: DELAY default_timeout_microseconds: 50000 } } }",
        [("a", 1, {"priority": 1}), ("b",), ("c", 1, {"priority": 1})],
    ),
}


def write(folder: pathlib.Path, stretch: int = 1) -> pathlib.Path:
    """Writes a repository with a model for each scenario."""
    shutil.rmtree(folder, ignore_errors=True)
    tensors = TENSORS % (RUN_SECONDS * 1000 * stretch)
    for name, (options, _) in SCENARIOS.items():
        options = re.sub(r"(?<=timeout_microseconds: )\d+", lambda found: str(int(found[0]) * stretch), options)
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(f'backend: "identity"\n{options}\n{tensors}')
    return folder


def _request(model: str, name: str, rows: int, more: dict, stretch: int) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name=model, id=name)
    shape = [rows, more.get("width", 1)]
    request.inputs.add(name="INPUT0", datatype="FP32", shape=shape)
    request.raw_input_contents.append(np.zeros(shape, np.float32).tobytes())
    for parameter, times in (("priority", 1), ("timeout", stretch)):
        if parameter in more:
            request.parameters[parameter].int64_param = more[parameter] * times
    return request


def play(address: str, model: str, stretch: int = 1) -> dict:
    """Sends a scenario's requests. Returns which ended together, in their order, and what failed."""
    ended: dict[str, float] = {}
    with grpc.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        def send(name: str, rows: int = 1, more: dict | None = None) -> tuple[str, grpc.Future]:
            more = more or {}
            time.sleep(more.get("after", GAP_SECONDS) * stretch)
            request = _request(model, name, rows, more, stretch)
            future = stub.ModelInfer.future(request, timeout=WAIT_SECONDS_MAX * stretch)
            future.add_done_callback(lambda _: ended.setdefault(name, time.monotonic()))
            return name, future

        futures = [send("hold")]
        time.sleep(HOLD_SECONDS * stretch)
        futures += [send(*each) for each in SCENARIOS[model][1]]
        failures = {name: error.details() for name, future in futures if (error := future.exception())}
    batches: list[list[str]] = []
    last = 0.0
    for name in sorted((name for name in ended if name not in failures), key=ended.__getitem__):
        if ended[name] - last > RUN_SECONDS * stretch / 2:
            batches.append([])
        batches[-1].append(name)
        last = ended[name]
    return {"batches": [sorted(batch) for batch in batches], "failures": failures}


def play_all(server: servers.Server) -> dict[str, dict]:
    """All scenarios, at once: each has a model of its own."""
    with concurrent.futures.ThreadPoolExecutor(len(SCENARIOS)) as pool:
        played = pool.map(lambda model: play(server.grpc_address, model), SCENARIOS)
        return dict(zip(SCENARIOS, played))


def play_until(name: str, binary: pathlib.Path, folder: pathlib.Path, expected: dict[str, dict]) -> dict[str, dict]:
    """All scenarios; what comes out otherwise than expected is played again by itself, the last times more
    slowly."""
    played: dict[str, dict] = {}
    for stretch in STRETCHES:
        with servers.Server(name, binary, write(folder / "models", stretch), (), folder / "log") as server:
            if not played:
                played = play_all(server)
            for scenario in [each for each in SCENARIOS if played[each] != expected[each]]:
                played[scenario] = play(server.grpc_address, scenario, stretch)
        if played == expected:
            break
    return played


def main() -> None:
    """Records what the real server does."""
    folder = write(servers.ROOT / "build" / "differential" / "batches-triton")
    with servers.Server("triton-batches", servers.TRITON, folder) as server:
        played = play_all(server)
    lines = (f"{json.dumps(name)}: {json.dumps(each)}" for name, each in played.items())
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{len(played)} scenarios written to {GOLDEN.relative_to(servers.ROOT)}")


if __name__ == "__main__":
    main()
