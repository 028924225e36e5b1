"""Tensors in system shared memory, by Triton's own client library and load generator."""

from __future__ import annotations

import os
import queue
import subprocess
import threading
import time

import numpy as np
import pytest
import servers
import tritonclient.grpc as triton_grpc
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

from . import models, triton
from .regions import CLIENTS, Region, client_of, every_protocol, given_in, left_by, registered, wanted_in

WAIT_SECONDS_MAX = 60


@every_protocol
@pytest.mark.parametrize("elements", [3, 150_000, 1_000_000])
@pytest.mark.parametrize("datatype", ["FP32", "INT64", "BF16"])
def test_tensors_come_and_go_through_regions(sharing, protocol, datatype, elements):
    """Nothing of them is sent; what stands in the region behind the output stays."""
    module = CLIENTS[protocol]
    array = triton.values(datatype, (elements,))
    with client_of(sharing, protocol) as client:
        with Region(client, array.nbytes + 64) as there, Region(client, array.nbytes + 64) as back:
            shm.set_shared_memory_region(there.handle, [array], offset=16)
            shm.set_shared_memory_region(back.handle, [np.full(array.nbytes + 64, 7, dtype=np.uint8)])
            client.infer(
                datatype.lower(),
                [given_in(module, "INPUT0", array, datatype, there, array.nbytes, 16)],
                outputs=[wanted_in(module, "OUTPUT0", back, array.nbytes, 32)],
            )
            got = shm.get_contents_as_numpy(back.handle, array.dtype, array.shape, offset=32)
            np.testing.assert_array_equal(got, array)
            rest = shm.get_contents_as_numpy(back.handle, np.uint8, (array.nbytes + 64,))
            assert (rest[:32] == 7).all() and (rest[32 + array.nbytes :] == 7).all()
            client.unregister_system_shared_memory()


@every_protocol
def test_strings_come_through_a_region_and_are_sent_back(sharing, protocol):
    """With their lengths in front, as they would be sent."""
    module = CLIENTS[protocol]
    array = triton.values("BYTES", (4,))
    packed = b"".join(len(text).to_bytes(4, "little") + text for text in array)
    with client_of(sharing, protocol) as client, Region(client, len(packed)) as region:
        shm.set_shared_memory_region(region.handle, [np.frombuffer(packed, dtype=np.uint8)])
        given = given_in(module, "INPUT0", array, "BYTES", region, len(packed))
        answer = client.infer("bytes", [given], outputs=[module.InferRequestedOutput("OUTPUT0")])
        np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), array)


def test_rows_of_one_batch_come_from_regions_and_from_requests(sharing):
    """Eight requests that wait for each other."""
    answers: dict[int, np.ndarray] = {}

    def ask(number: int) -> None:
        array = np.full((1, 4), number, dtype=np.float32)
        with client_of(sharing, "grpc") as client:
            if number % 2:
                given = triton.tensor(triton_grpc, "INPUT0", "FP32", array)
                answers[number] = client.infer("gather", [given]).as_numpy("OUTPUT0")
                return
            with Region(client, 16) as region:
                shm.set_shared_memory_region(region.handle, [array])
                given = given_in(triton_grpc, "INPUT0", array, "FP32", region, 16)
                answers[number] = client.infer("gather", [given]).as_numpy("OUTPUT0")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS_MAX)
    for number in range(8):
        np.testing.assert_array_equal(answers[number], np.full((1, 4), number, dtype=np.float32))


def test_a_region_that_is_unregistered_in_use_serves_its_request(sharing):
    """The request waits in a batcher's queue for a second meanwhile."""
    array = np.arange(4, dtype=np.float32).reshape(1, 4)
    with client_of(sharing, "grpc") as client, Region(client, 16) as region:
        shm.set_shared_memory_region(region.handle, [array])
        given = given_in(triton_grpc, "INPUT0", array, "FP32", region, 16)
        answers: queue.Queue = queue.Queue()
        client.async_infer("second", [given], lambda result, error: answers.put((result, error)))
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while triton.pending(sharing, "second") != 1:
            assert time.monotonic() < deadline, "the request did not come to wait"
        client.unregister_system_shared_memory(region.name)
        result, error = answers.get(timeout=WAIT_SECONDS_MAX)
        assert error is None
        np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), array)


@every_protocol
def test_a_region_that_is_cut_short_is_an_error_and_no_end(sharing, protocol):
    """The object behind it loses all its pages between registering and asking."""
    module = CLIENTS[protocol]
    array = np.ones(4096, dtype=np.float32)
    with client_of(sharing, protocol) as client, Region(client, array.nbytes) as region:
        shm.set_shared_memory_region(region.handle, [array])
        os.truncate(region.path, 0)
        # One is read where it lies, the other copied first.
        for datatype in ("FP32", "INT32"):
            given = given_in(module, "INPUT0", array, datatype, region, array.nbytes)
            with pytest.raises(InferenceServerException, match="was truncated while it was in use"):
                client.infer(datatype.lower(), [given])
        os.truncate(region.path, array.nbytes)
        client.unregister_system_shared_memory(region.name)
        assert client.is_server_live()
    assert sharing.is_running()


needs_onnx = pytest.mark.skipif(not models.has_onnxruntime(), reason="the ONNX Runtime back end is not installed")
ROWS, COLUMNS = 4, 1 << 18


def _relu(client, protocol: str, array: np.ndarray, region: Region, back: Region, *, offset: int = 0) -> None:
    """Cuts the negative numbers of an array off; the result goes to `back` from `offset` on."""
    module = CLIENTS[protocol]
    shm.set_shared_memory_region(region.handle, [array])
    given = given_in(module, "x", array, "FP32", region, array.nbytes)
    client.infer("relu", [given], outputs=[wanted_in(module, "y", back, array.nbytes, offset)])


def _numbers() -> np.ndarray:
    return np.arange(ROWS * COLUMNS, dtype=np.float32).reshape(ROWS, COLUMNS) - ROWS * COLUMNS / 2


@needs_onnx
@every_protocol
def test_a_model_writes_its_output_to_the_region(driver, protocol, binary, repository, tmp_path):
    """There would be no memory for it elsewhere."""
    array = _numbers()
    flags = (f"--io-driver={driver}", "--reactors=1", "--allow-client-shm=true")
    budget = (f"--memory-budget-byte-size={array.nbytes // 2}", "--pinned-memory-pool-byte-size=4096")
    with servers.Server("nereid-small", binary, repository, (*flags, *budget), tmp_path / "log") as server:
        with client_of(server, protocol) as client, Region(client, array.nbytes) as region, Region(client, array.nbytes) as back:
            _relu(client, protocol, array, region, back)
            got = shm.get_contents_as_numpy(back.handle, array.dtype, array.shape)
            np.testing.assert_array_equal(got, np.maximum(array, 0))
            # Over itself it is copied, so that nothing is lost that is still to be read.
            with pytest.raises(InferenceServerException, match="would pass the budget"):
                _relu(client, protocol, array, region, region)


@needs_onnx
@every_protocol
def test_an_output_may_lie_over_the_input(sharing, protocol):
    """By the same region, or another of the same object; a few elements further on."""
    array = _numbers()
    with client_of(sharing, protocol) as client, Region(client, array.nbytes + 64) as region:
        client.register_system_shared_memory("alias", region.key, region.byte_size)
        for name in (region.name, "alias"):
            back = type("Named", (), {"name": name})()
            for offset in (0, 4, 64):
                _relu(client, protocol, array, region, back, offset=offset)
                got = shm.get_contents_as_numpy(region.handle, array.dtype, array.shape, offset=offset)
                np.testing.assert_array_equal(got, np.maximum(array, 0))
        outputs = [wanted_in(CLIENTS[protocol], "OUTPUT0", region, 16), wanted_in(CLIENTS[protocol], "OUTPUT1", back, 8, 8)]
        given = [triton.tensor(CLIENTS[protocol], "INPUT0", "FP32", np.ones((1, 4), np.float32))]
        given.append(triton.tensor(CLIENTS[protocol], "INPUT1", "INT32", np.ones((1, 2), np.int32)))
        with pytest.raises(InferenceServerException, match="lies over that of output 'OUTPUT0'"):
            client.infer("two", given, outputs=outputs)
        client.unregister_system_shared_memory()


@needs_onnx
@every_protocol
def test_a_region_that_is_cut_short_under_a_model_is_an_error_and_no_end(sharing, protocol):
    """Threads of ONNX Runtime write where there is nothing any more."""
    array = _numbers()
    with client_of(sharing, protocol) as client, Region(client, array.nbytes) as region, Region(client, array.nbytes) as back:
        for size in (array.nbytes // 2, 0):
            os.truncate(back.path, size)
            with pytest.raises(InferenceServerException, match=f"'{back.name}' was truncated while it was in use"):
                _relu(client, protocol, array, region, back)
        with Region(client, array.nbytes) as other:
            _relu(client, protocol, array, region, other)
            got = shm.get_contents_as_numpy(other.handle, array.dtype, array.shape)
            np.testing.assert_array_equal(got, np.maximum(array, 0))
        client.unregister_system_shared_memory()
    assert sharing.is_running()


PAGE = 4096
HUGE = 2**64 - 1


@every_protocol
@pytest.mark.parametrize(
    "name,key,offset,byte_size,words",
    [
        ("new", "/nereid-test-absent", 0, 64, "Unable to open shared memory region: '/nereid-test-absent'"),
        ("new", "", 0, 64, "Unable to open shared memory region: ''"),
        ("new", "/../etc/passwd", 0, 64, "Unable to open shared memory region"),
        ("new", "{key}", 0, 2 * PAGE + 1, "failed to register shared memory region 'new': invalid args"),
        ("new", "{key}", PAGE, 2 * PAGE, "failed to register shared memory region 'new': invalid args"),
        ("new", "{key}", 7, 64, "failed to register shared memory region 'new': unable to process address space"),
        ("new", "{key}", 0, 0, "failed to register shared memory region 'new': unable to process address space"),
        ("new", "{key}", HUGE - PAGE + 1, PAGE, "failed to register shared memory region 'new'"),
        ("new", "{key}", PAGE, HUGE, "failed to register shared memory region 'new'"),
        ("known", "{key}", 0, 64, "shared memory region 'known' already in manager"),
        ("new", "/triton_python_backend_shm_region_1", 0, 64, "are reserved"),
    ],
)
def test_what_cannot_be_registered_is_told(sharing, protocol, name, key, offset, byte_size, words):
    """Whatever the sizes are; what is there goes on being served."""
    with client_of(sharing, protocol) as client, Region(client, 2 * PAGE) as region:
        client.unregister_system_shared_memory()
        client.register_system_shared_memory("known", region.key, PAGE)
        with pytest.raises(InferenceServerException, match=words):
            client.register_system_shared_memory(name, key.format(key=region.key), byte_size, offset)
        assert registered(client) == {"known"}
        client.unregister_system_shared_memory()


@every_protocol
def test_an_object_of_others_is_not_registered(start, obedient, repository, protocol):
    """The server opens what it may, for reading and writing."""
    server = start(repository, "--allow-client-shm=true", program=obedient)
    with client_of(server, protocol) as client, Region(client, PAGE) as region:
        client.unregister_system_shared_memory()
        region.path.chmod(0o400)
        with pytest.raises(InferenceServerException, match="Unable to open shared memory region"):
            client.register_system_shared_memory("new", region.key, PAGE)


@every_protocol
@pytest.mark.parametrize(
    "given,taken,words",
    [
        (("no_such", 16, 0), None, "Unable to find shared memory region: 'no_such'"),
        (("{name}", 16, 64), None, "Invalid offset for shared memory region: '{name}'"),
        (("{name}", 16, 60), None, r"Invalid offset \+ byte size for shared memory region: '{name}'"),
        (("{name}", 2**63 - 1, 8), None, r"Invalid offset \+ byte size for shared memory region: '{name}'"),
        (("{name}", 12, 0), None, "Expected 16, got 12"),
        (("{name}", 16, 0), [("no_such", 16, 0), ("{name}", 8, 0)], "Unable to find shared memory region: 'no_such'"),
        (("{name}", 16, 0), [("{name}", 16, 56), ("{name}", 8, 0)], "Invalid offset"),
        (("{name}", 16, 0), [("{name}", 12, 32), ("{name}", 8, 0)], "should be at least 16 bytes to hold the results"),
        (
            ("{name}", 16, 0),
            [("{name}", 16, 32), ("{name}", 16, 40)],
            "the place of output 'OUTPUT1' in shared memory region '{name}' lies over that of output 'OUTPUT0'",
        ),
    ],
)
def test_tensors_that_do_not_lie_in_their_region_are_told(sharing, protocol, given, taken, words):
    """A wrong name, offset or size of an input or an output; outputs over each other."""
    module, array = CLIENTS[protocol], np.arange(4, dtype=np.float32).reshape(1, 4)
    with client_of(sharing, protocol) as client, Region(client, 64) as region:
        place = lambda made, name, size, offset: made.set_shared_memory(name.format(name=region.name), size, offset)  # noqa: E731
        first = module.InferInput("INPUT0", [1, 4], "FP32")
        place(first, *given)
        second = triton.tensor(module, "INPUT1", "INT32", np.ones((1, 2), dtype=np.int32))
        outputs = [module.InferRequestedOutput(name) for name in ("OUTPUT0", "OUTPUT1")]
        for output, where in zip(outputs, taken or []):
            place(output, *where)
        with pytest.raises(Exception, match=words.format(name=region.name)):
            client.infer("two", [first, second], outputs=outputs)
        client.unregister_system_shared_memory()
        assert client.is_server_live()


@every_protocol
def test_clients_may_not_use_shared_memory_unless_allowed(server, protocol):
    """The default; the error names the flag."""
    with client_of(server, protocol) as client:
        with pytest.raises(InferenceServerException, match="--allow-client-shm=true"):
            with Region(client, 16):
                pass


@pytest.mark.skipif(not servers.peer_is_usable(), reason="scripts/setup_peer.sh installs perf_analyzer")
@every_protocol
def test_perf_analyzer_uses_shared_memory(sharing, protocol):
    """Triton's own load generator."""
    before = sharing.requests_done("fp32_batched")
    address = sharing.http_address if protocol == "http" else sharing.grpc_address
    command = [servers.PEER / "bin" / "perf_analyzer", "-m", "fp32_batched", "--shape", "INPUT0:16"]
    command += ["--shared-memory", "system", "--output-shared-memory-size", "64"]
    command += ["--concurrency-range", "4", "-p", "300", "-s", "999", "-r", "10", "-a", "-u", address, "-i", protocol]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(servers.PEER / "lib")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Throughput" in done.stdout
    assert sharing.requests_done("fp32_batched") > before


@pytest.mark.parametrize("way", [("--via", "shm"), ("-i", "grpc", "--shared-memory", "system"), ("-i", "http", "--shared-memory", "system")])
def test_nereid_bench_uses_shared_memory(sharing, binary, way):
    """Our own; nothing of it stays."""
    before = sharing.requests_done("fp32_batched")
    address = sharing.http_address if "http" in way else sharing.grpc_address
    command = [binary, "bench", "-m", "fp32_batched", "--shape", "INPUT0:16", "--output-shared-memory-size", "64", "-u", address]
    command += [*way, "--concurrency-range", "4", "-p", "200", "-s", "999"]
    status, said, left = _ended(command)
    assert status == 0, said
    assert sharing.requests_done("fp32_batched") > before
    with client_of(sharing, "grpc") as client:
        assert registered(client) == set()
    assert not left


def test_nereid_bench_tells_why_memory_cannot_be_shared(server, sharing, binary):
    """The server does not allow it; there is no GPU."""
    for address, way, words in [
        (server.grpc_address, ["--via", "shm"], "--allow-client-shm=true"),
        (sharing.grpc_address, ["--via", "cuda-shm"], "cannot share tensors with the server: "),
    ]:
        command = [binary, "bench", "-m", "fp32", "--shape", "INPUT0:16", "-u", address, *way]
        status, said, left = _ended(command)
        assert status != 0 and words in said
        assert not left


def _ended(command: list) -> tuple[int, str, set]:
    """How a program ended, what it said, and what it has left in shared memory."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as program:
        try:
            said, _ = program.communicate(timeout=60)
        finally:
            program.kill()
            left = left_by(program.pid)
            for each in left:
                each.unlink()
    return program.returncode, said, left
