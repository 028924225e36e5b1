"""A model with state over many interleaved recordings: as if each were listened to alone."""

from __future__ import annotations

import queue
import random

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

MODEL = "voice_activity"
RATE = 16_000
CONTEXT, PIECE = 64, 512
RECORDINGS = 12
PIECES = 15
WAIT_S = 60


def _recording(seed: int) -> np.ndarray:
    """Something with the loudness and the pitch of a voice now and then."""
    draw = np.random.default_rng(seed)
    time = np.arange(PIECE * PIECES) / RATE
    pitch = 90 + 160 * draw.random() + 20 * np.sin(2 * np.pi * 3 * time)
    tone = sum(np.sin(2 * np.pi * harmonic * pitch * time) / harmonic for harmonic in range(1, 12))
    loudness = np.clip(np.sin(2 * np.pi * (1 + draw.random()) * time + seed), 0, 1)
    return (0.3 * loudness * tone + 0.02 * draw.standard_normal(time.size)).astype(np.float32)


def _pieces(recording: np.ndarray) -> list[np.ndarray]:
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), recording])
    return [padded[None, start : start + CONTEXT + PIECE] for start in range(0, recording.size, PIECE)]


@pytest.fixture(scope="module")
def alone(examples) -> list[list[float]]:
    """What the model says of each recording when it hears no other."""
    session = onnxruntime.InferenceSession(
        str(examples / "models" / MODEL / "1" / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    answers = []
    for seed in range(RECORDINGS):
        state = np.zeros((2, 1, 128), np.float32)
        heard = []
        for piece in _pieces(_recording(seed)):
            feed = {"input": piece, "state": state, "sr": np.array(RATE, np.int64)}
            speech, state = session.run(["output", "stateN"], feed)
            heard.append(float(speech[0, 0]))
        answers.append(heard)
    return answers


def _inputs(piece: np.ndarray) -> list[tritonclient.grpc.InferInput]:
    tensors = [("input", piece, "FP32"), ("sr", np.array([RATE], np.int64), "INT64")]
    made = [tritonclient.grpc.InferInput(name, list(tensor.shape), kind) for name, tensor, kind in tensors]
    for each, (_, tensor, _) in zip(made, tensors):
        each.set_data_from_numpy(tensor)
    return made


def test_interleaved_recordings_are_heard_apart(urls, alone):
    """Their pieces come in any order among each other, half of them under names that are texts."""
    client = tritonclient.grpc.InferenceServerClient(urls["grpc"])
    answers: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    order = [recording for recording in range(RECORDINGS) for _ in range(PIECES)]
    random.Random(5).shuffle(order)
    pieces = [list(enumerate(_pieces(_recording(seed)))) for seed in range(RECORDINGS)]
    for recording in order:
        index, piece = pieces[recording].pop(0)
        client.async_stream_infer(
            MODEL,
            _inputs(piece),
            request_id=f"{recording}/{index}",
            sequence_id=f"text {recording}" if recording % 2 else recording + 1,
            sequence_start=index == 0,
            sequence_end=index == PIECES - 1,
        )
    heard: list[dict[int, float]] = [{} for _ in range(RECORDINGS)]
    for _ in order:
        result, error = answers.get(timeout=WAIT_S)
        assert error is None, error
        recording, index = map(int, result.get_response().id.split("/"))
        assert [each.name for each in result.get_response().outputs] == ["output"]
        heard[recording][index] = float(result.as_numpy("output")[0, 0])
    client.stop_stream()
    client.close()
    got = [[each[index] for index in range(PIECES)] for each in heard]
    np.testing.assert_allclose(got, alone, atol=1e-5)
    assert np.ptp(alone) > 0.1, "the recordings tell nothing"


def test_a_new_recording_begins_in_silence(urls, alone):
    """The state of the one before is gone, whether that ended or not."""
    client = tritonclient.grpc.InferenceServerClient(urls["grpc"])
    pieces = _pieces(_recording(0))
    for end in (False, True, False):
        for index in range(3):
            result = client.infer(
                MODEL,
                _inputs(pieces[index]),
                sequence_id=4711,
                sequence_start=index == 0,
                sequence_end=end and index == 2,
            )
            assert abs(float(result.as_numpy("output")[0, 0]) - alone[0][index]) < 1e-5
    client.infer(MODEL, _inputs(pieces[3]), sequence_id=4711, sequence_end=True)
    with pytest.raises(InferenceServerException, match="START flag"):
        client.infer(MODEL, _inputs(pieces[4]), sequence_id=4711)
    client.close()
