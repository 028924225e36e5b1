"""The dynamic batcher puts requests together as the real Triton does."""

from __future__ import annotations

import json
import os
import pathlib

import pytest

from . import batches
from .batches import servers

NEREID = pathlib.Path(os.environ.get("NEREID", servers.ROOT / "target" / "debug" / "nereid"))


@pytest.fixture(scope="module")
def recorded() -> dict[str, dict]:
    """What the real server does."""
    return json.loads(batches.GOLDEN.read_text())


@pytest.fixture(scope="module")
def ours(recorded, tmp_path_factory) -> dict[str, dict]:
    """What the server under test does."""
    return batches.play_until("nereid-batches", NEREID, tmp_path_factory.mktemp("nereid-batches"), recorded)


@pytest.mark.parametrize("scenario", batches.SCENARIOS)
def test_the_same_requests_run_together(scenario, recorded, ours):
    """In the same order, and the same ones fail, with the same words."""
    assert ours[scenario] == recorded[scenario]


def test_the_recording_is_what_the_real_server_does(recorded, tmp_path_factory):
    """Where it is installed."""
    if not servers.peer_is_usable():
        pytest.skip("scripts/setup_peer.sh has not been run")
    folder = tmp_path_factory.mktemp("triton-batches")
    assert batches.play_until("triton-batches", servers.TRITON, folder, recorded) == recorded
