"""The load: what is asked of a server, by which client, and what one measurement of it gives."""

from __future__ import annotations

import csv
import dataclasses
import os
import pathlib
import subprocess
import time

import python_backend
import servers

MODELS = {"identity": "", "identity_batched": "dynamic_batching { }"}
# Measured windows per run of a client; perf_analyzer takes no fewer.
WINDOWS = 3
WARM_UP_REQUESTS = 50
WARM_UP_REQUESTS_LONG = 5
CLIENT_START_SECONDS_MAX = 20.0


@dataclasses.dataclass(frozen=True)
class Work:
    """One line of the comparison: tensors of a size, over a protocol, so many at a time."""

    protocol: str
    elements: int
    concurrency: int
    model: str = "identity"
    shared: bool = False
    # How many times a request does what is measured.
    times: int = 1

    @property
    def name(self) -> str:
        """How the line is named in tables and by `--only`."""
        size = f"{self.elements * 4} B" if self.elements < 1000 else f"{self.elements // 250} KB"
        batched = ", batched" if self.model.endswith("_batched") else ""
        shared = " in shared memory" if self.shared else ""
        way = "python" if self.is_python else self.protocol
        calls = ", a call of another model" if self.times > 1 else ""
        return f"{way} {size}{shared}{batched}{calls}, {self.concurrency} in flight"

    @property
    def is_python(self) -> bool:
        """Whether the model is written in Python."""
        return self.model.startswith("python_")


@dataclasses.dataclass(frozen=True)
class Sample:
    """What one run of a client measured on one server."""

    cpu_us: float
    kernel_us: float
    throughput: float
    p50_us: float
    p99_us: float


SMALL = 16
LARGE = 150_000
MANY_LARGE = 64 * LARGE
ALL_WORK = (
    *(Work("grpc", SMALL, concurrency) for concurrency in (1, 8, 64)),
    Work("grpc", SMALL, 64, "identity_batched"),
    *(Work("grpc", LARGE, concurrency) for concurrency in (1, 8)),
    *(Work("grpc", LARGE, concurrency, shared=True) for concurrency in (1, 8)),
    *(Work("http", SMALL, concurrency) for concurrency in (1, 64)),
    Work("http", LARGE, 8),
    *(
        Work("grpc", elements, concurrency, model)
        for model in ("python_identity", "python_identity_batched")
        for elements in (SMALL, LARGE)
        for concurrency in (1, 64)
    ),
    *(
        Work("grpc", elements, concurrency, "python_identity", shared=True)
        for elements in (SMALL, LARGE)
        for concurrency in (1, 64)
    ),
    Work("grpc", SMALL, 1, "python_calls", times=python_backend.CALLS),
)


class LoadError(RuntimeError):
    """A client failed, or no request came through."""


def write_repository(folder: pathlib.Path) -> pathlib.Path:
    """The models of the comparison: one that is not batched and one that is."""
    for name, scheduling in MODELS.items():
        (folder / name / "1").mkdir(parents=True, exist_ok=True)
        (folder / name / "config.pbtxt").write_text(
            f'backend: "identity"\nmax_batch_size: 64\n{scheduling}\n'
            'input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] }]\n'
            'output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] }]\n'
        )
    return folder


def measure(
    server: servers.Server,
    work: Work,
    client: pathlib.Path,
    window_seconds: float,
    further: tuple[str, ...] = (),
) -> Sample:
    """Runs the client once against the server, with further arguments if need be.

    CPU time and throughput are the server's own, over an interval within the client's load: its CPU
    clock against its own count of requests, read together. Latencies are the client's.
    """
    if work.elements * work.concurrency >= MANY_LARGE:
        # A window has to hold many times what is in flight.
        window_seconds *= 2
    report = servers.ROOT / "build" / "bench" / f"{server.name}.csv"
    report.unlink(missing_ok=True)
    before_load = server.requests_done(work.model)
    process = subprocess.Popen(
        [*_command(server, work, client, window_seconds, report), *further],
        env={**os.environ, "LD_LIBRARY_PATH": str(servers.PEER / "lib")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        _wait_for_load(server, work, process, before_load)
        first = _reading(server, work)
        time.sleep(window_seconds * (WINDOWS - 0.5))
        last = _reading(server, work)
        still_running = process.poll() is None
        output, _ = process.communicate(timeout=60 + 10 * window_seconds)
    except BaseException:
        process.kill()
        process.wait()
        raise
    if process.returncode != 0 or not report.is_file():
        raise LoadError(f"{client.name} failed against {server.name} ({work.name}): {output[-800:]}")
    if not still_running:
        raise LoadError(f"{client.name} ended before its measurement was read ({work.name})")
    seconds, cpu_ns, user, kernel, requests = (b - a for a, b in zip(first, last))
    if requests == 0:
        raise LoadError(f"{server.name} answered nothing in {seconds:.1f} s ({work.name})")
    with open(report, newline="") as file:
        row = next(csv.DictReader(file))
    cpu_us = cpu_ns / requests / work.times / 1e3
    return Sample(
        cpu_us=cpu_us,
        kernel_us=cpu_us * kernel / max(user + kernel, 1),
        throughput=requests * work.times / seconds,
        p50_us=float(row["p50 latency"]) / work.times,
        p99_us=float(row["p99 latency"]) / work.times,
    )


def _command(server, work: Work, client: pathlib.Path, window_seconds: float, report) -> list[str]:
    address = server.grpc_address if work.protocol == "grpc" else server.http_address
    if client == servers.PERF_ANALYZER:
        # Over HTTP its synchronous mode is the faster one; over gRPC it is with one in flight.
        asynchronous = work.protocol == "grpc" and work.concurrency > 1
        program = [str(client), "--async" if asynchronous else "--sync", "--max-threads=64"]
        # Windows that differ are no failure here: the medians over the rounds are what counts.
        program += ["-s", "999"]
    else:
        program = [str(client), "bench", "-s", "99"]
    if work.shared:
        program += ["--shared-memory", "system", "--output-shared-memory-size", str(4 * work.elements)]
    return [
        *program,
        "-m",
        work.model,
        "-i",
        work.protocol,
        "-u",
        address,
        "-b",
        "1",
        "--shape",
        f"INPUT0:{work.elements}",
        "--concurrency-range",
        str(work.concurrency),
        "-p",
        str(round(window_seconds * 1000)),
        "-r",
        str(WINDOWS),
        "-f",
        str(report),
    ]


def _wait_for_load(server, work: Work, process, before_load: int) -> None:
    deadline = time.perf_counter() + CLIENT_START_SECONDS_MAX
    warm_up = WARM_UP_REQUESTS if work.times == 1 else WARM_UP_REQUESTS_LONG
    while server.requests_done(work.model) < before_load + warm_up:
        if process.poll() is not None:
            raise LoadError(
                f"the client ended at once against {server.name} ({work.name}): "
                f"{process.stdout.read()[-800:]}"
            )
        if time.perf_counter() > deadline:
            raise LoadError(f"the client sent nothing to {server.name} ({work.name})")
        time.sleep(0.02)


def _reading(server, work: Work) -> tuple[float, int, int, int, int]:
    requests = server.requests_done(work.model)
    return time.perf_counter(), server.cpu_ns(), *server.ticks(), requests
