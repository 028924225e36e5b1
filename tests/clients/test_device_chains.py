"""Chains that choose, pad and suppress on a device: they answer as on the processors, and what is at fault in a
request fails it with the same words."""

from __future__ import annotations

import concurrent.futures
import contextlib
import pathlib
import sys

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from . import device_memory, triton, wire
from .test_device_pictures import launches

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "gpu"), str(ROOT / "tests")]

import chain_models  # noqa: E402  (the paths to them are only known here)
import serving  # noqa: E402


def ask(server, model: str, given: dict[str, np.ndarray]):
    """The outputs of a model, or how it refuses."""
    client = triton_grpc
    inputs = [triton.tensor(client, name, np_to_triton_dtype(array.dtype), array) for name, array in given.items()]
    try:
        result = triton.grpc(server, model_name=model, inputs=inputs)
    except InferenceServerException as error:
        return error.status(), error.message()
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def assert_same(got, expected) -> None:
    """That answers are the same, refusals too."""
    assert type(got) is type(expected), (got, expected)
    if isinstance(expected, tuple):
        assert got == expected
        return
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, atol=1e-5, err_msg=name)


def check(server, seeds: range) -> dict[str, list]:
    """That what many ask at once is answered on the device as one by one on the processors."""
    told = {}
    for name, make in chain_models.GIVEN.items():
        given = [make(np.random.default_rng(seed)) for seed in seeds]
        expected = [ask(server, f"{name}_KIND_CPU", each) for each in given]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for got, want in zip(pool.map(lambda each: ask(server, f"{name}_KIND_GPU", each), given), expected):
                assert_same(got, want)
        told[name] = expected
    return told


@pytest.mark.parametrize("graphs", [False, True])
def test_chains_answer_on_a_device_as_on_the_processors(start, tmp_path, graphs):
    """Of random shapes, of several at once, right and wrong ones."""
    options = "optimization { cuda { graphs: true } }" if graphs else ""
    server = start(chain_models.write(tmp_path / "own", 2_000, options), "--device=host")
    told = check(server, range(30))
    assert launches(server) > 0
    assert "runs on the processors" not in server.log.read_text()
    refused = {name: [each for each in all_told if isinstance(each, tuple)] for name, all_told in told.items()}
    assert refused["nms"] == [] and all(0 < len(refused[name]) < 30 for name in ("gather", "pad", "unpad", "shorter"))
    wrong = {message for refusals in refused.values() for _, message in refusals}
    for part in ("expected indices of 0 to ", "expected at most 6 elements, or 'truncate', got 7", "a batch has one size", "a batch has one length"):
        assert any(part in message for message in wrong), wrong
    assert all(status == "StatusCode.INVALID_ARGUMENT" for refusals in refused.values() for status, _ in refusals)


def test_what_is_at_fault_fails_by_itself_and_sizes_share_what_they_can(start, tmp_path):
    """In one batch: indices of which one names no entry, and pictures of several sizes."""
    server = start(chain_models.write(tmp_path / "own", 300_000), "--device=host")
    entries = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    given = [{"ENTRIES": entries, "INDICES": np.array([[number % 3, 0]])} for number in range(6)]
    files = [serving.png((7, 9, 12)[number % 3], 9, number) for number in range(6)]
    pictures = [{"FILE": np.array([[each]], dtype=np.object_)} for each in files]
    for name, all_given in (("gather", given), ("shorter", pictures)):
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda each: ask(server, f"{name}_KIND_GPU", each), all_given))
        for each, got in zip(all_given, answers):
            assert_same(got, ask(server, f"{name}_KIND_CPU", each))
        [told] = server.get_json(f"/v2/models/{name}_KIND_GPU/stats")["model_stats"]
        failed = 2 if name == "gather" else 0
        counts = [int(told["inference_stats"][kind]["count"]) for kind in ("success", "fail")]
        assert counts == [6 - failed, failed] and int(told["execution_count"]) < 6
    assert ask(server, "gather_KIND_GPU", given[2])[1].endswith("row 0: expected indices of 0 to 1, got 2")
    assert {answer["PIXELS"].shape for answer in answers} == {(1, 7, 6, 3), (1, 6, 6, 3), (1, 6, 8, 3)}


def test_the_parts_of_a_batch_are_answered_in_the_order_of_its_requests(start, tmp_path):
    """On one connection, the order in which answers begin: of pictures of two sizes, which go in two parts, and of one
    that is none."""
    server = start(chain_models.write(tmp_path / "own", 300_000, batching="preserve_ordering: true"), "--device=host")
    files = [serving.png((7, 9)[number % 2], 9, number) for number in range(6)]
    files.insert(3, b"no picture")
    with wire.Connection(server) as connection:
        asked = []
        for file in files:
            given = triton.tensor(triton_grpc, "FILE", "BYTES", np.array([[file]], dtype=np.object_))
            request = service_pb2.ModelInferRequest(model_name="shorter_KIND_GPU")
            request.inputs.append(given._get_tensor())
            request.raw_input_contents.append(given._get_content())
            asked.append(connection.call("ModelInfer", wire.message(request.SerializeToString())))
        connection.read_until(lambda: sum(answer.ended for answer in connection.answers.values()) == len(files))
        assert list(connection.answers) == asked
        statuses = [connection.answers[stream].grpc_status for stream in asked]
    assert statuses == [0, 0, 0, 3, 0, 0, 0]
    [told] = server.get_json("/v2/models/shorter_KIND_GPU/stats")["model_stats"]
    assert int(told["execution_count"]) == 1


def test_indices_in_memory_of_the_device_are_looked_at_there(start, tmp_path):
    """They come from a client, who may change them at any time: nothing of another's memory is read for them."""
    server = start(chain_models.write(tmp_path / "own"), "--allow-client-shm=true", *device_memory.HostMemory.flags)
    entries, size = np.arange(12, dtype=np.float32).reshape(1, 4, 3), 4096
    with (
        contextlib.closing(device_memory.HostMemory(size)) as memory,
        contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client,
    ):
        client.register_cuda_shared_memory("r", device_memory.encoded(memory), 0, size)
        memory.write(entries.tobytes(), 0)

        def run(indices: list[int]):
            array = np.array([indices])
            memory.write(array.tobytes(), 1024)
            inputs = [triton_grpc.InferInput("ENTRIES", [1, 4, 3], "FP32"), triton_grpc.InferInput("INDICES", list(array.shape), "INT64")]
            inputs[0].set_shared_memory("r", entries.nbytes, 0)
            inputs[1].set_shared_memory("r", array.nbytes, 1024)
            output = triton_grpc.InferRequestedOutput("TAKEN")
            output.set_shared_memory("r", 12 * len(indices), 2048)
            client.infer("gather_KIND_GPU", inputs, outputs=[output])
            return device_memory.array(memory, (1, len(indices), 3), 2048)

        np.testing.assert_array_equal(run([3, 0]), entries[:, [3, 0]])
        for index in (4, -1, 1 << 40, -(1 << 63)):
            with pytest.raises(InferenceServerException) as told:
                run([1, index])
            assert told.value.message().endswith(f"row 0: expected indices of 0 to 3, got {index}")
        np.testing.assert_array_equal(run([2]), entries[:, [2]])
        client.unregister_cuda_shared_memory("r")


def test_chains_on_the_stand_in_for_a_gpu(gpu_server, tmp_path):
    """With every call in its place; one at a time too, where a rate limiter or sequences give the turns."""
    limit = 'rate_limiter { resources [{ name: "R" count: 1 }] }'
    for limited in ("", limit):
        server, accounts = gpu_server(chain_models.write(tmp_path / f"own-{len(limited)}", limit=limited), "--rate-limit=execution_count")
        check(server, range(6))
        told = accounts.read()
        assert told["faults"] == []
        kernels = ("check_indices", "take_4", "pad_4", "pad_mask", "unpad_4", "top_k", "nms", "nms_results", "image_f32")
        assert all(told["launches"].get(name, 0) > 0 for name in kernels), told["launches"]
