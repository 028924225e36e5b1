"""Models that run in lanes on devices, here on those that the processors stand in for: what they answer, and
what a copy, a launch or a device that fails means to their clients."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import json
import queue
import subprocess
import time
import urllib.request

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from . import models, triton

COLUMNS = 6
STOP_SECONDS_MAX = 15

SCALE = """
extern "C" __global__ void scale(const float* from, float* to, unsigned long long count, float by) {
    const unsigned long long i = blockIdx.x * static_cast<unsigned long long>(blockDim.x) + threadIdx.x;
    if (i < count) to[i] = from[i] * by;
}
"""


def tensors(rest: str = "") -> str:
    """One input and one output of some floats."""
    return (
        f'input [{{ name: "INPUT0" data_type: TYPE_FP32 dims: [ {COLUMNS} ] }}]\n'
        f'output [{{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ {COLUMNS} ] }}]\n{rest}'
    )


# More parts of a batch than a stack has room for.
MANY = 1024
SEQUENCES = "max_batch_size: 8 sequence_batching { max_sequence_idle_microseconds: 60000000 }"
LIMITED = ' rate_limiter { resources [{ name: "R" count: 1 }] }'


def softmax(device: int = 0, options: str = models.batched(), limit: str = "") -> models.Model:
    """A chain of one step on a device."""
    chain = r"""parameters { key: "chain" value: { string_value: "[{\"op\": \"softmax\"}]" } }"""
    group = f"instance_group {{ gpus: [ {device} ]{limit} }}"
    return models.Model(f'backend: "ops"\n{options}\n{chain}\n{group}\n{tensors()}')


def scale() -> models.Model:
    """A kernel of the model's own."""
    parameters = "\n".join(
        f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}'
        for key, value in {"kernel": "scale", "arguments": "INPUT0, OUTPUT0, count(OUTPUT0), 2.5"}.items()
    )
    return models.Model(f'backend: "cuda"\n{models.batched()}\n{parameters}\n{tensors()}')


@pytest.fixture
def repository(tmp_path):
    """A model on each of two devices, and one that compiles its kernel."""
    folder = models.write(tmp_path / "repository", {"first": softmax(0), "second": softmax(1), "scaled": scale()})
    (folder / "scaled" / "1" / "model.cu").write_text(SCALE)
    return folder


@pytest.fixture
def on_devices(start, repository):
    """Starts a server with two such devices."""

    def on_devices(*flags: str, **options):
        return start(repository, "--device=host", "--host-device=count=2", *flags, **options)

    return on_devices


def expected(array: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    powers = np.exp(array - array.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def rows(count: int, seed: int) -> np.ndarray:
    """Rows that tell whose they are."""
    return np.random.default_rng(seed).standard_normal((count, COLUMNS), dtype=np.float32)


def check(server, way: str, model: str, array: np.ndarray, **options) -> None:
    """That a model answers as it should."""
    output = triton.infer(way, server, model, array, **options).as_numpy("OUTPUT0")
    np.testing.assert_allclose(output, expected(array), rtol=1e-5)


def refusal(server, way: str, model: str, **options) -> InferenceServerException:
    """Why a model does not answer."""
    with pytest.raises(InferenceServerException) as caught:
        triton.infer(way, server, model, rows(1, 0), **options)
    return caught.value


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_batches_come_back_from_devices(on_devices, way):
    """To each client its own rows, whatever else was in their batch."""
    server = on_devices()
    config = server.get_json("/v2/models/first/config")
    assert [(group["kind"], group["gpus"]) for group in config["instance_group"]] == [("KIND_GPU", [0])]
    arrays = [rows(1 + seed % 4, seed) for seed in range(60)]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        done = [
            pool.submit(check, server, way, ("first", "second")[number % 2], array)
            for number, array in enumerate(arrays)
        ]
        for each in done:
            each.result()
    scaled = triton.infer(way, server, "scaled", arrays[0]).as_numpy("OUTPUT0")
    np.testing.assert_allclose(scaled, arrays[0] * 2.5)
    statistics = server.get_json("/v2/models/first/stats")["model_stats"][0]
    assert int(statistics["inference_count"]) == sum(array.shape[0] for array in arrays[::2])
    assert int(statistics["inference_stats"]["compute_infer"]["ns"]) > 0


@pytest.mark.parametrize(
    "fault,told",
    [
        ("copy:0", "a copy of 24 bytes on device 0 failed: an injected fault"),
        ("copy:2", "a copy of 24 bytes on device 0 failed: an injected fault"),
        ("launch:0", "kernel 'softmax' failed on device 0: an injected fault"),
    ],
)
def test_what_fails_on_a_device_fails_its_batch_alone(on_devices, fault, told):
    """With what failed, and the next batch runs."""
    server = on_devices(f"--host-device=fail=0:{fault}")
    error = refusal(server, "grpc", "first")
    assert error.message() == told and error.status() == "StatusCode.INTERNAL"
    check(server, "grpc", "first", rows(2, 1))
    check(server, "grpc", "second", rows(2, 2))


def wide() -> models.Model:
    """A chain over 64 columns: of eight rows, 256 bytes each in and out, a device of 2,048 bytes has room for half."""
    model = softmax(options=models.batched(500_000))
    model.config = model.config.replace(f"dims: [ {COLUMNS} ]", "dims: [ 64 ]")
    return model


def check_parts(server) -> None:
    """That `wide` runs what is too large together in parts, down to single requests, and that what is too large by
    itself fails, with what it needed."""
    arrays = [np.random.default_rng(seed).standard_normal((1, 64), dtype=np.float32) for seed in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(check, server, "http", "wide", array) for array in arrays]:
            done.result()
    with pytest.raises(InferenceServerException) as caught:
        triton.infer("http", server, "wide", np.concatenate(arrays))
    assert "device 0 is out of memory: 2048 bytes asked for" in caught.value.message()


def test_a_batch_too_large_for_a_device_runs_in_parts(start, tmp_path):
    """On a device of the host."""
    folder = models.write(tmp_path / "own", {"wide": wide()})
    check_parts(start(folder, "--device=host", "--host-device=memory=2048"))


def test_a_batch_of_many_parts_of_which_none_has_room_fails(start, tmp_path):
    """Down to single requests, all at once."""
    model = wide()
    model.config = model.config.replace(models.batched(500_000), models.batched(500_000, MANY))
    server = start(models.write(tmp_path / "own", {"wide": model}), "--device=host", "--host-device=memory=256")
    told = queue.SimpleQueue()
    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
        given = triton_grpc.InferInput("INPUT0", [1, 64], "FP32").set_data_from_numpy(np.ones((1, 64), np.float32))
        for _ in range(MANY):
            client.async_infer("wide", [given], lambda result, error: told.put(error.message()))
        failures = collections.Counter(told.get(timeout=60) for _ in range(MANY))
    (failure,) = failures
    assert "device 0 is out of memory: 256 bytes asked for" in failure


@pytest.mark.parametrize("strict", ["true", "false"])
def test_a_lost_device_leaves_the_others_serving(on_devices, strict):
    """Its models are unavailable and not ready, those elsewhere are."""
    server = on_devices("--host-device=lose=0:launch:2", f"--strict-readiness={strict}")
    for seed in range(2):
        check(server, "grpc", "first", rows(1, seed))
    told = "model 'first' is unavailable: device 0 is lost: an injected fault"
    for _ in range(3):
        error = refusal(server, "grpc", "first")
        assert (error.message(), error.status()) == (told, "StatusCode.UNAVAILABLE")
    assert refusal(server, "http", "first").status() == "503"
    with contextlib.closing(triton_http.InferenceServerClient(server.http_address)) as client:
        ready = {name: client.is_model_ready(name) for name in ("first", "second")}
        assert ready == {"first": False, "second": True}
        assert client.is_server_live() and client.is_server_ready() == (strict == "false")
    for seed in range(3):
        check(server, "http", "second", rows(3, seed))


@pytest.mark.parametrize(
    "options,limit,request_options",
    [
        (SEQUENCES, "", {"sequence_id": 5, "sequence_start": True, "sequence_end": True}),
        (models.batched(), LIMITED, {}),
    ],
    ids=["sequences", "limited"],
)
def test_a_lost_device_is_told_by_models_outside_lanes_too(start, tmp_path, options, limit, request_options):
    """Those of sequences, and those that take turns: an instance of theirs waits for its batch."""
    chosen = {name: softmax(device, options, limit) for device, name in enumerate(("first", "second"))}
    folder = models.write(tmp_path / "own", chosen)
    flags = ["--device=host", "--host-device=count=2", "--rate-limit=execution_count"]
    server = start(folder, *flags, "--host-device=lose=0:launch:2")
    for seed in range(2):
        check(server, "grpc", "first", rows(1, seed), **request_options)
    told = "model 'first' is unavailable: device 0 is lost: an injected fault"
    for _ in range(3):
        error = refusal(server, "grpc", "first", **request_options)
        assert (error.message(), error.status()) == (told, "StatusCode.UNAVAILABLE")
    with contextlib.closing(triton_http.InferenceServerClient(server.http_address)) as client:
        ready = {name: client.is_model_ready(name) for name in ("first", "second")}
        assert ready == {"first": False, "second": True}
        assert client.is_server_live() and not client.is_server_ready()
    for seed in range(3):
        check(server, "http", "second", rows(1, seed), **request_options)
    server = start(folder, *flags, "--host-device=lose=0:launch:0", "--exit-on-device-loss")
    assert "device 0 is lost" in refusal(server, "grpc", "first", **request_options).message()
    server.process.wait(STOP_SECONDS_MAX)
    assert server.process.returncode == 1


@pytest.mark.parametrize("strategy", ["direct { }", "oldest { max_candidate_sequences: 4 }"])
def test_a_lost_device_ends_its_sequences_and_others_begin_elsewhere(start, tmp_path, strategy):
    """Each client is told, and the sequences of the other device go on."""
    both = softmax(options=SEQUENCES.replace("{", f"{{ {strategy}", 1))
    both.config = both.config.replace("gpus: [ 0 ]", "gpus: [ 0, 1 ]")
    folder = models.write(tmp_path / "own", {"both": both})
    server = start(folder, "--device=host", "--host-device=count=2", "--host-device=lose=0:launch:2")

    def send(sequence: int, flags: str = "", way=check):
        options = {"sequence_start": "s" in flags, "sequence_end": "e" in flags}
        array = () if way is refusal else (rows(1, sequence),)
        return way(server, "grpc", "both", *array, sequence_id=sequence, **options)

    # By turns on the two devices.
    for sequence in (1, 2, 3, 4):
        send(sequence, "s")
    for sequence in (1, 3):
        error = send(sequence, way=refusal)
        assert error.status() == "StatusCode.UNAVAILABLE", error
        assert "device 0 is lost" in error.message()
    for sequence in (2, 4):
        send(sequence)
    for sequence in (1, 5):
        send(sequence, "s")
        send(sequence, "e")
    assert "must specify the START flag" in send(3, way=refusal).message()
    with contextlib.closing(triton_http.InferenceServerClient(server.http_address)) as client:
        assert client.is_model_ready("both")


def test_instances_that_take_turns_go_on_where_a_device_is_left(start, tmp_path):
    """The instance on the device that is lost takes no request away from the other."""
    both = softmax(limit=LIMITED)
    both.config = both.config.replace("gpus: [ 0 ]", "gpus: [ 0, 1 ]")
    folder = models.write(tmp_path / "own", {"both": both})
    server = start(
        folder, "--device=host", "--host-device=count=2", "--rate-limit=execution_count", "--host-device=lose=0:launch:0"
    )
    failures = 0
    for seed in range(30):
        try:
            check(server, "grpc", "both", rows(1, seed))
        except InferenceServerException as error:
            assert error.status() == "StatusCode.UNAVAILABLE"
            failures += 1
    assert failures == 1
    with contextlib.closing(triton_http.InferenceServerClient(server.http_address)) as client:
        assert client.is_model_ready("both")


@pytest.mark.parametrize("kind", ["copy", "allocation"])
def test_the_server_can_end_with_a_device(on_devices, kind):
    """For whoever starts it anew; what is answered before is answered."""
    server = on_devices(f"--host-device=lose=1:{kind}:0", "--exit-on-device-loss")
    check(server, "grpc", "first", rows(1, 1))
    assert "device 1 is lost" in refusal(server, "grpc", "second").message()
    server.process.wait(STOP_SECONDS_MAX)
    assert server.process.returncode == 1
    assert "device 1 is lost: an injected fault; --exit-on-device-loss has ended the server" in server.log.read_text()


def test_a_model_is_loaded_and_unloaded_while_others_run(on_devices):
    """Its lanes come and go."""
    server = on_devices("--model-control-mode=explicit", "--load-model=second")
    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
        for seed in range(5):
            client.load_model("first")
            check(server, "grpc", "first", rows(2, seed))
            client.unload_model("first")
            deadline = time.monotonic() + STOP_SECONDS_MAX
            while client.is_model_ready("first"):
                assert time.monotonic() < deadline
            check(server, "grpc", "second", rows(2, seed))


def test_without_devices_a_chain_runs_on_the_processors(start, tmp_path):
    """As any other model."""
    chain = models.Model(softmax().config.replace("instance_group { gpus: [ 0 ] }", ""))
    server = start(models.write(tmp_path / "own", {"chain": chain}), "--device=none")
    check(server, "http", "chain", rows(2, 1))
    assert server.get_json("/v2/models/chain/config")["instance_group"][0]["kind"] == "KIND_CPU"


def test_a_device_can_be_too_full_for_a_model(on_devices):
    """By the operator's limit, with Triton's words."""
    server = on_devices(
        "--model-load-gpu-limit=0:-1", "--exit-on-error=false", "--strict-readiness=false", "--host-device=memory=4096"
    )
    check(server, "http", "second", rows(1, 1))
    told = "can not create model 'first': memory limit set for GPU 0 has exceeded, model loading is rejected."
    assert told in server.log.read_text()


def timeline_of(server) -> dict:
    """What the server tells of its devices' engines."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/timeline", timeout=10) as answer:
        assert answer.headers["content-type"] == "application/json"
        return json.load(answer)


def check_overlap(timeline: dict) -> None:
    """That a batch was copied while another ran."""
    tracks = {(event["pid"], event["args"]["name"]) for event in timeline["traceEvents"] if event["ph"] == "M"}
    assert tracks >= {(0, "device 0"), (0, "copy in"), (0, "compute"), (0, "copy out")}
    events = [event for event in timeline["traceEvents"] if event["ph"] == "X"]
    assert all(event["dur"] >= 0 and event["name"] == "first" for event in events)
    of_stage = {
        stage: [
            (event["ts"], event["ts"] + event["dur"], event["args"]["batch"])
            for event in events
            if event["cat"] == stage
        ]
        for stage in ("copy in", "compute", "copy out")
    }
    batches = {batch for *_, batch in of_stage["compute"]}
    assert len(batches) >= 8 and all({batch for *_, batch in each} == batches for each in of_stage.values())
    assert any(
        batch != other and begins < ends_other and begins_other < ends
        for begins, ends, batch in of_stage["copy in"]
        for begins_other, ends_other, other in of_stage["compute"]
    )


def test_the_timeline_shows_copies_beside_executions(on_devices, tmp_path):
    """On request, and in a file when the server has ended."""
    file = tmp_path / "timeline.json"
    # A full batch is copied for about ten milliseconds and runs for as long.
    server = on_devices("--host-device=link=20000", "--host-device=launch-us=10000", f"--timeline-file={file}")
    assert timeline_of(server)["traceEvents"] == []
    arrays = [rows(8, seed) for seed in range(12)]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        for done in [pool.submit(check, server, "grpc", "first", array) for array in arrays]:
            done.result()
    check_overlap(timeline_of(server))
    server.stop()
    check_overlap(json.loads(file.read_text()))


def test_the_timeline_keeps_what_was_last(on_devices):
    """As much of it as the operator says."""
    server = on_devices("--timeline-entries=6")
    for seed in range(8):
        check(server, "grpc", "first", rows(2, seed))
    entries = [event for event in timeline_of(server)["traceEvents"] if event["ph"] == "X"]
    assert 0 < len(entries) <= 6


NVML = """
#include <string.h>
typedef struct { unsigned gpu, memory; } rates;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory;
int nvmlInit_v2(void) { return 0; }
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned* count) { *count = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) { *device = (void*)1; return index != 0; }
int nvmlDeviceGetUUID(void* device, char* to, unsigned len) { strncpy(to, "GPU-imagined", len); return 0; }
int nvmlDeviceGetUtilizationRates(void* device, rates* to) { *to = (rates){25, 0}; return 0; }
int nvmlDeviceGetMemoryInfo_v2(void* device, memory* to) { *to = (memory){2, 1000, 0, 900, 100}; return 0; }
int nvmlDeviceGetPowerUsage(void* device, unsigned* to) { *to = 300500; return 0; }
"""


def test_metrics_of_gpus_come_from_the_management_library(start, repository, tmp_path, monkeypatch):
    """Here from one that imagines a GPU which tells no limit and no energy."""
    library = tmp_path / "libnvidia-ml.so.1"
    source = tmp_path / "nvml.c"
    source.write_text(NVML)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    told = {
        "nv_gpu_utilization": 0.25,
        "nv_gpu_memory_total_bytes": 1000,
        "nv_gpu_memory_used_bytes": 100,
        "nv_gpu_power_usage": 300.5,
    }
    for flags, expected in [((), told), (("--allow-gpu-metrics=false",), {})]:
        server = start(repository, "--device=host", "--host-device=count=2", *flags)
        with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10) as answer:
            lines = [line for line in answer.read().decode().splitlines() if line.startswith(("nv_gpu", "nv_energy"))]
        assert dict(line.split('{gpu_uuid="GPU-imagined"} ') for line in lines) == {
            name: str(value) for name, value in expected.items()
        }
