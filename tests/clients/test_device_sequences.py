"""States of sequences whose model runs on a device: they stay in its memory from one request to the next, the answers
are those of states that go by way of the host, and what a sequence had is free when it is over."""

from __future__ import annotations

import concurrent.futures
import contextlib
import queue
import time

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from . import models, onnx_file, torch_models, triton
from .conftest import DRIVERS
from .test_device_models import needs_onnxruntime, needs_torch
from .test_observe import metrics
from .test_resident_steps import BY_HOST, copied, fallbacks
from .test_sequences import COLLECTING

COLUMNS = 64
# A row of an input, of an output or of a state.
ROW = 4 * COLUMNS
MODEL = "sums"
STRATEGIES = ["direct", "oldest"]
OLDEST = "max_candidate_sequences: 64"
SETTINGS = {
    "direct": "direct { }",
    "oldest": f"oldest {{ {OLDEST} }}",
    # For batches of all that have something to run: of four rows beside four that have not, and of eight.
    "patient": "direct { max_queue_delay_microseconds: 20000 minimum_slot_utilization: 1 }",
    "full": f"oldest {{ {OLDEST} preferred_batch_size: [ 8 ] max_queue_delay_microseconds: 20000 }}",
}
BEGIN = {"zeros": "zero_data: true", "file": 'data_file: "ten"'}

ADD = """
extern "C" __global__ void add(
    const float* x, const float* so_far, float* y, float* sum, unsigned long long count, unsigned long long columns) {
    const unsigned long long i = blockIdx.x * static_cast<unsigned long long>(blockDim.x) + threadIdx.x;
    if (i < count) y[i] = sum[i] = x[i] + so_far[i];
}

extern "C" __global__ void add_to_one(
    const float* x, const float* so_far, float* y, unsigned long long count, unsigned long long columns) {
    const unsigned long long i = blockIdx.x * static_cast<unsigned long long>(blockDim.x) + threadIdx.x;
    if (i < count) y[i] = x[i] + so_far[i];
}
"""


@pytest.fixture(scope="session")
def driver() -> str:
    """One is enough: devices know nothing of sockets."""
    return DRIVERS[0]


def config(backend: str, strategy: str = "direct", begin: str = "zeros", idle_us: int = 600_000_000, more: str = "", state: str = "", left: str = "sum") -> str:
    """Gives the sum of what came in a sequence so far, which is its state: the output `left` of the run."""
    tensor = f"data_type: TYPE_FP32 dims: [ {COLUMNS} ]"
    return f"""
        {backend} max_batch_size: 8
        input {{ name: "x" {tensor} }}
        output {{ name: "y" {tensor} }}
        sequence_batching {{
          {SETTINGS[strategy]}
          max_sequence_idle_microseconds: {idle_us}
          state {{ input_name: "so_far" output_name: "{left}" {tensor} {state}
            initial_state {{ name: "begin" {tensor} {BEGIN[begin]} }} }}
        }}
        {more}
    """


def sums() -> bytes:
    """The same as an ONNX file."""
    parts = [onnx_file.node("Add", ["x", "so_far"], "y"), onnx_file.node("Identity", ["y"], "sum")]
    rows = (onnx_file.FLOAT, ["N", COLUMNS])
    return onnx_file.graph(parts, {"x": rows, "so_far": rows}, {"y": rows, "sum": rows})


def write(folder, kind: str = "cuda", **options):
    """A repository of one model, as this back end has it."""
    if kind == "onnxruntime":
        model = models.Model(config('backend: "onnxruntime"', **options), {1: sums()})
    elif kind == "pytorch":
        model = models.Model(config('backend: "pytorch"', **options))
    else:
        kernel, outputs = ("add_to_one", "y") if options.get("left") == "y" else ("add", "y, sum")
        parameters = {"kernel": kernel, "arguments": f"x, so_far, {outputs}, count(y), {COLUMNS}"}
        told = " ".join(f'parameters {{ key: "{k}" value: {{ string_value: "{v}" }} }}' for k, v in parameters.items())
        model = models.Model(config(f'backend: "cuda" {told}', **options))
    folder = models.write(folder, {MODEL: model})
    (folder / MODEL / "initial_state").mkdir()
    (folder / MODEL / "initial_state" / "ten").write_bytes(np.full(COLUMNS, 10, np.float32).tobytes())
    if kind == "cuda":
        (folder / MODEL / "1" / "model.cu").write_text(ADD)
    if kind == "pytorch":
        (folder / MODEL / "1" / "model.pt").write_bytes(TORCH.file())
    return folder


TORCH = torch_models.TorchModel(
    "", "x: Tensor, so_far: Tensor", "Tuple[Tensor, Tensor]", "y = torch.add(x, so_far)\nreturn (y, torch.add(x, so_far))"
)
KINDS = [
    "cuda",
    pytest.param("onnxruntime", marks=needs_onnxruntime),
    pytest.param("pytorch", marks=needs_torch),
]


class Sequences:
    """Sequences of one model, and what comes of them."""

    def __init__(self, server, begin: float = 0):
        self.server = server
        self.begin = begin
        self.so_far: dict[int, np.ndarray] = {}

    def ask(self, sequence: int, flags: str = "", seed: int = 0, **options) -> np.ndarray:
        """The sum, which must be right."""
        x = np.random.default_rng([sequence, seed]).integers(-99, 99, (1, COLUMNS)).astype(np.float32)
        before = self.so_far.get(sequence)
        if "s" in flags or before is None:
            before = np.full((1, COLUMNS), self.begin, np.float32)
        told = {"sequence_id": sequence, "sequence_start": "s" in flags, "sequence_end": "e" in flags}
        given = triton.tensor(triton_grpc, "x", "FP32", x)
        y = triton.grpc(self.server, model_name=MODEL, inputs=[given], **told, **options).as_numpy("y")
        self.so_far[sequence] = before + x
        np.testing.assert_array_equal(y, before + x)
        return y

    def run(self, sequence: int, requests: int = 4) -> list[np.ndarray]:
        """A whole one."""
        flags = lambda turn: ("s" if turn == 0 else "") + ("e" if turn == requests - 1 else "")  # noqa: E731
        return [self.ask(sequence, flags(turn), turn) for turn in range(requests)]


def rows_of(server) -> int:
    """Of all batches, those that belong to nobody too."""
    (told,) = server.get_json(f"/v2/models/{MODEL}/stats")["model_stats"]
    return sum(int(each["batch_size"]) * int(each["compute_infer"]["count"]) for each in told["batch_stats"])


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_stays_on_the_device_of_its_sequence(start, tmp_path, kind, strategy):
    """Of streams that come among each other and share batches; and what comes of it is to the last bit what comes of
    states that go by way of the host."""
    folder = write(tmp_path / "own", kind, strategy=strategy)
    answers = []
    for flags in ((), (BY_HOST,)):
        server = start(folder, "--device=host", "--host-device=launch-us=2000", *flags)
        sequences = Sequences(server)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            done = [pool.submit(sequences.run, number, 3 + number % 5) for number in range(1, 25)]
            answers.append([each.result() for each in done])
        rows, (requests, runs) = rows_of(server), triton.executions(server, MODEL)
        assert requests == sum(3 + number % 5 for number in range(1, 25)) and runs < 0.7 * requests
        went = copied(server)
        if not flags:
            assert went == {"copy in": {MODEL: rows * ROW}, "copy out": {MODEL: rows * ROW}}
            assert fallbacks(server) == {} and kept(server) == 0
        else:
            assert fallbacks(server) == {(MODEL, "budget"): runs}
            # Zeros are made there all the same.
            assert went == {"copy in": {MODEL: (rows + requests - 24) * ROW}, "copy out": {MODEL: 2 * rows * ROW}}
    for here, there in zip(*answers):
        np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("more", ["", "optimization { cuda { graphs: true } }"], ids=["plain", "graphs"])
def test_what_a_state_begins_with_is_brought_once(start, tmp_path, strategy, more):
    """A file's at the start of each sequence, whatever else is in its batch."""
    server = start(write(tmp_path / "own", strategy=strategy, begin="file", more=more), "--device=host")
    sequences = Sequences(server, 10)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(sequences.run, number) for number in range(1, 25)]:
            done.result()
    rows = rows_of(server)
    assert copied(server) == {"copy in": {MODEL: (rows + 24) * ROW}, "copy out": {MODEL: rows * ROW}}
    # One that starts anew before it has ended begins at the beginning.
    for flags in ("s", "", "s", "e"):
        sequences.ask(50, flags)


@pytest.mark.parametrize("flags", [(), (BY_HOST,)], ids=["stays", "by host"])
def test_a_state_that_clients_ask_for_too_comes_to_them_once(start, tmp_path, flags):
    """An output of the model may be both."""
    server = start(write(tmp_path / "own", left="y"), "--device=host", *flags)
    sequences = Sequences(server)
    for turn in range(4):
        sequences.ask(1, "s" if turn == 0 else "", turn)
    given = triton.tensor(triton_grpc, "x", "FP32", np.zeros((1, COLUMNS), np.float32))
    answer = triton.grpc(server, model_name=MODEL, inputs=[given], sequence_id=1).get_response()
    assert [output.name for output in answer.outputs] == ["y"] and len(answer.raw_output_contents) == 1
    assert copied(server)["copy out"] == {MODEL: rows_of(server) * ROW}


def kept(server) -> int:
    """The bytes that the first device keeps between runs."""
    return metrics(server)['nereid_device_kept_bytes{device="0"}']


# Room for what a sequence has and what a request makes of it, and no more.
ROOM_FOR_ONE = f"--cuda-memory-pool-byte-size=0:{2 * ROW}"


def check_room_for_one(sequences: Sequences) -> None:
    """That nothing of other sequences is kept: a further one finds the room it needs."""
    assert kept(sequences.server) == 0
    before, rows = copied(sequences.server), rows_of(sequences.server)
    sequences.run(1000)
    after, rows = copied(sequences.server), rows_of(sequences.server) - rows
    assert rows == 4
    assert {name: after[name][MODEL] - before[name][MODEL] for name in after} == {"copy in": 4 * ROW, "copy out": 4 * ROW}


def check_no_room(sequences: Sequences) -> None:
    """The contrary, while others live: states go by way of the host then."""
    before = copied(sequences.server)
    sequences.run(1001)
    after = copied(sequences.server)
    assert after["copy out"][MODEL] - before["copy out"][MODEL] > 4 * ROW


def test_a_sequence_that_ends_or_is_idle_leaves_nothing_behind(start, tmp_path):
    """With its last request, with its time, and with one that starts anew."""
    server = start(write(tmp_path / "own", idle_us=400_000), "--device=host", ROOM_FOR_ONE)
    sequences = Sequences(server)
    for number in range(1, 6):
        sequences.run(number)
    check_room_for_one(sequences)
    for _ in range(5):
        sequences.ask(7, "s")
    sequences.ask(8, "s")
    assert kept(server) == 2 * ROW
    check_no_room(sequences)
    time.sleep(0.8)
    check_room_for_one(sequences)


def test_a_sequence_whose_client_leaves_leaves_nothing_behind(start, tmp_path):
    """While a request of it waits for another that runs."""
    folder = write(tmp_path / "own")
    server = start(folder, "--device=host", "--host-device=launch-us=100000", ROOM_FOR_ONE)
    sequences, told = Sequences(server), queue.Queue()
    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
        for number in range(1, 5):
            sequences.ask(number, "s")
            given = [triton.tensor(triton_grpc, "x", "FP32", np.zeros((1, COLUMNS), np.float32))]
            tell = lambda result, error: told.put(error)  # noqa: E731
            first = client.async_infer(MODEL, given, tell, sequence_id=number)
            time.sleep(0.02)
            second = client.async_infer(MODEL, given, tell, sequence_id=number)
            time.sleep(0.02)
            second.cancel()
            del first
            errors = [told.get(timeout=20) for _ in range(2)]
            assert sorted(error is None for error in errors) == [False, True], errors
            with pytest.raises(InferenceServerException, match="START flag"):
                sequences.ask(number)
    check_room_for_one(sequences)


@pytest.mark.parametrize("fault,count", [("launch:2", 1), ("copy:4", 1), ("copy:5", 1), ("allocation:6", 0)])
def test_a_request_that_fails_leaves_the_state_as_it_was(start, tmp_path, fault, count):
    """Its sequence goes on, and what was kept for it is free again. Memory that is not had is no failure."""
    server = start(write(tmp_path / "own"), "--device=host", ROOM_FOR_ONE, f"--host-device=fail=0:{fault}")
    sequences, failures = Sequences(server), 0
    for number in range(1, 6):
        for turn in range(4):
            flags = "s" if turn == 0 else ""
            try:
                sequences.ask(number, flags, turn)
            except InferenceServerException as error:
                assert "an injected fault" in error.message(), error
                failures += 1
                sequences.ask(number, flags, turn)
        sequences.ask(number, "e")
    assert failures == count
    check_room_for_one(sequences)


# A batch of eight rows takes 8,448 bytes, and the states that sequences have are as many as there are sequences: there
# is no room for what is to take their place.
@pytest.mark.parametrize("strategy,clients", [("patient", 4), ("full", 8)])
@pytest.mark.parametrize("room,memory", [(5 * ROW, 1 << 20), (1 << 20, 8448 + 5 * ROW)])
def test_where_a_device_is_too_small_states_go_by_way_of_the_host(start, tmp_path, strategy, clients, room, memory):
    """No leave for all of them, and leave for more than there is; some stay, and none is told."""
    memory += clients * ROW
    flags = (f"--host-device=memory={memory}", f"--cuda-memory-pool-byte-size=0:{room}", "--host-device=launch-us=3000")
    server = start(write(tmp_path / "own", strategy=strategy), "--device=host", *flags)
    sequences = Sequences(server)
    for number in range(1, 5):
        sequences.ask(number, "s")
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(sequences.run, number, 8) for number in range(11, 27)]:
            done.result()
    for number in range(1, 5):
        sequences.ask(number, "e")
    assert fallbacks(server).keys() == {(MODEL, "budget" if room == 5 * ROW else "memory")} and kept(server) == 0
    rows, went = rows_of(server), copied(server)
    assert rows * ROW < went["copy out"][MODEL] <= 2 * rows * ROW, went


def test_each_device_keeps_the_states_of_its_own_sequences(start, tmp_path):
    """A sequence stays with an instance. One that is lost ends its sequences, and others begin elsewhere."""
    more = "instance_group { gpus: [ 0, 1 ] }"
    flags = ("--device=host", "--host-device=count=2")
    folder = write(tmp_path / "own", strategy="oldest", more=more)
    server = start(folder, *flags, "--host-device=lose=0:launch:8")
    sequences = Sequences(server)
    for turn in range(4):
        for number in (1, 2, 3, 4):
            sequences.ask(number, "s" if turn == 0 else "")
    rows = rows_of(server)
    assert copied(server) == {"copy in": {MODEL: rows * ROW}, "copy out": {MODEL: rows * ROW}}
    lost = []
    for number in (1, 2, 3, 4):
        for _ in range(2):
            try:
                sequences.ask(number)
            except InferenceServerException as error:
                assert "device 0 is lost" in error.message(), error
                lost.append(number)
                break
    assert lost == [1, 3]
    for number in (1, 2, 3, 4, 5):
        sequences.ask(number, "s")
        sequences.ask(number, "e")


def test_states_go_with_their_model(start, tmp_path):
    """Which is loaded anew as often as one likes, with sequences under way."""
    folder = write(tmp_path / "own")
    server = start(folder, "--device=host", ROOM_FOR_ONE, "--model-control-mode=explicit", f"--load-model={MODEL}")
    with contextlib.closing(triton_http.InferenceServerClient(server.http_address)) as client:
        for number in range(1, 6):
            Sequences(server).ask(number, "s")
            client.unload_model(MODEL)
            deadline = time.monotonic() + 20
            while client.is_model_ready(MODEL):
                assert time.monotonic() < deadline
            client.load_model(MODEL)
    check_room_for_one(Sequences(server))


def test_the_driver_is_asked_for_no_copy_of_a_state(gpu_server, tmp_path):
    """On the stand-in for a GPU: of one sequence after the other none at all, of several at once those that gather and
    scatter their rows; and all memory is given back."""
    flags = ("--model-control-mode=explicit", f"--load-model={MODEL}")
    server, accounts = gpu_server(write(tmp_path / "own", strategy="full"), *flags, devices=1)
    sequences = Sequences(server)
    for number in range(1, 4):
        sequences.run(number)
    told = accounts.read()
    calls = {name: told["calls"].get(f"cuMemcpy{name}Async_v2", 0) for name in ("HtoD", "DtoH", "DtoD")}
    assert calls == {"HtoD": 12, "DtoH": 12, "DtoD": 0}, told
    assert told["faults"] == [] and "gather" not in told["launches"] and "scatter" not in told["launches"]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(sequences.run, number, 6) for number in range(11, 27)]:
            done.result()
    told = accounts.read()
    assert told["faults"] == [] and told["launches"]["gather"] > 0 and told["launches"]["scatter"] > 0
    assert fallbacks(server) == {} and kept(server) == 0
    sequences.ask(99, "s")
    with contextlib.closing(triton_http.InferenceServerClient(server.http_address)) as client:
        client.unload_model(MODEL)
    told = accounts.wait(lambda it: it["live"]["allocations"] == 0)
    assert told["faults"] == []


@needs_onnxruntime
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_state_that_grows_goes_by_way_of_the_host(start, tmp_path, strategy):
    """Only the run tells its shape: it comes with each request, and goes with the next."""
    model = models.Model(COLLECTING.format(strategy=SETTINGS[strategy]), {1: onnx_file.collects()})
    server = start(models.write(tmp_path / "own", {"all": model}), "--device=host")

    def run(number: int) -> None:
        for turn in range(6):
            given = triton.tensor(triton_grpc, "x", "FP32", np.full((1, 1), number + turn, np.float32))
            told = {"sequence_id": number, "sequence_start": turn == 0, "sequence_end": turn == 5}
            got = triton.grpc(server, model_name="all", inputs=[given], **told).as_numpy("y")[0].tolist()
            assert got == [0, *range(number, number + turn + 1)]

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(run, number) for number in range(1, 10)]:
            done.result()
    assert fallbacks(server) == {("all", "shape"): triton.executions(server, "all")[1]}
    assert kept(server) == 0
