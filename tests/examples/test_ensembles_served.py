"""The example ensembles on real pictures: the same answers as clients that do the steps themselves."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

import classify_file
import ocr
import ocr_file
from conftest import run_server
from connection import connect

SIGN = ["NEREID", "HARBOUR", "Open daily", "9:30", "TICKETS", "42"]


@pytest.fixture(scope="module")
def ocr_urls(examples, request, tmp_path_factory) -> Iterator[dict[str, str]]:
    """A server of both repositories that the ensemble `ocr` needs."""
    if not (binary := os.environ.get("NEREID_BINARY")):
        pytest.skip("no server: set NEREID_BINARY")
    flags = [f"--model-repository={examples / 'ocr'}", f"--backend-config=python,interpreter={sys.executable}"]
    log = tmp_path_factory.mktemp("ocr") / "log"
    yield from run_server(binary, examples / "models", log, request.session, flags)


@pytest.fixture(params=["http", "grpc", "ring"])
def ocr_server(request, ocr_urls):
    connection = connect(request.param, ocr_urls[request.param])
    yield connection
    connection.client.close()


def encoded(picture: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, form)
    return file.getvalue()


def read(server, file: bytes) -> dict[str, np.ndarray]:
    return server.infer_outputs(ocr_file.MODEL, {"file": np.array([file], np.object_)}, ["text", "confidence", "box"])


def test_the_photo_classifier_is_its_two_models(server, images):
    """Bit for bit, for one file and for several in a batch."""
    clock, sign = (Image.open(images / name).convert("RGB") for name in ("clock.png", "sign.png"))
    files = classify_file.as_tensor([encoded(clock, "PNG"), encoded(sign, "JPEG"), encoded(clock.resize((90, 70)), "JPEG")])
    prepared = server.infer("image_preprocess", {"file": files}, "image")
    expected = server.infer("image_classifier", {"image": prepared}, "probabilities")
    got = server.infer(classify_file.MODEL, {"file": files}, "probabilities")
    np.testing.assert_array_equal(got, expected)
    [[best, *_], *_] = classify_file.classify(server, [files[0, 0]], count=2)
    assert best.name in ("wall clock", "analog clock")


def test_a_file_that_is_no_picture_is_told_by_its_step(server):
    with pytest.raises(Exception, match="expected a JPEG or PNG file"):
        server.infer(classify_file.MODEL, {"file": classify_file.as_tensor([b"text"])}, "probabilities")


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_the_sign_is_read_by_the_server(ocr_server, direct, examples, images, form):
    """The lines that the client finds by the same models, at the same places."""
    picture = Image.open(images / "sign.png").convert("RGB")
    found = read(ocr_server, encoded(picture, form))
    assert [text.decode() for text in found["text"]] == SIGN
    assert found["confidence"].min() > 0.9
    expected = ocr.read(direct, ocr.load_charset(examples / "assets"), picture)
    # The server scales the picture otherwise before it looks for text.
    np.testing.assert_allclose(found["box"], [line.box for line in expected], atol=8)


def test_a_picture_without_text_has_no_lines(ocr_server):
    found = read(ocr_server, encoded(Image.new("RGB", (320, 200), "white"), "PNG"))
    assert [len(found[name]) for name in ("text", "confidence", "box")] == [0, 0, 0]


@pytest.mark.parametrize("protocol", ["http", "grpc", "ring"])
def test_the_program_prints_what_the_server_read(ocr_urls, images, protocol):
    program = [sys.executable, str(images.parent / "clients" / "ocr_file.py"), str(images / "sign.png")]
    run = subprocess.run(
        [*program, f"--protocol={protocol}", f"--url={ocr_urls[protocol]}"], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert [line.split("  (")[0] for line in run.stdout.splitlines()] == SIGN
