#!/usr/bin/env python3
"""How near batches on their way through the lanes of devices come to what the busiest engine takes alone.

    make bench-gpu                         or, with more control:
    python3 benches/gpu/run.py --flag=--device=virtual

Runs `nereid bench gpu`, which prints its tables, and judges what has a goal: three lanes or more, in virtual time and on
GPUs. The engines of the host are threads that share its processors with whatever else runs: their figures are printed.
The exit status is 1 when a goal is missed.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "peer"))

import bench  # noqa: E402

# The makespan in units of the bound, by device.
GOALS = {"virtual": 1.05, "cuda": 1 / 0.95}
LANES_MIN = 3


def main() -> int:
    """Measures, and tells whether the goals are met."""
    options = bench.parse(bench.command_line(__doc__))
    figures = bench.OUT / "gpu-figures.json"
    subprocess.run([options.nereid, "bench", "gpu", f"--json={figures}", *options.flag], check=True)
    rows = json.loads(figures.read_text())
    found = [
        bench.Finding(
            f"{row['device']}, {row['devices']} devices, {row['models']} models, {row['lanes']} lanes, "
            f"{row['bytes']} bytes: makespan beside the bound",
            1 / row["achieved"],
            GOALS[row["device"]],
        )
        for row in rows
        if row["measure"] == "overlap" and row["lanes"] >= LANES_MIN and row["device"] in GOALS
    ]
    return bench.conclude("gpu", "The tables are above.", {"rows": rows}, found, options)


if __name__ == "__main__":
    sys.exit(main())
