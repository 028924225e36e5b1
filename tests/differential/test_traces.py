"""Requests are traced as in the real Triton: the same moments, the same tensors, the same spans."""

from __future__ import annotations

import json
import os
import pathlib

import pytest

from . import traces
from .traces import servers

NEREID = pathlib.Path(os.environ.get("NEREID", servers.ROOT / "target" / "debug" / "nereid"))
# Ours also tells what the cache was asked, and what a model gave once where the real server tells it once more when
# it is put into the cache: docs/src/differences.md.
CACHE = {"CACHE_HIT", "CACHE_MISS"}
every_request = pytest.mark.parametrize("name", traces.NAMES)


@pytest.fixture(scope="module")
def recorded() -> dict[str, dict]:
    """What the real server notes."""
    return json.loads(traces.GOLDEN.read_text())


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> dict[str, dict]:
    """What the server under test notes."""
    return traces.play("nereid-traces", NEREID, tmp_path_factory.mktemp("nereid-traces") / "played")


def _without_the_cache(noted: list[dict], events: str) -> list[dict]:
    return [{**each, events: [event for event in each[events] if event not in CACHE]} for each in noted]


@every_request
def test_the_same_is_noted_of_a_request(name, recorded, ours):
    """Of those that serve it too, in the order in which they began."""
    expected = recorded[name]["records"]
    if name.endswith("/miss"):
        (only,) = expected
        taken, given, kept = only["tensors"]
        assert given == kept
        expected = [{**only, "tensors": [taken, given]}]
    assert _without_the_cache(ours[name]["records"], "moments") == expected


@every_request
def test_a_request_has_the_same_spans(name, recorded, ours):
    """One in the other, with the same attributes and events."""
    assert _without_the_cache(ours[name]["spans"], "events") == recorded[name]["spans"]


@pytest.mark.parametrize("protocol", traces.CLIENTS)
def test_what_the_cache_was_asked_is_noted_too(protocol, ours):
    """Which the real server does not."""
    noted = [CACHE & set(ours[f"{protocol}/{name}"]["records"][0]["moments"]) for name in ("plain", "miss", "hit")]
    assert noted == [set(), {"CACHE_MISS"}, {"CACHE_HIT"}]


def test_the_recording_is_what_the_real_server_notes(recorded, tmp_path_factory):
    """Where it is installed."""
    if not servers.peer_is_usable():
        pytest.skip("scripts/setup_peer.sh has not been run")
    assert traces.play_real(tmp_path_factory.mktemp("triton-traces") / "played") == recorded
