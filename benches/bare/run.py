#!/usr/bin/env python3
"""Puts a served model beside the same model run bare, in a loop, at the batch sizes served.

    make bench-bare                              or, with more control:
    build/venv/bin/python benches/bare/run.py --quick

Models of ResNet-50's shape in ONNX Runtime, and of EfficientNet-Lite0's in libtorch, tell what a server takes from a
heavy model, in throughput; a small perceptron in ONNX Runtime tells what it adds to a light one, in CPU time. Served
and bare runs alternate. The exit status is 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "peer"))

import bench  # noqa: E402
import load  # noqa: E402
import models  # noqa: E402
import servers  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
HEAVY_IN_FLIGHT = 8
TORCH = "efficientnet_torch"
HEAVY = ("resnet50", TORCH)
LIGHT_IN_FLIGHT = 64
HEAVY_SHARE_MIN = 0.95
LIGHT_RUNS_MAX = 1.3
# Completions are awaited at either end of a heavy interval, so that it holds whole batches only.
POLL_SECONDS = 0.004
EDGE_SECONDS_MAX = 20.0
# The server keeps the memory between a module's layers. Left to its own settings the C library would not, and the bare
# loop would be a weaker twin.
KEPT_MEMORY = {f"MALLOC_{name}_": str(1 << 30) for name in ("MMAP_THRESHOLD", "TRIM_THRESHOLD")}
# Torch optimises a module at each batch size before the server is ready.
WARM_UP_SECONDS_MAX = 180.0


@dataclasses.dataclass(frozen=True)
class Heavy:
    """One round of the heavy model; per inference, served and bare."""

    throughput: float
    bare_throughput: float
    cpu_ms: float
    bare_cpu_ms: float
    batch_mean: float


@dataclasses.dataclass(frozen=True)
class Light:
    """One round of the light model; microseconds of CPU per request."""

    cpu_us: float
    identity_cpu_us: float
    identity_batched_cpu_us: float
    bare_us: float
    batch_mean: float
    identity_batch_mean: float


def main() -> int:
    """Measures, prints the table and tells whether both goals are met."""
    options = parse()
    repository = models.write_repository(bench.OUT / "bare")
    heavy, light = {name: [] for name in HEAVY}, []
    if why := models.add_torch(repository, TORCH):
        print(f"skipped: {TORCH}, because {why}", flush=True)
        del heavy[TORCH]
    chosen = [name for name in heavy if options.only in (None, name)]
    log = bench.fresh_log("bare")
    flags = (*options.flags, *only(options.only))
    with servers.Server("bare", options.nereid, repository, flags, log, WARM_UP_SECONDS_MAX) as server:
        for number in range(options.rounds):
            for name in chosen:
                heavy[name].append(heavy_round(server, repository, name, options))
                print(f"round {number + 1}/{options.rounds} {name} {heavy[name][-1]}", flush=True)
            if options.only in (None, "mlp"):
                light.append(light_round(server, repository, options, number))
                print(f"round {number + 1}/{options.rounds} {light[-1]}", flush=True)
    figures = {
        **{name: [dataclasses.asdict(each) for each in rows] for name, rows in heavy.items()},
        "mlp": [dataclasses.asdict(each) for each in light],
    }
    return bench.conclude("bare", table(heavy, light), figures, findings(heavy, light), options)


def only(name: str | None) -> list[str]:
    """The flags with which no other heavy model is loaded."""
    loaded = [name] if name in HEAVY else ["mlp", "identity", "identity_unbatched"]
    return ["--model-control-mode=explicit", *(f"--load-model={each}" for each in loaded)] if name else []


def parse() -> argparse.Namespace:
    """The command line."""
    parser = bench.command_line(__doc__)
    parser.add_argument("--only", choices=(*HEAVY, "mlp"), help="only this model")
    parser.add_argument("--seconds", type=float, help="seconds of a measurement (8; 3 if quick)")
    options = bench.parse(parser)
    options.seconds = options.seconds or (3.0 if options.quick else 8.0)
    return options


def heavy_round(server: servers.Server, repository: pathlib.Path, name: str, options) -> Heavy:
    """A heavy model under load, then bare at the batch sizes that the load led to."""
    with under_load(server, name, HEAVY_IN_FLIGHT, options):
        first = completion(server, name)
        time.sleep(options.seconds)
        last = completion(server, name)
    (begun, cpu_begun, before), (ended, cpu_ended, after) = first, last
    sizes = executed(before, after)
    inferences = sum(size * count for size, count in sizes.items())
    bare = bare_loop(repository, name, sizes, options.seconds)
    return Heavy(
        throughput=inferences / (ended - begun),
        bare_throughput=1 / per_inference(bare, sizes, "wall"),
        cpu_ms=(cpu_ended - cpu_begun) / inferences / 1e6,
        bare_cpu_ms=per_inference(bare, sizes, "cpu") * 1e3,
        batch_mean=mean_batch(sizes),
    )


def light_round(server: servers.Server, repository: pathlib.Path, options, number: int) -> Light:
    """The light model and identity, one after the other, then the light model bare."""
    samples, sizes = {}, {}
    names = ("mlp", "identity", "identity_unbatched")
    for name in names if number % 2 == 0 else reversed(names):
        before = batches(server, name)
        work = load.Work("grpc", models.MLP_INPUT, LIGHT_IN_FLIGHT, name)
        samples[name] = load.measure(server, work, options.nereid, options.seconds / load.WINDOWS)
        sizes[name] = executed(before, batches(server, name))
    bare = bare_loop(repository, "mlp", sizes["mlp"], options.seconds / 4)
    return Light(
        cpu_us=samples["mlp"].cpu_us,
        # The cheaper of the two, lest a dear identity make the model look cheap.
        identity_cpu_us=min(samples[name].cpu_us for name in names[1:]),
        identity_batched_cpu_us=samples["identity"].cpu_us,
        bare_us=per_inference(bare, sizes["mlp"], "cpu") * 1e6,
        batch_mean=mean_batch(sizes["mlp"]),
        identity_batch_mean=mean_batch(sizes["identity"]),
    )


@contextlib.contextmanager
def under_load(server: servers.Server, model: str, in_flight: int, options):
    """Keeps so many requests in flight, from before the block until after it."""
    # The client is to end by itself should this program be killed; the block is shorter.
    limit_ms = round((options.seconds + 2 * EDGE_SECONDS_MAX + 10) * 1000)
    command = [str(options.nereid), "bench", "-m", model, "-i", "grpc", "-u", server.grpc_address]
    command += ["--concurrency-range", str(in_flight), "-p", str(limit_ms), "-r", "1", "--quiet"]
    client = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        # The first batch is of one; thereafter the load is what it will stay.
        for _ in range(3):
            completion(server, model)
        if client.poll() is not None:
            raise load.LoadError(f"the client ended at once: {client.stdout.read()[-800:]}")
        yield
        if client.poll() is not None:
            raise load.LoadError(f"the client ended too early: {client.stdout.read()[-800:]}")
    finally:
        client.terminate()
        client.communicate()


def completion(server: servers.Server, model: str) -> tuple[float, int, dict[int, int]]:
    """Waits for a batch to be done: the time, the server's CPU clock, and its batches so far by size."""
    before, deadline = batches(server, model), time.perf_counter() + EDGE_SECONDS_MAX
    while time.perf_counter() < deadline:
        if (now := batches(server, model)) != before:
            return time.perf_counter(), server.cpu_ns(), now
        time.sleep(POLL_SECONDS)
    raise load.LoadError(f"{server.name} completed no batch of {model} in {EDGE_SECONDS_MAX} s")


def batches(server: servers.Server, model: str) -> dict[int, int]:
    """How many batches of each size the server has executed, by its own count."""
    stats = server.get_json(f"/v2/models/{model}/stats")["model_stats"][0].get("batch_stats", [])
    return {int(each["batch_size"]): int(each["compute_infer"]["count"]) for each in stats}


def executed(before: dict[int, int], after: dict[int, int]) -> dict[int, int]:
    """The batches of each size between two counts."""
    done = {size: count - before.get(size, 0) for size, count in after.items()}
    return {size: count for size, count in sorted(done.items()) if count}


def mean_batch(sizes: dict[int, int]) -> float:
    """Inferences per batch."""
    return sum(size * count for size, count in sizes.items()) / max(1, sum(sizes.values()))


def bare_loop(repository: pathlib.Path, model: str, sizes: dict[int, int], seconds: float) -> dict:
    """Seconds per run at each batch size, on the processors that this program may use."""
    folder = repository / model / "1"
    environment = dict(os.environ)
    if model == TORCH:
        environment |= KEPT_MEMORY
        dims = (str(each) for each in models.TORCH_DIMS)
        command = [str(models.TORCH_LOOP), str(folder / "model.pt"), str(seconds), *dims, *map(str, sizes)]
    else:
        command = [sys.executable, str(HERE / "loop.py"), str(folder / "model.onnx"), str(seconds), *map(str, sizes)]
    limit = 120 + 10 * seconds
    printed = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=limit, env=environment
    ).stdout
    return {int(size): spent for size, spent in json.loads(printed).items()}


def per_inference(bare: dict, sizes: dict[int, int], clock: str) -> float:
    """Bare seconds per inference, each batch size weighing as often as the server executed it."""
    spent = sum(count * bare[size][clock] for size, count in sizes.items())
    return spent / sum(size * count for size, count in sizes.items())


def findings(heavy: dict[str, list[Heavy]], light: list[Light]) -> list[bench.Finding]:
    """The goals; a round's served and bare runs followed on each other, so ratios are taken within rounds."""
    found = []
    for name, rows in heavy.items():
        if not rows:
            continue
        share = statistics.median(each.throughput / each.bare_throughput for each in rows)
        # A throughput is met from above; its inverse fits the findings, which are met from below.
        found.append(bench.Finding(f"{name}: bare throughput ÷ served", 1 / share, 1 / HEAVY_SHARE_MIN))
    if light:
        share = statistics.median(
            each.cpu_us / (each.identity_cpu_us + LIGHT_RUNS_MAX * each.bare_us) for each in light
        )
        found.append(bench.Finding(f"mlp: server CPU ÷ (identity's + {LIGHT_RUNS_MAX} bare runs)", share, 1.0))
    return found


def table(heavy: dict[str, list[Heavy]], light: list[Light]) -> str:
    """The Markdown table: medians over the rounds, ratios within them."""
    lines = ["| model | served | bare | ratio | goal | mean batch |", "|---|---|---|---|---|---|"]

    def line(label: str, rows: list, served, bare, goal: str) -> None:
        middle = statistics.median
        lines.append(
            f"| {label} | {middle(map(served, rows)):.2f} | {middle(map(bare, rows)):.2f} "
            f"| {middle(served(each) / bare(each) for each in rows):.3f} | {goal} "
            f"| {middle(each.batch_mean for each in rows):.1f} |"
        )

    in_flight = f"{HEAVY_IN_FLIGHT} in flight"
    for name, rows in heavy.items():
        if not rows:
            continue
        line(f"{name}, {in_flight}, inferences/s", rows, lambda row: row.throughput,
             lambda row: row.bare_throughput, f"≥ {HEAVY_SHARE_MIN}")
        line(f"{name}, {in_flight}, CPU ms per inference", rows, lambda row: row.cpu_ms,
             lambda row: row.bare_cpu_ms, "")
    if light:
        line(f"mlp, {LIGHT_IN_FLIGHT} in flight, CPU µs per request (bare: identity + {LIGHT_RUNS_MAX} runs)",
             light, lambda row: row.cpu_us, lambda row: row.identity_cpu_us + LIGHT_RUNS_MAX * row.bare_us, "≤ 1")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
