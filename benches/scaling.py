#!/usr/bin/env python3
"""Throughput over the number of reactors: small gRPC requests to an identity model, beside one reactor.

The server gets the first processors and the client the last, so that neither takes from the other; with
fewer than two for each step a figure would say nothing, and the step is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benches" / "peer"))

import load  # noqa: E402
import servers  # noqa: E402

ELEMENTS = 16
CONNECTIONS_PER_REACTOR = 4
IN_FLIGHT_PER_CONNECTION = 16
WINDOWS = 3
GOAL = 0.8


def main() -> None:
    """Runs the rounds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--window-ms", type=int, default=2000)
    parser.add_argument("--io-driver", default="auto", choices=["auto", "io_uring", "epoll"])
    arguments = parser.parse_args()

    processors = sorted(os.sched_getaffinity(0))
    steps = [count for count in (1, 2, 4, 8, 16) if 2 * count <= len(processors)]
    if len(steps) < 2:
        sys.exit(f"scaling needs 4 processors or more, half of them for the client; here are {len(processors)}")
    samples: dict[int, list[float]] = {count: [] for count in steps}
    with tempfile.TemporaryDirectory() as folder:
        repository = load.write_repository(pathlib.Path(folder))
        for turn in range(arguments.rounds):
            for count in steps if turn % 2 == 0 else reversed(steps):
                samples[count].append(throughput(repository, processors, count, arguments))
                print(f"round {turn + 1}, {count} reactor(s): {samples[count][-1]:.0f} requests/s", flush=True)

    print(f"\n{'reactors':>8} {'requests/s':>12} {'beside one':>11} {'of linear':>10}   goal {GOAL}")
    for count in steps:
        ratio = statistics.median(many / one for many, one in zip(samples[count], samples[1]))
        verdict = "" if ratio / count >= GOAL else "   missed"
        print(f"{count:>8} {statistics.median(samples[count]):>12.0f} {ratio:>11.2f} {ratio / count:>10.2f}{verdict}")


def throughput(repository: pathlib.Path, processors: list[int], count: int, arguments) -> float:
    """Requests per second of a server with so many reactors."""
    flags = (f"--reactors={count}", f"--io-driver={arguments.io_driver}", "--log-info=false")
    everything = set(processors)
    # A child keeps the processors that its parent had when it was started.
    os.sched_setaffinity(0, set(processors[:count]))
    try:
        server = servers.Server("scaling", servers.NEREID, repository, flags)
    finally:
        os.sched_setaffinity(0, everything)
    with server, tempfile.NamedTemporaryFile(suffix=".json") as report:
        connections = CONNECTIONS_PER_REACTOR * count
        command = [str(servers.NEREID), "bench", "-m", "identity", "-i", "grpc", "-u", server.grpc_address]
        command += ["--shape", f"INPUT0:{ELEMENTS}", f"--connections={connections}", f"--client-threads={count}"]
        command += [f"--concurrency-range={connections * IN_FLIGHT_PER_CONNECTION}", "--warmup-interval=500"]
        command += [f"-p={arguments.window_ms}", f"-r={WINDOWS}", "-s=99", f"--json={report.name}", "--quiet"]
        subprocess.run(command, check=True, timeout=60 + WINDOWS * arguments.window_ms / 1000)
        return json.loads(pathlib.Path(report.name).read_text())["results"][0]["infer_per_s"]


if __name__ == "__main__":
    main()
