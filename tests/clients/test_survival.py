"""After all that the other tests have done to it, the server is the process that was started."""

from __future__ import annotations

import numpy as np
import pytest

from . import triton

GROWTH_BYTES_MAX = 2 << 30


@pytest.mark.parametrize("way", triton.WAYS)
def test_the_server_lives_and_serves(server, way):
    """It never died, and answers as in the beginning."""
    assert server.is_running(), server.log_tail()
    array = np.arange(5, dtype=np.float32)
    result = triton.infer(way, server, "fp32", array)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), array)


def test_it_is_the_server_of_all_the_other_tests(server, request):
    """It has served them, unless only this file runs."""
    if any("test_concurrency" in item.nodeid for item in request.session.items):
        assert server.requests_done("gather") > 1000


def test_nothing_panicked(server):
    """A panic that was caught is a defect too."""
    assert "panicked" not in server.log.read_text(errors="replace")


def test_memory_is_bounded(server):
    """The tensor memory's budget, and not much more."""
    assert server.memory_bytes() - server.rss_at_start < GROWTH_BYTES_MAX
