"""Why batches were closed, as the metrics count it: each reason brought about."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Iterable

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from . import models, triton
from .test_observe import metrics

REASONS = ("full", "preferred", "delay", "shape", "single")
# Nobody waits for as long.
LONG = 60_000_000
SHORT = 300_000


def _batching(options: str, parameters: str = "") -> models.Model:
    return models.Model(models.identity(f"max_batch_size: 4 dynamic_batching {{ {options} }} {parameters}"))


# What runs takes half a second, so that what comes meanwhile waits.
SLOW = 'parameters { key: "execute_delay_ms" value { string_value: "500" } }'
AUTO = (
    'parameters { key: "queue_delay" value { string_value: "auto" } }'
    'parameters { key: "queue_delay_target_p99_us" value { string_value: "100000" } }'
)
MODELS = {
    "long": _batching(f"max_queue_delay_microseconds: {LONG}"),
    "short": _batching(f"max_queue_delay_microseconds: {SHORT}"),
    "preferred": _batching(f"preferred_batch_size: [ 2 ] max_queue_delay_microseconds: {LONG}"),
    "levels": _batching(
        f"max_queue_delay_microseconds: {SHORT} priority_levels: 2 default_priority_level: 2 "
        "default_queue_policy { timeout_action: REJECT default_timeout_microseconds: 50000 }"
    ),
    "none": models.Model(models.identity("max_batch_size: 4")),
    "auto": _batching("", AUTO),
    "slow": _batching("", SLOW),
    "slow_preferred": _batching("preferred_batch_size: [ 2 ]", SLOW),
    "slow_none": models.Model(models.identity(f"max_batch_size: 4 {SLOW}")),
}

# A model, the requests (rows, width), one after the other, and why their batches are closed. `None` waits until
# what has come before is under way.
CASES: dict[str, tuple[str, list[tuple[int, int] | None], dict[str, int]]] = {
    "as large as may be": ("long", [(1, 1)] * 4, {"full": 1}),
    "as large as may be, twice": ("long", [(4, 1), (1, 1), (3, 1)], {"full": 2}),
    "too large for what is left": ("short", [(3, 1), (2, 1)], {"full": 1, "delay": 1}),
    "a preferred size": ("preferred", [(1, 1), (1, 1)], {"preferred": 1}),
    "waited for long enough": ("short", [(1, 1), (2, 1)], {"delay": 1}),
    "another shape": ("short", [(1, 1), (1, 2)], {"shape": 1, "delay": 1}),
    "no batches": ("none", [(1, 1), (1, 1), (3, 1)], {"single": 3}),
    "a delay that is chosen": ("auto", [(1, 1)], {"preferred": 1}),
    "large while another runs": ("slow", [(1, 1), None, *[(1, 1)] * 4], {"delay": 1, "full": 1}),
    "another shape while one runs": ("slow", [(1, 1), None, (1, 1), (1, 2)], {"delay": 2, "shape": 1}),
    "preferred while another runs": ("slow_preferred", [(2, 1), None, (1, 1), (1, 1)], {"preferred": 2}),
    "no batches while one runs": ("slow_none", [(1, 1), None, (1, 1), (1, 1)], {"single": 3}),
}


def _closed(server, model: str) -> dict[str, int]:
    """By reason, how many batches of a model were closed."""
    page = metrics(server)
    name = 'nv_inference_batch_closed{{model="{}",reason="{}",version="1"}}'
    return {reason: int(page[name.format(model, reason)]) for reason in REASONS}


def _send(server, model: str, requests: Iterable[tuple[int, int] | None]) -> list:
    """Sends requests over one stream, so that they come in this order. Returns the answers and errors."""
    answers: queue.Queue = queue.Queue()
    under_way = 0
    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        for shape in requests:
            if shape is None:
                time.sleep(0.15)
                continue
            given = triton.tensor(triton_grpc, "INPUT0", "FP32", np.ones(shape, np.float32))
            client.async_stream_infer(model, [given])
            under_way += 1
        return [answers.get(timeout=triton.WAIT_SECONDS_MAX) for _ in range(under_way)]


@pytest.fixture
def own(start, tmp_path):
    """A server of the models above."""
    return start(models.write(tmp_path / "repository", MODELS))


def test_each_reason_is_counted(own):
    """And every batch that has run has one."""
    before = {model: _closed(own, model) for model in MODELS}
    assert all(count == 0 for counts in before.values() for count in counts.values())
    for name, (model, requests, expected) in CASES.items():
        before = _closed(own, model)
        answers = _send(own, model, requests)
        assert not [answer for answer in answers if isinstance(answer, Exception)], name
        after = _closed(own, model)
        counted = {reason: after[reason] - before[reason] for reason in REASONS}
        assert {reason: count for reason, count in counted.items() if count} == expected, name
    for model in MODELS:
        assert sum(_closed(own, model).values()) == triton.executions(own, model)[1], model


def test_who_is_turned_away_closes_nothing(own):
    """Two whose time in the queue is up, and one that no batch may be as large as."""
    answers = _send(own, "levels", [(1, 1), (1, 1)])
    assert ["exceeded" in str(answer) or "timeout" in str(answer).lower() for answer in answers] == [True] * 2
    with pytest.raises(InferenceServerException, match="batch-size must be <= 4"):
        triton.infer("grpc", own, "levels", np.ones((5, 1), np.float32))
    assert not any(_closed(own, "levels").values())
    assert triton.executions(own, "levels")[1] == 0
