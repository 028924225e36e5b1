"""Model repositories at Google's and Azure's: by emulators of their stores. What is not theirs alone is tested with
S3 (`test_stores`)."""

from __future__ import annotations

import contextlib
import json
import subprocess

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from . import models, onnx_file, triton
from .clouds import Azure, Google

ARRAY = np.ones(4, dtype=np.float32)
IDENTITY = models.identity().encode()


@pytest.fixture(scope="module", params=[Google, Azure])
def emulator(request):
    """A store."""
    made = request.param()
    yield made
    made.end()


@pytest.fixture
def store(emulator, monkeypatch):
    """The store, and what leads to it in the environment of the servers that are started."""
    for name, value in {**emulator.environment, "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    return emulator


@pytest.fixture
def azure(request, monkeypatch):
    """A store of Azure's with a model, which the environment tells of, but not of its key."""
    made = Azure(is_open=getattr(request, "param", False))
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", made.address)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made.put("one/config.pbtxt", IDENTITY)
    made.put("one/1/", b"")
    yield made
    made.end()


def _answers(server, model: str) -> bool:
    got = triton.infer("grpc", server, model, ARRAY).as_numpy("OUTPUT0")
    return got.tolist() == ARRAY.tolist()


def _scores(server) -> np.ndarray:
    return triton.infer("grpc", server, "mlp", ARRAY.reshape(1, 4), input_name="x").as_numpy("y")


def test_models_of_a_store_are_served_and_loaded_anew(start, store):
    """By explicit control: what has changed since is fetched again, what is gone is not found."""
    for name in ("one", "two"):
        store.put(f"{name}/config.pbtxt", IDENTITY)
        store.put(f"{name}/1/", b"")
    names = {"one", "two"}
    if models.has_onnxruntime():
        store.put("mlp/1/model.onnx", onnx_file.mlp(1))
        names.add("mlp")
    server = start(store.url, "--model-control-mode=explicit", "--load-model=one")
    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
        assert _answers(server, "one")
        index = {each.name: each.state for each in client.get_model_repository_index().models}
        assert set(index) == names and index["one"] == "READY"
        for name in names:
            client.load_model(name)
            assert client.is_model_ready(name)
        if "mlp" in names:
            before = _scores(server)
            store.put("mlp/1/model.onnx", onnx_file.mlp(2))
            client.load_model("mlp")
            assert not np.array_equal(before, _scores(server))
        store.delete("two/config.pbtxt")
        store.delete("two/1/")
        with pytest.raises(InferenceServerException, match="failed to load 'two', failed to poll"):
            client.load_model("two")


def test_credentials_for_azure_come_from_a_file_too(start, azure, tmp_path, monkeypatch):
    """With the account, which may be another than the URL's. No message tells the key."""
    file = tmp_path / "credentials.json"
    monkeypatch.setenv("TRITON_CLOUD_CREDENTIAL_PATH", str(file))
    url = azure.url.replace(azure.account, "another.blob.core.windows.net")
    own = {"account_str": azure.account, "account_key": azure.key}
    file.write_text(json.dumps({"as": {"": {"account_key": "bm9uZQ=="}, "as://another.blob.core.windows.net": own}}))
    server = start(url)
    assert _answers(server, "one")
    wrong = {**own, "account_key": "d3Jvbmc="}
    for credential, words in [(wrong, f"cannot read '{url}'"), ({**own, "auth_type": "hearsay"}, "'auth_type' is 'hearsay'")]:
        file.write_text(json.dumps({"as": {"": credential}}))
        checked = subprocess.run([server.process.args[0], "check", url], capture_output=True, text=True, timeout=60)
        told = checked.stdout + checked.stderr
        assert checked.returncode == 1 and words in told and credential["account_key"] not in told, told


@pytest.mark.parametrize("azure", [True], indirect=True)
def test_what_is_open_to_all_needs_no_credentials(start, azure):
    """As with Triton, who names none asks without any."""
    assert _answers(start(azure.url), "one")
