"""The code for GPUs, from the server down to the driver's calls, on a stand-in for the driver: what it is asked for,
in which order, and whether all is given back. None of this has run on a GPU."""

from __future__ import annotations

import concurrent.futures
import contextlib

import numpy as np
import pytest
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from . import models, triton
from .test_devices import SCALE, check, check_parts, rows, scale, softmax, wide

LOST = 719


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
    # What is left is the devices' own: a stream each, two for copies beside the batches, and the two kernels
    # that move tensors.
    told = accounts.wait(lambda it: it["live"]["allocations"] == 0 and it["live"]["modules"] == 2 * 2)
    assert (told["live"]["streams"], told["live"]["events"], told["live"]["graphs"]) == (3 * 2, 0, 0)
    assert told["faults"] == []


def test_a_kernel_of_a_model_is_compiled_loaded_and_captured(gpu_server, tmp_path):
    """By the stand-in for NVRTC; with graphs its launches are noted once and run again."""
    graphs = models.Model(scale().config + "optimization { cuda { graphs: true } }")
    repository = models.write(tmp_path / "own", {"scaled": scale(), "captured": graphs, "broken": scale()})
    for model in ("scaled", "captured", "broken"):
        (repository / model / "1" / "model.cu").write_text(SCALE if model != "broken" else SCALE.replace("by;", "by"))
    flags = ("--exit-on-error=false", "--strict-readiness=false")
    server, accounts = gpu_server(repository, *flags)
    assert "expected" in server.log.read_text() and "failed to load 'broken'" in server.log.read_text()
    for seed in range(6):
        for model in ("scaled", "captured"):
            array = rows(1 + seed % 2, seed)
            np.testing.assert_allclose(triton.infer("grpc", server, model, array).as_numpy("OUTPUT0"), array * 2.5)
    told = accounts.read()
    assert told["faults"] == [] and told["calls"]["cuGraphLaunch"] >= 4 and told["live"]["graphs"] >= 1


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


@pytest.mark.parametrize("memory", [2048, 1024])
def test_a_batch_too_large_for_a_gpu_runs_in_parts(gpu_server, tmp_path, memory):
    """Down to single requests, as on a device of the host; and no copy of a part is one that the driver would hold the
    server up for."""
    server, accounts = gpu_server(models.write(tmp_path / "wide", {"wide": wide()}), memory=memory)
    check_parts(server)
    told = accounts.read()
    assert told["faults"] == [] and told["pageable"] == {}, told
