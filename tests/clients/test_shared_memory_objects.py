"""System shared memory in the manner of Triton's example programs, and what becomes of the objects behind it:
odd ones, too many, and those of clients that are killed."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import threading
import time
import uuid

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.utils as triton_utils
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

from . import triton
from .regions import CLIENTS, OBJECTS, Region, client_of, every_protocol, given_in, left_by, registered, wanted_in

REGIONS_MAX = 1024
# `make test-long` kills more.
KILLS = int(os.environ.get("NEREID_TEST_KILLS", "12"))
WAIT_SECONDS_MAX = 60


def _mapped(server) -> int:
    """How many objects of these tests the server has mapped."""
    maps = open(f"/proc/{server.process.pid}/maps", encoding="utf-8").read()
    return sum("/dev/shm/nereid-" in line for line in maps.splitlines())


@every_protocol
def test_a_program_in_the_manner_of_the_examples_for_strings(sharing, protocol):
    """Written and read by the client library's own utilities, lengths and all."""
    module = CLIENTS[protocol]
    texts = np.array([str(number).encode() for number in range(14)] + [b"", "é\0".encode()], dtype=np.object_)
    packed = triton_utils.serialize_byte_tensor(texts)
    size = triton_utils.serialized_byte_size(packed)
    with client_of(sharing, protocol) as client:
        client.unregister_system_shared_memory()
        with Region(client, size) as there, Region(client, size) as back:
            shm.set_shared_memory_region(there.handle, [packed])
            given = [given_in(module, "INPUT0", texts, "BYTES", there, size)]
            result = client.infer("bytes", given, outputs=[wanted_in(module, "OUTPUT0", back, size)])
            output = result.get_output("OUTPUT0")
            datatype, shape = (output.datatype, output.shape) if protocol == "grpc" else (output["datatype"], output["shape"])
            got = shm.get_contents_as_numpy(back.handle, triton_utils.triton_to_np_dtype(datatype), shape)
            np.testing.assert_array_equal(got, texts)
            assert registered(client) == {there.name, back.name}
            client.unregister_system_shared_memory()
        assert registered(client) == set()
        assert {there.key, back.key}.isdisjoint(shm.mapped_shared_memory_regions())


@pytest.mark.parametrize("way", triton.WAYS)
def test_every_way_of_asking_takes_and_gives_shared_memory(sharing, way):
    """Both inputs in one region and both outputs in another, one behind the other, as in the examples."""
    module, send = triton.WAYS[way]
    floats, integers = np.arange(16, dtype=np.float32).reshape(1, 16), np.array([[7, -7]], dtype=np.int32)
    size = floats.nbytes + integers.nbytes
    with client_of(sharing, "grpc") as client, Region(client, size) as there, Region(client, size) as back:
        shm.set_shared_memory_region(there.handle, [floats, integers])
        given = [
            given_in(module, "INPUT0", floats, "FP32", there, floats.nbytes),
            given_in(module, "INPUT1", integers, "INT32", there, integers.nbytes, floats.nbytes),
        ]
        wanted = [
            wanted_in(module, "OUTPUT0", back, floats.nbytes),
            wanted_in(module, "OUTPUT1", back, integers.nbytes, floats.nbytes),
        ]
        send(sharing, model_name="two", inputs=given, outputs=wanted)
        np.testing.assert_array_equal(shm.get_contents_as_numpy(back.handle, np.float32, floats.shape), floats)
        np.testing.assert_array_equal(shm.get_contents_as_numpy(back.handle, np.int32, integers.shape, floats.nbytes), integers)
        # One that is cut short meanwhile is an error, by streams too.
        os.truncate(back.path, 0)
        with pytest.raises(Exception, match="was truncated while it was in use"):
            send(sharing, model_name="two", inputs=given, outputs=wanted)
        client.unregister_system_shared_memory()


def test_each_response_of_a_decoupled_model_goes_to_its_region(sharing):
    """Over the one before it, which the client has read by then."""
    values, delays = np.array([5, 6, 7], dtype=np.int32), np.array([0, 300, 300], dtype=np.uint32)
    found = []
    done = threading.Event()
    with client_of(sharing, "grpc") as client, Region(client, values.nbytes) as there, Region(client, 4) as back:
        shm.set_shared_memory_region(there.handle, [values])

        def take(result, error):
            assert error is None, error
            found.append(shm.get_contents_as_numpy(back.handle, np.int32, (1,))[0])
            if len(found) == len(values):
                done.set()

        given = [given_in(triton_grpc, "IN", values, "INT32", there, values.nbytes)]
        given.append(triton.tensor(triton_grpc, "DELAY", "UINT32", delays))
        given.append(triton.tensor(triton_grpc, "WAIT", "UINT32", np.zeros(1, np.uint32)))
        client.start_stream(take)
        client.async_stream_infer("repeat", given, outputs=[wanted_in(triton_grpc, "OUT", back, 4)])
        assert done.wait(WAIT_SECONDS_MAX)
        client.stop_stream()
        assert found == values.tolist()
        client.unregister_system_shared_memory()


@every_protocol
def test_a_region_may_be_called_anything(sharing, protocol):
    """And the object's name needs no slash in front."""
    with client_of(sharing, protocol) as client, Region(client, 64) as region:
        client.unregister_system_shared_memory()
        for name in ("a b", "é%20?#", "x" * 300):
            client.register_system_shared_memory(name, region.key.lstrip("/"), 64)
            assert registered(client) == {name}
            array = np.arange(16, dtype=np.float32)
            shm.set_shared_memory_region(region.handle, [array])
            named = type("Named", (), {"name": name})()
            answer = client.infer("fp32", [given_in(CLIENTS[protocol], "INPUT0", array, "FP32", named, 64)])
            np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), array)
            client.unregister_system_shared_memory(name)
            assert registered(client) == set()


@every_protocol
def test_what_is_no_object_is_told_and_nobody_waits_for_it(sharing, protocol):
    """A pipe without a writer, a link, a folder, and names that cannot be."""
    name = f"nereid-test-{uuid.uuid4().hex}"
    pipe, link, folder = (OBJECTS / f"{name}-{kind}" for kind in ("pipe", "link", "folder"))
    with client_of(sharing, protocol) as client, Region(client, 64) as region, contextlib.ExitStack() as stack:
        client.unregister_system_shared_memory()
        os.mkfifo(pipe)
        stack.callback(pipe.unlink)
        link.symlink_to(region.path)
        stack.callback(link.unlink)
        folder.mkdir()
        stack.callback(folder.rmdir)
        for key, words in [
            (f"/{pipe.name}", "failed to register shared memory region 'odd': invalid args"),
            (f"/{link.name}", f"Unable to open shared memory region: '/{link.name}'"),
            (f"/{folder.name}", f"Unable to open shared memory region: '/{folder.name}'"),
            (f"/{folder.name}/x", "Unable to open shared memory region"),
            ("/", "Unable to open shared memory region: '/'"),
            ("/nereid\0test", "Unable to open shared memory region"),
            ("/" + "n" * 300, "Unable to open shared memory region"),
        ]:
            with pytest.raises(InferenceServerException, match=words):
                client.register_system_shared_memory("odd", key, 8)
        assert registered(client) == set()


def test_a_region_is_unmapped_when_nobody_uses_it_any_more(sharing):
    """Not before the request that waits in a queue has been answered."""
    array = np.ones((1, 4), dtype=np.float32)
    with client_of(sharing, "grpc") as client:
        client.unregister_system_shared_memory()
        with Region(client, 16) as region:
            shm.set_shared_memory_region(region.handle, [array])
            assert _mapped(sharing) == 1
            given = given_in(triton_grpc, "INPUT0", array, "FP32", region, 16)
            answered = threading.Event()
            client.async_infer("second", [given], lambda result, error: answered.set())
            _until(lambda: triton.pending(sharing, "second") == 1)
            client.unregister_system_shared_memory(region.name)
            assert _mapped(sharing) == 1 and not answered.is_set()
            assert answered.wait(WAIT_SECONDS_MAX)
            _until(lambda: _mapped(sharing) == 0)


def test_there_are_so_many_regions_and_no_more(sharing):
    """The last that is too much is told so, and the others are served."""
    array = np.arange(4, dtype=np.float32)
    with client_of(sharing, "grpc") as client, Region(client, 16) as region:
        client.unregister_system_shared_memory()
        for number in range(REGIONS_MAX):
            client.register_system_shared_memory(f"r{number}", region.key, 16)
        with pytest.raises(InferenceServerException, match=f"'more': {REGIONS_MAX} regions are registered already"):
            client.register_system_shared_memory("more", region.key, 16)
        shm.set_shared_memory_region(region.handle, [array])
        last = type("Named", (), {"name": f"r{REGIONS_MAX - 1}"})()
        answer = client.infer("fp32", [given_in(triton_grpc, "INPUT0", array, "FP32", last, 16)])
        np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), array)
        client.unregister_system_shared_memory()
        assert _mapped(sharing) == 0
        client.register_system_shared_memory("more", region.key, 16)
        client.unregister_system_shared_memory()


@every_protocol
def test_killed_clients_disturb_nobody_and_what_they_held_can_be_had_again(sharing, binary, protocol):
    """Load generators, at any moment of their lives. Their regions stay registered, as with the real server,
    until somebody unregisters them."""
    chance = random.Random(7)
    array = np.arange(4, dtype=np.float32)
    address = sharing.http_address if protocol == "http" else sharing.grpc_address
    command = [binary, "bench", "-m", "fp32_batched", "--shape", "INPUT0:100000", "--output-shared-memory-size", "400000"]
    command += ["-i", protocol, "--shared-memory", "system", "-u", address, "--concurrency-range", "8"]
    before = _descriptors(sharing)
    with client_of(sharing, "grpc") as client:
        client.unregister_system_shared_memory()
        with Region(client, 16) as region:
            shm.set_shared_memory_region(region.handle, [array])
            given = [given_in(triton_grpc, "INPUT0", array, "FP32", region, 16)]
            left = []
            for _ in range(KILLS):
                killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                try:
                    until = time.monotonic() + chance.uniform(0, 0.4)
                    while time.monotonic() < until:
                        np.testing.assert_array_equal(client.infer("fp32", given).as_numpy("OUTPUT0"), array)
                finally:
                    killed.kill()
                    killed.wait()
                    for its_own in left_by(killed.pid):
                        left.append(its_own.name)
                        its_own.unlink()
            # Some had come so far, or nothing was tried.
            assert {region.name} < registered(client) <= {region.name, *left}
            client.unregister_system_shared_memory()
        _until(lambda: _mapped(sharing) == 0 and triton.pending(sharing, "fp32_batched") == 0)
    _until(lambda: _descriptors(sharing) <= before)


def _descriptors(server) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def _until(is_so) -> None:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not is_so():
        assert time.monotonic() < deadline, "never"
        time.sleep(0.01)
