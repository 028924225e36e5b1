"""Python models under every CPython that scripts/setup_interpreters.sh has found."""

from __future__ import annotations

import pathlib

import pytest

from . import python_cases as cases
from .conftest import DRIVERS, ROOT
from .python_server import processes
from .test_python import compare

FOLDER = ROOT / "build" / "interpreters"
VERSIONS = sorted((path.name for path in FOLDER.glob("3.*")), key=lambda name: int(name.split(".")[1]))

# The interpreter knows nothing of the event loop.
pytestmark = pytest.mark.skipif("epoll" not in DRIVERS, reason="on one event loop is enough")


@pytest.mark.parametrize("version", VERSIONS or ["another"])
def test_models_answer_the_same_under_each_interpreter(start, tmp_path, version):
    """As those of the real Triton do."""
    if not VERSIONS:
        pytest.skip("no other CPython is there")
    repository = cases.copy_models(tmp_path / "repository")
    server = start(repository, f"--backend-config=python,interpreter={FOLDER / version / 'bin' / 'python'}")
    running = {pathlib.Path(f"/proc/{process}/exe").resolve().name for process in processes(server).values()}
    assert running == {f"python{version}"}
    compare(cases.ask_all(server, repository))
