"""What the parameters of TorchScript models do: each shows, or is said not to without a GPU."""

from __future__ import annotations

import collections
import concurrent.futures
import os
import pathlib
import re
import time

import numpy as np
import pytest
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from . import torch_models
from .test_torch import X, doubled, pytestmark  # noqa: F401  (the mark skips this file too)

RUNS = 4
PAGE = os.sysconf("SC_PAGE_SIZE")
SMOOTH = (lambda y: (1 / (1 + np.exp(-y)) * np.tanh(y)))(X * X + 1)
# Large enough for torch to divide the work.
LARGE = np.ones(1 << 18, dtype=np.float32)


@pytest.fixture
def settings(start, tmp_path, monkeypatch):
    """A server that loads the models when told to, whose log has what torch's executors do."""
    sources = ("profiling_graph_executor_impl", "graph_executor", "tensorexpr_fuser")
    monkeypatch.setenv("PYTORCH_JIT_LOG_LEVEL", ":".join(f">>{source}" for source in sources))
    repository = torch_models.write(tmp_path / "settings", torch_models.settings())
    return start(repository, "--model-control-mode=explicit", "--exit-on-error=false")


def load(server, *names: str) -> None:
    """Loads models."""
    client = triton_http.InferenceServerClient(server.http_address)
    for name in names:
        client.load_model(name)


def executed(server, model: str) -> str:
    """What torch's log has of a new model's first runs, after which it is as optimised as it gets."""
    load(server, model)
    begun = server.log.stat().st_size
    for _ in range(RUNS):
        np.testing.assert_allclose(doubled(server, model), SMOOTH, rtol=1e-5)
    return server.log.read_bytes()[begun:].decode(errors="replace")


def threads(server) -> collections.Counter:
    """The threads of the server's process by name; torch's have that of the one that made them."""
    tasks = pathlib.Path(f"/proc/{server.process.pid}/task").glob("*/comm")
    return collections.Counter(task.read_text() for task in tasks)


def page_faults(server) -> int:
    """How many the server's process has had that needed no disk."""
    stat = pathlib.Path(f"/proc/{server.process.pid}/stat").read_text()
    # What follows the name, which may hold spaces.
    return int(stat.rpartition(")")[2].split()[7])


def anonymous_bytes(server) -> int:
    """The resident memory of the server's process that is no file's, as libraries are."""
    status = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
    return 1024 * int(re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE).group(1))


def test_inference_mode_is_on_unless_it_is_off(settings):
    """A module is asked whether the tensors that it makes are inference's."""
    load(settings, "in_inference_mode", "out_of_inference_mode")
    for _ in range(RUNS):
        assert doubled(settings, "in_inference_mode") == [1]
        assert doubled(settings, "out_of_inference_mode") == [0]


def test_executors_do_what_the_parameters_say(settings):
    """By torch's own log. Switches of the process hold for whoever does not ask for others."""
    as_saved = re.compile(r"NoOpt Graph:.*\n.*graph\(%self")
    profiled, fused, old = "prim::profile", "tensorexpr_fuser.cpp", " graph_executor.cpp"
    plain = executed(settings, "plain")
    assert profiled in plain and fused in plain and old not in plain and not as_saved.search(plain)
    not_optimized = executed(settings, "not_optimized")
    assert as_saved.search(not_optimized) and profiled not in not_optimized
    for model, sign, expected in [
        ("not_fused", fused, False),
        ("fused", fused, True),
        ("not_profiled", profiled, False),
        ("profiled", profiled, True),
        ("old_executor", old, True),
        ("new_executor", old, False),
    ]:
        assert (sign in executed(settings, model)) == expected, model


def test_models_that_want_different_switches_take_turns(settings):
    """None fails, and none waits for ever."""
    models = ("fused", "not_fused", "plain", "old_executor", "new_executor")
    load(settings, *models)
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        for got in pool.map(lambda number: doubled(settings, models[number % len(models)]), range(100)):
            np.testing.assert_allclose(got, SMOOTH, rtol=1e-5)


def test_an_operator_has_as_many_threads_as_its_model(settings):
    """One, unless it is given more."""
    load(settings, "one_thread", "three_threads")
    for model, more in (("one_thread", 0), ("three_threads", 2)):
        doubled(settings, model)
        before = threads(settings)
        np.testing.assert_array_equal(doubled(settings, model, LARGE), 2 * LARGE)
        assert (threads(settings) - before).total() == more


def test_forked_tasks_have_as_many_threads_as_the_first_model_says(settings):
    """A second that wants another number does not load."""
    load(settings, "forks")
    before = threads(settings)
    np.testing.assert_array_equal(doubled(settings, "forks"), 2 * X)
    assert (threads(settings) - before)["PTThreadPool\n"] == 3
    with pytest.raises(InferenceServerException, match="runs modules with 3 inter-op threads; 2 cannot be had"):
        load(settings, "forks_otherwise")


def test_memory_between_layers_is_kept_until_the_model_goes(settings):
    """By page faults, which fresh memory costs one for each page, and by what the process holds."""
    load(settings, "plain", "wide")
    doubled(settings, "plain")
    layer, before = 4 * torch_models.WIDE, anonymous_bytes(settings)

    def faults_of_runs() -> int:
        begun = page_faults(settings)
        for _ in range(RUNS):
            assert doubled(settings, "wide", np.ones(1, dtype=np.float32)) == 3 * torch_models.WIDE
        return page_faults(settings) - begun

    assert faults_of_runs() > layer // PAGE
    assert faults_of_runs() < layer // PAGE
    assert anonymous_bytes(settings) - before > layer
    triton_http.InferenceServerClient(settings.http_address).unload_model("wide")
    deadline = time.monotonic() + 10
    while anonymous_bytes(settings) - before > layer and time.monotonic() < deadline:
        time.sleep(0.05)
    assert anonymous_bytes(settings) - before < layer


@pytest.mark.parametrize("model", ["kind_model", "cache_cleaning", "without_cudnn"])
def test_what_is_for_gpus_does_no_harm_without_one(settings, model):
    """What these do shows on a GPU alone."""
    load(settings, model)
    for _ in range(RUNS):
        np.testing.assert_array_equal(doubled(settings, model), 2 * X)
