"""Loading and unloading while the server runs: what clients ask for, and that no request suffers from it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import threading
import time
import urllib.request

import numpy as np
import pytest
import servers
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from . import age_file, models, onnx_file, python_server, triton

EXPLICIT = "--model-control-mode=explicit"
SECONDS_MAX = 60
ARRAY = np.ones((1, 4), dtype=np.float32)
IDENTITY = models.Model(models.identity())
CONFIG = {
    "backend": "identity",
    "max_batch_size": 2,
    "input": [{"name": "INPUT0", "data_type": "TYPE_FP32", "dims": [-1]}],
    "output": [{"name": "OUTPUT0", "data_type": "TYPE_FP32", "dims": [-1]}],
}

needs_onnx = pytest.mark.skipif(not models.has_onnxruntime(), reason="ONNX Runtime is not installed")


@pytest.fixture
def repository(tmp_path):
    """A repository with one model, beside which a test writes others."""
    return models.write(tmp_path / "repository", {"one": IDENTITY})


@pytest.fixture(params=["http", "grpc"])
def connect(request):
    """Makes a client of either protocol."""
    module = triton_http if request.param == "http" else triton_grpc
    address = f"{request.param}_address"
    with contextlib.ExitStack() as clients:

        def connect(server):
            client = module.InferenceServerClient(getattr(server, address))
            return clients.enter_context(contextlib.closing(client))

        yield connect


def _index(client, ready: bool = False) -> list[tuple]:
    """The repository's index: name, version, state, reason."""
    found = client.get_model_repository_index(**({"as_json": True} if isinstance(client, triton_grpc.InferenceServerClient) else {}))
    listed = found.get("models", []) if isinstance(found, dict) else found
    rows = [tuple(each.get(key, "") for key in ("name", "version", "state", "reason")) for each in listed]
    return [row for row in rows if not ready or row[2] == "READY"]


def _eventually(check) -> None:
    """Waits for what the server does in its own time."""
    deadline = time.monotonic() + SECONDS_MAX
    while not check():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def _infer(server, model: str, version: str = ""):
    return triton.infer("grpc", server, model, ARRAY[0], model_version=version).as_numpy("OUTPUT0")


def _onnx(server, model: str):
    given = triton.tensor(triton_grpc, "x", "FP32", ARRAY)
    return triton.grpc(server, model_name=model, inputs=[given])


def _files(folder) -> dict:
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_models_are_loaded_and_unloaded_on_request(start, repository, connect):
    """The index tells of each step; a model that is not loaded is not found."""
    models.write(repository, {"two": IDENTITY})
    server = start(repository, EXPLICIT, "--load-model=one")
    client = connect(server)
    assert _index(client) == [("one", "1", "READY", ""), ("two", "", "", "")]
    with pytest.raises(InferenceServerException, match="unknown model: 'two' is not found"):
        _infer(server, "two")
    client.load_model("two")
    assert client.is_model_ready("two")
    np.testing.assert_array_equal(_infer(server, "two"), ARRAY[0])
    client.unload_model("one")
    assert not client.is_model_ready("one")
    _eventually(lambda: _index(client)[0] == ("one", "1", "UNAVAILABLE", "unloaded"))
    assert _index(client, ready=True) == [("two", "1", "READY", "")]
    client.unload_model("one", unload_dependents=True)
    client.unload_model("no_such")
    client.load_model("one")
    assert client.is_model_ready("one") and client.is_server_ready()


def test_a_model_that_cannot_be_loaded_is_told_of_and_the_others_serve(start, repository, connect):
    """Where the fault lies: file, line and column. The server stays ready: the client knows."""
    broken = {
        "syntax": models.Model('backend: "identity"\nno_such_field: 1\n'),
        "gpu": models.Model(models.identity("instance_group [{ kind: KIND_GPU }]")),
    }
    models.write(repository, broken)
    (repository / "empty").mkdir()
    (repository / "circle").symlink_to("circle")
    (repository / "file").write_text("")
    (repository / "folder" / "config.pbtxt").mkdir(parents=True)
    models.write(repository, {"not_text": models.Model("")})
    (repository / "not_text" / "config.pbtxt").write_bytes(b'name: "\xff"')
    server = start(repository, EXPLICIT, "--load-model=one")
    client = connect(server)
    for name, words in [
        ("no_such", "^(.*)failed to load 'no_such', failed to poll from model repository$"),
        ("file", "failed to poll from model repository$"),
        ("syntax", r"syntax/config\.pbtxt:2:1: .*no_such_field"),
        ("gpu", "version 1 is at UNAVAILABLE state: Invalid argument: .*no GPUs are available"),
        ("empty", "'empty'"),
        ("circle", "circle': symbolic links form a cycle"),
        ("folder", r"folder/config\.pbtxt': it is not a regular file"),
        ("not_text", r"not_text/config\.pbtxt': it is not UTF-8"),
        ("..", "is not a folder's name"),
        ("../repository/one", "is not a folder's name|Not Found"),
        ("a\0b", "is not a folder's name"),
    ]:
        with pytest.raises(InferenceServerException, match=words):
            client.load_model(name)
    states = {row[0]: row[2:] for row in _index(client)}
    assert states["gpu"][0] == "UNAVAILABLE" and states["gpu"][1].startswith("Invalid argument: instance group")
    assert states["circle"][0] == "UNAVAILABLE" and "cycle" in states["circle"][1]
    assert states["syntax"] == ("", "") and "file" not in states
    assert client.is_server_ready()
    np.testing.assert_array_equal(_infer(server, "one"), ARRAY[0])


@needs_onnx
def test_damaged_models_keep_no_other_from_being_served(start, repository, connect, tmp_path):
    """Half-written, of the wrong kind, linked in circles, or with paths that lead out of their folder: each is
    told of at the start, in the log and the index, and the server is ready for the rest."""
    whole = onnx_file.mlp()
    secret = tmp_path / "secret"
    secret.write_text("cat\n")
    outside = models.identity(dims="1", output=f'label_filename: "../../{secret.name}"')
    warm_up = 'model_warmup [{ name: "w" inputs { key: "INPUT0" value { data_type: TYPE_FP32 dims: [ 1 ] input_data_file: "../../secret" } } }]'
    found = {
        "half": models.Model(None, {1: whole[: len(whole) // 2]}),
        "noise": models.Model(None, {1: bytes(range(256)) * 16}),
        "labels": models.Model(outside),
        "warm": models.Model(models.identity(warm_up, dims="1")),
        "file": models.Model('backend: "onnxruntime" default_model_filename: "../../secret"', {1: whole}),
        "cut": models.Model(models.identity()[:-10]),
        "negative": models.Model(models.identity("max_batch_size: -3")),
        "good": models.Model(None, {1: whole}),
    }
    models.write(repository, found)
    (repository / "folder" / "1" / "model.onnx").mkdir(parents=True)
    (repository / "pipe" / "1").mkdir(parents=True)
    os.mkfifo(repository / "pipe" / "1" / "model.onnx")
    (repository / "circle").mkdir()
    (repository / "circle" / "1").symlink_to("1")
    (repository / "dangling").mkdir()
    (repository / "dangling" / "1").symlink_to("/no/such")
    server = start(repository, "--exit-on-error=false", "--strict-readiness=false")
    client, log = connect(server), server.log.read_text()
    for model, words in [
        ("half", "half/1/model.onnx"),
        ("noise", "noise/1/model.onnx"),
        ("labels", "labels/config.pbtxt:4:"),
        ("warm", "warm/config.pbtxt:2:"),
        ("file", "file/config.pbtxt:1:"),
        ("negative", "negative/config.pbtxt:2:1: 'max_batch_size' must be non-negative"),
        ("cut", "cut/config.pbtxt:4:"),
        ("folder", "folder"),
        ("pipe", "no regular file"),
        ("circle", "circle"),
        ("dangling", "dangling"),
    ]:
        assert not client.is_model_ready(model), model
        lines = [line for line in log.splitlines() if f"'{model}'" in line and words in line]
        assert lines, (model, log)
    assert client.is_server_ready() and client.is_model_ready("good")
    assert _onnx(server, "good").as_numpy("y").shape == (1, 3)
    np.testing.assert_array_equal(_infer(server, "one"), ARRAY[0])


def test_what_may_not_be_read_is_told(start, obedient, repository, connect):
    """A configuration, and a folder."""
    models.write(repository, {"sealed": IDENTITY, "closed": IDENTITY})
    (repository / "sealed" / "config.pbtxt").chmod(0)
    (repository / "closed").chmod(0)
    client = connect(start(repository, EXPLICIT, "--load-model=one", program=obedient))
    for model in ("sealed", "closed"):
        with pytest.raises(InferenceServerException, match="Permission denied"):
            client.load_model(model)
    (repository / "closed").chmod(0o700)


def test_other_modes_take_no_loads_from_clients(start, repository, connect):
    """In the real server's words."""
    client = connect(start(repository))
    for call in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="explicit model load / unload is not allowed if polling is enabled"):
            call("one")
    assert _index(client) == [("one", "1", "READY", "")]


def test_a_configuration_may_come_with_the_request(start, repository, connect):
    """Until the model is loaded without one."""
    server = start(repository, EXPLICIT, "--load-model=one")
    client = triton_http.InferenceServerClient(server.http_address)
    before = _files(repository)
    connect(server).load_model("one", config=json.dumps(CONFIG))
    assert client.get_model_config("one")["max_batch_size"] == 2
    connect(server).load_model("one")
    assert client.get_model_config("one")["max_batch_size"] == 0
    for bad in ("{", '{"no_such":1}', '{"max_batch_size":-1}'):
        with pytest.raises(InferenceServerException, match="failed to poll from model repository: "):
            connect(server).load_model("one", config=bad)
    assert _files(repository) == before
    np.testing.assert_array_equal(_infer(server, "one"), ARRAY[0])
    client.close()


def _override_folders(folder) -> list:
    return list(folder.glob("nereid-model-*"))


@needs_onnx
def test_a_model_may_come_with_the_request(start, repository, connect, tmp_path, monkeypatch):
    """With versions, in place of one in the repository or beside all; nothing of it stays."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    server = start(repository, EXPLICIT)
    client, before = connect(server), _files(repository)
    config = json.dumps({"version_policy": {"all": {}}})
    files = {f"file:{version}/model.onnx": onnx_file.mlp(version) for version in (1, 2)}
    for name in ("one", "sent"):
        client.load_model(name, config=config, files=files)
        assert _onnx(server, name).as_numpy("y").shape == (1, 3)
    assert {row[:3] for row in _index(client)} == {
        (name, version, "READY") for name in ("one", "sent") for version in ("1", "2")
    }
    assert len(_override_folders(tmp_path)) == 2
    # A load without files means the repository again, which knows one of the two only.
    client.load_model("one")
    np.testing.assert_array_equal(_infer(server, "one"), ARRAY[0])
    with pytest.raises(InferenceServerException, match="failed to poll"):
        client.load_model("sent")
    client.unload_model("sent")
    _eventually(lambda: not _override_folders(tmp_path))
    _eventually(lambda: "sent" not in {row[0] for row in _index(client)})
    assert _files(repository) == before


@pytest.mark.parametrize("path", ["../outside", "/outside", "1/../../outside", "1/..", "", "1//x", "1/\0"])
def test_files_stay_in_the_folder_of_the_model(start, repository, connect, tmp_path, monkeypatch, path):
    """Whatever their names are."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    server = start(repository, EXPLICIT, "--load-model=one")
    path = f"{tmp_path}{path}" if path.startswith("/") else path
    with pytest.raises(InferenceServerException, match="model file override"):
        connect(server).load_model("sent", config=json.dumps(CONFIG), files={f"file:{path}": b"x"})
    assert not list(tmp_path.rglob("outside")) and not _override_folders(tmp_path)
    with pytest.raises(InferenceServerException, match="'config' must be specified"):
        connect(server).load_model("sent", files={"file:1/x": b"x"})


def test_a_model_that_fails_to_load_again_serves_on(start, repository, connect):
    """All versions or none: the good new one is not served either."""
    server = start(repository, EXPLICIT, "--load-model=one")
    client = connect(server)
    (repository / "one" / "2").mkdir()
    config = repository / "one" / "config.pbtxt"
    config.write_text(models.identity("version_policy { all { } } instance_group [{ kind: KIND_GPU }]"))
    with pytest.raises(InferenceServerException, match="version 1 is at .* state: .*;version 2 is at"):
        client.load_model("one")
    rows = _index(client)
    assert rows[0] == ("one", "1", "READY", "") and rows[1][:3] == ("one", "2", "UNAVAILABLE")
    np.testing.assert_array_equal(_infer(server, "one", "1"), ARRAY[0])
    config.write_text(models.identity("version_policy { all { } }"))
    client.load_model("one")
    assert [row[:3] for row in _index(client)] == [("one", "1", "READY"), ("one", "2", "READY")]


def test_versions_come_and_go_by_the_policy(start, repository, connect):
    """One that neither changed nor was dropped is not loaded again: it goes on counting."""
    config = repository / "one" / "config.pbtxt"
    config.write_text(models.identity("version_policy { latest { num_versions: 2 } }"))
    (repository / "one" / "2").mkdir()
    server = start(repository, EXPLICIT, "--load-model=one")
    client = connect(server)
    _infer(server, "one", "2")
    (repository / "one" / "3").mkdir()
    client.load_model("one")
    _eventually(
        lambda: [row[1:] for row in _index(client)]
        == [("1", "UNAVAILABLE", "unloaded"), ("2", "READY", ""), ("3", "READY", "")]
    )
    with pytest.raises(InferenceServerException, match="version 1 is not found"):
        _infer(server, "one", "1")
    counts = server.get_json("/v2/models/one/stats")["model_stats"]
    assert {each["version"]: each["inference_count"] for each in counts} == {"2": 1, "3": 0}


def test_requests_in_flight_end_with_the_version_they_began_with(start, repository, connect):
    """It waits in the batcher for a second, while the model is unloaded and then loaded again."""
    models.write(repository, {"slow": models.Model(models.identity(models.batched(1_000_000)))})
    server = start(repository, EXPLICIT, "--load-model=slow")
    client, got = connect(server), []
    asking = threading.Thread(target=lambda: got.append(triton.infer("grpc", server, "slow", ARRAY)))
    asking.start()
    page = "/v2/models/slow/stats"
    _eventually(lambda: _pending(server, "slow") == 1)
    client.unload_model("slow")
    assert not got and [row for row in _index(client) if row[0] == "slow"] == [("slow", "1", "UNLOADING", "")]
    assert "error" in server.get_json(page)
    asking.join(SECONDS_MAX)
    np.testing.assert_array_equal(got[0].as_numpy("OUTPUT0"), ARRAY)
    _eventually(lambda: ("slow", "1", "UNAVAILABLE", "unloaded") in _index(client))


def _metrics(server) -> list[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics") as page:
        return page.read().decode().splitlines()


def _pending(server, model: str) -> int:
    counts = [line for line in _metrics(server) if line.startswith("nv_inference_pending") and f'"{model}"' in line]
    return int(counts[0].rpartition(" ")[2])


def test_no_request_fails_while_versions_are_swapped(start, repository, connect):
    """Clients of both protocols ask on while the model is loaded again and again, with another version and
    another configuration each time."""
    server = start(repository, EXPLICIT, "--load-model=one")
    stop, done, failed = threading.Event(), [0, 0], []

    def ask(index: int, module, address: str):
        with contextlib.closing(module.InferenceServerClient(address)) as client:
            given = triton.tensor(module, "INPUT0", "FP32", ARRAY)
            while not stop.is_set():
                try:
                    answer = client.infer("one", [given]).as_numpy("OUTPUT0")
                    assert (answer == ARRAY).all()
                    done[index] += 1
                except Exception as error:  # noqa: BLE001  (each is a failure of the test)
                    failed.append(error)

    config = repository / "one" / "config.pbtxt"
    config.write_text(models.identity("max_batch_size: 4"))
    client = connect(server)
    client.load_model("one")
    asking = [
        threading.Thread(target=ask, args=(0, triton_http, server.http_address)),
        threading.Thread(target=ask, args=(1, triton_grpc, server.grpc_address)),
    ]
    for thread in asking:
        thread.start()
    for turn in range(20):
        _eventually(lambda seen=list(done): all(now > before for now, before in zip(done, seen)) or failed)
        (repository / "one" / str(turn + 2)).mkdir()
        shutil.rmtree(repository / "one" / str(turn + 1))
        delay = turn % 2 * 100
        config.write_text(models.identity(models.batched(delay) if turn % 3 else "max_batch_size: 4"))
        client.load_model("one")
        assert client.is_model_ready("one", str(turn + 2)) and not client.is_model_ready("one", str(turn + 1))
    stop.set()
    for thread in asking:
        thread.join(SECONDS_MAX)
    assert failed == [] and min(done) >= 20


def test_many_loads_of_many_models_at_once(start, repository):
    """Each model's are done one after the other; in the end all is as the last one left it."""
    names = [f"m{index}" for index in range(8)]
    models.write(repository, {name: IDENTITY for name in names})
    server = start(repository, EXPLICIT)
    failed = []

    def turn(name: str):
        with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
            try:
                for _ in range(10):
                    client.load_model(name)
                    client.unload_model(name)
                client.load_model(name)
            except InferenceServerException as error:
                failed.append(error)

    # Two for each model.
    threads = [threading.Thread(target=turn, args=(name,)) for name in names * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS_MAX)
    assert failed == []
    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
        client.load_model("m0")
        for name in names:
            client.load_model(name)
        ready = _index(client, ready=True)
    assert [row[0] for row in ready] == names


def _memory_after(server, client, name: str, times: int) -> int:
    for _ in range(times):
        client.load_model(name)
        client.unload_model(name)
    _eventually(lambda: all(row[2] != "UNLOADING" for row in _index(client)))
    return server.memory_bytes()


def test_memory_of_an_unloaded_model_is_given_back(start, repository):
    """A thousand times an identity model; the first hundred settle the allocator."""
    server = start(repository, EXPLICIT)
    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
        settled = _memory_after(server, client, "one", 100)
        grown = _memory_after(server, client, "one", 1000) - settled
    assert grown < 2 << 20, f"{grown} bytes more after 1,000 loads"


@needs_onnx
def test_memory_of_an_unloaded_onnx_model_is_given_back(start, repository):
    """Of 4 MB of weights each, 400 MB in all."""
    weights = np.zeros((1024, 1024), dtype=np.float32)
    parts = [onnx_file.node("MatMul", ["x", "w"], "y"), onnx_file.weights("w", weights)]
    dims = ["N", 1024]
    large = onnx_file.model(parts, onnx_file.FLOAT, dims, dims)
    models.write(repository, {"large": models.Model(None, {1: large})})
    server = start(repository, EXPLICIT)
    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
        settled = _memory_after(server, client, "large", 20)
        grown = _memory_after(server, client, "large", 100) - settled
    assert grown < 16 << 20, f"{grown} bytes more after 100 loads"


POLL = ("--model-control-mode=poll", "--repository-poll-secs=1")


def test_changes_of_a_repository_are_taken_up_when_they_have_settled(start, repository):
    """Added, changed and removed models. One that is copied slowly is never seen half: it would be an error."""
    models.write(repository, {"gone": IDENTITY})
    server = start(repository, *POLL)
    with contextlib.closing(triton_http.InferenceServerClient(server.http_address)) as client:
        # The configuration names tensors of which only one is there yet.
        slow = repository / "copied"
        (slow / "1").mkdir(parents=True)
        halves = models.identity().split("output")
        for part in range(4):
            (slow / "config.pbtxt").write_text("\n" * part + halves[0] + 'output [{ name: "X" }]')
            time.sleep(0.5)
        (slow / "config.pbtxt").write_text(models.identity())
        (repository / "one" / "2").mkdir()
        shutil.rmtree(repository / "gone")
        _eventually(lambda: client.is_model_ready("copied"))
        assert ("copied", "UNAVAILABLE") not in {(row[0], row[2]) for row in _index(client)}
        _eventually(lambda: client.is_model_ready("one", "2") and not client.is_model_ready("one", "1"))
        _eventually(lambda: not client.is_model_ready("gone"))
        assert client.is_server_ready()
        # More instances: made beside those that are there.
        counted = models.identity("instance_group [{ count: 3 kind: KIND_CPU }]")
        (repository / "one" / "config.pbtxt").write_text(counted)
        _eventually(lambda: client.get_model_config("one")["instance_group"][0]["count"] == 3)
        with pytest.raises(InferenceServerException, match="not allowed if polling is enabled"):
            client.load_model("one")
        assert "failed to load" not in server.log.read_text()
        # A change for the worse: what was served still is, and the log says where the fault lies.
        (repository / "one" / "config.pbtxt").write_text("no_such_field: 1")
        _eventually(lambda: "one/config.pbtxt:1:1" in server.log.read_text())
        np.testing.assert_array_equal(_infer(server, "one"), ARRAY[0])
        assert client.is_server_ready()


def test_a_repository_that_is_away_for_a_while_unloads_nothing(start, repository):
    """Then its models serve on."""
    server = start(repository, *POLL)
    repository.rename(repository.with_name("away"))
    _eventually(lambda: server.log.read_text().count("failed to poll the model repositories") >= 3)
    np.testing.assert_array_equal(_infer(server, "one"), ARRAY[0])


def test_a_name_must_be_unique_unless_repositories_are_namespaces(start, repository, connect, tmp_path):
    """The same name twice: an error of that model without namespaces, two models with them."""
    other = models.write(tmp_path / "other", {"one": IDENTITY, "two": IDENTITY})
    both = f"--model-repository={other}"
    server = start(repository, both, "--exit-on-error=false", "--strict-readiness=false")
    reason = "model appears in two or more repositories"
    assert _index(connect(server)) == [("one", "", "UNAVAILABLE", reason), ("two", "1", "READY", "")]
    server = start(repository, both, EXPLICIT)
    with pytest.raises(InferenceServerException, match="'one': not unique across all model repositories"):
        connect(server).load_model("one")
    server = start(repository, both, EXPLICIT, "--model-namespacing=true")
    client = connect(server)
    client.load_model("one")
    client.load_model("two")
    assert [row[:3] for row in _index(client)] == [("one", "1", "READY")] * 2 + [("two", "1", "READY")]
    counts = [line for line in _metrics(server) if line.startswith("nv_inference_count{")]
    assert len(counts) == len(set(counts)) == 3 and all('namespace="' in line for line in counts)
    np.testing.assert_array_equal(_infer(server, "two"), ARRAY[0])
    with pytest.raises(InferenceServerException, match="There are 2 identifiers of model 'one' in global map"):
        _infer(server, "one")
    client.unload_model("one")
    assert _index(client, ready=True) == [("two", "1", "READY", "")]


@needs_onnx
def test_a_step_may_name_the_repository_of_its_model(start, repository, tmp_path):
    """Where each repository is a namespace; without a name its own is meant."""
    other = tmp_path / "other"

    def ensemble(namespace: str) -> models.Model:
        step = (
            f'{{ model_name: "inner" model_version: -1 model_namespace: "{namespace}" '
            'input_map { key: "x" value: "x" } output_map { key: "y" value: "y" } }'
        )
        tensors = "max_batch_size: 4 input [{ name: 'x' data_type: TYPE_FP32 dims: [ 4 ] }] output [{ name: 'y' data_type: TYPE_FP32 dims: [ 3 ] }]"
        return models.Model(f'platform: "ensemble" {tensors} ensemble_scheduling {{ step [ {step} ] }}')

    first, second = (models.Model("max_batch_size: 4", {1: onnx_file.mlp(seed)}) for seed in (1, 2))
    models.write(repository, {"inner": first, "first": first, "own": ensemble(""), "foreign": ensemble(str(other))})
    models.write(other, {"inner": second, "second": second})
    server = start(repository, "--model-namespacing=true", f"--model-repository={other}")
    answers = {name: _onnx(server, name).as_numpy("y") for name in ("first", "second", "own", "foreign")}
    assert not np.array_equal(answers["first"], answers["second"])
    np.testing.assert_array_equal(answers["own"], answers["first"])
    np.testing.assert_array_equal(answers["foreign"], answers["second"])
    with pytest.raises(InferenceServerException, match="There are 2 identifiers of model 'inner'"):
        _onnx(server, "inner")


def test_configurations_are_chosen_by_name(start, repository, connect):
    """--model-config-name, where a model has one of that name."""
    models.write(repository, {"two": IDENTITY})
    (repository / "one" / "configs").mkdir()
    (repository / "one" / "configs" / "small.pbtxt").write_text(models.identity("max_batch_size: 2"))
    server = start(repository, EXPLICIT, "--load-model=*", "--model-config-name=small")
    with contextlib.closing(triton_http.InferenceServerClient(server.http_address)) as client:
        assert [client.get_model_config(name)["max_batch_size"] for name in ("one", "two")] == [2, 0]


def test_a_version_that_fails_is_tried_again(start, repository, connect):
    """As often as --model-load-retry-count says."""
    unequal = models.identity().replace('output [{ name: "OUTPUT0" data_type: TYPE_FP32', 'output [{ name: "OUTPUT0" data_type: TYPE_INT8')
    models.write(repository, {"never": models.Model(unequal)})
    server = start(repository, EXPLICIT, "--model-load-retry-count=2", "--model-load-thread-count=1")
    with pytest.raises(InferenceServerException, match="must have the type of input"):
        connect(server).load_model("never")
    log = server.log.read_text()
    assert log.count("is tried again") == 2 and log.count("failed to load 'never' version 1") == 1


@pytest.mark.parametrize("flags, is_ready", [
    (("--strict-readiness=true",), False),
    (("--strict-readiness=false",), True),
])  # fmt: skip
def test_a_model_that_is_missing_from_the_start(binary, driver, repository, tmp_path, flags, is_ready):
    """Without --exit-on-error; once it can be loaded, the server is ready."""
    models.write(repository, {"broken": models.Model("no_such_field: 1")})
    every = (f"--io-driver={driver}", EXPLICIT, "--exit-on-error=false", *flags)
    chosen = ("--load-model=broken", "--load-model=one", "--load-model=absent")
    server = servers.Server("nereid-own", binary, repository, (*every, *chosen), tmp_path / "log")
    try:
        with contextlib.closing(triton_http.InferenceServerClient(server.http_address)) as client:
            _eventually(lambda: "model_control_mode" in server.log.read_text())
            _eventually(lambda: client.is_model_ready("one"))
            assert client.is_server_ready() == is_ready
            (repository / "broken" / "config.pbtxt").write_text(models.identity())
            models.write(repository, {"absent": IDENTITY})
            client.load_model("broken")
            client.load_model("absent")
            assert client.is_server_ready()
    finally:
        server.stop()


@pytest.mark.parametrize("flags, words", [
    (["--load-model=one"], "--model-control-mode=explicit"),
    ([EXPLICIT, "--load-model=*", "--load-model=one"], "--load-model=*"),
    ([EXPLICIT, "--load-model=no_such"], "failed to load"),
])  # fmt: skip
def test_flags_that_do_not_go_together_end_the_start(binary, repository, flags, words):
    """With the flag's name, or a model that is not there."""
    ports = [f"--{name}-{what}={value}" for name in ("http", "grpc", "metrics") for what, value in (("port", 0), ("address", "127.0.0.1"))]
    done = subprocess.run([binary, f"--model-repository={repository}", *ports, *flags], capture_output=True, text=True, timeout=30)
    assert done.returncode != 0 and words in done.stderr


def test_a_checksum_guards_a_model(start, repository, connect):
    """A file that is not what the configuration says keeps what is served in service, and is named."""
    agent = 'model_repository_agents { agents [{ name: "checksum" parameters { key: "MD5:1/data" value: "%s" } }] }'
    right = hashlib.md5(b"right").hexdigest()
    models.write(repository, {"guarded": models.Model(models.identity(agent % right))})
    data = repository / "guarded" / "1" / "data"
    data.write_bytes(b"wrong")
    server = start(repository, EXPLICIT)
    client = connect(server)
    mismatch = f"Mismatched MD5 hash for file 1/data, expect: {right}, got: {hashlib.md5(b'wrong').hexdigest()}"
    with pytest.raises(InferenceServerException, match=mismatch):
        client.load_model("guarded")
    data.write_bytes(b"right")
    client.load_model("guarded")
    np.testing.assert_array_equal(_infer(server, "guarded"), ARRAY[0])
    data.write_bytes(b"wrong")
    with pytest.raises(InferenceServerException, match=mismatch):
        client.load_model("guarded")
    np.testing.assert_array_equal(_infer(server, "guarded"), ARRAY[0])
    client.unload_model("guarded")
    _eventually(lambda: _index(client)[0] == ("guarded", "1", "UNAVAILABLE", "unloaded"))


def test_an_encrypted_model_is_served_and_leaves_nothing_behind(start, repository, connect, tmp_path, monkeypatch):
    """What is decrypted lies apart, for the server's user alone, until the model is unloaded."""
    places = tmp_path / "temporary"
    places.mkdir()
    monkeypatch.setenv("TMPDIR", str(places))
    secret, other = bytes(range(32)), bytes(range(1, 33))
    identities = tmp_path / "identities"
    identities.write_text(f"# a comment\n{age_file.identity(secret)}\n")
    agent = f'model_repository_agents {{ agents [{{ name: "decrypt" parameters {{ key: "identity_file" value: "{identities}" }} }}] }}'
    config = models.identity(f"max_batch_size: 4 {agent}", dims="3", output='label_filename: "labels.txt"')
    labels = b"ant\nbee\ncat\n" + b"#" * (200 << 10)
    for name, key in (("secret", secret), ("foreign", other)):
        models.write(repository, {name: models.Model(config)})
        (repository / name / "labels.txt.age").write_bytes(age_file.encrypt(labels, key))
    server = start(repository, EXPLICIT)
    client = connect(server)
    with pytest.raises(InferenceServerException, match="foreign/labels.txt.age"):
        client.load_model("foreign")
    assert not _plain(places)
    client.load_model("secret")
    (plain,) = _plain(places)
    assert plain.read_bytes() == labels
    assert all(folder.stat().st_mode & 0o077 == 0 for folder in plain.parents if folder.parent == places)
    assert not list(repository.rglob("labels.txt"))
    wanted = [triton_grpc.InferRequestedOutput("OUTPUT0", class_count=1)]
    given = triton.tensor(triton_grpc, "INPUT0", "FP32", np.array([[1, 3, 2]], dtype=np.float32))
    answer = triton.grpc(server, model_name="secret", inputs=[given], outputs=wanted)
    assert answer.as_numpy("OUTPUT0").tolist() == [[b"3.000000:1:bee"]]
    client.unload_model("secret")
    _eventually(lambda: not _plain(places))


def _plain(folder) -> list:
    return list(folder.rglob("labels.txt"))


LOADING = """
import os, time

def tell(what):
    with open(os.environ["LOADING"], "a") as file:
        file.write(what + "\\n")

def told(what):
    with open(os.environ["LOADING"]) as file:
        return file.read().count(what)

class TritonPythonModel:
    def initialize(self, args):
        tell("begin")
        # The other may begin meanwhile.
        deadline = time.monotonic() + float(os.environ["PATIENCE"])
        while told("begin") < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        tell("end")

    def execute(self, requests):
        return []
"""


@pytest.mark.parametrize("threads, patience, expected", [
    (1, 1, ["begin", "end", "begin", "end"]),
    (2, 60, ["begin", "begin", "end", "end"]),
])  # fmt: skip
@pytest.mark.parametrize("what", ["models", "versions"])
def test_models_load_at_once_on_as_many_threads_as_there_are(
    start, tmp_path, monkeypatch, what, threads, patience, expected
):
    """Two, of which the first waits for the second to begin, for a while. As many versions of one model do."""
    events = tmp_path / "events"
    events.touch()
    monkeypatch.setenv("LOADING", str(events))
    monkeypatch.setenv("PATIENCE", str(patience))
    config = models.identity("version_policy { all { } }").replace("identity", "python")
    for name in ("one", "two") if what == "models" else ("one",):
        python_server.write(tmp_path / "models", name, config, LOADING)
    if what == "versions":
        shutil.copytree(tmp_path / "models" / "one" / "1", tmp_path / "models" / "one" / "2")
    start(tmp_path / "models", python_server.INTERPRETER, f"--model-load-thread-count={threads}")
    assert events.read_text().split() == expected


BRINGING = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        for model in {models}:
            pb_utils.load_model(model)
            pb_utils.unload_model(model)
            pb_utils.load_model(model)

    def execute(self, requests):
        return []
"""


def test_models_load_others_while_they_are_loaded(start, repository):
    """On one thread: what a model waits for is loaded beside it, however many wait for each other."""
    models.write(repository, {"two": IDENTITY})
    config = models.identity().replace("identity", "python")
    for name, others in {"first": ["second", "one"], "second": ["third"], "third": ["two"], "other": ["one"]}.items():
        python_server.write(repository, name, config, BRINGING.format(models=others))
    names = ["first", "other"]
    flags = ("--model-load-thread-count=1", *(f"--load-model={name}" for name in names))
    server = start(repository, python_server.INTERPRETER, EXPLICIT, *flags)
    for name in ("first", "second", "third", "other", "one", "two"):
        assert python_server.is_ready(server, name), name
