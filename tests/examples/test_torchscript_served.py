"""The example models in TorchScript against a real server: the same answers as their ONNX forms."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc
from PIL import Image

import classify
from conftest import run_server

TOLERANCE = 1e-4
SAMPLES, CONTEXT, SAMPLE_RATE = 512, 64, 16000
BACKENDS = Path(os.environ.get("NEREID_BACKEND_DIR") or Path.home() / ".local/share/nereid/backends")
BRIDGE = BACKENDS / "pytorch" / "libnereid_pytorch.so"
pytestmark = pytest.mark.skipif(
    not BRIDGE.is_file(), reason=f"there is no {BRIDGE}: `make backend-pytorch` builds it (NEREID_BACKEND_DIR names it)"
)


@pytest.fixture(scope="module")
def torchscript(examples, request, tmp_path_factory) -> Iterator[tritonclient.grpc.InferenceServerClient]:
    """A client of a server of the TorchScript examples, and of the classifier as ONNX."""
    if not (binary := os.environ.get("NEREID_BINARY")):
        pytest.skip("no server: set NEREID_BINARY")
    log = tmp_path_factory.mktemp("torchscript") / "log"
    chosen = ("image_classifier", "image_classifier_torch", "voice_activity_torch")
    flags = ("--model-control-mode=explicit", *(f"--load-model={name}" for name in chosen))
    repositories = [examples / "torchscript", examples / "models"]
    running = run_server(binary, repositories, log, request.session, *flags)
    with tritonclient.grpc.InferenceServerClient(next(running)["grpc"]) as client:
        yield client
    next(running, None)


@pytest.mark.parametrize("rows", [1, 3, 32])
def test_the_classifier_agrees_with_its_onnx_form(torchscript, images, rows):
    """On a picture and on noise, both of one server."""
    picture = classify.preprocess(Image.open(images / "clock.png"))
    noise = np.random.default_rng(rows).standard_normal((rows - 1, 3, 224, 224)).astype(np.float32)
    batch = np.concatenate([picture.reshape(1, 3, 224, 224), noise])
    expected = ask(torchscript, "image_classifier", image=batch).as_numpy("probabilities")
    got = ask(torchscript, "image_classifier_torch", image=batch).as_numpy("probabilities__0")
    np.testing.assert_allclose(got, expected, atol=TOLERANCE, rtol=0)
    assert expected[0].argmax() == got[0].argmax()


def test_audio_is_heard_as_by_the_onnx_form(torchscript, examples):
    """Piece by piece, and anew from where it begins again."""
    generator = np.random.default_rng(5)
    session = onnxruntime.InferenceSession(examples / "models" / "voice_activity" / "1" / "model.onnx")
    for pieces in (voice(generator, 9), voice(generator, 6)):
        got = [heard(torchscript, 1, pieces, step) for step in range(len(pieces))]
        np.testing.assert_allclose(got, alone(session, pieces), atol=TOLERANCE, rtol=0)
        assert len({round(value, 4) for value in got}) > 3


def test_voices_that_speak_at_once_are_kept_apart(torchscript, examples):
    """Each piece is sent when its turn comes by lot."""
    generator = np.random.default_rng(7)
    session = onnxruntime.InferenceSession(examples / "models" / "voice_activity" / "1" / "model.onnx")
    voices = [voice(generator, pieces) for pieces in (9, 4, 7, 5)]
    turns = generator.permutation(np.repeat(np.arange(len(voices)), [len(pieces) for pieces in voices]))
    got = [[] for _ in voices]
    for number in turns:
        got[number].append(heard(torchscript, 10 + int(number), voices[number], len(got[number])))
    for number, (pieces, values) in enumerate(zip(voices, got)):
        np.testing.assert_allclose(values, alone(session, pieces), atol=TOLERANCE, rtol=0)
        again = [heard(torchscript, 30 + number, pieces, step) for step in range(len(pieces))]
        np.testing.assert_allclose(values, again, atol=1e-6, rtol=0)
    # And in threads of their own, two more than can be heard at the same time.
    voices = [voice(generator, 6) for _ in range(6)]
    with ThreadPoolExecutor(len(voices)) as pool:
        spoken = pool.map(
            lambda each: [heard(torchscript, 20 + each[0], each[1], step) for step in range(len(each[1]))],
            enumerate(voices),
        )
        for pieces, values in zip(voices, spoken):
            np.testing.assert_allclose(values, alone(session, pieces), atol=TOLERANCE, rtol=0)


def voice(generator: np.random.Generator, pieces: int) -> np.ndarray:
    """Something that buzzes like a voice, louder and softer, with noise."""
    time = np.arange(pieces * SAMPLES) / SAMPLE_RATE
    pitch = generator.uniform(90, 220)
    buzz = sum(np.sin(2 * np.pi * pitch * harmonic * time) / harmonic for harmonic in range(1, 12))
    loudness = 0.5 + 0.5 * np.sin(2 * np.pi * generator.uniform(2, 5) * time)
    samples = 0.1 * buzz * loudness + 0.01 * generator.standard_normal(time.size)
    return samples.astype(np.float32).reshape(pieces, 1, SAMPLES)


def heard(client, voice: int, pieces: np.ndarray, step: int) -> float:
    place = {"sequence_id": voice, "sequence_start": step == 0, "sequence_end": step == len(pieces) - 1}
    return float(ask(client, "voice_activity_torch", place, audio=pieces[step]).as_numpy("speech__0")[0, 0])


def alone(session: onnxruntime.InferenceSession, pieces: np.ndarray) -> list[float]:
    """The ONNX form, whose state and context its caller keeps."""
    state, context, found = np.zeros((2, 1, 128), np.float32), np.zeros((1, CONTEXT), np.float32), []
    for piece in pieces:
        samples = np.concatenate([context, piece], axis=1)
        inputs = {"input": samples, "state": state, "sr": np.array(SAMPLE_RATE, np.int64)}
        output, state = session.run(None, inputs)
        context = samples[:, -CONTEXT:]
        found.append(float(output[0, 0]))
    return found


def ask(client, model: str, place: dict | None = None, /, **arrays: np.ndarray):
    inputs = []
    for name, array in arrays.items():
        inputs.append(tritonclient.grpc.InferInput(name, list(array.shape), "FP32"))
        inputs[-1].set_data_from_numpy(array)
    return client.infer(model, inputs, **(place or {}))
