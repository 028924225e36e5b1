"""Host policies: where the threads of instances run."""

from __future__ import annotations

import os
import pathlib
import subprocess

import numpy as np
import pytest
import tritonclient.http as triton_http

from . import models

NAMED = 'instance_group [ { kind: KIND_CPU, host_policy: "lane" } ]'


@pytest.fixture
def repository(tmp_path):
    """A model of a policy of its own, and one of the usual one."""
    chosen = {"lane": models.Model(models.identity(NAMED)), "fp32": models.identity_models()["fp32"]}
    return models.write(tmp_path / "repository", chosen)


def _threads(server) -> dict[str, str]:
    """The processors that each thread may run on, by its name."""
    found = {}
    for status in pathlib.Path(f"/proc/{server.process.pid}/task").glob("*/status"):
        fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        found[fields["Name"]] = fields["Cpus_allowed_list"]
    return found


def test_an_instance_runs_where_its_policy_says(start, repository):
    """On its own thread, which is bound; a model of another policy stays on the event loops."""
    core = max(os.sched_getaffinity(0))
    server = start(repository, f"--host-policy=lane,cpu-cores={core}")
    threads = _threads(server)
    assert [cores for name, cores in threads.items() if name.startswith("lane")] == [str(core)]
    assert not [name for name in threads if name.startswith("fp32")]
    array = np.ones(3, dtype=np.float32)
    client = triton_http.InferenceServerClient(server.http_address)
    tensor = triton_http.InferInput("INPUT0", [3], "FP32")
    tensor.set_data_from_numpy(array)
    np.testing.assert_array_equal(client.infer("lane", [tensor]).as_numpy("OUTPUT0"), array)


def test_an_instance_runs_on_the_node_of_its_policy(start, repository):
    """On any processor of it that the server may use."""
    server = start(repository, "--host-policy=lane,numa-node=0")
    nodes = pathlib.Path("/sys/devices/system/node/node0/cpulist")
    cores = os.sched_getaffinity(0)
    if nodes.is_file():
        cores &= _cores(nodes.read_text())
    assert [_cores(found) for name, found in _threads(server).items() if name.startswith("lane")] == [cores]


def _cores(text: str) -> set[int]:
    ranges = (each.split("-") for each in text.strip().split(","))
    return {core for bounds in ranges for core in range(int(bounds[0]), int(bounds[-1]) + 1)}


@pytest.mark.parametrize("pinned", ["true", "false"])
def test_threads_have_cores_of_their_own_or_not(start, repository, pinned):
    """As the operator says; the threads of a host policy are where that says either way."""
    core = max(os.sched_getaffinity(0))
    server = start(repository, f"--pin-threads={pinned}", f"--host-policy=lane,cpu-cores={core}")
    threads = _threads(server)
    loops = [_cores(cores) for name, cores in threads.items() if name.startswith("reactor-")]
    # The last is that of the metrics, which has no core of its own.
    assert len(loops) == 3
    one_each = [len(cores) for cores in loops[:2]] == [1, 1]
    assert one_each if pinned == "true" else all(cores == os.sched_getaffinity(0) for cores in loops)
    assert [cores for name, cores in threads.items() if name.startswith("lane")] == [str(core)]


@pytest.mark.parametrize("setting", ["cpu-cores=4095", "numa-node=63"])
def test_processors_that_are_not_there_end_the_start(binary, repository, setting):
    """With a message that names the policy."""
    flags = [f"--model-repository={repository}", f"--host-policy=lane,{setting}"]
    done = subprocess.run([binary, *flags], capture_output=True, text=True, timeout=20)
    assert done.returncode != 0
    assert "policy 'lane'" in done.stderr
