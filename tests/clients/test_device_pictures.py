"""Chains that begin with files and go on on a device: the files are decoded on the processors, each request by
itself, and what follows runs where the batch is."""

from __future__ import annotations

import concurrent.futures
import json
import pathlib
import sys
import urllib.request

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from . import models, triton

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "gpu"), str(ROOT / "tests")]

import serving  # noqa: E402  (the paths to it are only known here)

SIDE = 8
STEPS = [
    {"op": "decode"},
    {"op": "resize", "size": [SIDE, SIDE]},
    {"op": "normalize", "scale": 0.25, "mean": 1.5},
    {"op": "layout", "to": "CHW"},
]


def chain(kind: str, options: str = "", delay_us: int = 0) -> models.Model:
    """The chain at a place."""
    steps = json.dumps(STEPS).replace('"', '\\"')
    return models.Model(
        f'backend: "ops" {models.batched(delay_us)} {options}\n'
        f'parameters {{ key: "chain" value: {{ string_value: "{steps}" }} }}\n'
        f"instance_group {{ kind: {kind} }}\n"
        'input [{ name: "FILE" data_type: TYPE_STRING dims: [ 1 ] }]\n'
        f'output [{{ name: "OUTPUT" data_type: TYPE_FP32 dims: [ 3, {SIDE}, {SIDE} ] }}]\n'
    )


def files(seed: int) -> np.ndarray:
    """One to three pictures of different sizes."""
    made = [serving.png(9 + seed + row, 12 + row, seed) for row in range(1 + seed % 3)]
    return np.array(made, dtype=np.object_).reshape(-1, 1)


def run(server, model: str, given: np.ndarray) -> np.ndarray:
    """What a chain makes of files."""
    return triton.infer("grpc", server, model, given, "BYTES", input_name="FILE").as_numpy("OUTPUT")


def launches(server) -> int:
    """How often a device has run something."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/timeline", timeout=10) as answer:
        events = json.load(answer)["traceEvents"]
    return sum(event.get("cat") == "compute" for event in events)


@pytest.mark.parametrize("graphs", [False, True])
def test_files_are_decoded_and_the_rest_runs_on_the_device(start, tmp_path, graphs):
    """As on the processors, of many requests at once."""
    options = "optimization { cuda { graphs: true } }" if graphs else ""
    chosen = {"device": chain("KIND_GPU", options), "processors": chain("KIND_CPU")}
    server = start(models.write(tmp_path / "own", chosen), "--device=host")
    given = [files(seed) for seed in range(24)]
    expected = [run(server, "processors", each) for each in given]
    assert launches(server) == 0
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for want, got in zip(expected, pool.map(lambda each: run(server, "device", each), given)):
            np.testing.assert_allclose(got, want, atol=1e-5)
    assert launches(server) > 0


def test_a_file_at_fault_fails_its_request_and_no_other_of_the_batch(start, tmp_path):
    """With the words that the processors have for it; a batch of nothing else is answered too."""
    chosen = {"device": chain("KIND_GPU", delay_us=300_000), "processors": chain("KIND_CPU")}
    server = start(models.write(tmp_path / "own", chosen), "--device=host")
    bad = np.array([[b"no picture"]], dtype=np.object_)
    with pytest.raises(InferenceServerException) as told:
        run(server, "processors", bad)

    def attempt(number: int):
        try:
            return run(server, "device", bad if number % 2 else files(0))
        except InferenceServerException as error:
            return error.status(), error.message()

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(attempt, range(6)))
    right = run(server, "processors", files(0))
    for number, answer in enumerate(answers):
        if number % 2:
            assert answer == (told.value.status(), told.value.message())
        else:
            np.testing.assert_allclose(answer, right, atol=1e-5)
    assert attempt(1) == (told.value.status(), told.value.message())
    # What failed has left nothing behind: the next batch runs.
    np.testing.assert_allclose(attempt(0), right, atol=1e-5)
    [statistics] = server.get_json("/v2/models/device/stats")["model_stats"]
    assert (int(statistics["inference_stats"]["success"]["count"]), int(statistics["inference_stats"]["fail"]["count"])) == (4, 4)
    assert int(statistics["execution_count"]) < 4


def test_on_the_stand_in_for_a_gpu(gpu_server, tmp_path):
    """With every call in its place, and no copy that the driver would have to wait for."""
    repository = models.write(tmp_path / "own", {"device": chain("KIND_GPU"), "processors": chain("KIND_CPU")})
    server, accounts = gpu_server(repository)
    for seed in range(6):
        np.testing.assert_allclose(run(server, "device", files(seed)), run(server, "processors", files(seed)), atol=1e-5)
    told = accounts.read()
    assert told["faults"] == [] and told["launches"]["image_f32"] == 6
