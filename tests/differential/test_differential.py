"""The server under test answers every case as the real Triton does, save where we differ on purpose."""

from __future__ import annotations

import json

import pytest

from . import record
from .accepted import ACCEPTED, overlooked
from .record import all_cases

PAGE = record.servers.ROOT / "docs" / "src" / "differences.md"
# Bodies of these say which server and which version of it this is.
OWN_IDENTITY = {"http/server/metadata", "grpc/server/metadata"}


def test_answers_as_the_real_server_does(case_name, golden, nereid_answers):
    """Status, message and tensors are the recorded ones."""
    expected = _comparable(case_name, golden[case_name]["answer"])
    got = overlooked(expected, _comparable(case_name, nereid_answers[case_name]))
    difference = ACCEPTED.get(case_name)
    if difference:
        assert "broken" not in got, f"no answer at all: {got}"
        assert got != expected, f"no longer differs, strike it from accepted.py: {difference.reason}"
        if difference.says_more:
            assert got["details"].startswith(expected["details"]), got
            got = {**got, "details": expected["details"]}
        elif difference.status is None:
            return
        else:
            expected = {**expected, "status": difference.status}
    assert got == expected, json.dumps(golden[case_name]["request"], ensure_ascii=False)


def test_a_page_of_metrics_has_the_real_servers_lines(golden, nereid_answers):
    """All that the real server counts we count too; families of our own may stand beside them."""
    expected = set(_without_values(golden["metrics/page"]["answer"]["text"]))
    got = set(_without_values(nereid_answers["metrics/page"]["text"]))
    assert expected <= got


def test_the_recording_is_what_the_real_server_answers(case_name, golden, triton_answers):
    """The committed file is not out of date."""
    assert triton_answers[case_name] == golden[case_name]["answer"]


def test_the_recorded_flags_are_those_of_the_real_server():
    """Which `tests/compatibility.rs` holds ours against."""
    if not record.servers.peer_is_usable():
        pytest.skip("the real server is not installed: scripts/setup_peer.sh installs it")
    assert record.ask_for_flags() == record.FLAGS.read_text()


def test_every_accepted_difference_is_a_case():
    """A renamed case takes its entry along."""
    assert set(ACCEPTED) <= {each.name for each in all_cases()}


def test_every_accepted_difference_is_told():
    """As an entry of the page for those who come from Triton."""
    entries = [line.removeprefix("- ").replace("**", "") for line in PAGE.read_text().splitlines() if line.startswith("- ")]
    untold = {
        words
        for difference in ACCEPTED.values()
        for words in difference.told
        if not any(entry.startswith(words) for entry in entries)
    }
    assert not untold


def test_the_recording_holds_every_case(golden):
    """A new case is recorded before it is committed."""
    requests = {each.name: record.as_recorded(each.request()) for each in all_cases()}
    assert {name: each["request"] for name, each in golden.items()} == requests


def _without_values(lines: list[str]) -> list[str]:
    return [line if line.startswith("#") else line.rpartition(" ")[0] for line in lines]


def _comparable(name: str, answer: dict) -> dict:
    if name.startswith("metrics/") and "text" in answer:
        # Their lines are compared apart.
        return {**answer, "text": None}
    if name not in OWN_IDENTITY:
        return answer
    body = answer.get("json") or answer.get("message") or {}
    return {**answer, "json": None, "message": None, "extensions": body.get("extensions")}
