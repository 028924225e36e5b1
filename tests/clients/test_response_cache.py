"""The response cache through a real server: what is a hit, what is counted, and what is never stale."""

from __future__ import annotations

import contextlib
import json
import queue
import shutil
import signal
import socket
import subprocess
import time

import numpy as np
import pytest
import servers
import tritonclient.grpc as triton_grpc
import tritonclient.utils.shared_memory as shm

from . import models, triton
from .regions import Region, client_of, given_in
from .test_observe import metrics

CACHED = "response_cache { enable: true }"
LOCAL = "--cache-config=local,size=1048576"
WAIT_SECONDS_MAX = 60
TWO = """
backend: "identity"
max_batch_size: 8
response_cache { enable: true }
input [{ name: "A" data_type: TYPE_FP32 dims: [ -1 ] }, { name: "B" data_type: TYPE_INT32 dims: [ 2 ] }]
output [{ name: "A_OUT" data_type: TYPE_FP32 dims: [ -1 ] }, { name: "B_OUT" data_type: TYPE_INT32 dims: [ 2 ] }]
"""
STEP = 'input_map { key: "INPUT0" value: "%s" } output_map { key: "OUTPUT0" value: "%s" }'
ENSEMBLE = f"""
platform: "ensemble"
max_batch_size: 8
{CACHED}
input [{{ name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] }}]
output [{{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] }}]
ensemble_scheduling {{ step [
  {{ model_name: "m" model_version: -1 {STEP % ("INPUT0", "x")} }},
  {{ model_name: "m" model_version: -1 {STEP % ("x", "OUTPUT0")} }}
] }}
"""
MODELS = {
    "m": models.Model(models.identity(f"{models.batched()} {CACHED}")),
    "plain": models.Model(models.identity("max_batch_size: 8")),
    "text": models.Model(models.identity(CACHED, datatype="STRING")),
    "labels": models.Model(
        models.identity(f"max_batch_size: 8 {CACHED}", dims="4", output='label_filename: "labels.txt"'),
        labels=["ant", "bee", "cat", "dog"],
    ),
    "two": models.Model(TWO),
    "ensemble": models.Model(ENSEMBLE),
}


@pytest.fixture
def repository(tmp_path):
    """Models whose answers are kept, and one whose are not."""
    return models.write(tmp_path / "repository", MODELS)


def _counts(server, model: str) -> dict[str, int]:
    stats = server.get_json(f"/v2/models/{model}/stats")["model_stats"][0]
    inferences = {name: each["count"] for name, each in stats["inference_stats"].items()}
    return {"executions": int(stats["execution_count"]), "inferences": int(stats["inference_count"]), **inferences}


def _hits(server, model: str) -> tuple[int, int, int]:
    counts = _counts(server, model)
    return counts["cache_hit"], counts["cache_miss"], counts["executions"]


def _row(*values: float) -> np.ndarray:
    return np.array([values], dtype=np.float32)


def _ask(server, model: str, array: np.ndarray, way: str = "grpc", **more) -> np.ndarray:
    return triton.infer(way, server, model, array, **more).as_numpy("OUTPUT0")


@pytest.mark.parametrize("flag", [LOCAL, "--response-cache-byte-size=1048576"])
def test_hits_are_counted_as_the_real_server_counts_them(start, repository, flag):
    """A hit is a success and was queued, and is no inference."""
    server = start(repository, flag, "--metrics-config=summary_latencies=true")
    for way in ("grpc", "http", "grpc_stream", "grpc_aio"):
        np.testing.assert_array_equal(_ask(server, "m", _row(1, 2), way), _row(1, 2))
    expected = {"success": 4, "fail": 0, "queue": 4, "compute_input": 1, "compute_infer": 1, "compute_output": 1}
    expected |= {"cache_hit": 3, "cache_miss": 1, "executions": 1, "inferences": 1}
    assert _counts(server, "m") == expected
    for _ in range(2):
        _ask(server, "plain", _row(1, 2))
    assert _hits(server, "plain") == (0, 0, 2)
    page = metrics(server)
    labels = '{model="m",version="1"}'
    assert page[f"nv_cache_num_hits_per_model{labels}"] == 3
    assert page[f"nv_cache_num_misses_per_model{labels}"] == 1
    assert page[f"nv_cache_hit_duration_per_model{labels}"] > 0
    assert page[f"nv_cache_hit_summary_per_model_count{labels}"] == 3
    assert not any("nv_cache" in name and "plain" in name for name in page)


def test_traces_tell_hits_from_misses(start, repository, tmp_path):
    """A miss runs the model, a hit does not."""
    file = tmp_path / "trace.json"
    flags = (f"triton,file={file}", "level=TIMESTAMPS", "rate=1")
    server = start(repository, LOCAL, *(f"--trace-config={flag}" for flag in flags))
    for way in ("grpc", "grpc", "http"):
        _ask(server, "m", _row(1, 2), way)
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(15)
    stamps: dict[int, dict[str, int]] = {}
    for record in json.loads(file.read_text()):
        stamps.setdefault(record["id"], {}).update((each["name"], each["ns"]) for each in record.get("timestamps", ()))
    computed = {"COMPUTE_START", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START", "COMPUTE_END"}
    miss, *hits = (stamps[number] for number in sorted(stamps))
    assert {"CACHE_MISS", *computed} <= miss.keys() and "CACHE_HIT" not in miss
    assert len(hits) == 2
    for hit in hits:
        assert "CACHE_HIT" in hit and "CACHE_MISS" not in hit and not computed & hit.keys()
        assert hit["REQUEST_START"] <= hit["CACHE_HIT"] <= hit["REQUEST_END"]


def test_what_makes_another_answer_is_no_hit(start, repository):
    """Values, shapes, the outputs wanted, parameters; not the id, nor the order of the inputs."""
    server = start(repository, LOCAL)
    four = np.arange(4, dtype=np.float32)
    _ask(server, "m", four.reshape(1, 4))
    for number, (array, more) in enumerate(
        [(four.reshape(2, 2), {}), (four.reshape(4, 1), {}), (four.reshape(1, 4) + 1, {}), (four.reshape(1, 4), {"parameters": {"x": 1}})]
    ):
        np.testing.assert_array_equal(_ask(server, "m", array, **more), array)
        assert _hits(server, "m") == (0, number + 2, number + 2)
    assert triton.infer("grpc", server, "m", four.reshape(1, 4), request_id="7").get_response().id == "7"
    assert _hits(server, "m")[0] == 1
    tensors = [
        triton.tensor(triton_grpc, "A", "FP32", _row(1)),
        triton.tensor(triton_grpc, "B", "INT32", np.array([[1, 2]], dtype=np.int32)),
    ]
    wanted = [triton_grpc.InferRequestedOutput("B_OUT")]
    for inputs, outputs, hits in [(tensors, None, 0), (tensors[::-1], None, 1), (tensors, wanted, 1), (tensors, wanted, 2)]:
        got = triton.grpc(server, model_name="two", inputs=inputs, outputs=outputs)
        assert (got.as_numpy("A_OUT") is None) == (outputs is not None)
        np.testing.assert_array_equal(got.as_numpy("B_OUT"), [[1, 2]])
        assert _hits(server, "two")[0] == hits


def test_strings_classes_and_ensembles_are_kept_too(start, repository):
    """Classes are made of the same kept answer; an ensemble's own answer saves its steps."""
    server = start(repository, LOCAL)
    text = triton.values("BYTES", (5,))
    for _ in range(2):
        got = triton.infer("http", server, "text", text, "BYTES").as_numpy("OUTPUT0")
        np.testing.assert_array_equal(got, text)
    assert _hits(server, "text") == (1, 1, 1)
    for count in (1, 2, 0):
        outputs = [triton_grpc.InferRequestedOutput("OUTPUT0", class_count=count)]
        got = triton.infer("grpc", server, "labels", _row(1, 4, 2, 3), outputs=outputs).as_numpy("OUTPUT0")
        expected = [b"4.000000:1:bee", b"3.000000:3:dog"][:count] or [1, 4, 2, 3]
        assert list(got[0]) == expected
    assert _hits(server, "labels") == (2, 1, 1)
    for _ in range(3):
        np.testing.assert_array_equal(_ask(server, "ensemble", _row(5, 6)), _row(5, 6))
    assert _hits(server, "ensemble") == (2, 1, 1)
    # The second step asks what the first asked.
    assert _hits(server, "m") == (1, 1, 1)


def test_an_answer_to_what_a_client_changes_meanwhile_is_not_kept(start, tmp_path):
    """Nor by a step of an ensemble, which is given the client's memory: it would be the answer to other inputs."""
    step = models.Model(models.identity(f"{models.batched(2_000_000)} {CACHED}"))
    steps = models.Model(ENSEMBLE.replace(CACHED, "").replace('"m"', '"plain"', 1))
    repository = models.write(tmp_path / "changing", {"m": step, "plain": MODELS["plain"], "ensemble": steps})
    server = start(repository, LOCAL, "--allow-client-shm=true")
    for number, model in enumerate(["m", "ensemble"]):
        before, after = _row(1, number), _row(2, number)
        answers: queue.Queue = queue.Queue()
        with client_of(server, "grpc") as client, Region(client, before.nbytes) as region:
            shm.set_shared_memory_region(region.handle, [before])
            given = given_in(triton_grpc, "INPUT0", before, "FP32", region, before.nbytes)
            client.async_infer(model, [given], lambda result, error: answers.put(error))
            deadline = time.monotonic() + WAIT_SECONDS_MAX
            while triton.pending(server, "m") != 1:
                assert time.monotonic() < deadline, "the request did not come to wait"
            shm.set_shared_memory_region(region.handle, [after])
            assert answers.get(timeout=WAIT_SECONDS_MAX) is None
        np.testing.assert_array_equal(_ask(server, "m", before), before)


def test_the_cache_forgets_what_it_has_no_room_for(start, repository):
    """A small cache stays small: what was asked last is there, what was asked long ago is not."""
    server = start(repository, "--cache-config=local,size=65536")
    rows = [np.full((1, 1024), value, dtype=np.float32) for value in range(40)]
    for row in rows:
        _ask(server, "m", row)
    _ask(server, "m", rows[-1])
    assert _hits(server, "m") == (1, 40, 40)
    _ask(server, "m", rows[0])
    assert _hits(server, "m") == (1, 41, 41)
    # One that would take more than all of it passes by.
    large = np.ones((1, 1 << 16), dtype=np.float32)
    for _ in range(2):
        np.testing.assert_array_equal(_ask(server, "m", large), large)
    assert _hits(server, "m") == (1, 43, 43)


def test_large_requests_are_hashed_in_turns(start, repository):
    """A request of megabytes is found again, whatever frames it came in."""
    server = start(repository, "--cache-config=local,size=67108864")
    large = np.arange(1 << 20, dtype=np.float32).reshape(1, -1)
    for way in ("grpc", "http", "grpc"):
        np.testing.assert_array_equal(_ask(server, "m", large, way), large)
    assert _hits(server, "m") == (2, 1, 1)


def test_a_model_that_is_loaded_again_answers_anew(start, repository):
    """Nothing of what was kept before is given."""
    server = start(repository, LOCAL, "--model-control-mode=explicit", "--load-model=m")
    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
        for _ in range(2):
            _ask(server, "m", _row(1, 2))
        assert _hits(server, "m") == (1, 1, 1)
        client.unload_model("m")
        client.load_model("m")
        _ask(server, "m", _row(1, 2))
        assert _hits(server, "m") == (0, 1, 1)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--cache-config=local,size=x"], "local needs size=<bytes>"),
        (["--cache-config=redis,host=h"], "redis needs host=<name> and port=<number>"),
        (["--cache-config=other,size=1"], "expected the cache local or redis"),
        ([LOCAL, "--response-cache-byte-size=1"], "Please provide one or the other."),
    ],
)
def test_settings_that_make_no_cache_end_the_start(binary, repository, flags, told):
    """With the setting's name."""
    command = [str(binary), f"--model-repository={repository}", *flags]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert told in ended.stderr


@pytest.fixture
def redis(tmp_path):
    """A redis server on a port of its own, and how to end and start it."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed (the Debian package redis-server has it)")
    (port,) = servers.free_ports(1)
    running = []

    class Redis:
        """What the test sees of it."""

        flags = ("--cache-config=redis,host=127.0.0.1", f"--cache-config=redis,port={port}")

        def start(self):
            command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
            running.append(subprocess.Popen([*command, "--dir", str(tmp_path)], stdout=subprocess.DEVNULL))
            deadline = time.monotonic() + 20
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    return
                assert time.monotonic() < deadline, "redis-server does not listen"
                time.sleep(0.02)

        def stop(self):
            running[-1].kill()
            running[-1].wait()

    made = Redis()
    made.start()
    yield made
    made.stop()


def _eventually_hits(server, model: str, array: np.ndarray) -> None:
    deadline = time.monotonic() + 20
    before = _hits(server, model)[0]
    while _hits(server, model)[0] == before:
        assert time.monotonic() < deadline, "it never was a hit"
        np.testing.assert_array_equal(_ask(server, model, array), array)
        time.sleep(0.05)


@pytest.mark.parametrize("levels", [(), (LOCAL,)], ids=["alone", "second level"])
def test_servers_share_answers_through_redis(start, repository, redis, levels):
    """What one server was answered the other need not ask; with memory before it each asks redis once."""
    one = start(repository, *redis.flags, *levels)
    other = start(repository, *redis.flags, *levels)
    _ask(one, "m", _row(1, 2))
    _eventually_hits(other, "m", _row(1, 2))
    text = triton.values("BYTES", (5,))
    triton.infer("grpc", one, "text", text, "BYTES")
    _eventually_hits(one, "m", _row(1, 2))
    # A model with another file or configuration has answers of its own.
    redis.stop()
    redis.start()
    _eventually_hits(one, "m", _row(3, 4))


def test_a_dead_redis_costs_hits_and_nothing_else(start, repository, redis):
    """Every request is answered while it is away, and its answers are kept again when it is back."""
    server = start(repository, *redis.flags)
    _eventually_hits(server, "m", _row(1, 2))
    redis.stop()
    began = time.monotonic()
    for value in range(30):
        np.testing.assert_array_equal(_ask(server, "m", _row(value)), _row(value))
    assert time.monotonic() - began < 10
    redis.start()
    _eventually_hits(server, "m", _row(7, 8))


def test_another_model_of_the_name_does_not_get_its_answers(start, tmp_path, redis):
    """Two servers share redis, and a name, and nothing else."""
    repositories = [
        models.write(tmp_path / name, {"m": models.Model(MODELS["m"].config + more)})
        for name, more in (("a", ""), ("b", 'parameters { key: "other" value { string_value: "x" } }'))
    ]
    one, other = (start(repository, *redis.flags) for repository in repositories)
    _eventually_hits(one, "m", _row(1, 2))
    _ask(other, "m", _row(1, 2))
    assert _hits(other, "m") == (0, 1, 1)
