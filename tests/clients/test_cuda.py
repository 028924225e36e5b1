"""The code for GPUs, from the server down to the driver's calls, on a stand-in for the driver: what it is asked for,
in which order, and whether all is given back. None of this has run on a GPU."""

from __future__ import annotations

import concurrent.futures
import contextlib

import numpy as np
import pytest
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from . import cuda_driver, models, triton
from .test_devices import check, rows, softmax

LOST = 719


@pytest.fixture(scope="session")
def driver_library(tmp_path_factory):
    """The stand-in, built once."""
    return cuda_driver.build(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def gpu_server(start, tmp_path, driver_library, monkeypatch):
    """Starts a server for which the stand-in is the driver; gives it and the driver's accounts."""
    kernels = tmp_path / "kernels.fatbin"
    kernels.write_bytes(b"any image stands for the kernels\0")
    servers = []

    def gpu_server(repository, *flags, **driver):
        report = tmp_path / f"driver-{len(servers)}.json"
        monkeypatch.setenv("LD_LIBRARY_PATH", str(driver_library.parent))
        monkeypatch.setenv("CUDA_STANDIN_REPORT", str(report))
        for name, value in driver.items():
            monkeypatch.setenv(f"CUDA_STANDIN_{name.upper()}", str(value))
        server = start(repository, f"--gpu-kernels={kernels}", *flags)
        servers.append(server)
        return server, cuda_driver.Accounts(report)

    return gpu_server


@pytest.fixture
def repository(tmp_path):
    """A chain on each of two GPUs."""
    return models.write(tmp_path / "repository", {"first": softmax(0), "second": softmax(1)})


def test_batches_go_to_gpus_and_back(gpu_server, repository):
    """With every handle and all memory given back when the models are gone."""
    server, accounts = gpu_server(repository, "--model-control-mode=explicit", "--load-model=*", devices=2)
    arrays = [rows(1 + seed % 4, seed) for seed in range(40)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        done = [
            pool.submit(check, server, "grpc", ("first", "second")[number % 2], array)
            for number, array in enumerate(arrays)
        ]
        for each in done:
            each.result()
    told = accounts.read()
    assert told["faults"] == [] and told["launches"]["softmax"] >= 2 and told["live"]["registered"] == 1
    with contextlib.closing(triton_http.InferenceServerClient(server.http_address)) as client:
        for model in ("first", "second"):
            client.unload_model(model)
    # What is left is the devices' own: a stream each.
    told = accounts.wait(lambda it: it["live"]["allocations"] == 0 and it["live"]["modules"] == 0)
    assert (told["live"]["streams"], told["live"]["events"], told["live"]["graphs"]) == (2, 0, 0)
    assert told["faults"] == []


@pytest.mark.parametrize(
    "struck,told",
    [
        ("cuMemcpyHtoDAsync_v2:1:1", "cuMemcpyHtoDAsync failed on device 0: CUDA_ERROR_INVALID_VALUE"),
        ("cuLaunchKernel:1:1", "kernel 'softmax' failed on device 0: CUDA_ERROR_INVALID_VALUE"),
        ("cuLaunchHostFunc:3:1", "cuLaunchHostFunc failed on device 0: CUDA_ERROR_INVALID_VALUE"),
    ],
)
def test_a_call_that_fails_fails_its_batch_alone(gpu_server, repository, struck, told):
    """With the driver's words, and the next batch runs."""
    server, accounts = gpu_server(repository, "--model-control-mode=explicit", "--load-model=first", fail=struck)
    # Loading has run a batch of its own, which is not counted by what the requests do.
    answers = []
    for seed in range(3):
        try:
            check(server, "grpc", "first", rows(2, seed))
            answers.append("")
        except InferenceServerException as error:
            answers.append(error.message())
    assert sorted(answer[: len(told)] for answer in answers) == ["", "", told], answers
    assert accounts.read()["faults"] == []


def test_a_lost_gpu_makes_its_models_unavailable(gpu_server, repository):
    """Every request is answered, also those that were on the GPU."""
    flags = ("--model-control-mode=explicit", "--load-model=first", "--strict-readiness=false")
    server, accounts = gpu_server(repository, *flags, fail=f"cuLaunchKernel@run:3:{LOST}")
    told = set()
    for seed in range(6):
        try:
            check(server, "grpc", "first", rows(2, seed))
        except InferenceServerException as error:
            told.add((error.status(), error.message()[: len("model 'first' is unavailable: device 0 is lost: ")]))
    assert told == {("StatusCode.UNAVAILABLE", "model 'first' is unavailable: device 0 is lost: ")}
    assert accounts.read()["faults"] == []
    server.stop()
    assert server.process.returncode == 0


def test_a_batch_too_large_for_a_gpu_runs_in_parts(gpu_server, tmp_path):
    """Down to single requests, as on a device of the host."""
    wide = softmax(options=models.batched(500_000))
    wide.config = wide.config.replace("dims: [ 6 ]", "dims: [ 64 ]")
    server, accounts = gpu_server(models.write(tmp_path / "wide", {"wide": wide}), memory=2048)
    arrays = [np.random.default_rng(seed).standard_normal((1, 64), dtype=np.float32) for seed in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(check, server, "http", "wide", array) for array in arrays]:
            done.result()
    with pytest.raises(InferenceServerException) as caught:
        triton.infer("http", server, "wide", np.concatenate(arrays))
    assert "device 0 is out of memory: 2048 bytes asked for" in caught.value.message()
    assert accounts.read()["faults"] == []
