"""Steps of ensembles on one device: what only they take stays in its memory from one to the next, whatever else is in
their batches, and the answers are those of tensors that go by way of the host."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import pathlib
import re

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from . import device_memory, models, triton
from .conftest import DRIVERS
from .python_server import wait_until
from .test_device_models import needs_onnxruntime, onnx, untold
from .test_devices import SCALE, timeline_of
from .test_ensembles import _ensemble, _map
from .test_observe import metrics

COLUMNS = 64
FACTOR = 2.5
# Of these, what a request takes on the device between two steps.
ROW = 4 * COLUMNS
WHOLE = {"told", *(f"by_{name}" for name in ("relu", "untold", "here"))}
BY_HOST = "--cuda-memory-pool-byte-size=0:0"


def _tensor(kind: str, name: str, datatype: str = "FP32", columns: int = COLUMNS) -> str:
    return f'{kind} [{{ name: "{name}" data_type: TYPE_{datatype} dims: [ {columns} ] }}]\n'


def _ops(chain: str, tensors: str, options: str) -> models.Model:
    chain = chain.replace('"', r"\"")
    return models.Model(f'backend: "ops" {options} parameters {{ key: "chain" value: {{ string_value: "{chain}" }} }}\n{tensors}')


def _scaled(options: str) -> models.Model:
    pairs = {"kernel": "scale", "arguments": f"x, y, count(y), {FACTOR}"}
    parameters = " ".join(f'parameters {{ key: "{k}" value: {{ string_value: "{v}" }} }}' for k, v in pairs.items())
    return models.Model(f'backend: "cuda" {options} {parameters}\n{_tensor("input", "x")}{_tensor("output", "y")}')


def _step(model: str, source: str, target: str, names: tuple[str, str] = ("x", "y")) -> str:
    inputs, outputs = _map("input_map", {names[0]: source}), _map("output_map", {names[1]: target})
    return f'{{ model_name: "{model}" model_version: -1 {inputs} {outputs} }}'


PIXELS = _tensor("input", "pixels", "UINT8")
SCORES = PIXELS + _tensor("output", "scores")


def _whole(middle: str, tensors: str = SCORES) -> models.Model:
    """Pixels to numbers, a framework's model, a kernel of the model's own, and scores."""
    steps = [("first", "pixels", "numbers"), (middle, "numbers", "cut"), ("scaled", "cut", "scaled"), ("last", "scaled", "scores")]
    return _ensemble(*(_step(*step) for step in steps), tensors=tensors)


def _ends(middle: str, tensors: str = SCORES, more: tuple[str, ...] = ()) -> models.Model:
    """Pixels to numbers, an ensemble of its own, and scores."""
    steps = [("first", "pixels", "numbers"), (middle, "numbers", "logarithms"), ("last", "logarithms", "scores")]
    return _ensemble(*(_step(*step) for step in steps), *more, tensors=tensors)


def _nested(tensors: str) -> dict[str, models.Model]:
    """Ensembles in ensembles, and what is in them."""
    both = tensors + _tensor("output", "z")
    forked = _step("fork", "numbers", "logarithms").replace("output_map", _map("output_map", {"z": "chances"}) + " output_map", 1)
    others = [_step("first", "pixels", "numbers"), forked, _step("last", "logarithms", "scores"), _step("last", "chances", "others")]
    return {
        "inner": _ensemble(_step("middle", "x", "t"), _step("middle", "t", "y"), tensors=tensors),
        "shell": _ensemble(_step("inner", "x", "y"), tensors=tensors),
        # What goes out is taken inside, too.
        "fork": _ensemble(_step("middle", "x", "y"), _step("last", "y", "z"), tensors=both),
        "nested": _ends("inner"),
        "deep": _ends("shell"),
        "forked": _ensemble(*others, tensors=SCORES + _tensor("output", "others")),
        "heard": _ends("inner", SCORES + _tensor("output", "logarithms")),
    }


def write(folder, delay_us: int = 0, options: str = "") -> object:
    """The models of an ensemble of three steps, and with ONNX Runtime those of others of four."""
    batched, tensors = models.batched(delay_us), _tensor("input", "x") + _tensor("output", "y")
    to_numbers = '[{"op": "cast", "to": "FP32", "scale": 0.25, "zero_point": 128}]'
    steps = [_step("first", "pixels", "numbers"), _step("middle", "numbers", "logarithms"), _step("last", "logarithms", "scores")]
    chosen = {
        "first": _ops(to_numbers, _tensor("input", "x", "UINT8") + _tensor("output", "y"), batched),
        "middle": _ops('[{"op": "log_softmax"}]', tensors, f"{batched} {options}"),
        "last": _ops('[{"op": "softmax"}]', tensors, batched),
        "straight": _ensemble(*steps, tensors=SCORES),
    }
    chosen |= _nested(tensors)
    if models.has_onnxruntime():
        here = onnx("instance_group { kind: KIND_CPU }", columns=COLUMNS)
        others = {"relu": onnx(columns=COLUMNS, delay_us=delay_us), "untold": untold(), "here": here}
        chosen |= others | {f"by_{name}": _whole(name) for name in others}
        chosen |= {"scaled": _scaled(f"{batched} {options}"), "told": _whole("relu", SCORES + _tensor("output", "cut"))}
    folder = models.write(folder, chosen)
    if models.has_onnxruntime():
        (folder / "scaled" / "1" / "model.cu").write_text(SCALE)
    return folder


@pytest.fixture(scope="session")
def driver() -> str:
    """One is enough: devices know nothing of sockets."""
    return DRIVERS[0]


@pytest.fixture
def repository(tmp_path):
    """See above."""
    return write(tmp_path / "repository")


@pytest.fixture
def three_steps(start, repository):
    """Starts a server with the shorter ensemble alone."""

    def three_steps(*flags: str):
        return start(repository, "--device=host", "--model-control-mode=explicit", "--load-model=straight", *flags)

    return three_steps


def pixels(rows: int, seed: int) -> np.ndarray:
    """Rows that tell whose they are."""
    return np.random.default_rng(seed).integers(0, 256, (rows, COLUMNS), np.uint8)


def expected(array: np.ndarray, is_whole: bool) -> np.ndarray:
    """What an ensemble gives, in float64."""
    numbers = (array.astype(np.float64) - 128) * 0.25
    numbers = np.maximum(numbers, 0) * FACTOR if is_whole else numbers
    powers = np.exp(numbers - numbers.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def ask(server, model: str, array: np.ndarray, way: str = "grpc", **options) -> np.ndarray:
    """What an ensemble answers, which must be right."""
    answer = triton.infer(way, server, model, array, "UINT8", input_name="pixels", **options).as_numpy("scores")
    np.testing.assert_allclose(answer, expected(array, model in WHOLE), rtol=5e-5, atol=1e-9)
    return answer


def copied(server) -> dict[str, collections.Counter]:
    """The bytes that were copied to the device and from it, by model."""
    events = timeline_of(server)["traceEvents"]
    bytes_of = {"copy in": collections.Counter(), "copy out": collections.Counter()}
    for event in events:
        if event["ph"] == "X" and event["cat"] in bytes_of:
            bytes_of[event["cat"]][event["name"]] += event["args"]["bytes"]
    return {name: collections.Counter({model: count for model, count in it.items() if count}) for name, it in bytes_of.items()}


def fallbacks(server) -> dict[tuple[str, str], int]:
    """How many batches of a model had tensors come to the host, by the reason."""
    name = re.compile(r'nereid_device_kept_fallback\{model="(.*)",reason="(.*)",version="1"\}')
    found = {name.fullmatch(line): int(count) for line, count in metrics(server).items()}
    return {line.groups(): count for line, count in found.items() if line and count}


def only_ends(rows: int) -> dict[str, dict[str, int]]:
    """What is copied where nothing but the pixels and the scores is."""
    return {"copy in": {"first": rows * COLUMNS}, "copy out": {"last": rows * ROW}}


@pytest.mark.parametrize(
    ("places", "leave", "arrive"),
    [
        (("1", "1", "1"), (), ()),
        (("0", "1", "1"), ("first",), ("middle",)),
        (("0", "0", "1"), ("middle",), ("last",)),
        (("1", "0", "1"), ("first", "middle"), ("middle", "last")),
        (("0", "0, 1", "0"), ("first", "middle"), ("middle", "last")),
    ],
)
def test_tensors_go_to_another_device_by_way_of_the_host(start, repository, places, leave, arrive):
    """Once out and once in, and only those: between steps on one device they stay there. A step with instances on several
    devices is on none."""
    for step, place in zip(("first", "middle", "last"), places):
        with open(repository / step / "config.pbtxt", "a") as config:
            config.write(f"instance_group {{ kind: KIND_GPU gpus: [ {place} ] }}")
    server = start(repository, "--device=host", "--host-device=count=2", "--model-control-mode=explicit", "--load-model=straight")
    for rows in (1, 2, 3):
        ask(server, "straight", pixels(rows, rows))
    rows = 1 + 2 + 3
    assert copied(server) == {
        "copy in": {"first": rows * COLUMNS, **{step: rows * ROW for step in arrive}},
        "copy out": {"last": rows * ROW, **{step: rows * ROW for step in leave}},
    }
    assert fallbacks(server) == {}


@pytest.mark.parametrize("device", [0, 1])
def test_a_clients_memory_on_another_device_is_reached_by_way_of_the_host(start, repository, device):
    """By the steps elsewhere; the step on that device reads or writes there itself. Each device has one thread for such
    copies, whoever asks for them."""
    for step, place in (("first", 0), ("middle", 0), ("last", 1)):
        with open(repository / step / "config.pbtxt", "a") as config:
            config.write(f"instance_group {{ kind: KIND_GPU gpus: [ {place} ] }}")
    server = start(repository, "--allow-client-shm=true", "--host-device=count=2", *device_memory.HostMemory.flags)
    array, place = pixels(3, 1), 4096
    size = len(array) * ROW
    with (
        contextlib.closing(device_memory.HostMemory(2 * place)) as memory,
        contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client,
    ):
        client.register_cuda_shared_memory("r", device_memory.encoded(memory), device, 2 * place)
        memory.write(array.tobytes())
        given, wanted = triton_grpc.InferInput("pixels", list(array.shape), "UINT8"), triton_grpc.InferRequestedOutput("scores")
        given.set_shared_memory("r", array.nbytes, 0)
        wanted.set_shared_memory("r", size, place)
        client.infer("straight", [given], outputs=[wanted])
        got = device_memory.array(memory, array.shape, place)
        np.testing.assert_allclose(got, expected(array, False), rtol=5e-5, atol=1e-9)
        ends = [{}, {"last": size}] if device == 0 else [{"first": array.nbytes}, {}]
        between = [{"last": size}, {"middle": size}]
        assert copied(server) == {name: {**end, **way} for name, end, way in zip(("copy in", "copy out"), ends, between)}
        names = [task.read_text().strip() for task in pathlib.Path(f"/proc/{server.process.pid}/task").glob("*/comm")]
        assert sorted(name for name in names if name.endswith("-copies")) == ["device0-copies", "device1-copies"]
        client.unregister_cuda_shared_memory("r")


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_what_goes_from_step_to_step_on_a_device_stays_there(start, repository, way):
    """And what comes of it is to the last bit what comes of tensors that go by way of the host."""
    ensembles = ["straight", *(["by_relu"] if models.has_onnxruntime() else [])]
    answers = []
    for flags in ((), (BY_HOST,)):
        server = start(repository, "--device=host", *flags)
        arrays = [pixels(1 + seed % 5, seed) for seed in range(10)]
        answers.append([ask(server, model, array, way) for model in ensembles for array in arrays])
        rows = len(ensembles) * sum(len(array) for array in arrays)
        went = copied(server)
        if not flags:
            assert went == only_ends(rows)
        else:
            assert went["copy in"]["last"] == went["copy out"]["first"] == rows * ROW
    for here, there in zip(*answers):
        np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize("flags", [(), (BY_HOST,)], ids=["kept", "by_host"])
def test_what_goes_in_and_out_of_an_ensemble_in_an_ensemble_stays_there_too(start, repository, flags):
    """At any depth; what the client wants of it comes, and asked by itself it answers as ever."""
    server = start(repository, "--device=host", *flags)
    array = pixels(3, 0)
    size = len(array) * ROW
    for model in ("nested", "deep", "forked", "heard"):
        before = copied(server)
        ask(server, model, array)
        after = copied(server)
        went = {name: after[name] - before[name] for name in after}
        if flags:
            assert went["copy in"]["middle"] == size * (1 if model == "forked" else 2), (model, went)
            continue
        wanted = only_ends(len(array))
        if model == "forked":
            wanted["copy out"]["last"] *= 2
        elif model == "heard":
            # The client wants it, so it comes to the host, and the step behind takes it from there.
            wanted["copy out"]["middle"] = wanted["copy in"]["last"] = size
        assert went == wanted, model
    if not flags:
        assert metrics(server)['nereid_device_kept_bytes{device="0"}'] == 0 and fallbacks(server) == {}
    numbers = np.random.default_rng(7).standard_normal((2, COLUMNS), dtype=np.float32)
    logarithms = numbers - np.log(np.exp(numbers).sum(axis=-1, keepdims=True))
    for model in ("inner", "shell"):
        own = triton.infer("grpc", server, model, numbers, input_name="x").as_numpy("y")
        np.testing.assert_allclose(own, logarithms, rtol=1e-4, atol=1e-5)


def test_an_ensembles_own_tensors_in_memory_of_the_device_are_read_and_written_there(start, repository):
    """Where the first steps and the last one run on it; nothing is copied to the host or from it then."""
    server = start(repository, "--allow-client-shm=true", *device_memory.HostMemory.flags)
    array, place = pixels(3, 1), 4096
    size = len(array) * ROW

    def ask_there(client, model: str, bytes_out: int = size):
        given = triton_grpc.InferInput("pixels", list(array.shape), "UINT8")
        given.set_shared_memory("r", array.nbytes, 0)
        wanted = triton_grpc.InferRequestedOutput("scores")
        wanted.set_shared_memory("r", bytes_out, place)
        return client.infer(model, [given], outputs=[wanted]).get_response()

    with (
        contextlib.closing(device_memory.HostMemory(2 * place)) as memory,
        contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client,
    ):
        client.register_cuda_shared_memory("r", device_memory.encoded(memory), 0, 2 * place)
        memory.write(array.tobytes())
        for model in ("straight", "nested", "deep", "forked"):
            memory.write(bytes(size), place)
            before = copied(server)
            answer = ask_there(client, model)
            after = copied(server)
            went = {name: after[name] - before[name] for name in after}
            # Of an ensemble with several last steps the output comes to the host, and is put there from it.
            assert went == {"copy in": {}, "copy out": {"last": size} if model == "forked" else {}}, model
            assert list(answer.outputs[0].shape) == list(array.shape) and b"".join(answer.raw_output_contents) == b""
            scores = device_memory.array(memory, array.shape, place)
            np.testing.assert_allclose(scores, expected(array, False), rtol=5e-5, atol=1e-9)
        for model in ("straight", "deep"):
            memory.write(bytes(size), place)
            with pytest.raises(InferenceServerException, match="scores"):
                ask_there(client, model, size - ROW)
            assert memory.read(size, place).strip(b"\0") == b""


@pytest.mark.parametrize("options", ["", "optimization { cuda { graphs: true } }"], ids=["plain", "graphs"])
def test_requests_that_share_batches_keep_their_own_rows_on_the_device(start, tmp_path, options):
    """Also among requests to the steps' own models, and where graphs find their tensors in their lanes."""
    server = start(write(tmp_path / "own", 3_000, options), "--device=host", "--device-lanes=2")
    ensembles = ["straight", "deep", *(["by_relu"] if models.has_onnxruntime() else [])]
    numbers = np.random.default_rng(7).standard_normal((2, COLUMNS), dtype=np.float32)

    def run(seed: int) -> None:
        array = pixels(1 + seed % 3, seed)
        if seed % 7 < 5:
            ask(server, ensembles[seed % len(ensembles)], array)
        elif seed % 7 == 5:
            own = triton.infer("grpc", server, "first", array, "UINT8", input_name="x").as_numpy("y")
            np.testing.assert_array_equal(own, (array.astype(np.float32) - 128) * 0.25)
        else:
            own = triton.infer("grpc", server, "last", numbers, input_name="x").as_numpy("y")
            np.testing.assert_allclose(own.sum(axis=-1), [1, 1], rtol=1e-5)

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        for done in [pool.submit(run, seed) for seed in range(140)]:
            done.result()
    rows, firsts = (sum(1 + seed % 3 for seed in range(140) if is_it(seed % 7)) for is_it in ((5).__gt__, (5).__eq__))
    went, lasts = copied(server), 20 * len(numbers)
    # What comes from the host and what lies on the device do not meet in one batch.
    assert went["copy in"] == {"first": (rows + firsts) * COLUMNS, "last": lasts * ROW}
    # Of a batch that also somebody else wants back, all rows come.
    assert went["copy out"].keys() == {"first", "last"} and went["copy out"]["last"] == (rows + lasts) * ROW
    assert firsts * ROW <= went["copy out"]["first"] < (firsts + rows) * ROW
    requests, runs = triton.executions(server, "last")
    assert requests == rows + lasts and runs < 120


@needs_onnxruntime
def test_what_is_wanted_elsewhere_goes_by_way_of_the_host(start, repository):
    """What the client wants too, what a step on the processors takes, and what only the run tells the shape of."""
    server = start(repository, "--device=host")
    array = pixels(3, 0)
    for model in ("told", "by_here", "by_untold"):
        before = copied(server)
        ask(server, model, array)
        after = copied(server)
        # Where the client or a step elsewhere wants it, nothing could have stayed.
        assert fallbacks(server) == ({("untold", "shape"): 1} if model == "by_untold" else {})
        went = {name: after[name] - before[name] for name in after}
        size = len(array) * ROW
        if model == "by_untold":
            # The output of the untold shape came apart from the lane.
            assert went == {"copy in": {"first": array.size, "scaled": size}, "copy out": {"last": size}}
        else:
            source = "relu" if model == "told" else "first"
            assert went == {"copy in": {"first": array.size, "scaled": size}, "copy out": {source: size, "last": size}}


# Room for what one request of four rows keeps, and no more.
ROOM_FOR_ONE = f"--cuda-memory-pool-byte-size=0:{2 * 4 * ROW}"


@pytest.mark.parametrize("fault,count", [("launch:1", 1), ("launch:2", 1), ("copy:1", 1), ("allocation:2", 0)])
def test_a_step_that_fails_leaves_nothing_behind(three_steps, fault, count):
    """Its request fails, those after it do not, and what was kept for it is free again. Memory that is not had at once
    is had when idle lanes have given up theirs."""
    server = three_steps(ROOM_FOR_ONE, f"--host-device=fail=0:{fault}")
    failures = 0
    for seed in range(8):
        try:
            ask(server, "straight", pixels(4, seed))
        except InferenceServerException as error:
            assert "an injected fault" in error.message(), error
            failures += 1
    assert failures == count
    before = copied(server)
    ask(server, "straight", pixels(4, 0))
    after = copied(server)
    assert {name: after[name] - before[name] for name in after} == only_ends(4)


def test_a_request_that_is_given_up_leaves_nothing_behind(three_steps):
    """Its client has gone while its tensors were between two steps."""
    server = three_steps(ROOM_FOR_ONE, "--host-device=launch-us=20000")
    for seed in range(12):
        with contextlib.suppress(InferenceServerException):
            ask(server, "straight", pixels(4, seed), client_timeout=0.01 + 0.005 * seed)
        # The step that it was at ends first.
        wait_until(lambda: metrics(server)['nereid_device_kept_bytes{device="0"}'] == 0)
    before = copied(server)
    ask(server, "straight", pixels(4, 0))
    after = copied(server)
    assert {name: after[name] - before[name] for name in after} == only_ends(4)


@pytest.mark.parametrize("room,memory", [(512, 6000), (1 << 20, 4700)])
def test_where_a_device_is_too_small_tensors_go_by_way_of_the_host(three_steps, room, memory):
    """No leave for so much, and leave for more than there is."""
    server = three_steps(f"--host-device=memory={memory}", f"--cuda-memory-pool-byte-size=0:{room}", "--device-lanes=1")
    for seed in range(8):
        ask(server, "straight", pixels(8, seed))
    went = copied(server)
    assert (went["copy in"]["middle"] > 0) == (room == 512) and went["copy in"]["last"] == 8 * 8 * ROW, went
    counted = {("first", "budget"): 8, ("middle", "budget"): 8} if room == 512 else {("middle", "memory"): 8}
    assert fallbacks(server) == counted
    assert metrics(server)['nereid_device_kept_limit_bytes{device="0"}'] == room
    # What of many requests is kept leaves less than a step of one takes.
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(ask, server, "straight", pixels(1 + seed % 8, seed)) for seed in range(48)]:
            done.result()
    assert metrics(server)['nereid_device_kept_bytes{device="0"}'] == 0


def test_a_device_that_is_lost_between_two_steps_fails_the_request(three_steps):
    """With the words of every model that is there."""
    server = three_steps("--host-device=lose=0:launch:1")
    for _ in range(2):
        with pytest.raises(InferenceServerException) as caught:
            ask(server, "straight", pixels(1, 0))
        assert caught.value.status() == "StatusCode.UNAVAILABLE", caught.value


def test_the_driver_is_asked_for_no_copy_between_steps(gpu_server, tmp_path):
    """On the stand-in: two copies for each request, and all memory is given back."""
    flags = ("--model-control-mode=explicit", "--load-model=straight")
    server, accounts = gpu_server(write(tmp_path / "own"), *flags, devices=1)
    for seed in range(12):
        ask(server, "straight", pixels(1 + seed % 4, seed))
    # All that was counted by the last answer is told soon.
    told = accounts.wait(lambda it: it["calls"].get("cuMemcpyDtoHAsync_v2", 0) >= 12)
    calls = {name: told["calls"].get(f"cuMemcpy{name}Async_v2", 0) for name in ("HtoD", "DtoH", "DtoD")}
    assert calls == {"HtoD": 12, "DtoH": 12, "DtoD": 0}, told
    assert told["faults"] == [] and "gather" not in told["launches"] and "scatter" not in told["launches"]
    with contextlib.closing(triton_http.InferenceServerClient(server.http_address)) as client:
        client.unload_model("straight", unload_dependents=True)
    told = accounts.wait(lambda it: it["live"]["allocations"] == 0)
    assert told["faults"] == []


def test_what_is_kept_on_a_device_is_told(three_steps):
    """While the second step runs, its input and its output; nothing before and after."""
    server = three_steps("--host-device=launch-us=150000")
    kept = 'nereid_device_kept_bytes{device="0"}'
    assert metrics(server)[kept] == 0
    seen = set()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, server, "straight", pixels(4, 0))
        while not asked.done():
            seen.add(metrics(server)[kept])
        asked.result()
    assert {4 * ROW, 2 * 4 * ROW} <= seen <= {0, 4 * ROW, 2 * 4 * ROW}, seen
    assert metrics(server)[kept] == 0 and fallbacks(server) == {}
