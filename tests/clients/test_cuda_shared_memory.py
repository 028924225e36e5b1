"""CUDA shared memory: by the handles of a device of the host, and by those of the driver's stand-in, which has never
been a GPU."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import os
import subprocess

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

from . import device_memory, models
from .test_devices import COLUMNS, expected, rows, softmax

CLIENTS = {"http": triton_http, "grpc": triton_grpc}
every_protocol = pytest.mark.parametrize("protocol", CLIENTS)
ROW = 4 * COLUMNS
ALLOWED = "--allow-client-shm=true"


@pytest.fixture
def repository(tmp_path):
    """A model on a device, and one on the processors."""
    plain = models.Model(models.identity(models.batched(), dims=str(COLUMNS)))
    return models.write(tmp_path / "repository", {"first": softmax(0), "plain": plain})


# `tests/gpu/run.sh` asks for the real one, where there is a GPU.
GPU = ["gpu"] if os.environ.get("NEREID_TEST_GPU") else []


@pytest.fixture(params=["host", "stand-in", *GPU])
def sharing(request, start, repository, gpu_server, driver_library):
    """A server whose clients share memory of its first device; gives it, what makes such memory, and what the driver
    has counted."""
    made = []

    def make(byte_size: int):
        if request.param == "host":
            made.append(device_memory.HostMemory(byte_size))
        else:
            library = "libcuda.so.1" if request.param == "gpu" else str(driver_library)
            made.append(device_memory.CudaMemory(library, byte_size))
        return made[-1]

    if request.param == "stand-in":
        server, accounts = gpu_server(repository, ALLOWED)
    else:
        flags = device_memory.HostMemory.flags if request.param == "host" else ()
        server, accounts = start(repository, ALLOWED, *flags), None
    yield server, make, accounts
    for memory in made:
        memory.close()


@contextlib.contextmanager
def connected(server, protocol: str):
    """A client."""
    address = server.http_address if protocol == "http" else server.grpc_address
    with contextlib.closing(CLIENTS[protocol].InferenceServerClient(address)) as client:
        yield client


def infer(client, protocol: str, model: str, count: int, source, target) -> None:
    """Runs rows from a place in a region to another; a place is a region's name, an offset and a size."""
    module = CLIENTS[protocol]
    given = module.InferInput("INPUT0", [count, COLUMNS], "FP32")
    given.set_shared_memory(source[0], source[2], source[1])
    wanted = module.InferRequestedOutput("OUTPUT0")
    wanted.set_shared_memory(target[0], target[2], target[1])
    answer = client.infer(model, [given], outputs=[wanted])
    if protocol == "grpc":
        assert list(answer.get_response().raw_output_contents) in ([], [b""])


@every_protocol
@pytest.mark.parametrize("model", ["first", "plain"])
def test_tensors_come_and_go_through_device_memory(sharing, protocol, model):
    """Of many requests at once, each its own; what lies behind an output stays."""
    server, make, accounts = sharing
    memory, requests = make(64 * 2 * 4 * ROW), 64
    arrays = [rows(1 + number % 4, number) for number in range(requests)]
    for number, array in enumerate(arrays):
        memory.write(array.tobytes(), number * 8 * ROW)
    with connected(server, protocol) as client:
        client.register_cuda_shared_memory("r", device_memory.encoded(memory), 0, requests * 8 * ROW)

    def run(number: int) -> None:
        array, at = arrays[number], number * 8 * ROW
        with connected(server, protocol) as client:
            infer(client, protocol, model, len(array), ("r", at, array.nbytes), ("r", at + 4 * ROW, array.nbytes))

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for done in [pool.submit(run, number) for number in range(requests)]:
            done.result()
    for number, array in enumerate(arrays):
        got = device_memory.array(memory, array.shape, number * 8 * ROW + 4 * ROW)
        np.testing.assert_allclose(got, expected(array) if model == "first" else array, rtol=1e-5)
        assert memory.read(4 * ROW - array.nbytes, number * 8 * ROW + 4 * ROW + array.nbytes).strip(b"\0") == b""
    with connected(server, protocol) as client:
        client.unregister_cuda_shared_memory()
    if accounts:
        told = accounts.wait(lambda it: it["live"]["opened"] == 0)
        assert told["faults"] == []
        launches, copies_out = told["launches"], told["calls"].get("cuMemcpyDtoHAsync_v2", 0)
        if model == "first":
            # One launch for all rows of a batch there, one back, and nothing by way of the host.
            assert launches["gather"] == launches["scatter"] == launches["softmax"] <= requests
            assert copies_out == 0
        else:
            assert "gather" not in launches and copies_out == requests


@every_protocol
def test_regions_are_told_and_forgotten(sharing, protocol):
    """A handle is opened once, however many regions name it, and closed after the last."""
    server, make, accounts = sharing
    memory = make(4096)
    with connected(server, protocol) as client:

        def status(name: str = "") -> dict:
            told = client.get_cuda_shared_memory_status(name)
            if protocol == "grpc":
                regions = told.regions.values()
                return {it.name: (it.device_id, it.byte_size) for it in regions}
            return {it["name"]: (it["device_id"], it["byte_size"]) for it in told}

        assert status() == {}
        for name, size in [("a", 4096), ("b", 100)]:
            client.register_cuda_shared_memory(name, device_memory.encoded(memory), 0, size)
        assert status() == {"a": (0, 4096), "b": (0, 100)} and status("b") == {"b": (0, 100)}
        if accounts:
            told = accounts.read()
            assert told["live"]["opened"] == 1 and list(told["opened"].values()) == [1]
        key = "/nereid-test-" + memory.handle.hex()[-8:] + protocol
        handle = shm.create_shared_memory_region("s", key, 64)
        try:
            client.register_system_shared_memory("s", key, 64)
            refused = [
                ("already in manager", "a", device_memory.encoded(memory), 0, 64),
                ("already in manager", "s", device_memory.encoded(memory), 0, 64),
                ("'c': there is no device 7, only 0", "c", device_memory.encoded(memory), 7, 64),
                ("'c': there is no device -1", "c", device_memory.encoded(memory), -1, 64),
                ("'c': its handle leads to 4096 bytes", "c", device_memory.encoded(memory), 0, 4097),
                (
                    "'c': failed to open CUDA IPC handle: invalid argument",
                    "c",
                    base64.b64encode(b"x" * 64),
                    0,
                    64,
                ),
            ]
            if protocol == "http":
                # A number below zero is not one there.
                refused = [it for it in refused if it[3] >= 0]
            for told, *arguments in refused:
                with pytest.raises(InferenceServerException) as caught:
                    client.register_cuda_shared_memory(*arguments)
                assert told in caught.value.message(), caught.value.message()
            with pytest.raises(InferenceServerException, match="'a' already in manager"):
                client.register_system_shared_memory("a", key, 64)
            told = "The region named 's' is registered as system shared memory, not CUDA shared memory"
            with pytest.raises(InferenceServerException, match=told):
                client.get_cuda_shared_memory_status("s")
            told = "The region named 'a' is registered as CUDA shared memory, not system shared memory"
            with pytest.raises(InferenceServerException, match=told):
                client.get_system_shared_memory_status("a")
            client.unregister_cuda_shared_memory("a")
            assert status() == {"b": (0, 100)}
            with pytest.raises(InferenceServerException, match="Unable to find cuda shared memory region: 'a'"):
                client.get_cuda_shared_memory_status("a")
            client.register_cuda_shared_memory("a", device_memory.encoded(memory), 0, 64)
            client.unregister_cuda_shared_memory()
            assert status() == {}
            client.unregister_system_shared_memory("s")
        finally:
            shm.destroy_shared_memory_region(handle)
    if accounts:
        told = accounts.wait(lambda it: it["live"]["opened"] == 0)
        assert told["faults"] == [] and list(told["opened"].values()) == [1]


@every_protocol
@pytest.mark.parametrize("model", ["first", "plain"])
def test_what_does_not_fit_is_told_and_harms_nobody(sharing, protocol, model):
    """With Triton's words where it has them; the next request is answered."""
    server, make, _ = sharing
    memory = make(4096)
    memory.write(rows(1, 1).tobytes())
    whole, target = ("r", 0, ROW), ("r", 256, ROW)
    with connected(server, protocol) as client:
        client.register_cuda_shared_memory("r", device_memory.encoded(memory), 0, 1024)
        for told, source, to in [
            ("Invalid offset for shared memory region: 'r'", ("r", 1024, ROW), target),
            ("Invalid offset + byte size for shared memory region: 'r'", ("r", 1001, ROW), target),
            ("Invalid offset + byte size for shared memory region: 'r'", whole, ("r", 1020, ROW)),
            ("Unable to find shared memory region: 'q'", ("q", 0, ROW), target),
            ("input byte size mismatch", ("r", 0, ROW - 4), target),
            (f"({ROW - 1} bytes) should be at least {ROW} bytes to hold the results", whole, ("r", 256, ROW - 1)),
        ]:
            with pytest.raises(InferenceServerException) as caught:
                infer(client, protocol, model, 1, source, to)
            assert told in caught.value.message(), caught.value.message()
        infer(client, protocol, model, 1, whole, target)
        got = device_memory.array(memory, (1, COLUMNS), 256)
        np.testing.assert_allclose(got, expected(rows(1, 1)) if model == "first" else rows(1, 1), rtol=1e-5)
        assert memory.read(4096 - 256 - ROW, 256 + ROW).strip(b"\0") == b""


def test_regions_stay_while_requests_use_them(sharing, protocol="grpc"):
    """Whoever unregisters one while it is in use takes nothing from them."""
    server, make, accounts = sharing
    memory = make(16 * 2 * ROW)
    arrays = [rows(1, number) for number in range(16)]
    with connected(server, protocol) as client, concurrent.futures.ThreadPoolExecutor(16) as pool:
        for turn in range(5):
            for number, array in enumerate(arrays):
                memory.write(array.tobytes(), 2 * number * ROW)
            name = f"r{turn}"
            client.register_cuda_shared_memory(name, device_memory.encoded(memory), 0, 16 * 2 * ROW)

            def run(number: int, name: str = name) -> bool:
                at = 2 * number * ROW
                try:
                    infer(client, protocol, "first", 1, (name, at, ROW), (name, at + ROW, ROW))
                    return True
                except InferenceServerException as error:
                    assert f"Unable to find shared memory region: '{name}'" in error.message()
                    return False

            asked = [pool.submit(run, number) for number in range(16)]
            client.unregister_cuda_shared_memory(name)
            for number, done in enumerate(asked):
                if done.result():
                    got = device_memory.array(memory, (1, COLUMNS), 2 * number * ROW + ROW)
                    np.testing.assert_allclose(got, expected(arrays[number]), rtol=1e-5)
    if accounts:
        told = accounts.wait(lambda it: it["live"]["opened"] == 0)
        assert told["faults"] == []


def test_without_leave_no_memory_is_opened(start, repository):
    """As for system shared memory."""
    server = start(repository, *device_memory.HostMemory.flags)
    memory = device_memory.HostMemory(64)
    try:
        with connected(server, "grpc") as client, pytest.raises(InferenceServerException, match="--allow-client-shm"):
            client.register_cuda_shared_memory("r", device_memory.encoded(memory), 0, 64)
    finally:
        memory.close()


@pytest.mark.parametrize("model", ["first", "plain"])
def test_nereid_bench_uses_device_memory(request, sharing, binary, driver_library, model):
    """Registered for the run alone."""
    server, _, accounts = sharing
    device = "host" if request.node.callspec.params["sharing"] == "host" else "gpu"
    command = [binary, "bench", "-m", model, "--output-shared-memory-size", str(ROW), "-u", server.grpc_address]
    way = ["--via", "cuda-shm", "--shared-memory-device", device, "--concurrency-range", "4"]
    environment = {**os.environ, **({"LD_LIBRARY_PATH": str(driver_library.parent)} if accounts else {})}
    command += [*way, "-p", "200", "-s", "999"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert server.requests_done(model) > 0
    if accounts:
        told = accounts.wait(lambda it: it["live"]["opened"] == 0)
        assert told["faults"] == []


def test_what_is_answered_from_the_cache_goes_to_memory_of_the_device_too(start, tmp_path):
    """Answers are kept on the host, and brought to where the client wants them."""
    kept = models.Model(softmax(0).config + "response_cache { enable: true }")
    caching = "--cache-config=local,size=1048576"
    server = start(models.write(tmp_path / "kept", {"kept": kept}), ALLOWED, caching, *device_memory.HostMemory.flags)
    array = rows(3, 0)
    with contextlib.closing(device_memory.HostMemory(4096)) as memory, connected(server, "grpc") as client:
        client.register_cuda_shared_memory("r", device_memory.encoded(memory), 0, 4096)
        given = triton_grpc.InferInput("INPUT0", list(array.shape), "FP32")
        given.set_data_from_numpy(array)
        wanted = triton_grpc.InferRequestedOutput("OUTPUT0")
        wanted.set_shared_memory("r", array.nbytes, 256)
        for _ in range(3):
            memory.write(bytes(4096))
            client.infer("kept", [given], outputs=[wanted])
            np.testing.assert_allclose(device_memory.array(memory, array.shape, 256), expected(array), rtol=1e-5)
        told = client.get_inference_statistics("kept").model_stats[0].inference_stats
        assert (told.cache_hit.count, told.cache_miss.count) == (2, 1)
