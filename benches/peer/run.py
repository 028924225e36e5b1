#!/usr/bin/env python3
"""Puts a server beside the real Triton, on this machine and in the same minutes.

    make bench-peer                              or, with more control:
    python3 benches/peer/run.py --quick --only 'grpc 64 B'

Both servers serve the same models with an identity back end. Every line of work is measured against one,
then the other, in alternation, so that whatever else the machine does hits both; what is compared is the
median of the rounds' ratios. Absolute figures say little on a shared machine, ratios say much. The exit status is 1
when a goal is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import pathlib
import re
import socket
import statistics
import sys
import time

import numpy as np

import bench
import load
import python_backend
import report
import servers

PEER = "Triton"
# Copies that are timed, and places that they go through, so that they do not find all in the cache.
COPIES, COPY_PLACES = 2000, 8


def main() -> int:
    """Measures, prints the tables and tells whether every goal is met."""
    options = parse()
    subjects = {
        PEER: (servers.TRITON, ()),
        options.name: (options.nereid, (*options.flags, *allow_shared_memory(options))),
    }
    names = (PEER, options.name)
    lives = {} if options.only else lifecycles(subjects, options.quick)
    chosen = choose(options)
    rows = rounds(subjects, [work for work in chosen if not work.is_python], options)
    python = [work for work in chosen if work.is_python]
    # Python models have servers of their own: processes that idle beside would be counted with the others.
    with_python = {name: (binary, (*flags, *python_backend.flags(binary))) for name, (binary, flags) in subjects.items()}
    ready = python_ready(with_python, options.quick) if python else {}
    rows += rounds(with_python, python, options)

    found = [
        finding
        for work, peer, subject in rows
        for finding in report.findings(work, peer, subject, options.io_driver or "")
    ]
    found += report.copy_findings(rows, copy_us(4 * load.LARGE))
    if lives:
        found += report.lifecycle_findings(lives[options.name])
    if ready:
        found += report.python_ready_findings(ready, names)
    text = report.table(rows, names, options.io_driver or "")
    if lives:
        text += "\n\n" + report.lifecycle_table(names, lives)
    if ready:
        text += "\n\n" + report.python_ready_table(ready, names)
    everything = {**figures(rows, names, lives, options), "python_ready_ms": ready}
    return bench.conclude("peer", text, everything, found, options)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = bench.command_line(__doc__)
    parser.add_argument("--name", default="Nereid", help="the server's name in the tables")
    parser.add_argument("--client", choices=("perf_analyzer", "nereid-bench"), default="perf_analyzer")
    parser.add_argument("--only", help="only lines whose name matches this regular expression")
    parser.add_argument(
        "--window", type=float, help="seconds of one of a client's 3 windows (2; 0.7 if quick)"
    )
    options = bench.parse(parser)
    options.window = options.window or (0.7 if options.quick else 2.0)
    options.client_path = servers.PERF_ANALYZER if options.client == "perf_analyzer" else options.nereid
    if not servers.peer_is_usable():
        parser.error("the real Triton is not there: run scripts/setup_peer.sh first")
    return options


def allow_shared_memory(options) -> tuple[str, ...]:
    """The real server of this version lets every client use shared memory, and has no flag for it."""
    return () if options.nereid == servers.TRITON else ("--allow-client-shm=true",)


def copy_us(size: int) -> float:
    """What one copy of so many bytes takes, each time to and from other places, as requests would."""
    source, target = np.ones((COPY_PLACES, size), np.uint8), np.zeros((COPY_PLACES, size), np.uint8)
    times = []
    for number in range(COPIES):
        place = number % COPY_PLACES
        begun = time.perf_counter()
        np.copyto(target[place], source[place])
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e6


def choose(options) -> list[load.Work]:
    """The lines that are wanted and can be measured here."""
    chosen = [each for each in load.ALL_WORK if re.search(options.only or "", each.name)]
    if any(each.is_python for each in chosen) and (why := python_backend.prepare()):
        print(f"skipped: lines with Python models, because {why}", flush=True)
        chosen = [each for each in chosen if not each.is_python]
    return chosen


def rounds(subjects: dict, chosen: list[load.Work], options) -> list:
    """Every line's samples, of the peer and of the subject, with servers that have the models of these lines."""
    if not chosen:
        return []
    samples = {work: {name: [] for name in subjects} for work in chosen}
    if chosen[0].is_python:
        repository = python_backend.write_models(load.write_repository(bench.OUT / "repository-python"))
    else:
        repository = load.write_repository(bench.OUT / "repository")
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(servers.Server(name, binary, repository, flags, bench.fresh_log(name)))
            for name, (binary, flags) in subjects.items()
        ]
        for number in range(options.rounds):
            for work in chosen:
                for server in running if number % 2 == 0 else reversed(running):
                    started = time.perf_counter()
                    sample = load.measure(server, work, options.client_path, options.window)
                    samples[work][server.name].append(sample)
                    print(
                        f"round {number + 1}/{options.rounds} {work.name:<52} {server.name:<8} "
                        f"{sample.cpu_us:8.1f} µs CPU {sample.throughput:9,.0f}/s "
                        f"p50 {sample.p50_us:8,.0f} µs ({time.perf_counter() - started:.1f} s)",
                        flush=True,
                    )
    return [(work, *(samples[work][name] for name in subjects)) for work in chosen]


def lifecycles(subjects: dict, quick: bool) -> dict[str, dict[str, float | None]]:
    """What each server takes to start, to keep and to stop without any model."""
    empty = bench.OUT / "empty"
    empty.mkdir(exist_ok=True)
    lives: dict[str, dict[str, float | None]] = {}
    starts = {name: [] for name in subjects}
    for number in range(3 if quick else 7):
        for name, (binary, flags) in subjects.items():
            log = bench.fresh_log(f"{name}-empty")
            with servers.Server(f"{name}-empty", binary, empty, flags, log) as server:
                starts[name].append(
                    (server.ready_seconds * 1e3, server.memory_bytes() / 2**20, server.threads())
                )
    for name, (binary, flags) in subjects.items():
        ready, memory, threads = (statistics.median(each) for each in zip(*starts[name]))
        lives[name] = {
            "ready_ms": ready,
            "memory_mib": memory,
            "threads": threads,
            # The peer waits out its 30 s for an idle connection; a quick run does not.
            "stop_s": None if quick and name == PEER else _stop_seconds(name, binary, flags, empty),
        }
    return lives


def python_ready(subjects: dict, quick: bool) -> dict[str, list[float]]:
    """Milliseconds from the start until one Python model is ready."""
    repository = python_backend.write_models(bench.OUT / "one-python", ("python_identity",))
    ready = {name: [] for name in subjects}
    for _ in range(1 if quick else 5):
        for name, (binary, flags) in subjects.items():
            log = bench.fresh_log(f"{name}-python")
            with servers.Server(f"{name}-python", binary, repository, flags, log) as server:
                ready[name].append(server.ready_seconds * 1e3)
    return ready


def _stop_seconds(name: str, binary, flags, empty: pathlib.Path) -> float:
    server = servers.Server(f"{name}-stop", binary, empty, flags, bench.fresh_log(f"{name}-stop"))
    with server, socket.create_connection(("127.0.0.1", server.http_port)) as idle:
        idle.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        idle.recv(4096)
        server.stop()
    return server.stop_seconds


def figures(rows, names, lives, options) -> dict:
    """Everything measured, for a program."""
    return {
        "client": options.client,
        "window_seconds": options.window,
        "work": [
            {
                **dataclasses.asdict(work),
                "name": work.name,
                **{
                    name: {
                        "median": dataclasses.asdict(report.medians(samples)),
                        "rounds": [dataclasses.asdict(each) for each in samples],
                    }
                    for name, samples in zip(names, both)
                },
            }
            for work, *both in rows
        ],
        "lifecycle": lives,
    }


if __name__ == "__main__":
    sys.exit(main())
