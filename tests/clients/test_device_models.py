"""Models of frameworks in lanes on devices, here on those that the processors stand in for: they answer as they
do without devices, and what fails there fails as it does for other models."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import pathlib

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.utils.shared_memory as system_memory
from tritonclient.utils import InferenceServerException

from . import device_memory, models, onnx_file, torch_models, triton

needs_onnxruntime = pytest.mark.skipif(
    not models.has_onnxruntime(), reason="the ONNX Runtime back end is not installed: NEREID_BACKEND_DIR names it"
)
BRIDGE = pathlib.Path(
    os.environ.get("NEREID_BACKEND_DIR") or os.path.expanduser("~/.local/share/nereid/backends"),
    "pytorch/libnereid_pytorch.so",
)
needs_torch = pytest.mark.skipif(
    not BRIDGE.is_file(), reason=f"there is no {BRIDGE}: `make backend-pytorch` builds it (NEREID_BACKEND_DIR names it)"
)
COLUMNS = 4
TENSORS = (("input", "x"), ("output", "y"))
WARM_UP = (
    'model_warmup { name: "zeros" batch_size: 2 inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 4 ]'
    " zero_data: true } } }"
)
# Batches are filled up with rows of zeros.
ALLOWED = 'parameters { key: "allowed_batch_sizes" value { string_value: "4,8" } }'


def relu(y: str = "N", columns: int = COLUMNS) -> bytes:
    """Rows of numbers, negative ones cut off. What the file calls the rows of the output may foretell nothing."""
    return onnx_file.model([onnx_file.node("Relu", ["x"], "y")], onnx_file.FLOAT, ["N", columns], [y, columns])


def onnx(options: str = "", y: str = "N", columns: int = COLUMNS, delay_us: int = 0) -> models.Model:
    """A model that cuts off negative numbers."""
    tensors = "".join(f'{kind} [{{ name: "{name}" data_type: TYPE_FP32 dims: [ {columns} ] }}]\n' for kind, name in TENSORS)
    config = f'backend: "onnxruntime" {models.batched(delay_us)} {options}\n{tensors}'
    return models.Model(config, {1: relu(y, columns)})


def untold() -> models.Model:
    """The same, of whose output nothing tells the length of a row."""
    file = onnx_file.model([onnx_file.node("Relu", ["x"], "y")], onnx_file.FLOAT, ["N", "given"], ["N", "made"])
    tensors = "".join(f'{kind} [{{ name: "{name}" data_type: TYPE_FP32 dims: [ -1 ] }}]\n' for kind, name in TENSORS)
    return models.Model(f'backend: "onnxruntime" {models.batched(20_000)}\n{tensors}', {1: file})


def rows(count: int, seed: int, columns: int = COLUMNS) -> np.ndarray:
    """Rows that tell whose they are."""
    return np.random.default_rng(seed).standard_normal((count, columns), dtype=np.float32)


def check(server, way: str, model: str, array: np.ndarray) -> None:
    """That a model cuts off negative numbers."""
    output = triton.infer(way, server, model, array, input_name="x").as_numpy("y")
    np.testing.assert_array_equal(output, np.maximum(array, 0))


def check_many(server, way: str, model: str, count: int = 40) -> None:
    """The same of many requests at once."""
    arrays = [rows(1 + seed % 4, seed) for seed in range(count)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(check, server, way, model, array) for array in arrays]:
            done.result()


def kinds(server, model: str) -> list:
    """Where the instances of a model are."""
    config = server.get_json(f"/v2/models/{model}/config")
    return [(group["kind"], group["gpus"]) for group in config["instance_group"]]


@needs_onnxruntime
@pytest.mark.parametrize("way", ["http", "grpc"])
def test_onnx_models_run_in_lanes(start, tmp_path, way):
    """Where the file tells the output's shape, where it does not, and where it is wrong about it."""
    chosen = {
        "known": onnx(),
        "unknown": onnx(y="M"),
        "here": onnx("instance_group { kind: KIND_CPU }"),
        "twice": onnx(f"instance_group {{ count: 2 gpus: [ 1 ] }}\n{WARM_UP}"),
        "alone": onnx(ALLOWED),
        "bare": models.Model(None, {1: relu()}),
        "onnx_strings": models.Model(None, {1: onnx_file.strings()}),
    }
    server = start(models.write(tmp_path / "own", chosen), "--device=host", "--host-device=count=2")
    assert kinds(server, "known") == [("KIND_GPU", [0, 1])]
    assert kinds(server, "bare") == [("KIND_GPU", [0, 1])]
    assert kinds(server, "here") == [("KIND_CPU", [])]
    for model in ("known", "unknown", "twice", "alone", "bare", "here"):
        check_many(server, way, model)
        statistics = server.get_json(f"/v2/models/{model}/stats")["model_stats"][0]
        assert int(statistics["inference_count"]) == sum(1 + seed % 4 for seed in range(40))
        assert int(statistics["inference_stats"]["compute_infer"]["ns"]) > 0
    # Strings lie on the host, whatever the instance group says.
    x = np.array([[b"a"], [b""], [b"long" * 300]], dtype=np.object_)
    shape = (3, 1) if server.get_json("/v2/models/onnx_strings/config")["input"][0]["dims"] else (3,)
    x = x.reshape(shape)
    got = triton.infer(way, server, "onnx_strings", x, "BYTES", input_name="x").as_numpy("y")
    np.testing.assert_array_equal(got, x)


@needs_onnxruntime
def test_onnx_models_in_lanes_take_and_give_shared_memory(start, tmp_path):
    """Inputs and outputs in a region of the client's."""
    folder = models.write(tmp_path / "own", {"known": onnx(), "unknown": onnx(y="M")})
    server = start(folder, "--device=host", "--allow-client-shm=true")
    array = rows(3, 5)
    region = system_memory.create_shared_memory_region("r", f"/nereid-lanes-{server.grpc_port}", 2 * array.nbytes)
    try:
        system_memory.set_shared_memory_region(region, [array])
        client = triton_grpc.InferenceServerClient(server.grpc_address)
        client.register_system_shared_memory("r", f"/nereid-lanes-{server.grpc_port}", 2 * array.nbytes)
        for model in ("known", "unknown"):
            given = triton_grpc.InferInput("x", list(array.shape), "FP32")
            given.set_shared_memory("r", array.nbytes)
            wanted = triton_grpc.InferRequestedOutput("y")
            wanted.set_shared_memory("r", array.nbytes, array.nbytes)
            client.infer(model, [given], outputs=[wanted])
            got = system_memory.get_contents_as_numpy(region, np.float32, array.shape, array.nbytes)
            np.testing.assert_array_equal(got, np.maximum(array, 0))
            system_memory.set_shared_memory_region(region, [np.zeros_like(array)], array.nbytes)
        client.unregister_system_shared_memory("r")
    finally:
        system_memory.destroy_shared_memory_region(region)


def check_in_device_memory(server, memory, model: str, output: str, expect) -> None:
    """That many requests at once find their inputs and leave their outputs in memory of the device, each its own."""
    size, requests = 16 * COLUMNS, 40
    arrays = [rows(1 + seed % 4, seed) for seed in range(requests)]
    memory.write(bytes(requests * 8 * size))
    for seed, array in enumerate(arrays):
        memory.write(array.tobytes(), seed * 8 * size)

    def run(seed: int) -> None:
        array, at = arrays[seed], seed * 8 * size
        given = triton_grpc.InferInput("x", list(array.shape), "FP32")
        given.set_shared_memory("r", array.nbytes, at)
        wanted = triton_grpc.InferRequestedOutput(output)
        wanted.set_shared_memory("r", array.nbytes, at + 4 * size)
        with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
            answer = client.infer(model, [given], outputs=[wanted]).get_response()
        assert list(answer.outputs[0].shape) == list(array.shape), answer
        assert b"".join(answer.raw_output_contents) == b""

    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
        client.register_cuda_shared_memory("r", device_memory.encoded(memory), 0, requests * 8 * size)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(run, seed) for seed in range(requests)]:
                done.result()
        client.unregister_cuda_shared_memory("r")
    for seed, array in enumerate(arrays):
        at = seed * 8 * size + 4 * size
        np.testing.assert_array_equal(device_memory.array(memory, array.shape, at), expect(array))
        assert memory.read(4 * size - array.nbytes, at + array.nbytes).strip(b"\0") == b""


@needs_onnxruntime
def test_onnx_models_in_lanes_take_and_give_device_memory(start, tmp_path):
    """Where an output's shape is known before the run, guessed or not known, and where it is the input."""
    batched = f'backend: "onnxruntime" {models.batched(20_000)}\n'
    same = "".join(
        f'{kind} [{{ name: "x" data_type: TYPE_FP32 dims: [ {COLUMNS} ] }}]\n' for kind in ("input", "output")
    )
    chosen = {
        "known": onnx(delay_us=20_000),
        "guessed": onnx(y="M", delay_us=20_000),
        "unknown": untold(),
        "same": models.Model(batched + same, {1: onnx_file.model([], onnx_file.FLOAT, ["N", COLUMNS], ["N", COLUMNS], ("x", "x"))}),
    }
    server = start(models.write(tmp_path / "own", chosen), "--allow-client-shm=true", *device_memory.HostMemory.flags)
    with contextlib.closing(device_memory.HostMemory(40 * 8 * 16 * COLUMNS)) as memory:
        for model in ("known", "guessed", "unknown"):
            check_in_device_memory(server, memory, model, "y", lambda array: np.maximum(array, 0))
        check_in_device_memory(server, memory, "same", "x", lambda array: array)


def refusal(server, model: str, array: np.ndarray) -> InferenceServerException:
    """Why a model does not answer."""
    with pytest.raises(InferenceServerException) as caught:
        triton.infer("grpc", server, model, array, input_name="x")
    return caught.value


@needs_onnxruntime
@pytest.mark.parametrize(
    "fault,told",
    [
        ("copy:0", "a copy of 16 bytes on device 0 failed: an injected fault"),
        ("launch:0", "model 'known' failed on device 0: an injected fault"),
    ],
)
def test_what_fails_on_a_device_fails_its_batch_alone(start, tmp_path, fault, told):
    """The next runs."""
    folder = models.write(tmp_path / "own", {"known": onnx()})
    server = start(folder, "--device=host", f"--host-device=fail=0:{fault}")
    error = refusal(server, "known", rows(1, 0))
    assert error.message() == told and error.status() == "StatusCode.INTERNAL"
    check_many(server, "grpc", "known", 8)


@needs_onnxruntime
def test_a_lost_device_makes_its_models_unavailable(start, tmp_path):
    """Those on another serve on."""
    chosen = {name: onnx(f"instance_group {{ gpus: [ {device} ] }}") for device, name in enumerate(["first", "second"])}
    server = start(
        models.write(tmp_path / "own", chosen),
        "--device=host",
        "--host-device=count=2",
        "--host-device=lose=0:launch:1",
    )
    check(server, "grpc", "first", rows(1, 1))
    for _ in range(2):
        error = refusal(server, "first", rows(1, 2))
        assert error.message() == "model 'first' is unavailable: device 0 is lost: an injected fault"
        assert error.status() == "StatusCode.UNAVAILABLE"
    check(server, "grpc", "second", rows(2, 3))


@needs_onnxruntime
def test_a_batch_too_large_for_a_device_runs_in_parts(start, tmp_path):
    """Of eight rows half have room: 256 bytes each, in and out. What is too large by itself says so."""
    wide = onnx(columns=64, delay_us=500_000)
    server = start(models.write(tmp_path / "own", {"m": wide}), "--device=host", "--host-device=memory=2048")
    arrays = [rows(1, seed, 64) for seed in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(check, server, "grpc", "m", array) for array in arrays]:
            done.result()
    error = refusal(server, "m", np.concatenate(arrays))
    assert "device 0 is out of memory: 2048 bytes asked for" in error.message()


@needs_onnxruntime
def test_a_device_that_is_not_there_is_named(start, tmp_path):
    """And a model that runs anywhere then runs on the processors."""
    anywhere = onnx()
    server = start(models.write(tmp_path / "anywhere", {"m": anywhere}), "--device=none")
    assert kinds(server, "m") == [("KIND_CPU", [])]
    check(server, "http", "m", rows(2, 1))


def torch_models_in_lanes() -> dict[str, torch_models.TorchModel]:
    """Those of all conventions, with all instances on the device; two whose results' shapes are known."""
    chosen = torch_models.conventions() | torch_models.states()
    for model in chosen.values():
        model.config = model.config.replace("KIND_CPU", "KIND_GPU")
    batched = models.batched(20_000)
    known = torch_models.config("x", "OUTPUT__0", batched, dims=str(COLUMNS))
    return chosen | {
        "known": torch_models.TorchModel(known, *torch_models.DOUBLE),
        "here": torch_models.TorchModel(known + "instance_group { kind: KIND_CPU }", *torch_models.DOUBLE),
    }


def doubled(server, model: str, array: np.ndarray) -> np.ndarray:
    """What a model with one input makes of it."""
    return triton.infer("grpc", server, model, array, input_name="x").as_numpy("OUTPUT__0")


@needs_torch
def test_torchscript_models_run_in_lanes(start, tmp_path):
    """By every convention, and what they keep of one run they have in the next."""
    server = start(torch_models.write(tmp_path / "own", torch_models_in_lanes()), "--device=host")
    assert kinds(server, "known") == kinds(server, "by_index") == kinds(server, "counter") == [("KIND_GPU", [0])]
    assert kinds(server, "here") == [("KIND_CPU", [])]
    for model in ("known", "here", "batched"):
        arrays = [rows(1 + seed % 4, seed) for seed in range(24)]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for array, got in zip(arrays, pool.map(lambda array: doubled(server, model, array), arrays)):
                np.testing.assert_array_equal(got, array * 2)
    x = np.array([1, -2, 3], dtype=np.float32)
    names = (("by_index", "A__0", "B__1", "DIFFERENCE__0"), ("by_name", "a", "b", "DIFFERENCE"))
    for model, first, second, wanted in names:
        with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
            given = [triton.tensor(triton_grpc, first, "FP32", x), triton.tensor(triton_grpc, second, "FP32", x[::-1])]
            np.testing.assert_array_equal(client.infer(model, given).as_numpy(wanted), x - x[::-1])
    assert [doubled(server, "counter", x).tolist() for _ in range(3)] == [[n] * 3 for n in (1, 2, 3)]
    # What it keeps is its own, whatever the lane holds next.
    for number in range(1, 6):
        last = doubled(server, "keeps_input", np.full(3, number, dtype=np.float32))
        assert last.tolist() == ([0] if number == 1 else [number - 1] * 3)
    np.testing.assert_array_equal(doubled(server, "writes_input", x), x * 2)
    np.testing.assert_array_equal(doubled(server, "gives_input", x), x)
    for datatype in ("INT64", "FP16", "BOOL", "UINT8", "FP64"):
        array = triton.values(datatype, (5,))
        got = triton.infer("http", server, f"of_{datatype.lower()}", array, datatype, input_name="x")
        np.testing.assert_array_equal(got.as_numpy("OUTPUT__0"), np.concatenate([array, array]))
    # Strings lie on the host, whatever the instance group says.
    texts = np.array([b"a", b"b"], dtype=np.object_)
    got = triton.infer("grpc", server, "strings", texts, "BYTES", input_name="texts").as_numpy("OUTPUT__0")
    assert got.tolist() == [b"a!", b"b!"]


@needs_torch
def test_a_module_that_keeps_its_input_is_not_shared_with_a_lane(start, tmp_path):
    """What it keeps of a lane's memory must be a copy, and of what is on the processors need not be."""
    keeper = torch_models.states()["shared_keeper"]
    groups = "instance_group [ { kind: KIND_CPU count: 1 }, { kind: KIND_GPU count: 1 } ]\n"
    keeper.config = keeper.config.replace(torch_models.TWO_INSTANCES, groups)
    server = start(torch_models.write(tmp_path / "kept", {"keeper": keeper}), "--device=host")
    assert sorted(kinds(server, "keeper")) == [("KIND_CPU", []), ("KIND_GPU", [0])]
    given = [np.full(100, number, dtype=np.float32) for number in range(1, 41)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda array: doubled(server, "keeper", array), given))
    assert all(len(set(answer.tolist())) == 1 for answer in answers)
    # Each is what one earlier request has left, and nobody's twice; at first there is nothing.
    left = sorted(float(answer[0]) for answer in answers if answer[0])
    assert len(set(left)) == len(left) >= len(given) - 2
    assert all(answer[0] != array[0] for answer, array in zip(answers, given, strict=True))


@needs_torch
def test_torchscript_models_in_lanes_take_and_give_device_memory(start, tmp_path):
    """Where a result's shape is known before the run, and where it is not."""
    server = start(
        torch_models.write(tmp_path / "own", torch_models_in_lanes()),
        "--allow-client-shm=true",
        *device_memory.HostMemory.flags,
    )
    with contextlib.closing(device_memory.HostMemory(40 * 8 * 16 * COLUMNS)) as memory:
        for model in ("known", "batched"):
            check_in_device_memory(server, memory, model, "OUTPUT__0", lambda array: array * 2)
