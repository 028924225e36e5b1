#!/usr/bin/env python3
"""What many models cost, and what reloads do to a load.

    make bench-repository                        or, with more control:
    python3 benches/repository/run.py --quick

A repository of many small ONNX models beside one of a single model: time to ready and resident memory per
model, which have no goal, and CPU time per request of one of them, which should not depend on how many others
there are. Then a model under a steady rate of requests is loaded anew, each time as another version: no request
may fail, and the p99 is put beside that of the same load without reloads. The exit status is 1 when a goal is
missed.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benches" / "peer"), str(ROOT / "tests")]

import bench  # noqa: E402
import load  # noqa: E402
import numpy as np  # noqa: E402
import servers  # noqa: E402
from clients import onnx_file  # noqa: E402

MODELS, MODELS_QUICK = 1000, 20
RELOADS, RELOADS_QUICK = 100, 5
ELEMENTS = 16
IN_FLIGHT = 8
WINDOW_SECONDS, WINDOW_SECONDS_QUICK = 2.0, 1.0
REQUESTS_PER_SECOND = 500
# Two measurements of one load differ by as much.
CPU_SHARE_MAX = 1.1
P99_SHARE_MAX = 2.0
READY_SECONDS_MAX = 600.0


@dataclasses.dataclass(frozen=True)
class Size:
    """What a repository of so many models costs."""

    models: int
    ready_seconds: float
    memory_bytes: int
    cpu_us: float


def main() -> int:
    """Measures, prints the tables and tells whether every goal is met."""
    parser = bench.command_line(__doc__)
    parser.add_argument("--models", type=int, help=f"how many there are ({MODELS}; {MODELS_QUICK} if quick)")
    parser.add_argument("--reloads", type=int, help=f"how many there are ({RELOADS}; {RELOADS_QUICK} if quick)")
    options = bench.parse(parser)
    options.models = options.models or (MODELS_QUICK if options.quick else MODELS)
    options.reloads = options.reloads or (RELOADS_QUICK if options.quick else RELOADS)
    options.window = WINDOW_SECONDS_QUICK if options.quick else WINDOW_SECONDS
    client = servers.PERF_ANALYZER if servers.peer_is_usable() else options.nereid

    sizes: dict[int, list[Size]] = {1: [], options.models: []}
    for _ in range(options.rounds):
        for count, samples in sizes.items():
            samples.append(measure_size(count, options))
    one, many = (median(samples) for samples in sizes.values())
    quiet, reloaded, failed = measure_reloads(client, options)

    per_model = (many.memory_bytes - one.memory_bytes) / (many.models - one.models)
    text = "\n".join(
        [
            "| models | ready after | resident | CPU per request |",
            "|---|---|---|---|",
            *(
                f"| {each.models:,} | {each.ready_seconds:.2f} s | {each.memory_bytes / 2**20:,.0f} MiB "
                f"| {each.cpu_us:.1f} µs |"
                for each in (one, many)
            ),
            "",
            f"A further model takes {per_model / 1024:,.0f} KiB.",
            "",
            f"| {options.reloads} reloads at {REQUESTS_PER_SECOND}/s ({client.name}) | p99 | failed |",
            "|---|---|---|",
            f"| without | {quiet:,.0f} µs | |",
            f"| with | {reloaded:,.0f} µs | {failed} |",
        ]
    )
    found = [
        bench.Finding(f"CPU per request with {many.models:,} models, in that with one", many.cpu_us / one.cpu_us, CPU_SHARE_MAX),
        bench.Finding("p99 during reloads, in that without", reloaded / quiet, P99_SHARE_MAX),
        # Any failure is one too many.
        bench.Finding("failed requests during reloads", failed, 0.5),
    ]
    figures = {
        "sizes": [dataclasses.asdict(each) for samples in sizes.values() for each in samples],
        "kib_per_model": per_model / 1024,
        "p99_us": {"quiet": quiet, "reloaded": reloaded},
    }
    return bench.conclude("repository", text, figures, found, options)


def median(samples: list[Size]) -> Size:
    """The middle of each figure."""
    return Size(*(statistics.median(each) for each in zip(*map(dataclasses.astuple, samples))))


def small_model(seed: int) -> bytes:
    """A layer with random weights."""
    weights = np.random.default_rng(seed).standard_normal((ELEMENTS, ELEMENTS))
    parts = [
        onnx_file.weights("w", weights),
        onnx_file.node("MatMul", ["INPUT0", "w"], "hidden"),
        onnx_file.node("Relu", ["hidden"], "OUTPUT0"),
    ]
    dims = ["N", ELEMENTS]
    return onnx_file.model(parts, onnx_file.FLOAT, dims, dims, ("INPUT0", "OUTPUT0"))


def write(folder: pathlib.Path, count: int) -> pathlib.Path:
    """A repository of so many models."""
    shutil.rmtree(folder, ignore_errors=True)
    for number in range(count):
        version = folder / f"model_{number}" / "1"
        version.mkdir(parents=True)
        (version / "model.onnx").write_bytes(small_model(number))
    return folder


def measure_size(count: int, options) -> Size:
    """Starts a server with so many models and asks one of them."""
    repository = write(bench.OUT / "many", count)
    name = f"repository-{count}"
    server = servers.Server(name, options.nereid, repository, options.flags, bench.fresh_log(name))
    try:
        server.wait_ready(READY_SECONDS_MAX)
        memory = server.memory_bytes()
        work = load.Work("grpc", ELEMENTS, IN_FLIGHT, "model_0")
        sample = load.measure(server, work, options.nereid, options.window)
    finally:
        server.stop()
    print(f"{count} models: ready after {server.ready_seconds:.2f} s, {sample.cpu_us:.1f} µs per request", flush=True)
    return Size(count, server.ready_seconds, memory, sample.cpu_us)


def measure_reloads(client: pathlib.Path, options) -> tuple[float, float, int]:
    """The p99 of a steady load in µs without and with reloads, and how many requests failed."""
    repository = write(bench.OUT / "reloaded", 1)
    flags = ("--model-control-mode=explicit", "--load-model=model_0", *options.flags)
    with servers.Server("reloads", options.nereid, repository, flags, bench.fresh_log("reloads")) as server:
        quiet, failed_before = steady(server, client, options, lambda: None)
        done = 0

        def reload() -> None:
            nonlocal done
            if done < options.reloads:
                swap(server, repository / "model_0", done + 2)
                done += 1

        reloaded, failed = steady(server, client, options, reload)
        if done < options.reloads:
            raise load.LoadError(f"the load ended after {done} of {options.reloads} reloads")
    return quiet, reloaded, failed_before + failed


def swap(server: servers.Server, folder: pathlib.Path, version: int) -> None:
    """Puts another version in the place of the last and has it loaded."""
    (folder / str(version)).mkdir()
    (folder / str(version) / "model.onnx").write_bytes(small_model(version))
    shutil.rmtree(folder / str(version - 1))
    url = f"http://{server.http_address}/v2/repository/models/{folder.name}/load"
    with urllib.request.urlopen(urllib.request.Request(url, data=b"{}"), timeout=60) as answer:
        answer.read()


def steady(server: servers.Server, client: pathlib.Path, options, meanwhile) -> tuple[float, int]:
    """The p99 in µs of requests at a steady rate, with something done meanwhile again and again, and how many
    of them failed by the client's count: the server's goes with the version. perf_analyzer ends at the first."""
    report, counts = bench.OUT / "steady.csv", bench.OUT / "steady.json"
    for file in (report, counts):
        file.unlink(missing_ok=True)
    seconds = max(options.window * load.WINDOWS, options.reloads * 0.1)
    ours = [str(client), "bench", "--json", str(counts)]
    program = [str(client)] if client == servers.PERF_ANALYZER else ours
    command = [
        *program,
        *("-m", "model_0", "-i", "grpc", "-u", server.grpc_address, "-b", "1"),
        *("--shape", f"INPUT0:{ELEMENTS}", "--request-rate-range", str(REQUESTS_PER_SECOND)),
        *("-p", str(round(seconds * 1000 / load.WINDOWS)), "-r", str(load.WINDOWS), "-s", "999", "-f", str(report)),
    ]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(servers.PEER / "lib")}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        while process.poll() is None:
            meanwhile()
            time.sleep(0.02)
        output = process.stdout.read()
    if process.returncode != 0 or not report.is_file():
        raise load.LoadError(f"{client.name} failed: {output[-800:]}")
    failed = sum(each["errors"] for each in json.loads(counts.read_text())["results"]) if counts.is_file() else 0
    with open(report, newline="") as file:
        return float(next(csv.DictReader(file))["p99 latency"]), failed


if __name__ == "__main__":
    sys.exit(main())
