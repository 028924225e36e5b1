"""The example clients against a real server: the same answers as ONNX Runtime called directly."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http
from PIL import Image

import classify
import embed
import file_type
import reading
from connection import connect

TOLERANCE = 1e-5
REQUESTS = 24
CLIENTS = 6
SETTLED_S = 0.5
SENTENCES = [
    "The ship left the harbour at dawn.",
    "At sunrise the boat sailed.",
    "Tax returns are due in April.",
    "Nereids are the nymphs of the sea.",
]


@pytest.mark.parametrize("protocol", ["http", "grpc", "ring"])
@pytest.mark.parametrize(
    ("client", "arguments", "words"),
    [
        ("ocr.py", ["{images}/sign.png"], ["NEREID", "Open daily", "TICKETS"]),
        ("classify.py", ["--count=2", "{images}/clock.png"], ["wall clock", "analog clock"]),
        ("embed.py", SENTENCES, ["'At sunrise the boat sailed.'"]),
        ("file_type.py", ["{images}/sign.png", "{images}/draw.py", "/dev/null"], ["png", "python", "too short"]),
    ],
)
def test_client_program(urls, examples, images, protocol, client, arguments, words):
    if protocol not in urls:
        pytest.skip(f"the server has no address for {protocol}")
    program = [sys.executable, str(images.parent / "clients" / client)]
    options = [f"--protocol={protocol}", f"--url={urls[protocol]}", f"--assets={examples / 'assets'}"]
    arguments = [argument.format(images=images) for argument in arguments]
    run = subprocess.run([*program, *options, *arguments], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    for word in words:
        assert word in run.stdout


def test_client_program_says_in_one_line_what_is_wrong(urls, images):
    program = [sys.executable, str(images.parent / "clients" / "classify.py"), f"--url={urls['http']}"]
    run = subprocess.run([*program, "no-such-file.png"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert run.stderr.startswith("error: ") and "no-such-file.png" in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_ocr_reads_the_sign(server, direct, examples, images):
    charset = reading.load_charset(examples / "assets")
    picture = Image.open(images / "sign.png")
    lines, expected = (reading.read(connection, charset, picture) for connection in (server, direct))
    assert {line.text for line in lines} == {"NEREID", "HARBOUR", "Open daily", "9:30", "TICKETS", "42"}
    assert [(line.text, line.box) for line in lines] == [(line.text, line.box) for line in expected]
    assert [line.confidence for line in lines] == pytest.approx([line.confidence for line in expected], abs=TOLERANCE)


def test_text_detection_takes_any_size(server, direct, images):
    picture = Image.open(images / "sign.png").convert("RGB")
    for size in ((640, 416), (320, 224), (97, 130)):
        inputs = {"x": reading.detection_input(picture.resize(size))}
        same(server, direct, reading.DETECTION, inputs, "sigmoid_0.tmp_0")


def test_classifier_names_classes(server, direct, images):
    pictures = [Image.open(images / name) for name in ("clock.png", "sign.png")]
    answers, expected = (classify.classify(connection, pictures, count=5) for connection in (server, direct))
    assert [[label.index for label in row] for row in answers] == [[label.index for label in row] for row in expected]
    assert [[label.name for label in row] for row in answers] == [[label.name for label in row] for row in expected]
    for row, expected_row in zip(answers, expected, strict=True):
        assert [label.score for label in row] == pytest.approx([label.score for label in expected_row], abs=TOLERANCE)


def test_embedding(server, direct, examples):
    tokenizer = embed.load_tokenizer(examples / "assets")
    vectors, expected = (embed.embed(connection, tokenizer, SENTENCES) for connection in (server, direct))
    np.testing.assert_allclose(vectors, expected, atol=TOLERANCE)


def test_file_types(server, direct, examples, images):
    contents = [path.read_bytes() for path in sample_files(images)]
    types = file_type.load_types(examples / "assets")
    guesses, expected = (file_type.guess_types(connection, types, contents) for connection in (server, direct))
    assert [guess.type for guess in guesses] == [guess.type for guess in expected]
    assert [guess.score for guess in guesses] == pytest.approx([guess.score for guess in expected], abs=TOLERANCE)


def test_the_model_without_a_configuration_is_completed(urls):
    client = tritonclient.http.InferenceServerClient(urls["http"])
    config = client.get_model_config("file_type")
    assert config["max_batch_size"] > 0
    assert [(i["name"], i["data_type"], list(map(int, i["dims"]))) for i in config["input"]] == [
        ("bytes", "TYPE_INT32", [2048])
    ]
    assert [(o["name"], o["data_type"], list(map(int, o["dims"]))) for o in config["output"]] == [
        ("target_label", "TYPE_FP32", [214])
    ]


def test_requests_in_flight_together_keep_their_own_answers(server, direct, images):
    picture = Image.open(images / "clock.png")
    requests = [{"image": classify.preprocess(picture.rotate(15 * turn))[np.newaxis]} for turn in range(REQUESTS)]
    answers = server.infer_each(classify.MODEL, requests, "probabilities")
    expected = direct.infer_each(classify.MODEL, requests, "probabilities")
    for answer, row in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer, row, atol=TOLERANCE)


def test_requests_in_flight_together_share_batches(urls, images):
    client = tritonclient.http.InferenceServerClient(urls["http"])
    before = settled_counts(client, classify.MODEL)
    image = classify.preprocess(Image.open(images / "clock.png"))[np.newaxis]
    connection = connect("grpc", urls["grpc"])
    connection.infer_each(classify.MODEL, REQUESTS * [{"image": image}], "probabilities")
    connection.client.close()
    inferences, executions = np.subtract(settled_counts(client, classify.MODEL), before)
    assert inferences == REQUESTS
    assert executions < REQUESTS


def test_several_clients_at_once(urls, direct, sample_requests):
    """All models under load together, each client with a connection of its own."""

    def client(number: int) -> list[tuple[str, np.ndarray, np.ndarray]]:
        protocol = ("http", "grpc")[number % 2]
        connection = connect(protocol, urls[protocol])
        model, inputs, output = sample_requests[number % len(sample_requests)]
        expected = direct.infer(model, inputs, output)
        answers = connection.infer_each(model, 4 * [inputs], output)
        connection.client.close()
        return [(model, answer, expected) for answer in answers]

    # Sessions are made before the threads start, which would otherwise make them twice.
    for model, inputs, output in sample_requests:
        direct.infer(model, inputs, output)
    with ThreadPoolExecutor(CLIENTS) as threads:
        results = [result for results in threads.map(client, range(2 * CLIENTS)) for result in results]
    assert len(results) == 8 * CLIENTS
    for model, answer, expected in results:
        np.testing.assert_allclose(answer, expected, atol=TOLERANCE, err_msg=model)


@pytest.fixture
def sample_requests(examples, images) -> list[tuple[str, dict[str, np.ndarray], str]]:
    picture = Image.open(images / "sign.png").convert("RGB")
    tokenizer = embed.load_tokenizer(examples / "assets")
    return [
        (classify.MODEL, {"image": classify.preprocess(picture)[np.newaxis]}, "probabilities"),
        (embed.MODEL, embed.tokenize(tokenizer, SENTENCES), "last_hidden_state"),
        (embed.MODEL, embed.tokenize(tokenizer, SENTENCES[:1]), "last_hidden_state"),
        (file_type.MODEL, {"bytes": file_type.preprocess(Path(__file__).read_bytes())[np.newaxis]}, "target_label"),
        (reading.RECOGNITION, {"x": reading.recognition_input(picture.crop((300, 60, 600, 120)))}, "softmax_11.tmp_0"),
    ]


def sample_files(images: Path) -> list[Path]:
    return [images / "sign.png", images / "draw.py", Path(__file__), images.parent / "models.lock.json"]


def same(server, direct, model: str, inputs: dict[str, np.ndarray], output: str) -> None:
    expected = direct.infer(model, inputs, output)
    np.testing.assert_allclose(server.infer(model, inputs, output), expected, atol=TOLERANCE)


def settled_counts(client: tritonclient.http.InferenceServerClient, model: str) -> tuple[int, int]:
    """Inferences and executions once they stand still: a server may count after it has answered."""
    last, since = counts(client, model), time.monotonic()
    while time.monotonic() < since + SETTLED_S:
        time.sleep(SETTLED_S / 10)
        if (now := counts(client, model)) != last:
            last, since = now, time.monotonic()
    return last


def counts(client: tritonclient.http.InferenceServerClient, model: str) -> tuple[int, int]:
    [statistics] = client.get_inference_statistics(model)["model_stats"]
    return int(statistics["inference_count"]), int(statistics["execution_count"])
