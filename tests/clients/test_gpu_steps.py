"""The script for machines with a GPU, `tests/gpu/run.sh`, on devices of the host: that its steps run and tell what came
of them. Speeds mean nothing here."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "gpu" / "run.sh"
STEPS = ["machine", "copies", "overlap", "memory", "gather", "graphs", "devices", "shared", "served", "pictures", "chains"]


def run(binary, folder, *steps: str) -> tuple[int, str, list[dict]]:
    """Runs steps; gives the exit status, the output and the figures."""
    environment, report = {**os.environ, "PYTHON": sys.executable}, folder / "figures.json"
    command = [SCRIPT, "--host", f"--report={report}", binary, *steps]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, timeout=300)
    return done.returncode, done.stdout, json.loads(report.read_text())


def test_every_step_that_needs_no_gpu_runs(binary, tmp_path):
    """And has a figure."""
    status, output, figures = run(binary, tmp_path, *STEPS)
    assert status == 0 and all(figure["met"] for figure in figures), output
    names = "\n".join(figure["name"] for figure in figures)
    for part in ("copies of", "overlap", "memory", "gather", "graph of", "softmax by cuda-shm", "CUDA shared", "decode", "chains"):
        assert part in names, output
    assert not any("skipped" in figure["value"] for figure in figures), output


def test_a_step_that_fails_stops_no_other(tmp_path):
    """And the exit status says that one did."""
    status, output, figures = run("/bin/false", tmp_path, "machine", "gather", "sanitizer")
    assert status == 1
    assert [figure["met"] for figure in figures] == [False, False, True], output
    assert figures[2]["value"] == "skipped: there is no GPU"


def test_whoever_ends_it_early_is_told_what_there_is(tmp_path):
    """A program that does not end is stopped with its step, and the figures of the steps before are told."""
    program, report = tmp_path / "nereid", tmp_path / "figures.json"
    program.write_text('#!/bin/sh\n[ "$1" = --version ] && echo 1 && exit\nexec sleep 60\n')
    program.chmod(0o755)
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONUNBUFFERED": "1"}
    command = [SCRIPT, "--host", f"--report={report}", program, "machine", "gather"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as running:
        for line in running.stdout:
            if "== gather" in line:
                break
        running.terminate()
        rest = running.stdout.read()
    assert running.returncode == 143
    assert rest.index("== figures") < rest.index("program ")
    assert [figure["name"] for figure in json.loads(report.read_text())] == ["program"]
