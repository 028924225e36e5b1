"""The ring, by its Python client: arrays in shared memory, in waiting and in asyncio programs."""

from __future__ import annotations

import asyncio
import gc
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest

from . import conftest, models, onnx_file, triton

sys.path.insert(0, str(conftest.ROOT / "clients" / "python"))
os.environ.setdefault("NEREID_RING_LIBRARY", str(conftest.NEREID.parent / "libnereid_ring_c.so"))

import nereid_ring  # noqa: E402  (the path to it is only known here)
from nereid_ring import AsyncRing, Ring, RingError  # noqa: E402

needs_onnx = pytest.mark.skipif(not models.has_onnxruntime(), reason="the ONNX Runtime back end is not installed")
SMALL = {"arena_bytes": 8 << 20, "requests": 64}


@pytest.fixture
def ring(with_ring):
    """A connection."""
    with Ring(with_ring[1], **SMALL) as ring:
        yield ring


@pytest.mark.parametrize("datatype", models.TYPES)
def test_every_type_comes_back(ring, datatype):
    array = triton.values(datatype, (6,))
    answer = ring.infer(datatype.lower(), {"INPUT0": array})
    assert (answer.model, answer.version, list(answer)) == (datatype.lower(), 1, ["OUTPUT0"])
    np.testing.assert_array_equal(answer["OUTPUT0"], array)


@pytest.mark.parametrize("elements", [0, 16, 500_000])
def test_arrays_of_the_arena_are_not_copied(ring, elements):
    given, wanted = ring.empty(elements, np.float32), ring.empty(elements, np.float32)
    given[:] = np.arange(elements)
    answer = ring.infer("fp32", {"INPUT0": given}, {"OUTPUT0": wanted})
    np.testing.assert_array_equal(wanted, given)
    assert elements == 0 or answer["OUTPUT0"].ctypes.data == wanted.ctypes.data
    part = ring.infer("fp32", {"INPUT0": given[: elements // 2]})["OUTPUT0"]
    np.testing.assert_array_equal(part, given[: elements // 2])


def test_arrays_outlive_their_ring(with_ring):
    with Ring(with_ring[1], **SMALL) as ring:
        kept = ring.infer("fp32", {"INPUT0": np.ones(16, np.float32)})["OUTPUT0"]
    del ring
    gc.collect()
    assert kept.sum() == 16


def test_memory_is_given_back(ring):
    """A hundred times a third of the arena."""
    large = np.zeros(300_000, np.float32)
    for number in range(100):
        large[0] = number
        assert ring.infer("fp32", {"INPUT0": large}, area_bytes=2_000_000)["OUTPUT0"][0] == number
    with pytest.raises(RingError, match="bytes in a row are free"):
        ring.empty(16 << 20, np.uint8)


def test_failures_have_their_words(ring):
    given = {"INPUT0": np.zeros(4, np.float32)}
    with pytest.raises(RingError, match="'absent' is not found") as raised:
        ring.infer("absent", given)
    assert raised.value.status == "Not found"
    with pytest.raises(RingError, match="area for answers is too small"):
        ring.infer("fp32", {"INPUT0": np.zeros(16, np.float32)}, area_bytes=140)
    with pytest.raises(TypeError, match="no tensor has the type complex128"):
        ring.infer("fp32", {"INPUT0": np.zeros(4, complex)})
    with pytest.raises(ValueError, match="does not lie in the arena"):
        ring.infer("fp32", given, {"OUTPUT0": np.zeros(4, np.float32)})
    with pytest.raises(RingError, match="parameter 'timeout' is reserved"):
        ring.infer("fp32", given, parameters={"timeout": 3})
    with pytest.raises(RingError, match="deadline expired"):
        ring.infer("patient", {"INPUT0": np.zeros((1, 4), np.float32)}, deadline=0.01)


def test_classes_are_named(ring):
    scores = np.array([[0.1, 0.7, 0.2]], np.float32)
    answer = ring.infer("labels", {"INPUT0": scores}, {"OUTPUT0": 2}, id="seven")
    assert answer.id == "seven"
    assert answer["OUTPUT0"].tolist() == [[b"0.700000:1:bee", b"0.200000:2:cat"]]


@pytest.mark.parametrize(("model", "sequence"), [("sequence_direct", 2**40), ("sequence_oldest", 2**41), ("sequence_text", "a name")])
def test_a_model_is_told_of_its_sequence(ring, model, sequence):
    def ask(value: float, **flags) -> list:
        answer = ring.infer(model, {"INPUT0": np.full((1, 1), value, np.float32)}, sequence=sequence, **flags)
        return [answer[f"OUTPUT{index}"].item() for index in range(5)]

    named = sequence.encode() if isinstance(sequence, str) else sequence
    with pytest.raises(RingError, match="must specify the START flag"):
        ask(0)
    assert ask(1, sequence_start=True) == [1, 1, 1, 0, named]
    assert ask(2) == [2, 0, 1, 0, named]
    assert ask(3, sequence_end=True) == [3, 0, 1, 1, named]


def test_a_batch_of_requests_in_flight(ring):
    """They wait for each other in the batcher."""
    arrays = [np.full((1, 4), number, np.float32) for number in range(48)]
    pending = [ring.submit("gather", {"INPUT0": array}) for array in arrays]
    for array, request in reversed(list(zip(arrays, pending))):
        np.testing.assert_array_equal(ring.wait(request)["OUTPUT0"], array)


@needs_onnx
def test_a_real_model(ring):
    answer = ring.infer("mlp", {"x": np.ones((2, 4), np.float32)})
    assert answer["y"].shape == (2, 3)
    again = ring.infer("mlp", {"x": ring.array(np.ones((2, 4), np.float32))})
    np.testing.assert_array_equal(again["y"], answer["y"])


@needs_onnx
@pytest.mark.parametrize("is_chosen", [True, False])
@pytest.mark.parametrize("model", ["relu", "last"])
def test_a_model_writes_its_output_to_the_arena(start, tmp_path, model, is_chosen):
    """There would be no memory for it elsewhere: not for the model's alone, nor as the last step of an ensemble."""
    tensors = 'input [{ name: "x" data_type: TYPE_FP32 dims: [ -1 ] }] output [{ name: "y" data_type: TYPE_FP32 dims: [ -1 ] }]'
    maps = 'input_map { key: "x" value: "x" } output_map { key: "z" value: "y" }'
    last = f'platform: "ensemble" max_batch_size: 4 {tensors} ensemble_scheduling {{ step [{{ model_name: "named" {maps} }}] }}'
    node = onnx_file.node("Relu", ["x"], "z")
    named = onnx_file.model([node], onnx_file.FLOAT, ["rows", "columns"], ["rows", "columns"], ("x", "z"))
    both = {"relu": models.Model(None, {1: onnx_file.relu()}), "named": models.Model(None, {1: named}), "last": models.Model(last)}
    repository = models.write(tmp_path / "models", both)
    array = np.arange(1 << 20, dtype=np.float32).reshape(4, -1) - (1 << 19)
    path, budget = tmp_path / "socket", 3 * array.nbytes
    limits = (f"--memory-budget-byte-size={budget}", "--pinned-memory-pool-byte-size=4096")
    start(repository, f"--ring-socket={path}", *limits)
    with Ring(path, arena_bytes=budget - (1 << 20), requests=8) as ring:
        given = ring.array(array)
        wanted = {"y": ring.empty(array.shape, np.float32)} if is_chosen else ()
        for _ in range(3):
            answer = ring.infer(model, {"x": given}, wanted, area_bytes=1024 if is_chosen else array.nbytes + 1024)
            np.testing.assert_array_equal(answer["y"], np.maximum(array, 0))
            assert not is_chosen or answer["y"].ctypes.data == wanted["y"].ctypes.data
            del answer
        # Over itself it is copied, so that nothing is lost that is still to be read.
        with pytest.raises(RingError, match="would pass the budget"):
            ring.infer(model, {"x": given}, {"y": given}, area_bytes=1024)


@needs_onnx
def test_nobody_writes_to_a_request_that_is_given_up(start, tmp_path):
    """Its model has begun to run, and its answer would go where the client puts something else now."""
    squares = [onnx_file.node("MatMul", [f"x{step}" if step else "x", "x"], f"x{step + 1}") for step in range(15)]
    squares.append(onnx_file.node("Identity", ["x15"], "y"))
    slow = onnx_file.model(squares, onnx_file.FLOAT, [1024, 1024], [1024, 1024])
    path = tmp_path / "socket"
    server = start(models.write(tmp_path / "models", {"slow": models.Model(None, {1: slow})}), f"--ring-socket={path}")
    with Ring(path, arena_bytes=32 << 20, requests=8) as ring:
        given, wanted = ring.array(np.eye(1024, dtype=np.float32)), ring.empty((1024, 1024), np.float32)
        ring.infer("slow", {"x": given}, {"y": wanted})
        np.testing.assert_array_equal(wanted, given)
        began = time.monotonic()
        ring.infer("slow", {"x": given}, {"y": wanted})
        took = time.monotonic() - began
        pending = ring.submit("slow", {"x": given}, {"y": wanted})
        time.sleep(took / 4)
        ring.cancel(pending)
        with pytest.raises(RingError, match="[Cc]ancelled"):
            ring.wait(pending)
        wanted[:] = 7
        time.sleep(2 * took)
        assert (wanted == 7).all()
    assert server.is_running()


def test_a_model_that_answers_any_number_of_times(ring, with_ring):
    values, delays = np.arange(5, dtype=np.int32), np.zeros(5, np.uint32)
    given = {"IN": values, "DELAY": delays, "WAIT": np.zeros(1, np.uint32)}
    answers = list(ring.stream("repeat", given))
    assert [answer["OUT"].item() for answer in answers] == values.tolist()
    none = {"IN": values[:0], "DELAY": delays[:0], "WAIT": np.zeros(1, np.uint32)}
    assert list(ring.stream("repeat", none)) == []

    async def main() -> None:
        async with AsyncRing(with_ring[1], requests=2, arena_bytes=1 << 20) as ring:
            found = [answer["OUT"].item() async for answer in ring.stream("repeat", given)]
            assert found == values.tolist()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_asyncio(with_ring):
    async def ask(ring: AsyncRing, number: int) -> None:
        array = np.full((1, 4), number, np.float32)
        answer = await ring.infer("gather", {"INPUT0": array})
        np.testing.assert_array_equal(answer["OUTPUT0"], array)

    async def main() -> None:
        async with AsyncRing(with_ring[1], **SMALL) as ring:
            await asyncio.gather(*(ask(ring, number) for number in range(40)))
            with pytest.raises(RingError, match="not found"):
                await ring.infer("absent", {})
            slow = asyncio.create_task(ring.infer("patient", {"INPUT0": np.zeros((1, 4), np.float32)}))
            await asyncio.sleep(0.05)
            slow.cancel()
            with pytest.raises(asyncio.CancelledError):
                await slow
            await ask(ring, 7)

    asyncio.run(asyncio.wait_for(main(), 30))


def test_who_waits_learns_that_the_server_stops(start, repository, tmp_path):
    path = tmp_path / "socket"
    server = start(repository, f"--ring-socket={path}", "--exit-timeout-secs=1")
    with Ring(path, **SMALL) as ring:
        ring.infer("fp32", {"INPUT0": np.zeros(4, np.float32)})
        server.stop()
        with pytest.raises(RingError, match="closed"):
            ring.infer("fp32", {"INPUT0": np.zeros(4, np.float32)})
    assert not path.exists()
    with pytest.raises(RingError, match="cannot connect"):
        nereid_ring.Ring(path)


def test_who_awaits_learns_that_the_server_is_gone(start, repository, tmp_path):
    """All that wait at once, and who asks afterwards."""
    path = tmp_path / "socket"
    server = start(repository, f"--ring-socket={path}")

    async def main() -> None:
        async with AsyncRing(path, **SMALL) as ring:
            patient = [ring.infer("patient", {"INPUT0": np.zeros((1, 4), np.float32)}) for _ in range(3)]
            waiting = asyncio.gather(*patient, return_exceptions=True)
            await asyncio.sleep(0.1)
            assert not waiting.done()
            server.kill()
            assert {str(each) for each in await waiting} == {"the server has closed the ring"}
            with pytest.raises(RingError, match="closed"):
                await ring.infer("fp32", {"INPUT0": np.zeros(4, np.float32)})

    asyncio.run(asyncio.wait_for(main(), 30))


def test_who_may_use_the_ring_and_how_much_of_it_is_the_operators_to_say(start, repository, tmp_path):
    """The socket's permissions, the largest arena, and an event loop that looks for requests all the time."""
    path = tmp_path / "socket"
    start(repository, f"--ring-socket={path}", "--ring-socket-mode=640", f"--ring-arena-byte-size-max={12 << 20}", "--ring-spin")
    assert path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(RingError, match="--ring-arena-byte-size-max"):
        Ring(path, arena_bytes=16 << 20, requests=64)
    with Ring(path, **SMALL) as ring:
        given = np.arange(4, dtype=np.float32)
        np.testing.assert_array_equal(ring.infer("fp32", {"INPUT0": given})["OUTPUT0"], given)


STRANGER = 65534  # nobody
# What another user is told: that it cannot connect, the words of a refusal, or how much memory it is given.
AS_A_STRANGER = """
import os, socket, struct, sys
path, user = sys.argv[1], int(sys.argv[2])
os.setgroups([])
os.setgid(user)
os.setuid(user)
with socket.socket(socket.AF_UNIX) as peer:
    try:
        peer.connect(path)
    except PermissionError:
        sys.exit("no permission")
    peer.sendall(struct.pack("<8sIIQIII12x", b"NRDRING\\n", 1, 48, 1 << 20, 8, 8, 0))
    welcome = peer.recv(48, socket.MSG_WAITALL)
    total_bytes, refusal_bytes = struct.unpack_from("<QI", welcome, 16)
    words = peer.recv(refusal_bytes, socket.MSG_WAITALL).decode() if refusal_bytes else "welcome"
    print(total_bytes, words)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_let_in_by_the_sockets_permissions_and_refused_where_they_are_for_one(start, repository):
    def told(path) -> str:
        asked = (sys.executable, "-c", AS_A_STRANGER, str(path), str(STRANGER))
        ran = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False)
        return (ran.stdout + ran.stderr).strip()

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        folder.chmod(0o755)
        private, public = folder / "private", folder / "public"
        start(repository, f"--ring-socket={private}")
        assert told(private) == "no permission"
        # Whoever gets through all the same is known by what the system says of it.
        private.chmod(0o666)
        assert told(private) == f"0 the ring is for user 0 only, got user {STRANGER}"
        Ring(private, **SMALL).close()
        start(repository, f"--ring-socket={public}", "--ring-socket-mode=666")
        total_bytes, words = told(public).split()
        assert int(total_bytes) > 1 << 20 and words == "welcome"
