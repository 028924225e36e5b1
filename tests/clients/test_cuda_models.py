"""What ONNX Runtime is asked of a GPU, on stand-ins for the driver and for the execution provider: the models run on
the processors, where the GPU's memory is. None of this has run on a GPU."""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess

import numpy as np
import pytest
import tritonclient.http as triton_http

from . import device_memory, models
from .test_device_models import COLUMNS, check, check_in_device_memory, check_many, kinds, needs_onnxruntime, onnx, rows, untold

SOURCE = pathlib.Path(__file__).resolve().parents[1] / "cuda" / "onnxruntime" / "provider.cpp"
GRAPHS = "optimization { cuda { graphs: true } } instance_group { gpus: [ 0 ] }"


def true_folder() -> pathlib.Path:
    """Where the true library lies."""
    folder = os.environ.get("NEREID_BACKEND_DIR") or os.path.expanduser("~/.local/share/nereid/backends")
    return pathlib.Path(folder, "onnxruntime")


@pytest.fixture
def report(tmp_path, monkeypatch):
    """Has the server find the stand-in, which writes down there what it is asked for."""
    folder = tmp_path / "backends" / "onnxruntime"
    folder.mkdir(parents=True)
    (library,) = true_folder().glob("libonnxruntime.so.*")
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Werror", "-ldl"]
    subprocess.run([os.environ.get("CXX", "c++"), SOURCE, "-o", folder / library.name, *flags], check=True)
    (folder / "libonnxruntime_providers_cuda.so").touch()
    report = tmp_path / "onnxruntime.txt"
    monkeypatch.setenv("NEREID_BACKEND_DIR", str(folder.parent))
    monkeypatch.setenv("ORT_STANDIN_TRUTH", str(library))
    monkeypatch.setenv("ORT_STANDIN_REPORT", str(report))
    return report


@needs_onnxruntime
def test_onnx_models_run_on_their_instances_streams(gpu_server, report, tmp_path):
    """With their settings, without waiting, and all is given back."""
    settings = "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
        for key, value in {"gpu_mem_limit": "1048576", "cudnn_conv_algo_search": "1"}.items()
    )
    folder = models.write(tmp_path / "own", {"m": onnx(settings)})
    server, accounts = gpu_server(folder, "--model-control-mode=explicit", "--load-model=m", devices=2)
    assert kinds(server, "m") == [("KIND_GPU", [0, 1])]
    check_many(server, "grpc", "m")
    told = report.read_text().splitlines()
    options = [line.removeprefix("option ") for line in told if line.startswith("option ")]
    assert sorted(options) == sorted(
        [f"device_id {device}" for device in range(2)]
        + ["stream given", "gpu_mem_limit 1048576", "cudnn_conv_algo_search HEURISTIC"] * 2
    )
    assert {"memory of GPU 0", "memory of GPU 1", "run disable_synchronize_execution_providers 1"} <= set(told)
    assert "run on the stream" in told and "run without a stream" not in told
    assert not any("gpu_graph_id" in line for line in told)
    assert accounts.read()["faults"] == []
    with contextlib.closing(triton_http.InferenceServerClient(server.http_address)) as client:
        client.unload_model("m")
    told = accounts.wait(lambda it: it["live"]["allocations"] == 0 and it["live"]["streams"] == 2)
    assert told["faults"] == []


@needs_onnxruntime
def test_onnx_runtime_captures_what_has_the_same_places(gpu_server, report, tmp_path):
    """A graph for each number of rows in each lane, and the same again for the same."""
    folder = models.write(tmp_path / "own", {"m": onnx(GRAPHS)})
    server, accounts = gpu_server(folder, "--device-lanes=1")
    for seed in range(12):
        check(server, "http", "m", rows(1 + seed % 3, seed))
    told = report.read_text().splitlines()
    assert "option enable_cuda_graph 1" in told
    graphs = [line.split()[-1] for line in told if line.startswith("run gpu_graph_id")]
    # The lane grows at most once for each size, after which all is where it was.
    assert len(graphs) == 12 and graphs[-3:] == graphs[-6:-3] and len(set(graphs[-3:])) == 3
    assert accounts.read()["faults"] == []


@needs_onnxruntime
@pytest.mark.parametrize("model", ["known", "unknown"])
def test_tensors_in_device_memory_stay_there(gpu_server, report, driver_library, tmp_path, model):
    """But for an output whose shape only the run tells, which goes by way of the host."""
    chosen = {"known": onnx(delay_us=20_000), "unknown": untold()}
    flags = ("--allow-client-shm=true", "--model-control-mode=explicit", f"--load-model={model}")
    server, accounts = gpu_server(models.write(tmp_path / "own", chosen), *flags, devices=1)
    size = 40 * 8 * 16 * COLUMNS
    with contextlib.closing(device_memory.CudaMemory(str(driver_library), size)) as memory:
        check_in_device_memory(server, memory, model, "y", lambda array: np.maximum(array, 0))
    assert "run on the stream" in report.read_text()
    told = accounts.wait(lambda it: it["live"]["opened"] == 0)
    assert told["faults"] == []
    launches, copies_out = told["launches"], told["calls"].get("cuMemcpyDtoHAsync_v2", 0)
    assert 0 < launches["gather"] <= 40
    if model == "known":
        assert launches["scatter"] == launches["gather"] and copies_out == 0
    else:
        assert "scatter" not in launches and copies_out == launches["gather"]
        assert report.read_text().count("an output on the GPU") == copies_out
    with contextlib.closing(triton_http.InferenceServerClient(server.http_address)) as client:
        client.unload_model(model)
    told = accounts.wait(lambda it: it["live"]["allocations"] == 0)
    assert told["faults"] == []


@needs_onnxruntime
def test_a_library_without_cuda_says_what_it_has(gpu_server, tmp_path):
    """And models that run anywhere run on the processors."""
    chosen = {"anywhere": onnx(), "there": onnx("instance_group { kind: KIND_GPU }")}
    flags = ("--exit-on-error=false", "--strict-readiness=false")
    server, accounts = gpu_server(models.write(tmp_path / "own", chosen), *flags, devices=1)
    assert kinds(server, "anywhere") == [("KIND_CPU", [])]
    check(server, "grpc", "anywhere", rows(3, 1))
    told = server.log.read_text()
    assert "failed to load model 'there' on GPU 0: " in told and "has no CUDAExecutionProvider, only" in told
    assert accounts.read()["faults"] == []
