"""Ensembles through a real server: what they answer, what they depend on, and how they end."""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import time

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from . import models, triton
from .test_observe import metrics

EXPLICIT = "--model-control-mode=explicit"
SECONDS_MAX = 60
TENSORS = """
input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] }]
output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] }]
"""


def _map(field: str, pairs: dict[str, str]) -> str:
    return " ".join(f'{field} {{ key: "{name}" value: "{tensor}" }}' for name, tensor in pairs.items())


def _step(model: str, source: str, target: str, version: int = -1) -> str:
    inputs, outputs = _map("input_map", {"INPUT0": source}), _map("output_map", {"OUTPUT0": target})
    return f'{{ model_name: "{model}" model_version: {version} {inputs} {outputs} }}'


def _ensemble(*steps: str, tensors: str = TENSORS, size: int = 8, more: str = "") -> models.Model:
    config = f'platform: "ensemble" max_batch_size: {size} {tensors} {more}'
    return models.Model(f"{config} ensemble_scheduling {{ step [ {', '.join(steps)} ] }}")


FIXED = models.identity("max_batch_size: 8", dims="2")
CHAIN = _ensemble(_step("m", "INPUT0", "between"), _step("m", "between", "OUTPUT0"))
BOTH = TENSORS.replace("output [", 'output [{ name: "B" data_type: TYPE_FP32 dims: [ -1 ] },')
# Each response of the first step becomes an answer of the second.
WORDS = """
input [
  { name: "IN" data_type: TYPE_INT32 dims: [ -1 ] },
  { name: "DELAY" data_type: TYPE_UINT32 dims: [ -1 ] },
  { name: "WAIT" data_type: TYPE_UINT32 dims: [ 1 ] }
]
output [{ name: "WORD" data_type: TYPE_INT32 dims: [ 1 ] }]
"""
WORDS_STEPS = (
    f'{{ model_name: "repeat" model_version: -1 {_map("input_map", {n: n for n in ("IN", "DELAY", "WAIT")})}'
    f' {_map("output_map", {"OUT": "each"})} }}',
    _step("int", "each", "WORD"),
)
# The second input may be left out.
EITHER = """
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] }, { name: "INPUT1" data_type: TYPE_INT32 dims: [ 2 ] optional: true } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] } ]
"""
EITHER_STEP = (
    f'{{ model_name: "either" model_version: -1 {_map("input_map", {n: n for n in ("INPUT0", "INPUT1")})}'
    f' {_map("output_map", {"OUTPUT0": "y"})} }}'
)
MODELS = {
    "m": models.Model(models.identity(models.batched())),
    "either": models.Model(f'backend: "identity"\n{EITHER}'),
    "through": _ensemble(EITHER_STEP, _step("plain", "y", "OUTPUT0"), tensors=EITHER, size=0),
    "plain": models.Model(models.identity()),
    "fixed": models.Model(FIXED),
    "text": models.Model(models.identity(datatype="STRING")),
    "int": models.Model(models.identity(datatype="INT32")),
    "repeat": models.Model(models.REPEAT),
    "chain": CHAIN,
    "nested": _ensemble(_step("chain", "INPUT0", "y"), _step("fixed", "y", "OUTPUT0")),
    "both": _ensemble(_step("m", "INPUT0", "B"), _step("fixed", "B", "OUTPUT0"), tensors=BOTH),
    "texts": _ensemble(
        _step("text", "INPUT0", "x"), _step("text", "x", "OUTPUT0"), tensors=TENSORS.replace("FP32", "STRING"), size=0
    ),
    "words": _ensemble(*WORDS_STEPS, tensors=WORDS, size=0),
    "few_words": _ensemble(*WORDS_STEPS, tensors=WORDS, size=0),
}
MODELS["few_words"].config = MODELS["few_words"].config.replace("step [", "max_inflight_requests: 1 step [")


@pytest.fixture
def repository(tmp_path):
    """A repository of ensembles and what they are made of."""
    return models.write(tmp_path / "repository", MODELS)


def _rows(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def _stats(server, model: str) -> dict:
    return server.get_json(f"/v2/models/{model}/stats")["model_stats"][0]


def _counts(server, model: str) -> tuple[int, int, int]:
    stats = _stats(server, model)
    inferences = stats["inference_stats"]
    return int(stats["execution_count"]), inferences["success"]["count"], inferences["fail"]["count"]


def _eventually(check) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not check():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


@contextlib.contextmanager
def _stream(server, model: str, count: int, delay_ms: int = 0):
    """Asks a model of words on a stream, and gives the queue of its answers and the client."""
    arrays = {
        "IN": ("INT32", np.arange(count, dtype=np.int32)),
        "DELAY": ("UINT32", np.full(count, delay_ms, dtype=np.uint32)),
        "WAIT": ("UINT32", np.zeros(1, dtype=np.uint32)),
    }
    inputs = [triton.tensor(triton_grpc, name, kind, array) for name, (kind, array) in arrays.items()]
    answers: queue.Queue = queue.Queue()
    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        client.async_stream_infer(model, inputs, enable_empty_final_response=True)
        yield answers, client


def _words(answers) -> list[int]:
    words = []
    while True:
        answer = answers.get(timeout=SECONDS_MAX)
        if isinstance(answer, Exception):
            raise answer
        if (word := answer.as_numpy("WORD")) is not None:
            words.append(int(word[0]))
        if answer.get_response().parameters["triton_final_response"].bool_param:
            return words


@pytest.mark.parametrize("way", triton.WAYS)
def test_tensors_go_through_all_steps(start, repository, way):
    """Whatever the client and the steps, ensembles and strings included."""
    server = start(repository)
    array = _rows([1, 2], [3, 4])
    for model in ("chain", "nested"):
        got = triton.infer(way, server, model, array, request_id="r")
        np.testing.assert_array_equal(got.as_numpy("OUTPUT0"), array)
    text = triton.values("BYTES", (3,))
    got = triton.infer(way, server, "texts", text, "BYTES").as_numpy("OUTPUT0")
    np.testing.assert_array_equal(got, text)
    # Two of each ensemble's own: once by itself, once as a step.
    assert [_counts(server, model) for model in ("chain", "m", "nested")] == [(2, 2, 0), (4, 4, 0), (1, 1, 0)]
    assert int(_stats(server, "chain")["inference_count"]) == 4


def test_an_input_that_is_left_out_is_left_out_of_the_steps_too(start, repository):
    """And one that may not be left out is missed by its name."""
    server = start(repository)
    first = triton.tensor(triton_grpc, "INPUT0", "FP32", np.array([1, 2, 3], np.float32))
    second = triton.tensor(triton_grpc, "INPUT1", "INT32", np.array([4, 5], np.int32))
    for inputs in ([first, second], [first]):
        got = triton.grpc(server, model_name="through", inputs=inputs)
        assert got.as_numpy("OUTPUT0").tolist() == [1, 2, 3]
    with pytest.raises(InferenceServerException, match="INPUT0"):
        triton.grpc(server, model_name="through", inputs=[second])


def test_steps_of_which_nothing_is_wanted_do_not_run(start, repository):
    """An answer to less costs less."""
    server = start(repository)
    array = _rows([1, 2])
    wanted = [triton_grpc.InferRequestedOutput("B")]
    got = triton.infer("grpc", server, "both", array, outputs=wanted)
    np.testing.assert_array_equal(got.as_numpy("B"), array)
    assert got.as_numpy("OUTPUT0") is None
    assert (_counts(server, "m")[0], _counts(server, "fixed")[0]) == (1, 0)
    got = triton.infer("grpc", server, "both", array)
    np.testing.assert_array_equal(got.as_numpy("OUTPUT0"), array)
    assert (_counts(server, "m")[0], _counts(server, "fixed")[0]) == (2, 1)


def test_a_step_that_fails_fails_the_request_and_says_which(start, repository):
    """With the text and the code of the step, the ensembles around it, and nothing left behind."""
    server = start(repository)
    for _ in range(3):
        with pytest.raises(InferenceServerException) as error:
            triton.infer("grpc", server, "nested", _rows([1, 2, 3]), request_id="q")
        assert "INVALID_ARGUMENT" in error.value.status()
        expected = "in ensemble 'nested', [request id: q] unexpected shape for input 'INPUT0' for model 'fixed'."
        assert error.value.message().startswith(expected)
    assert _counts(server, "nested") == (0, 0, 3)
    assert _counts(server, "chain") == (3, 3, 0)


@pytest.mark.parametrize("model", ["words", "few_words"])
def test_each_response_of_a_decoupled_step_is_answered_in_order(start, repository, model):
    """As many as there are, none included, with a bound on what is open at a time or without."""
    server = start(repository)
    for count in (5, 1, 0, 300):
        with _stream(server, model, count) as (answers, _):
            assert _words(answers) == list(range(count))
    assert server.get_json(f"/v2/models/{model}/stats")["model_stats"][0]["inference_stats"]["success"]["count"] == 4


def test_who_leaves_an_ensemble_leaves_its_steps(start, repository):
    """A client that cancels ends what it asked for, down to the step that runs."""
    server = start(repository)
    with _stream(server, "words", 1000, delay_ms=50) as (answers, client):
        assert not isinstance(answers.get(timeout=SECONDS_MAX), Exception)
        client.stop_stream(cancel_requests=True)
    _eventually(lambda: 'reason="CANCELED"' in _failures(server, "words"))
    assert _counts(server, "words")[1:] == (0, 1)
    # It has not given all responses by then.
    _eventually(lambda: sum(_counts(server, "repeat")[1:]) == 1)


def _failures(server, model: str) -> str:
    name = f'nv_inference_request_failure{{model="{model}"'
    return "\n".join(line for line, value in metrics(server).items() if line.startswith(name) and value)


def _index(client) -> dict[str, str]:
    found = client.get_model_repository_index(as_json=True).get("models", [])
    return {row["name"]: row["state"] for row in found if row.get("state")}


def _play(client, story: list[str]) -> dict[str, str]:
    """Loads (+) and unloads (-, with what it depends on -!), and tells what is served then."""
    for scene in story:
        name = scene[1:].rstrip("!")
        if scene.startswith("+"):
            client.load_model(name)
        else:
            client.unload_model(name, unload_dependents=scene.endswith("!"))
    _eventually(lambda: "UNLOADING" not in _index(client).values())
    return {name for name, state in _index(client).items() if state == "READY"}


@pytest.mark.parametrize(
    ("story", "served"),
    [
        (["+chain"], {"chain", "m"}),
        (["+chain", "-chain"], {"m"}),
        (["+chain", "-chain!"], set()),
        (["+m", "+chain", "-chain!"], {"m"}),
        (["+chain", "-m"], set()),
        (["+chain", "-m", "+m"], {"chain", "m"}),
        (["+chain", "-m!", "+m", "-chain!"], {"m"}),
        (["+chain", "-m", "-chain", "+m"], {"m"}),
        (["+nested"], {"nested", "chain", "fixed", "m"}),
        (["+nested", "-nested!"], set()),
        (["+nested", "-nested", "-chain!"], {"fixed"}),
        (["+nested", "-m"], {"fixed"}),
        (["+nested", "-m", "+m"], {"nested", "chain", "fixed", "m"}),
        (["+nested", "+both", "-nested!"], {"both", "fixed", "m"}),
    ],
)
def test_ensembles_come_and_go_with_their_models(start, repository, story, served):
    """As with the real server, which was asked the same."""
    server = start(repository, EXPLICIT)
    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
        assert _play(client, story) == served


def test_an_ensemble_waits_for_a_model_that_is_not_there_yet(start, tmp_path):
    """It says what it lacks, and is served when that comes, and again as it changes."""
    repository = models.write(tmp_path / "late", {"chain": CHAIN})
    server = start(repository, EXPLICIT)
    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
        with pytest.raises(InferenceServerException, match="contains models that are not available or ambiguous: m"):
            client.load_model("chain")
        models.write(repository, {"m": MODELS["m"]})
        assert _play(client, ["+m"]) == {"chain", "m"}
        config = repository / "m" / "config.pbtxt"
        config.write_text(MODELS["m"].config.replace("FP32", "INT32"))
        assert _play(client, ["+m"]) == {"m"}
        with pytest.raises(InferenceServerException, match="inconsistent data type: TYPE_FP32 is inferred from model"):
            client.load_model("chain")
        config.write_text(MODELS["m"].config)
        assert _play(client, ["+m"]) == {"chain", "m"}
    got = triton.infer("grpc", server, "chain", _rows([1, 2])).as_numpy("OUTPUT0")
    np.testing.assert_array_equal(got, _rows([1, 2]))


def test_ensembles_in_a_circle_are_told_and_served_never(start, tmp_path):
    """Nor do they keep the server busy, whatever comes and goes around them."""
    circle = {name: _ensemble(_step(other, "INPUT0", "OUTPUT0")) for name, other in (("a", "b"), ("b", "a"), ("c", "c"))}
    repository = models.write(tmp_path / "circle", {**circle, "m": MODELS["m"], "chain": CHAIN})
    server = start(repository, "--exit-on-error=false", "--strict-readiness=false")
    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
        assert {name for name, state in _index(client).items() if state == "READY"} == {"m", "chain"}
    before = server.cpu_ns()
    time.sleep(0.5)
    assert server.cpu_ns() - before < 200_000_000
    server = start(repository, EXPLICIT)
    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
        with pytest.raises(InferenceServerException, match="circular dependency between ensembles: a -> ... -> b -> a"):
            client.load_model("a")
        assert _play(client, ["+m", "+chain", "-m", "+m"]) == {"m", "chain"}


def test_ensembles_that_lie_in_each_other_have_a_limit(start, tmp_path):
    """32 of them answer. A request goes through all on one stack, which those of a longer row would overflow."""
    names = ["m", *(f"e{depth}" for depth in range(1, 35))]
    row = {name: _ensemble(_step(inner, "INPUT0", "OUTPUT0")) for inner, name in itertools.pairwise(names)}
    server = start(models.write(tmp_path / "row", {**row, "m": MODELS["m"]}), EXPLICIT)
    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
        client.load_model("e32")
        got = triton.infer("grpc", server, "e32", _rows([1, 2])).as_numpy("OUTPUT0")
        np.testing.assert_array_equal(got, _rows([1, 2]))
        words = "ensemble 'e33' has 33 ensembles in each other, expected at most 32"
        with pytest.raises(InferenceServerException, match=words):
            client.load_model("e34")
        assert {name for name, state in _index(client).items() if state == "READY"} == set(names[:33])


def test_polling_takes_an_ensemble_along(start, tmp_path):
    """A model that goes and comes back takes the ensemble with it."""
    repository = models.write(tmp_path / "polled", {"m": MODELS["m"], "chain": CHAIN, "nested": MODELS["nested"]})
    models.write(repository, {"fixed": MODELS["fixed"]})
    server = start(repository, "--model-control-mode=poll", "--repository-poll-secs=1")
    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
        ready = lambda: {name for name, state in _index(client).items() if state == "READY"}  # noqa: E731
        assert ready() == {"m", "chain", "nested", "fixed"}
        (repository / "m").rename(tmp_path / "m")
        _eventually(lambda: ready() == {"fixed"})
        (tmp_path / "m").rename(repository / "m")
        _eventually(lambda: ready() == {"m", "chain", "nested", "fixed"})


def test_models_that_come_and_go_under_load_leave_no_request_waiting(start, repository):
    """Each request is answered or refused, and an ensemble that began ends with what it began with."""
    server = start(repository, EXPLICIT, "--load-model=chain")
    outcomes: queue.Queue = queue.Queue()
    array = _rows([1, 2])
    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
        given = [triton.tensor(triton_grpc, "INPUT0", "FP32", array)]
        for turn in range(20):
            for _ in range(20):
                client.async_infer("chain", given, lambda result, error: outcomes.put(error or result))
            (client.unload_model if turn % 2 == 0 else client.load_model)("m")
        for _ in range(400):
            outcome = outcomes.get(timeout=SECONDS_MAX)
            if isinstance(outcome, Exception):
                assert "is not found" in outcome.message(), outcome
            else:
                np.testing.assert_array_equal(outcome.as_numpy("OUTPUT0"), array)
        assert _play(client, ["+m"]) == {"chain", "m"}


def test_traces_of_steps_name_the_request_that_they_serve(start, repository, tmp_path):
    """So that a viewer can put them under it."""
    file = tmp_path / "trace.json"
    flags = ("level=TIMESTAMPS", "rate=1", f"triton,file={file}")
    server = start(repository, *(f"--trace-config={flag}" for flag in flags))
    triton.infer("grpc", server, "nested", _rows([1, 2]), request_id="t")
    server.stop()
    heads = [each for each in json.loads(file.read_text()) if "model_name" in each]
    by_id = {head["id"]: head for head in heads}
    parents = sorted((head["model_name"], by_id.get(head.get("parent_id"), {}).get("model_name")) for head in heads)
    assert parents == [("chain", "nested"), ("fixed", "nested"), ("m", "chain"), ("m", "chain"), ("nested", None)]
    assert {head["request_id"] for head in heads} == {"t"}
