"""TorchScript models, against what their few lines say."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import tritonclient.utils.shared_memory as system_memory
from tritonclient.utils import InferenceServerException

import servers

from . import models, torch_models, triton

BACKEND = pathlib.Path(
    os.environ.get("NEREID_BACKEND_DIR") or os.path.expanduser("~/.local/share/nereid/backends"), "pytorch"
)
BRIDGE = BACKEND / "libnereid_pytorch.so"
pytestmark = pytest.mark.skipif(
    not BRIDGE.is_file(), reason=f"there is no {BRIDGE}: `make backend-pytorch` builds it (NEREID_BACKEND_DIR names it)"
)
X = np.array([1, -2, 3], dtype=np.float32)


@pytest.fixture(scope="module")
def torch_server(driver, binary, tmp_path_factory):
    """A server with all models that load."""
    chosen = torch_models.conventions() | torch_models.states() | torch_models.failing()
    repository = torch_models.write(tmp_path_factory.mktemp("torch"), chosen)
    log = tmp_path_factory.mktemp(f"torch-{driver}") / "server.log"
    flags = (f"--io-driver={driver}", "--reactors=2", "--allow-client-shm=true")
    with servers.Server(f"nereid-torch-{driver}", binary, repository, flags, log) as server:
        yield server
        assert server.is_running(), server.log_tail()


def infer(server, model: str, **arrays: np.ndarray) -> dict[str, np.ndarray]:
    """All outputs of a model."""
    client = triton_grpc.InferenceServerClient(server.grpc_address)
    names = {kind: name for name, (_, kind) in models.TYPES.items()}
    inputs = [triton.tensor(triton_grpc, name, names[array.dtype.type], array) for name, array in arrays.items()]
    result = client.infer(model, inputs)
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def doubled(server, model: str, x: np.ndarray = X) -> np.ndarray:
    """The one output of a model with the input `x`."""
    return infer(server, model, x=x)["OUTPUT__0"]


@pytest.mark.parametrize(
    "model, a, b, difference, product",
    [
        ("by_index", "A__0", "B__1", "DIFFERENCE__0", "PRODUCT__1"),
        ("by_name", "a", "b", "DIFFERENCE", "PRODUCT"),
        ("by_order", "first", "second", "DIFFERENCE", "PRODUCT"),
    ],
)
def test_tensors_find_arguments_and_results(torch_server, model, a, b, difference, product):
    """By index, by the argument's name, or by their order."""
    left, right = X, X[::-1].copy()
    got = infer(torch_server, model, **{a: left, b: right})
    np.testing.assert_array_equal(got[difference], left - right)
    np.testing.assert_array_equal(got[product], left * right)


def test_configurations_are_completed_as_far_as_a_file_tells(torch_server):
    """Names, and what is no tensor."""
    config = torch_server.get_json("/v2/models/untold/config")
    told = [(each["name"], each["data_type"], [int(dim) for dim in each["dims"]]) for each in config["input"]]
    assert told == [("texts", "TYPE_STRING", [-1]), ("times", "TYPE_INT64", [1])]
    texts = np.array([b"ab", b"c"], dtype=np.object_)
    got = infer(torch_server, "untold", texts=texts, times=np.array([2]))
    assert got["OUTPUT__0"].tolist() == [b"ab", b"ab", b"c", b"c"]
    np.testing.assert_array_equal(doubled(torch_server, "half_told"), X * 2)


def test_dictionaries_are_keyed_by_name(torch_server):
    """As the only argument, and as the result."""
    got = infer(torch_server, "dictionary", right=X, left=X * 3)
    np.testing.assert_array_equal(got["OUTPUT__0"], X * 2)
    got = infer(torch_server, "dictionary_out", x=X)
    np.testing.assert_array_equal(got["once"], X)
    np.testing.assert_array_equal(got["twice"], X * 2)


def test_a_list_of_tensors_is_as_good_as_a_tuple(torch_server):
    """Its elements are the outputs."""
    got = infer(torch_server, "list_out", x=X)
    np.testing.assert_array_equal(got["OUTPUT__1"], -X)


@pytest.mark.parametrize("texts", [[b""], [b"one", "zwölf".encode(), b"x" * 3000]])
def test_strings_are_lists(torch_server, texts):
    """Empty ones and long ones."""
    got = infer(torch_server, "strings", texts=np.array(texts, dtype=np.object_))["OUTPUT__0"]
    assert list(got) == [text + b"!" for text in texts]


def test_strings_are_any_bytes(torch_server):
    """In a TorchScript file they are C++'s."""
    texts = [b"\xff\xfe", b"a\0b", b"\0"]
    got = infer(torch_server, "strings", texts=np.array(texts, dtype=np.object_))["OUTPUT__0"]
    assert list(got) == [text + b"!" for text in texts]


def test_numbers_are_inputs_of_one_element(torch_server):
    """And an argument with a default may have no input."""
    numbers = {"k": np.array([3], np.int32), "f": np.array([0.5], np.float32), "negative": np.array([True])}
    got = infer(torch_server, "numbers", x=X, **numbers)["OUTPUT__0"]
    np.testing.assert_allclose(got, -1.5 * X)


@pytest.mark.parametrize("datatype", [name for name in models.TYPES if name != "BYTES"])
def test_every_type_of_tensor(torch_server, datatype):
    """Comes out as it went in, twice."""
    x = triton.values(datatype, (5,), seed=3)
    got = doubled(torch_server, f"of_{datatype.lower()}", x)
    np.testing.assert_array_equal(got, np.concatenate([x, x]))


def test_outputs_are_brought_in_order(torch_server):
    """Whatever torch's strides; and there may be nothing in them."""
    for shape in ((3, 4), (1, 7), (0, 4)):
        x = triton.values("FP32", shape)
        np.testing.assert_array_equal(doubled(torch_server, "transposed", x), x.T)


def test_batches_of_any_size(torch_server):
    """Single requests are put together, and the last batch is smaller than the others."""
    rows = [triton.values("FP32", (1 + index % 3, 4), seed=index) for index in range(21)]
    with concurrent.futures.ThreadPoolExecutor(len(rows)) as pool:
        got = list(pool.map(lambda x: doubled(torch_server, "batched", x), rows))
    for x, y in zip(rows, got, strict=True):
        np.testing.assert_array_equal(y, 2 * x)
    inferences, executions = triton.executions(torch_server, "batched")
    assert executions < len(rows) <= inferences


def test_one_instance_keeps_its_state(torch_server):
    """From request to request."""
    counts = [doubled(torch_server, "counter")[0] for _ in range(4)]
    assert counts == list(range(int(counts[0]), int(counts[0]) + 4))


def test_instances_share_weights_only_when_asked(torch_server):
    """Two that share count as one."""
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        shared = list(pool.map(lambda _: doubled(torch_server, "shared_counter")[0], range(20)))
        own = list(pool.map(lambda _: doubled(torch_server, "own_counters")[0], range(20)))
    # Two that have one each count the requests that came to them.
    first = int(max(own))
    assert sorted(own) == sorted([*range(1, first + 1), *range(1, 20 - first + 1)])
    # Torch adds to a shared tensor without a lock, so some may see the same.
    assert len(set(shared)) > 15


def test_what_a_module_keeps_of_its_input_stays(torch_server):
    """While the memory around it serves other requests."""
    given = [triton.values("FP32", (1000,), seed=seed) for seed in range(8)]
    doubled(torch_server, "keeps_input", given[0])
    for last, x in zip(given, given[1:], strict=False):
        for _ in range(5):
            doubled(torch_server, "gives_input", np.zeros(1000, dtype=np.float32))
        np.testing.assert_array_equal(doubled(torch_server, "keeps_input", x), last)


def test_what_a_module_gives_of_its_state_is_a_copy(torch_server):
    """It may change before the client has been sent it."""
    counts = [doubled(torch_server, "gives_state")[0] for _ in range(5)]
    assert counts == [1 + int(counts[0]) - 1 + step for step in range(5)]


def test_a_module_that_keeps_something_runs_on_one_thread_at_a_time(torch_server):
    """However many instances share it; each answer is what another request has left."""
    given = [np.full((100,), number, dtype=np.float32) for number in range(1, 9)]
    with concurrent.futures.ThreadPoolExecutor(len(given)) as pool:
        work = [(x, round) for round in range(40) for x in given]
        answers = list(pool.map(lambda it: doubled(torch_server, "shared_keeper", it[0]), work))
    known = {0.0, *(float(x[0]) for x in given)}
    assert all(len(set(answer.tolist())) == 1 and float(answer[0]) in known for answer in answers)
    assert {float(answer[0]) for answer in answers} - {0.0} == known - {0.0}


@pytest.mark.parametrize("model", ["writes_input", "writes_entry"])
def test_a_module_does_not_write_into_its_clients_memory(torch_server, model):
    """What it writes in place is its own, an entry of a dictionary too."""
    client = triton_grpc.InferenceServerClient(torch_server.grpc_address)
    region = system_memory.create_shared_memory_region("torch", "/nereid-torch-test", X.nbytes)
    try:
        system_memory.set_shared_memory_region(region, [X])
        client.register_system_shared_memory("torch", "/nereid-torch-test", X.nbytes)
        tensor = triton_grpc.InferInput("x", list(X.shape), "FP32")
        tensor.set_shared_memory("torch", X.nbytes)
        inputs = [tensor]
        if model == "writes_entry":
            inputs.append(triton_grpc.InferInput("y", list(X.shape), "FP32"))
            inputs[-1].set_data_from_numpy(np.full_like(X, 2))
        for _ in range(3):
            got = client.infer(model, inputs).as_numpy("OUTPUT__0")
            np.testing.assert_array_equal(got, 2 * X)
        np.testing.assert_array_equal(system_memory.get_contents_as_numpy(region, np.float32, X.shape), X)
    finally:
        client.unregister_system_shared_memory()
        system_memory.destroy_shared_memory_region(region)


@pytest.mark.parametrize(
    "model, message",
    [
        ("raises", "a positive sum is refused"),
        ("hungry", "can't allocate memory"),
        ("wrong_type", "configuration expects datatype TYPE_FP32 for output 'OUTPUT__0', model provides TYPE_BOOL"),
        ("wrong_index", "The output OUTPUT__3 in the model configuration refers to an output index which doesn't exist"),
        ("scalar", "output 'OUTPUT__0' is a scalar which is not supported."),
        ("no_tensor", "must be of type Tensor or List.str., got int"),
        ("unknown_to_tch", "must be of type Tensor or List.str., got Device"),
        ("no_key", "output tensor 'missing' is not found: forward returned a dictionary with there"),
    ],
)
def test_what_fails_says_why(torch_server, model, message):
    """In the module's or torch's own words; then the server goes on."""
    for _ in range(3):
        with pytest.raises(InferenceServerException, match=message):
            infer(torch_server, model, x=X)
    np.testing.assert_array_equal(doubled(torch_server, "gives_input"), X)


def test_a_module_that_failed_runs_again(torch_server):
    """With input that it takes."""
    with pytest.raises(InferenceServerException, match="PyTorch execute failure"):
        doubled(torch_server, "raises", np.ones(2, np.float32))
    np.testing.assert_array_equal(doubled(torch_server, "raises", -X), -X)


BROKEN = {
    "corrupt": "failed finding central directory",
    "unknown_operator": "Unknown builtin op: mine::secret",
    "too_few": "configuration expects 1 inputs, model provides 2",
    "too_many": "configuration expects 2 inputs, model provides 1",
    "other_type": "configuration expects datatype TYPE_STRING for input 'x'",
    "unusable": "an input of type 'List.Tensor.' was detected in the model",
    "bad_parameter": "expected true or false, got 'maybe'",
    "nameless": "expected 'data_type' and 'dims' of input 'x', 'data_type' and 'dims' of output 'OUTPUT__0'",
    "on_gpu": "gpu",
}


def test_what_cannot_be_loaded_says_why(start, tmp_path):
    """And keeps nothing else from being served."""
    repository = torch_models.write(tmp_path / "repository", torch_models.broken() | torch_models.states())
    server = start(repository, "--model-control-mode=explicit", "--load-model=counter", "--exit-on-error=false")
    client = triton_http.InferenceServerClient(server.http_address)
    assert set(BROKEN) == set(torch_models.broken())
    for model, message in BROKEN.items():
        if model == "on_gpu" and os.environ.get("NEREID_TEST_GPU"):
            continue
        with pytest.raises(InferenceServerException, match=message):
            client.load_model(model)
    for _ in range(3):
        client.load_model("own_counters")
        assert doubled(server, "own_counters")[0] == 1
        client.unload_model("own_counters")
    assert doubled(server, "counter")[0] == 1
