"""Python models that tests write, and the processes of a server that runs them."""

from __future__ import annotations

import os
import pathlib
import sys
import time

import tritonclient.grpc as triton_grpc

# NEREID_TEST_INTERPRETER has another one run the models.
INTERPRETER = f"--backend-config=python,interpreter={os.environ.get('NEREID_TEST_INTERPRETER', sys.executable)}"
WAY = """backend: "python"
input [{ name: "WAY" data_type: TYPE_STRING dims: [ 1 ] }]
output [{ name: "OUTPUT" data_type: TYPE_STRING dims: [ 1 ] }]
"""
ECHO = """
import numpy as np
import triton_python_backend_utils as pb_utils

def output(text):
    return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([text], np.object_))])
"""


def write(folder: pathlib.Path, name: str, config: str, source: str) -> None:
    """Writes a model."""
    (folder / name / "1").mkdir(parents=True)
    (folder / name / "config.pbtxt").write_text(config)
    (folder / name / "1" / "model.py").write_text(source)


def processes(server) -> dict[str, int]:
    """The processes of a server's instances, by their names."""
    found = {}
    for folder in pathlib.Path("/proc").iterdir():
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if folder.name.isdigit() and int(parent) == server.process.pid:
                found[(folder / "cmdline").read_text().split("\0")[-2]] = int(folder.name)
        except (OSError, IndexError):
            continue
    return found


def is_ready(server, model: str) -> bool:
    """Whether a model is ready."""
    with triton_grpc.InferenceServerClient(server.grpc_address) as client:
        return client.is_model_ready(model)


def wait_until(what, seconds_max: float = 60) -> None:
    """Waits."""
    deadline = time.monotonic() + seconds_max
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
