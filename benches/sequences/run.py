#!/usr/bin/env python3
"""What a request of a sequence costs the server while ten sequences live, and while ten thousand do.

    make bench-sequences                         or, with more control:
    python3 benches/sequences/run.py --quick

Small gRPC requests, ten in flight, to two models on one server, in alternation: of each all sequences have begun, and
their requests come in turn. What is compared is the median of the rounds' ratios of the server's CPU time per request.
The exit status is 1 when the goal is missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import pathlib
import statistics
import sys
import time

import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "peer"))

import bench  # noqa: E402
import servers  # noqa: E402

RATIO_MAX = 1.1
FEW, MANY = 10, 10_000
# The same for both; of the few, each waits for its answer.
IN_FLIGHT = FEW
CONFIG = """
backend: "identity"
max_batch_size: 64
sequence_batching { max_sequence_idle_microseconds: 3600000000 oldest { max_candidate_sequences: 16384 } }
input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [ 16 ] }]
output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 16 ] }]
"""


def main() -> int:
    """Measures, prints the table and tells whether the goal is met."""
    options = parse()
    repository = bench.OUT / "sequences"
    for count in (FEW, MANY):
        (repository / name_of(count) / "1").mkdir(parents=True, exist_ok=True)
        (repository / name_of(count) / "config.pbtxt").write_text(CONFIG)
    flags = ("--log-info=false", *options.flags)
    with contextlib.ExitStack() as stack:
        log = bench.fresh_log("sequences")
        server = stack.enter_context(servers.Server("sequences", options.nereid, repository, flags, log))
        costs = asyncio.run(measure(server, options))
    found = statistics.median(many / few for few, many in zip(costs[FEW], costs[MANY]))
    lines = ["| sequences that live | server CPU µs per request |", "|---|---|"]
    lines += [f"| {count} | {statistics.median(each):.1f} |" for count, each in costs.items()]
    name = f"{MANY} sequences beside {FEW}, server CPU per request"
    finding = bench.Finding(name, found, RATIO_MAX)
    figures = {"cpu_us": {name_of(count): each for count, each in costs.items()}}
    return bench.conclude("sequences", "\n".join(lines), figures, [finding], options)


def parse():
    """The command line."""
    parser = bench.command_line(__doc__)
    parser.add_argument("--window", type=float, help="seconds of one measurement (4; 1 if quick)")
    options = bench.parse(parser)
    options.window = options.window or (1.0 if options.quick else 4.0)
    return options


def name_of(count: int) -> str:
    """The model of which so many sequences live."""
    return f"live_{count}"


async def measure(server: servers.Server, options) -> dict[int, list[float]]:
    """The server's CPU time per request in microseconds, by round."""
    costs: dict[int, list[float]] = {FEW: [], MANY: []}
    async with grpc.aio.insecure_channel(server.grpc_address) as channel:
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        for count in costs:
            await send(call, count, iter(range(1, count + 1)), True)
        endless = {count: itertools.cycle(range(1, count + 1)) for count in costs}
        for number in range(options.rounds):
            for count in (FEW, MANY) if number % 2 == 0 else (MANY, FEW):
                # What comes first after the other model's turn is not counted.
                await send(call, count, endless[count], False, options.window / 4)
                before = server.cpu_ns()
                sent = await send(call, count, endless[count], False, options.window)
                costs[count].append((server.cpu_ns() - before) / sent / 1e3)
                print(f"round {number + 1}/{options.rounds} {count:6} live {costs[count][-1]:8.1f} µs CPU", flush=True)
    return costs


async def send(call, count: int, sequences, start: bool, seconds: float = float("inf")) -> int:
    """Sends a request to each of these sequences, for so long at most. Returns how many it was."""
    end = time.monotonic() + seconds
    sent = 0

    async def client() -> None:
        nonlocal sent
        for sequence in sequences:
            await call(request(name_of(count), sequence, start))
            sent += 1
            if time.monotonic() >= end:
                return

    await asyncio.gather(*(client() for _ in range(IN_FLIGHT)))
    return sent


def request(model: str, sequence: int, start: bool) -> service_pb2.ModelInferRequest:
    """A small request of a sequence that goes on."""
    made = service_pb2.ModelInferRequest(model_name=model)
    made.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 16])
    made.raw_input_contents.append(bytes(64))
    made.parameters["sequence_id"].int64_param = sequence
    made.parameters["sequence_start"].bool_param = start
    return made


if __name__ == "__main__":
    sys.exit(main())
