"""The example models in Python against a real server: they read as their parts do when the client calls them,
by calls of other models and as steps of an ensemble."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
from PIL import Image

import reading
from conftest import run_server

TOLERANCE = 1e-4


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def addresses(examples, request, tmp_path_factory) -> Iterator[dict[str, str]]:
    """Those of a server of the model and of those that it calls, by protocol."""
    if not (binary := os.environ.get("NEREID_BINARY")):
        pytest.skip("no server: set NEREID_BINARY")
    if not (examples / "python").is_dir():
        pytest.fail(f"no models in Python in '{examples}': run examples/fetch_models.py first", pytrace=False)
    log = tmp_path_factory.mktemp("python") / "log"
    repositories = [examples / "models", examples / "python"]
    interpreter = f"--backend-config=python,interpreter={sys.executable}"
    running = run_server(binary, repositories, log, request.session, interpreter)
    yield next(running)
    next(running, None)


@pytest.fixture
def address(addresses) -> str:
    """Where the server speaks gRPC."""
    return addresses["grpc"]


def ask(address: str, file: bytes, model: str = "read_text") -> tritonclient.grpc.InferResult:
    """The answer to a picture file."""
    tensor = tritonclient.grpc.InferInput("file", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([file], np.object_))
    with tritonclient.grpc.InferenceServerClient(address) as client:
        return client.infer(model, [tensor])


def test_a_picture_is_read_as_from_the_client(address, direct, examples, images):
    """All lines in their order, with their places; and so are several pictures at once."""
    file = (images / "sign.png").read_bytes()
    charset = reading.load_charset(examples / "assets")
    expected = reading.read(direct, charset, Image.open(io.BytesIO(file)))
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: ask(address, file), range(6)))
    for answer in answers:
        assert [text.decode() for text in answer.as_numpy("text")] == [line.text for line in expected]
        assert answer.as_numpy("box").tolist() == [list(line.box) for line in expected]
        confidences = [line.confidence for line in expected]
        np.testing.assert_allclose(answer.as_numpy("confidence"), confidences, atol=TOLERANCE)


@pytest.mark.parametrize("form", ["png", "jpeg"])
def test_the_ensemble_reads_the_same_lines(address, direct, examples, images, form):
    """At the same places, but for how the server scales the picture before it looks for text."""
    picture = Image.open(images / "sign.png").convert("RGB")
    file = io.BytesIO()
    picture.save(file, form)
    answer = ask(address, file.getvalue(), "ocr")
    expected = reading.read(direct, reading.load_charset(examples / "assets"), picture)
    assert [text.decode() for text in answer.as_numpy("text")] == [line.text for line in expected]
    assert answer.as_numpy("confidence").min() > 0.9
    np.testing.assert_allclose(answer.as_numpy("box"), [line.box for line in expected], atol=8)


@pytest.mark.parametrize("model", ["read_text", "ocr"])
def test_a_picture_without_text_has_no_lines(address, model):
    blank = io.BytesIO()
    Image.new("RGB", (320, 200), "white").save(blank, "png")
    answer = ask(address, blank.getvalue(), model)
    assert answer.as_numpy("text").shape == (0,) and answer.as_numpy("box").shape == (0, 4)


def test_what_is_no_picture_is_the_clients_fault(address):
    with pytest.raises(tritonclient.grpc.InferenceServerException, match="'file' is no picture") as refused:
        ask(address, b"nothing to see")
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize("model", ["read_text", "ocr"])
def test_the_program_prints_the_lines(address, images: Path, model):
    program = [sys.executable, str(images.parent / "clients" / "read_file.py"), "--protocol=grpc", f"--url={address}"]
    program += [f"--model={model}", str(images / "sign.png")]
    run = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "NEREID" in run.stdout and "TICKETS" in run.stdout


@pytest.fixture
def ring_program(request, tmp_path) -> tuple[list, dict[str, str]]:
    """The example of the ring's client in a language, and the environment that it needs."""
    built = Path(os.environ["NEREID_BINARY"]).resolve().parent
    clients = ROOT / "clients"
    if request.param == "rust":
        program = built / "examples" / "ocr"
        if not program.is_file():
            pytest.fail(f"{program} is not there: cargo build --package nereid-ring-client --examples")
        return [program], {}
    if request.param == "python":
        program = [sys.executable, ROOT / "examples" / "clients" / "read_file.py", "--model=ocr", "--protocol=ring", "--url"]
        return program, {"NEREID_RING_LIBRARY": str(built / "libnereid_ring_c.so")}
    program = tmp_path / "ocr"
    command = [os.environ.get("CC", "cc"), "-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{clients / 'c' / 'include'}"]
    command += [clients / "c" / "examples" / "ocr.c", f"-L{built}", "-lnereid_ring_c", "-o", program]
    subprocess.run(command, check=True)
    return [program], {"LD_LIBRARY_PATH": str(built)}


@pytest.mark.parametrize("ring_program", ["c", "rust", "python"], indirect=True)
def test_a_picture_is_read_through_the_ring(addresses, address, images: Path, ring_program):
    """In every language that has a client; what is no picture is told."""
    program, environment = ring_program

    def read(picture: Path) -> subprocess.CompletedProcess:
        command = [*program, addresses["ring"], picture]
        return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60)

    run = read(images / "sign.png")
    assert run.returncode == 0, run.stderr
    expected = ask(address, (images / "sign.png").read_bytes(), "ocr")
    texts = [text.decode() for text in expected.as_numpy("text")]
    if program[0] == sys.executable:
        assert run.stdout.splitlines()[1:] == [f"  {text}" for text in texts]
    else:
        confidences = [f"{np.float32(100) * confidence:.1f}%" for confidence in expected.as_numpy("confidence")]
        boxes = [tuple(box) for box in expected.as_numpy("box").tolist()]
        lines = [f"{text}  ({sure} at {box})" for text, sure, box in zip(texts, confidences, boxes, strict=True)]
        assert len(lines) == 6 and run.stdout.splitlines() == lines
    refused = read(images / "draw.py")
    assert refused.returncode != 0 and "expected a JPEG or PNG file" in refused.stderr, refused.stderr
