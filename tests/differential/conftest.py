"""Starts the servers once and collects their answers to every case."""

from __future__ import annotations

import json
import os
import pathlib

import pytest

from . import record


def pytest_generate_tests(metafunc):
    """One test for each case."""
    if "case_name" in metafunc.fixturenames:
        metafunc.parametrize("case_name", [each.name for each in record.all_cases()])


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
    if not record.servers.peer_is_usable():
        pytest.skip("the real server is not installed: scripts/setup_peer.sh installs it")
    return record.ask("triton", record.servers.TRITON, record.all_cases())
