"""What all benches have in common: the command line, where results go, and the verdict."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib

import servers

OUT = servers.ROOT / "build" / "bench"


@dataclasses.dataclass(frozen=True)
class Finding:
    """A figure that has a goal: `value` must not be larger than `goal`."""

    name: str
    value: float
    goal: float

    @property
    def share(self) -> float:
        """The figure in units of its goal: over 1 misses it."""
        return self.value / self.goal


def command_line(doc: str) -> argparse.ArgumentParser:
    """The options that every bench has; `doc` is the text at the top of its file."""
    parser = argparse.ArgumentParser(description=doc.split("\n\n")[0])
    parser.add_argument("--nereid", type=pathlib.Path, default=servers.NEREID, help="the server under test")
    parser.add_argument("--io-driver", choices=("io_uring", "epoll"), help="the event loop it is to use")
    parser.add_argument("--flag", action="append", default=[], help="a further flag for it")
    parser.add_argument("--rounds", type=int, help="how often everything is measured (5; 1 if quick)")
    parser.add_argument("--quick", action="store_true", help="one short round, as a smoke test")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options, with `flags` for the server and the machine's load before the bench."""
    options = parser.parse_args()
    if not options.nereid.is_file():
        parser.error(f"{options.nereid} is not there: build it first, in release mode")
    options.rounds = options.rounds or (1 if options.quick else 5)
    driver = [f"--io-driver={options.io_driver}"] if options.io_driver else []
    options.flags = (*driver, *options.flag)
    options.load_before = os.getloadavg()
    OUT.mkdir(parents=True, exist_ok=True)
    return options


def fresh_log(name: str) -> pathlib.Path:
    """Where a server is to write, with nothing in it yet."""
    log = OUT / f"{name}.log"
    log.unlink(missing_ok=True)
    return log


def conclude(name: str, text: str, figures: dict, found: list[Finding], options: argparse.Namespace) -> int:
    """Writes and prints the tables, then every goal with what became of it; the last line is the worst.

    The result is the exit status: 1 when a goal is missed.
    """
    (OUT / f"{name}.md").write_text(text + "\n")
    everything = {
        "cores": len(os.sched_getaffinity(0)),
        "load_average": [options.load_before, os.getloadavg()],
        "io_driver": options.io_driver,
        "rounds": options.rounds,
        **figures,
        "findings": [{**dataclasses.asdict(each), "share": each.share} for each in found],
    }
    (OUT / f"{name}.json").write_text(json.dumps(everything, indent=1))
    print("\n" + text + "\n")
    for each in found:
        mark = "met   " if each.share <= 1 else "MISSED"
        print(f"{mark} {each.name}: {each.value:.3f} (goal: at most {each.goal:.3f})")
    if not found:
        print(f"bench-{name}: no figure with a goal was measured")
        return 0
    worst = max(each.share for each in found)
    print(f"bench-{name}: worst figure is {worst:.2f} of its goal")
    return 1 if worst > 1 else 0
