"""One running server per I/O driver, which all tests of a session share."""

from __future__ import annotations

import itertools
import os
import pathlib
import shutil
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benches" / "peer"))

import servers  # noqa: E402  (the path to it is only known here)

from . import cuda_driver, models  # noqa: E402

NEREID = pathlib.Path(os.environ.get("NEREID", ROOT / "target" / "debug" / "nereid"))
DRIVERS = os.environ.get("NEREID_IO_DRIVER", "io_uring,epoll").split(",")
# Two reactors where connections and models are to lie on different cores, one where they share theirs.
REACTORS = {"io_uring": 2, "epoll": 1}
MEMORY_BYTES = 1 << 30


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """One driver after the other, each server's survival last: a server that was started anew in between
    would have survived nothing."""

    def place(item):
        driver = item.callspec.params.get("driver") if hasattr(item, "callspec") else None
        return DRIVERS.index(driver) if driver in DRIVERS else len(DRIVERS), "test_survival" in item.nodeid

    items.sort(key=place)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failure comes with the end of the server's log."""
    report = (yield).get_result()
    server = getattr(item, "funcargs", {}).get("server")
    if report.failed and server is not None:
        report.sections.append(("server log", server.log_tail()))


@pytest.fixture(scope="session")
def binary() -> pathlib.Path:
    """The server's binary."""
    if not NEREID.is_file():
        pytest.fail(f"{NEREID} is not there: build it, or name it in NEREID")
    return NEREID


@pytest.fixture(scope="session")
def obedient(binary, tmp_path_factory) -> pathlib.Path:
    """The server's binary; run by root it has no right to open what files' permissions forbid."""
    if os.geteuid() != 0:
        return binary
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv, of util-linux, takes root's rights away")
    program = tmp_path_factory.mktemp("obedient") / "nereid"
    program.write_text(f'#!/bin/sh\nexec setpriv --bounding-set=-dac_override,-dac_read_search "{binary}" "$@"\n')
    program.chmod(0o755)
    return program


@pytest.fixture(scope="session")
def repository(tmp_path_factory) -> pathlib.Path:
    """The models that the shared servers serve."""
    return models.write(tmp_path_factory.mktemp("repository"), models.all_models())


@pytest.fixture(scope="session", params=DRIVERS)
def driver(request) -> str:
    """An I/O driver."""
    return request.param


@pytest.fixture(scope="session")
def server(driver, binary, repository, tmp_path_factory):
    """The server that the tests of one driver share."""
    flags = (
        f"--io-driver={driver}",
        f"--reactors={REACTORS.get(driver, 2)}",
        f"--memory-budget-byte-size={MEMORY_BYTES}",
    )
    log = tmp_path_factory.mktemp(driver) / "server.log"
    with servers.Server(f"nereid-{driver}", binary, repository, flags, log) as server:
        server.rss_at_start = server.memory_bytes()
        yield server


@pytest.fixture(scope="module")
def sharing(driver, binary, repository, tmp_path_factory):
    """A server whose clients may use shared memory."""
    flags = (f"--io-driver={driver}", "--reactors=2", "--allow-client-shm=true")
    log = tmp_path_factory.mktemp("sharing") / "server.log"
    with servers.Server("nereid-sharing", binary, repository, flags, log) as server:
        yield server


@pytest.fixture(scope="module")
def with_ring(driver, binary, repository, tmp_path_factory):
    """A server with a ring, and the path of its socket."""
    folder = tmp_path_factory.mktemp("ring")
    path = folder / "socket"
    flags = (f"--io-driver={driver}", "--reactors=2", f"--ring-socket={path}")
    with servers.Server(f"nereid-ring-{driver}", binary, repository, flags, folder / "log") as server:
        yield server, path


@pytest.fixture
def start(driver, binary, tmp_path):
    """Starts a server of a test's own; it ends with the test."""
    started = []

    def start(repository: pathlib.Path, *flags: str, wait=servers.Server.wait_ready, program=binary) -> servers.Server:
        all_flags = (f"--io-driver={driver}", "--reactors=2", *flags)
        log = tmp_path / f"server-{len(started)}.log"
        server = servers.Server("nereid-own", program, repository, all_flags, log)
        started.append(server)
        wait(server)
        return server

    yield start
    for server in started:
        if server.is_running():
            server.kill()


@pytest.fixture(scope="session")
def driver_library(tmp_path_factory) -> pathlib.Path:
    """The stand-in for the driver of GPUs, built once."""
    return cuda_driver.build(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def gpu_server(start, tmp_path, driver_library, monkeypatch):
    """Starts a server for which the stand-in is the driver; gives it and the driver's accounts."""
    kernels = tmp_path / "kernels.fatbin"
    kernels.write_bytes(b"any image stands for the kernels\0")
    reports = (tmp_path / f"driver-{number}.json" for number in itertools.count())

    def gpu_server(repository, *flags, **driver):
        report = next(reports)
        with monkeypatch.context() as environment:
            environment.setenv("LD_LIBRARY_PATH", str(driver_library.parent))
            environment.setenv("CUDA_STANDIN_REPORT", str(report))
            environment.setenv("CUDA_STANDIN_SHIM", str(ROOT / "kernels" / "shim"))
            environment.setenv("CUDA_STANDIN_FOLDER", str(tmp_path))
            for name, value in driver.items():
                environment.setenv(f"CUDA_STANDIN_{name.upper()}", str(value))
            server = start(repository, f"--gpu-kernels={kernels}", *flags)
        return server, cuda_driver.Accounts(report)

    return gpu_server
