"""The server under test answers every case as the real Triton does, save where we differ on purpose."""

from __future__ import annotations

import json

from .accepted import ACCEPTED
from .record import all_cases

# Bodies of these say which server and which version of it this is.
OWN_IDENTITY = {"http/server/metadata", "grpc/server/metadata"}


def test_answers_as_the_real_server_does(case_name, golden, nereid_answers):
    """Status, message and tensors are the recorded ones."""
    expected = _comparable(case_name, golden[case_name]["answer"])
    got = _comparable(case_name, nereid_answers[case_name])
    if case_name in ACCEPTED:
        difference = ACCEPTED[case_name]
        assert "broken" not in got, f"no answer at all: {got}"
        assert got != expected, f"no longer differs, strike it from accepted.py: {difference.reason}"
        if difference.status is None:
            return
        expected = {**expected, "status": difference.status}
    if case_name.startswith("metrics/") and "text" in expected:
        # Families of our own may stand beside the real server's.
        got = {**got, "text": [line for line in got["text"] if line in expected["text"]]}
    assert got == expected, json.dumps(golden[case_name]["request"], ensure_ascii=False)


def test_the_recording_is_what_the_real_server_answers(case_name, golden, triton_answers):
    """The committed file is not out of date."""
    assert triton_answers[case_name] == golden[case_name]["answer"]


def test_every_accepted_difference_is_a_case():
    """A renamed case takes its entry along."""
    assert set(ACCEPTED) <= {each.name for each in all_cases()}


def test_every_pending_case_is_a_case(pending):
    """Here too."""
    assert pending <= {each.name for each in all_cases()}


def test_the_recording_holds_every_case(golden):
    """A new case is recorded before it is committed."""
    requests = {each.name: each.request() for each in all_cases()}
    assert {name: each["request"] for name, each in golden.items()} == requests


def _comparable(name: str, answer: dict) -> dict:
    if name not in OWN_IDENTITY:
        return answer
    body = answer.get("json") or answer.get("message") or {}
    return {**answer, "json": None, "message": None, "extensions": body.get("extensions")}
