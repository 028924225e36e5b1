"""`examples/convert_model.py`, by both ways, and what a server makes of what it writes.

It needs an interpreter that has PyTorch: this one, or the one that NEREID_TORCH_PYTHON names.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc

from conftest import ROOT, run_server
from test_torchscript_served import pytestmark  # noqa: F401  (without a back end there is nothing to serve with)

PYTHON = os.environ.get("NEREID_TORCH_PYTHON", sys.executable)
TOLERANCE = 1e-5
MODULE = '''
import torch


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)
        with torch.no_grad():
            self.linear.weight.copy_(torch.arange(12.0).reshape(3, 4) / 10)
            self.linear.bias.fill_(-1)

    def forward(self, x: torch.Tensor, number: torch.Tensor):
        return torch.relu(self.linear(x)), number * 2


class Branches(torch.nn.Module):
    def forward(self, x: torch.Tensor):
        for _ in range(3):
            if bool(x.sum() < 100):
                x = x * 2
        return x


class Scalar(torch.nn.Module):
    def forward(self, x: torch.Tensor):
        return x.sum()
'''


@pytest.fixture(scope="module")
def convert(tmp_path_factory):
    """Converts a class of the module above; gives the repository and what the program said."""
    asked = subprocess.run([PYTHON, "-c", "import torch"], capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        pytest.skip(f"{PYTHON} has no PyTorch (NEREID_TORCH_PYTHON names an interpreter that has)")
    folder = tmp_path_factory.mktemp("convert")
    (folder / "own.py").write_text(MODULE)

    def convert(name: str, *arguments: str) -> subprocess.CompletedProcess:
        program = [PYTHON, str(ROOT / "examples" / "convert_model.py"), f"own:{name}", "--repository", "models"]
        return subprocess.run([*program, *arguments], cwd=folder, capture_output=True, text=True, check=False)

    convert.repository = folder / "models"
    return convert


def ask(client, model: str, **arrays: np.ndarray):
    """All inputs by their names."""
    inputs = []
    for name, array in arrays.items():
        datatype = {"float32": "FP32", "int64": "INT64"}[array.dtype.name]
        inputs.append(tritonclient.grpc.InferInput(name, list(array.shape), datatype))
        inputs[-1].set_data_from_numpy(array)
    return client.infer(model, inputs)


def test_what_is_converted_is_served(convert, request, tmp_path):
    """Scripted and traced; a loop and a branch by scripting alone."""
    if not (binary := os.environ.get("NEREID_BINARY")):
        pytest.skip("no server: set NEREID_BINARY")
    tensors = ("--input", "4", "--input", "INT64:1", "--max-batch-size", "8")
    for name, way in (("scripted", ()), ("traced", ("--trace",))):
        done = convert("Layer", "--name", name, *tensors, *way)
        assert done.returncode == 0, done.stderr
    done = convert("Branches", "--name", "branches", "--input", "-1")
    assert done.returncode == 0, done.stderr
    # It knows what the protocol cannot carry, and leaves no configuration.
    done = convert("Scalar", "--name", "scalar", "--input", "4", "--max-batch-size", "8")
    assert done.returncode == 1 and "has no batch dimension" in done.stderr, done.stderr
    assert not (convert.repository / "scalar" / "config.pbtxt").exists()
    served = [f"--load-model={name}" for name in ("scripted", "traced", "branches")]
    flags = ("--model-control-mode=explicit", *served)
    running = run_server(binary, [convert.repository], tmp_path / "log", request.session, *flags)
    with tritonclient.grpc.InferenceServerClient(next(running)["grpc"]) as client:
        weights = np.arange(12, dtype=np.float32).reshape(3, 4) / 10
        x = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
        number = np.arange(5, dtype=np.int64).reshape(5, 1)
        for model in ("scripted", "traced"):
            got = ask(client, model, x=x, number=number)
            np.testing.assert_allclose(got.as_numpy("OUTPUT__0"), np.maximum(x @ weights.T - 1, 0), atol=TOLERANCE)
            np.testing.assert_array_equal(got.as_numpy("OUTPUT__1"), number * 2)
        for value, factor in ((1, 8), (30, 4), (200, 1)):
            got = ask(client, "branches", x=np.array([value], dtype=np.float32)).as_numpy("OUTPUT__0")
            np.testing.assert_array_equal(got, [value * factor])
    next(running, None)
