"""Starts the servers once and collects their answers to every case."""

from __future__ import annotations

import json
import os
import pathlib

import pytest

from . import record


PENDING = pathlib.Path(__file__).with_name("pending.txt")


def pytest_generate_tests(metafunc):
    """One test for each case; of the server under test, those of what is not built yet must fail."""
    if "case_name" not in metafunc.fixturenames:
        return
    pending = _pending() if "nereid_answers" in metafunc.fixturenames else set()
    not_yet = pytest.mark.xfail(reason="not built yet (pending.txt)", strict=True)
    names = [each.name for each in record.all_cases()]
    metafunc.parametrize("case_name", [pytest.param(name, marks=not_yet if name in pending else ()) for name in names])


def _pending() -> set[str]:
    return {line for line in PENDING.read_text().splitlines() if line and not line.startswith("#")}


@pytest.fixture(scope="session")
def pending() -> set[str]:
    """The names of the cases of what is not built yet."""
    return _pending()


@pytest.fixture(scope="session")
def golden() -> dict:
    """What the real server was recorded to answer."""
    return json.loads(record.GOLDEN.read_text())


@pytest.fixture(scope="session")
def nereid_answers() -> dict[str, dict]:
    """What the server under test answers. `NEREID` names its binary."""
    binary = pathlib.Path(os.environ.get("NEREID", record.servers.NEREID))
    if not binary.is_file():
        pytest.skip(f"{binary} is not there: build it, or name it in NEREID")
    return record.ask("nereid", binary, record.all_cases(), record.NEREID_FLAGS)


@pytest.fixture(scope="session")
def triton_answers() -> dict[str, dict]:
    """What the real server answers now."""
    if not record.servers.triton_is_installed():
        pytest.skip("the real server is not installed: scripts/setup_peer.sh installs it")
    return record.ask("triton", record.servers.TRITON, record.all_cases())
