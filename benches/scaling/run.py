#!/usr/bin/env python3
"""What more reactors bring, and what one client can do to another.

    make bench-scaling                           or, with more control:
    python3 benches/scaling/run.py --quick

Small gRPC requests to a hot identity model, over reactors and connections, each beside one reactor with as
many connections. Where the processors suffice for the client beside the server, each gets its own and
throughput is what counts. Where they do not, throughput would tell how the two share a processor; CPU time
per request counts instead, which shows what reactors cost each other, but not whether they wait for each
other. The exit status is 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "peer"))

import bench  # noqa: E402
import load  # noqa: E402
import servers  # noqa: E402
from silent import silent_clients  # noqa: E402

REACTORS = (1, 2, 4, 8)
CONNECTIONS = (1, 2, 4, 64)
CONNECTIONS_PER_REACTOR = 4
IN_FLIGHT_PER_CONNECTION = 16
IN_FLIGHT_MAX = 256
LINEAR_SHARE_MIN = 0.8
CPU_SHARE_MAX = 1.25
# What silent clients may change is nothing; the rest is how far two runs of one load differ.
SILENT_P99_MAX = 1.25
STEADY_IN_FLIGHT = 8
PROCESSORS = sorted(os.sched_getaffinity(0))


@dataclasses.dataclass(frozen=True)
class Step:
    """So many reactors under the load of so many connections."""

    reactors: int
    connections: int

    @property
    def own_processors(self) -> bool:
        """Whether every reactor and every client thread gets a processor to itself."""
        return 2 * self.reactors <= len(PROCESSORS)

    @property
    def has_goal(self) -> bool:
        """Whether there are connections enough for every reactor to get its share."""
        return self.reactors > 1 and self.connections >= CONNECTIONS_PER_REACTOR * self.reactors


def main() -> int:
    """Measures, prints the tables and tells whether every goal is met."""
    options = parse()
    repository = load.write_repository(bench.OUT / "scaling")
    reactors = [count for count in REACTORS if count <= len(PROCESSORS)]
    steps = [Step(count, connections) for count in reactors for connections in CONNECTIONS]
    samples: dict[Step, list[load.Sample]] = {step: [] for step in steps}
    p99s: list[tuple[float, float]] = []
    for number in range(options.rounds):
        for count in reactors if number % 2 == 0 else reversed(reactors):
            mine = [step for step in steps if step.reactors == count]
            for step, sample in measure_steps(mine, repository, options):
                samples[step].append(sample)
                print(
                    f"round {number + 1}/{options.rounds} {step.reactors} reactors, {step.connections:>2} "
                    f"connections {sample.cpu_us:8.1f} µs CPU {sample.throughput:9,.0f}/s",
                    flush=True,
                )
        p99s.append(silent_round(repository, options, number))
        print(f"round {number + 1}/{options.rounds} p99 {p99s[-1][0]:,.0f} µs, {p99s[-1][1]:,.0f} µs beside silent clients")

    text = table(samples) + "\n\n" + silent_table(p99s)
    if len(PROCESSORS) < 4:
        text += (
            f"\n\n{len(PROCESSORS)} processors are too few for two reactors and a client beside them: "
            "scaling is judged by CPU time per request, not by throughput."
        )
    figures = {
        "steps": [
            {**dataclasses.asdict(step), "rounds": [dataclasses.asdict(each) for each in taken]}
            for step, taken in samples.items()
        ],
        "p99_us_alone_and_beside_silent_clients": p99s,
    }
    return bench.conclude("scaling", text, figures, findings(samples, p99s), options)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = bench.command_line(__doc__)
    parser.add_argument("--window", type=float, help="seconds of one of a client's 3 windows (1; 0.4 if quick)")
    options = bench.parse(parser)
    options.window = options.window or (0.4 if options.quick else 1.0)
    return options


def measure_steps(steps: list[Step], repository: pathlib.Path, options):
    """A sample of each of the steps, which have their number of reactors in common."""
    count = steps[0].reactors
    flags = (f"--reactors={count}", "--log-info=false", *options.flags)
    # Threads keep to the processors that their process had when it was started.
    with on_processors(PROCESSORS[:count] if steps[0].own_processors else PROCESSORS):
        server = servers.Server("scaling", options.nereid, repository, flags)
    with server:
        for step in steps:
            in_flight = min(step.connections * IN_FLIGHT_PER_CONNECTION, IN_FLIGHT_MAX)
            threads = min(count, step.connections) if step.own_processors else 1
            further = (f"--connections={step.connections}", f"--client-threads={threads}")
            work = load.Work("grpc", load.SMALL, in_flight)
            with on_processors(PROCESSORS[-count:] if step.own_processors else PROCESSORS):
                yield step, load.measure(server, work, options.nereid, options.window, further)


@contextlib.contextmanager
def on_processors(processors: list[int]):
    """Confines this program, and with it whatever it starts meanwhile, to some processors."""
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, PROCESSORS)


def silent_round(repository: pathlib.Path, options, number: int) -> tuple[float, float]:
    """A steady client's p99 in microseconds: alone, and beside clients that never read."""
    work = load.Work("grpc", load.SMALL, STEADY_IN_FLIGHT)
    p99s = {}
    # One reactor, so that every connection is the neighbour of every other.
    flags = ("--reactors=1", "--log-info=false", *options.flags)
    with servers.Server("silent", options.nereid, repository, flags) as server:
        load.measure(server, work, options.nereid, options.window)
        for silent in (False, True) if number % 2 == 0 else (True, False):
            clients = silent_clients(server.grpc_port, server.http_port) if silent else contextlib.nullcontext()
            with clients as sent:
                if silent and not sent:
                    raise load.LoadError("the server took nothing from the clients that never read")
                p99s[silent] = load.measure(server, work, options.nereid, options.window).p99_us
    return p99s[False], p99s[True]


def ratio(samples: dict[Step, list[load.Sample]], step: Step, figure: str) -> float:
    """A figure beside that of one reactor with as many connections: the median of the rounds' own ratios."""
    one = samples[Step(1, step.connections)]
    return statistics.median(
        getattr(mine, figure) / getattr(base, figure) for mine, base in zip(samples[step], one)
    )


def findings(samples: dict[Step, list[load.Sample]], p99s: list[tuple[float, float]]) -> list[bench.Finding]:
    """The goals, as figures that must not be larger than something."""
    found = []
    for step in samples:
        label = f"{step.reactors} reactors, {step.connections} connections"
        if step.has_goal and step.own_processors:
            linear = ratio(samples, step, "throughput") / step.reactors
            found.append(bench.Finding(f"{label}: linear throughput ÷ throughput", 1 / linear, 1 / LINEAR_SHARE_MIN))
        elif step.has_goal:
            cpu = ratio(samples, step, "cpu_us")
            found.append(bench.Finding(f"{label}: server CPU per request beside one reactor's", cpu, CPU_SHARE_MAX))
    beside = statistics.median(with_silent / alone for alone, with_silent in p99s)
    found.append(bench.Finding("p99 beside clients that never read ÷ p99 alone", beside, SILENT_P99_MAX))
    return found


def table(samples: dict[Step, list[load.Sample]]) -> str:
    """The Markdown table of all steps; capacity is what the reactors could answer if nothing else ran."""
    lines = [
        "| reactors | connections | CPU µs | beside one | capacity/s | requests/s | of linear | judged by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for step, taken in samples.items():
        cpu, throughput = (
            statistics.median(getattr(each, figure) for each in taken) for figure in ("cpu_us", "throughput")
        )
        judged = ("throughput" if step.own_processors else "CPU") if step.has_goal else ""
        lines.append(
            f"| {step.reactors} | {step.connections} | {cpu:.1f} | {ratio(samples, step, 'cpu_us'):.2f} "
            f"| {step.reactors * 1e6 / cpu:,.0f} | {throughput:,.0f} "
            f"| {ratio(samples, step, 'throughput') / step.reactors:.2f} | {judged} |"
        )
    return "\n".join(lines)


def silent_table(p99s: list[tuple[float, float]]) -> str:
    """The Markdown table of the steady client's p99."""
    alone, beside = (statistics.median(each) for each in zip(*p99s))
    share = statistics.median(with_silent / without for without, with_silent in p99s)
    return (
        "| steady client | alone, p99 µs | beside clients that never read, p99 µs | ratio |\n|---|---|---|---|\n"
        f"| gRPC 64 B, {STEADY_IN_FLIGHT} in flight | {alone:,.0f} | {beside:,.0f} | {share:.2f} |"
    )


if __name__ == "__main__":
    sys.exit(main())
