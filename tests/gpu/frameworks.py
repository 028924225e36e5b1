"""ONNX and TorchScript models in lanes, end to end: their results against numpy's, then load over gRPC and shared
memory, with CUDA graphs and without.

    python3 tests/gpu/frameworks.py NEREID [--device=host] [--seconds=10]

NEREID_BACKEND_DIR names the back ends; one that is not there is left out, with a line that says so. Needs numpy."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import urllib.request

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "gpu"), str(ROOT / "tests"), str(ROOT / "examples")]

import serving  # noqa: E402  (the paths to them are only known here)
import torchscript_file  # noqa: E402
from clients import onnx_file  # noqa: E402

COLUMNS = 1024
ROWS_MAX = 32
TOLERANCE = 1e-3


def config(backend: str, graphs: bool) -> str:
    """A layer of a network, its outputs' shape known."""
    return f"""
backend: "{backend}"
max_batch_size: {ROWS_MAX}
input {{ name: "x" data_type: TYPE_FP32 dims: {COLUMNS} }}
output {{ name: "y" data_type: TYPE_FP32 dims: {COLUMNS} }}
dynamic_batching {{ }}
instance_group {{ kind: KIND_GPU count: 1 gpus: 0 }}
optimization {{ cuda {{ graphs: {str(graphs).lower()} }} }}
"""


def weights() -> np.ndarray:
    """The same for all models."""
    return np.random.default_rng(0).standard_normal((COLUMNS, COLUMNS)).astype(np.float32) / COLUMNS**0.5


def onnx() -> bytes:
    """A layer as ONNX has it."""
    parts = [
        onnx_file.weights("w", weights()),
        onnx_file.node("MatMul", ["x", "w"], "product"),
        onnx_file.node("Relu", ["product"], "y"),
    ]
    return onnx_file.model(parts, onnx_file.FLOAT, ["N", COLUMNS], ["N", COLUMNS])


def torchscript() -> bytes:
    """The same as a module."""
    code = (
        'class Layer(Module):\n  __parameters__ = []\n  __buffers__ = ["w"]\n  w : Tensor\n  training : bool\n'
        "  def forward(self: __torch__.Layer, x: Tensor) -> Tensor:\n"
        "    return torch.relu(torch.matmul(x, self.w))\n"
    )
    attributes = {"w": torchscript_file.Tensor((COLUMNS, COLUMNS), weights().tobytes()), "training": False}
    return torchscript_file.write(code, torchscript_file.Module("__torch__.Layer", attributes))


def write(folder: pathlib.Path, backends: pathlib.Path) -> list[str]:
    """A repository of what the back ends can serve."""
    chosen = []
    for backend, file, content in (("onnxruntime", "model.onnx", onnx()), ("pytorch", "model.pt", torchscript())):
        if not (backends / backend).is_dir():
            print(f"skipped: {backend}, which is not in {backends}")
            continue
        for graphs in (False, True) if backend == "onnxruntime" else (False,):
            name = f"{backend}{'_graphs' if graphs else ''}"
            (folder / name / "1").mkdir(parents=True)
            (folder / name / "1" / file).write_bytes(content)
            (folder / name / "config.pbtxt").write_text(config(backend, graphs))
            chosen.append(name)
    return chosen


def check(url: str, model: str) -> None:
    """Batches of several sizes, each several times: the later ones by a graph."""
    for rows in (1, 7, ROWS_MAX):
        for seed in range(4):
            x = np.random.default_rng(seed).standard_normal((rows, COLUMNS)).astype(np.float32)
            tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
            body = json.dumps({"inputs": [tensor]}).encode()
            with urllib.request.urlopen(f"{url}/v2/models/{model}/infer", body, timeout=60) as answer:
                output = json.load(answer)["outputs"][0]
            got = np.array(output["data"], dtype=np.float32).reshape(output["shape"])
            np.testing.assert_allclose(got, np.maximum(x @ weights(), 0), atol=TOLERANCE, rtol=TOLERANCE)


def used_mib() -> str:
    """The memory in use on all GPUs."""
    if not shutil.which("nvidia-smi"):
        return "unknown"
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return "+".join(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split())


def main() -> None:
    """Prints what `nereid bench` measures of each model in each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nereid", type=pathlib.Path)
    parser.add_argument("--device", choices=("gpu", "host"), default="gpu")
    parser.add_argument("--seconds", type=int, default=10)
    options = parser.parse_args()
    backends = pathlib.Path(os.environ.get("NEREID_BACKEND_DIR") or pathlib.Path.home() / ".local/share/nereid/backends")
    ways = ["grpc", "shm", *(["cuda-shm"] if options.device == "gpu" else [])]
    with tempfile.TemporaryDirectory() as folder:
        repository = pathlib.Path(folder, "models")
        chosen = write(repository, backends)
        if not chosen:
            return
        flags = (f"--device={options.device}", "--allow-client-shm=true")
        with serving.Server(options.nereid, pathlib.Path(folder), repository, *flags) as server:
            for model in chosen:
                check(f"http://{server.http}", model)
                print(f"== {model}: right", flush=True)
                for way in ways:
                    before = used_mib()
                    bench = [options.nereid, "bench", "-m", model, "-i", way, "-u", server.grpc, "-b", "1"]
                    load = ["--concurrency-range=64", f"--measurement-interval={options.seconds * 1000}"]
                    subprocess.run([*bench, *load, "-r", "1", "-s", "900"], check=True)
                    print(f"MiB in use on the GPUs before and after: {before}, {used_mib()}", flush=True)


if __name__ == "__main__":
    main()
