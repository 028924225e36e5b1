#!/usr/bin/env python3
"""What an ensemble costs: two identities behind each other, beside one.

    make bench-ensembles                         or, with more control:
    python3 benches/ensembles/run.py --quick

Small gRPC requests to both in alternation, on one server and in the same minutes; what is compared is the median of the
rounds' ratios of the server's CPU time per request. Where the real Triton is installed it is measured the same way.
The exit status is 1 when the goal is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "peer"))

import bench  # noqa: E402
import load  # noqa: E402
import servers  # noqa: E402

PEER = "Triton"
OWN = "Nereid"
RATIO_MAX = 1.3
IN_FLIGHT = (1, 64)
TENSORS = """
max_batch_size: 64
input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] }]
output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] }]
"""


def main() -> int:
    """Measures, prints the table and tells whether the goal is met."""
    options = parse()
    repository = write_repository(bench.OUT / "ensembles")
    subjects = {OWN: (options.nereid, ("--log-info=false", *options.flags))}
    if servers.peer_is_usable():
        subjects[PEER] = (servers.TRITON, ())
    samples: dict[tuple[str, int, str], list[load.Sample]] = {}
    with contextlib.ExitStack() as stack:
        running = {
            name: stack.enter_context(servers.Server(name, binary, repository, flags, bench.fresh_log(f"ensembles-{name}")))
            for name, (binary, flags) in subjects.items()
        }
        for number in range(options.rounds):
            for name, server in running.items():
                for in_flight in IN_FLIGHT:
                    for model in ("identity", "ensemble") if number % 2 == 0 else ("ensemble", "identity"):
                        work = load.Work("grpc", load.SMALL, in_flight, model)
                        sample = load.measure(server, work, options.nereid, options.window)
                        samples.setdefault((name, in_flight, model), []).append(sample)
                        print(f"round {number + 1}/{options.rounds} {name} {work.name} {model} {sample.cpu_us:8.1f} µs CPU", flush=True)
    found = [
        bench.Finding(f"{in_flight} in flight: an ensemble of two beside one, server CPU", ratio(samples, OWN, in_flight), RATIO_MAX)
        for in_flight in IN_FLIGHT
    ]
    figures = {
        "samples": [
            {"server": name, "in_flight": in_flight, "model": model, "rounds": [dataclasses.asdict(each) for each in taken]}
            for (name, in_flight, model), taken in samples.items()
        ]
    }
    return bench.conclude("ensembles", table(samples), figures, found, options)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = bench.command_line(__doc__)
    parser.add_argument("--window", type=float, help="seconds of one of a client's 3 windows (1; 0.4 if quick)")
    options = bench.parse(parser)
    options.window = options.window or (0.4 if options.quick else 1.0)
    return options


def write_repository(folder: pathlib.Path) -> pathlib.Path:
    """An identity model, and an ensemble that runs it twice."""
    maps = (("INPUT0", "between"), ("between", "OUTPUT0"))
    steps = ", ".join(
        f'{{ model_name: "identity" model_version: -1 input_map {{ key: "INPUT0" value: "{source}" }} '
        f'output_map {{ key: "OUTPUT0" value: "{target}" }} }}'
        for source, target in maps
    )
    configs = {
        "identity": f'backend: "identity" {TENSORS}',
        "ensemble": f'platform: "ensemble" {TENSORS} ensemble_scheduling {{ step [ {steps} ] }}',
    }
    for name, config in configs.items():
        (folder / name / "1").mkdir(parents=True, exist_ok=True)
        (folder / name / "config.pbtxt").write_text(config)
    return folder


def ratio(samples: dict, name: str, in_flight: int) -> float:
    """What the ensemble costs beside the model: the median of the rounds' own ratios."""
    pairs = zip(samples[name, in_flight, "ensemble"], samples[name, in_flight, "identity"])
    return statistics.median(two.cpu_us / one.cpu_us for two, one in pairs)


def table(samples: dict) -> str:
    """The Markdown table of all lines."""
    lines = ["| server | in flight | one, CPU µs | ensemble of two, CPU µs | ratio |", "|---|---|---|---|---|"]
    for name, in_flight in dict.fromkeys((name, in_flight) for name, in_flight, _ in samples):
        one, two = (
            statistics.median(each.cpu_us for each in samples[name, in_flight, model]) for model in ("identity", "ensemble")
        )
        lines.append(f"| {name} | {in_flight} | {one:.1f} | {two:.1f} | {ratio(samples, name, in_flight):.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
