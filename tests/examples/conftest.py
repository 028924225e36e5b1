"""Where the tests of the examples find the models and the server.

The server is the one at NEREID_HTTP_URL and NEREID_GRPC_URL (host:port), without the ring, or else the program
NEREID_BINARY, started on the assembled examples with the further arguments in NEREID_ARGUMENTS.
With neither, the tests that need a server are skipped. NEREID_EXAMPLES names the folder that
`examples/fetch_models.py` filled, if it is not build/examples.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.http

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "examples" / "clients")]

READY_S_MAX = 120
STOP_S_MAX = 30
LOG_LINES = 200


@pytest.fixture(scope="session")
def examples() -> Path:
    folder = Path(os.environ.get("NEREID_EXAMPLES", ROOT / "build" / "examples"))
    if not (folder / "models").is_dir():
        pytest.fail(f"no models in '{folder}': run examples/fetch_models.py first", pytrace=False)
    return folder


@pytest.fixture(scope="session")
def images() -> Path:
    return ROOT / "examples" / "images"


@pytest.fixture(scope="session")
def direct(examples):
    from direct import DirectConnection

    return DirectConnection(examples / "models")


@pytest.fixture(scope="session")
def urls(examples, request, tmp_path_factory) -> Iterator[dict[str, str]]:
    """The addresses of a ready server by protocol."""
    given = {name: os.environ.get(f"NEREID_{name.upper()}_URL") for name in ("http", "grpc")}
    if all(given.values()):
        yield given
    elif any(given.values()):
        pytest.fail("NEREID_HTTP_URL and NEREID_GRPC_URL go together: only one is set", pytrace=False)
    elif binary := os.environ.get("NEREID_BINARY"):
        log = tmp_path_factory.mktemp("server") / "log"
        yield from run_server(binary, [examples / "models"], log, request.session)
    else:
        pytest.skip("no server: set NEREID_BINARY, or NEREID_HTTP_URL and NEREID_GRPC_URL")


@pytest.fixture(params=["http", "grpc", "ring"])
def server(request, urls):
    from connection import connect

    if request.param not in urls:
        pytest.skip(f"the server has no address for {request.param}")
    connection = connect(request.param, urls[request.param])
    yield connection
    connection.client.close()


def run_server(
    binary: str, repositories: list[Path], log: Path, session: pytest.Session, *further: str
) -> Iterator[dict[str, str]]:
    """The addresses of a server of these repositories, which ends after them."""
    http_port, grpc_port = free_ports(2)
    command = [binary, *(f"--model-repository={each}" for each in repositories), "--allow-metrics=false", *further]
    command += ["--http-address=127.0.0.1", f"--http-port={http_port}"]
    command += ["--grpc-address=127.0.0.1", f"--grpc-port={grpc_port}"]
    ring = log.with_name("ring")
    command += [f"--ring-socket={ring}"]
    os.environ.setdefault("NEREID_RING_LIBRARY", str(Path(binary).parent / "libnereid_ring_c.so"))
    command += shlex.split(os.environ.get("NEREID_ARGUMENTS", ""))
    failed_before = session.testsfailed
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    ready = False
    try:
        wait_until_ready(process, f"127.0.0.1:{http_port}")
        ready = True
        yield {"http": f"127.0.0.1:{http_port}", "grpc": f"127.0.0.1:{grpc_port}", "ring": str(ring)}
    finally:
        stop(process)
        if not ready or session.testsfailed > failed_before:
            lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            print("\n".join([f"--- log of {shlex.join(command)}", *lines, "--- end of the log"]))


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def wait_until_ready(process: subprocess.Popen, url: str) -> None:
    deadline = time.monotonic() + READY_S_MAX
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"the server ended with status {process.returncode} before it was ready", pytrace=False)
        client = tritonclient.http.InferenceServerClient(url)
        try:
            if client.is_server_ready():
                return
        except OSError:
            pass
        finally:
            client.close()
        time.sleep(0.1)
    pytest.fail(f"the server was not ready after {READY_S_MAX} s", pytrace=False)


def stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(STOP_S_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
