"""Load generators run against the server for a moment, without an error."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import pty
import re
import subprocess
import termios

import pytest

import servers

PROTOCOLS = {"http": ["-i", "http"], "grpc": ["-i", "grpc"], "stream": ["-i", "grpc", "--streaming"]}
# Stable enough for what is tried here, also on a busy machine.
LOAD = ["--concurrency-range", "4", "-p", "300", "-s", "999", "-r", "10"]


def _run(server, protocol: str, command: list, **environment) -> str:
    address = server.http_address if protocol == "http" else server.grpc_address
    done = subprocess.run(
        [*command, "-u", address, *PROTOCOLS[protocol]],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return output


@pytest.mark.skipif(not servers.peer_is_usable(), reason="scripts/setup_peer.sh installs perf_analyzer")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_perf_analyzer(server, protocol):
    """Triton's own load generator."""
    before = server.requests_done("fp32_batched")
    command = [servers.PERF_ANALYZER, "-m", "fp32_batched", "--shape", "INPUT0:16", *LOAD]
    command += ["-a"] if protocol != "stream" else []
    output = _run(server, protocol, command, LD_LIBRARY_PATH=str(servers.PEER / "lib"))
    assert "Throughput" in output
    assert server.requests_done("fp32_batched") > before


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nereid_bench(server, binary, protocol, tmp_path):
    """Our own."""
    command = [binary, "bench", "-m", "fp32_batched", "--shape", "INPUT0:16", *LOAD]
    _run(server, protocol, [*command, "--json", tmp_path / "report.json"])
    assert json.loads((tmp_path / "report.json").read_text())


def on_a_terminal(command: list) -> tuple[str, str]:
    """What a program writes to its output, and what it draws on the terminal that its errors go to."""
    terminal, of_program = pty.openpty()
    termios.tcsetwinsize(of_program, (24, 120))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=of_program, text=True) as process:
        os.close(of_program)
        drawn = b""
        # Whoever reads a terminal that no program has open any more is told of an error.
        with contextlib.suppress(OSError):
            while piece := os.read(terminal, 1 << 16):
                drawn += piece
        output = process.stdout.read()
    os.close(terminal)
    assert process.returncode == 0, drawn
    return output, drawn.decode()


def test_nereid_bench_shows_how_it_goes(server, binary):
    """On a terminal: a bar of each load with its last window, which is gone in the end. Not if it is to be quiet."""
    command = [binary, "bench", "-m", "fp32_batched", "--shape", "INPUT0:16", "-u", server.http_address]
    command += ["--concurrency-range", "1:2", "-p", "300", "-s", "99", "-r", "10"]
    output, drawn = on_a_terminal(command)
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\r", drawn).split("\r")]
    bars = [line for line in lines if line]
    for load in ("concurrency 1", "concurrency 2"):
        assert any(re.fullmatch(rf"{load} \S+ 0/10", bar) for bar in bars), bars
        window = re.compile(rf"{load} \S+ [1-9]/10 [1-9]\d* requests/s, p\d+ [1-9]\d* µs")
        assert any(window.fullmatch(bar) for bar in bars), bars
    # The last thing that is done to the line is to empty it.
    assert drawn.endswith("\x1b[2K") and "requests/s," not in output
    output, drawn = on_a_terminal([*command, "--quiet"])
    assert (output, drawn) == ("", "")


def test_nereid_bench_sends_at_a_rate_and_tells_it_in_every_form(server, binary, tmp_path):
    """At random moments; a table, a file for spreadsheets, and one for programs."""
    command = [binary, "bench", "-m", "fp32_batched", "--shape", "INPUT0:16", "-i", "grpc", "-u", server.grpc_address]
    command += ["--request-rate-range", "50:100:50", "--request-distribution", "poisson", "-p", "200", "-s", "999", "-r", "10"]
    done = subprocess.run([*command, "-f", tmp_path / "report.csv", "--json", tmp_path / "report.json"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    with open(tmp_path / "report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    results = json.loads((tmp_path / "report.json").read_text())["results"]
    assert [float(row["Request Rate"]) for row in rows] == [50, 100] == [result["request_rate"] for result in results]
    assert {result["request_distribution"] for result in results} == {"poisson"}
    for row, result in zip(rows, results, strict=True):
        assert float(row["Inferences/Second"]) == pytest.approx(result["infer_per_s"], abs=0.1)
        assert f"{result['infer_per_s']:.1f}" in done.stdout
