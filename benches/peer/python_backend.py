"""The models of the comparison that are written in Python, and what the real server needs to run them."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys

import servers

HERE = pathlib.Path(__file__).resolve().parent
FOLDER = servers.BACKENDS / "python"
# How often `python_calls` calls another model in one request.
CALLS = 100

TENSORS = """input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] }]
output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] }]
"""
IDENTITY = """import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            values = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", values)]))
        return responses
"""
CALLER = f"""import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([self.called(request)]) for request in requests]

    def called(self, request):
        tensor = pb_utils.get_input_tensor_by_name(request, "INPUT0")
        for _ in range({CALLS}):
            call = pb_utils.InferenceRequest(
                model_name="identity",
                requested_output_names=["OUTPUT0"],
                inputs=[pb_utils.Tensor("INPUT0", tensor.as_numpy())],
            )
            response = call.exec()
            if response.has_error():
                raise pb_utils.TritonModelException(response.error().message())
            output = pb_utils.get_output_tensor_by_name(response, "OUTPUT0")
        return pb_utils.Tensor("OUTPUT0", output.as_numpy())
"""
MODELS = {
    "python_identity": (IDENTITY, ""),
    "python_identity_batched": (IDENTITY, "dynamic_batching { }\n"),
    "python_calls": (CALLER, ""),
}


def write_models(folder: pathlib.Path, names: tuple[str, ...] = tuple(MODELS)) -> pathlib.Path:
    """Adds these models to a repository."""
    for name in names:
        source, scheduling = MODELS[name]
        (folder / name / "1").mkdir(parents=True, exist_ok=True)
        (folder / name / "1" / "model.py").write_text(source)
        (folder / name / "config.pbtxt").write_text(
            f'backend: "python"\nmax_batch_size: 64\n{scheduling}{TENSORS}'
            "instance_group [{ kind: KIND_CPU count: 1 }]\n"
        )
    return folder


def flags(binary: pathlib.Path) -> tuple[str, ...]:
    """What a server has to be told to run them with the Python that runs this."""
    return () if binary == servers.TRITON else (f"--backend-config=python,interpreter={sys.executable}",)


def prepare() -> str | None:
    """Puts the real server's Python back end together for the Python that runs this, once.

    Returns why that cannot be, if it cannot.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    done = FOLDER / "python_version"
    if done.is_file() and done.read_text() == version:
        return None
    server = servers.TRITON.parents[1]
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        return f"the real server has no stub for Python {version}"
    shutil.rmtree(FOLDER, ignore_errors=True)
    shutil.copytree(server / "backends" / "python", FOLDER)
    shutil.copy2(stub, FOLDER)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    pip += ["--only-binary=:all:", "--require-hashes", "--target", str(FOLDER), "-r", str(HERE / "python_backend.txt")]
    installed = subprocess.run(pip, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if installed.returncode != 0:
        return f"the NumPy that its stub needs cannot be had: {installed.stdout.strip().splitlines()[-1]}"
    done.write_text(version)
    return None
