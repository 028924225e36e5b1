"""The example clients' own arithmetic, with ONNX Runtime in place of a server."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import classify
import embed
import file_type
import reading
from connection import Label, labels
from text_boxes import Box, connected_areas, find_boxes, in_reading_order

SIGN = ["NEREID", "HARBOUR", "Open daily", "9:30", "TICKETS", "42"]
SENTENCES = ["The ship left the harbour at dawn.", "At sunrise the boat sailed.", "Tax returns are due in April."]


def test_reads_every_word_of_the_sign(direct, examples, images):
    lines = reading.read(direct, reading.load_charset(examples / "assets"), Image.open(images / "sign.png"))
    assert [line.text for line in lines] == SIGN


def test_finds_no_text_in_an_empty_picture(direct, examples):
    blank = Image.new("RGB", (320, 200), "white")
    assert reading.read(direct, reading.load_charset(examples / "assets"), blank) == []


def test_names_the_clock(direct, images):
    [best, *_] = classify.classify(direct, [Image.open(images / "clock.png")], count=3)[0]
    assert best.name in ("wall clock", "analog clock")


def test_similar_sentences_are_closest(direct, examples):
    vectors = embed.embed(direct, embed.load_tokenizer(examples / "assets"), SENTENCES)
    similarities = vectors @ vectors.T
    assert np.diag(similarities) == pytest.approx([1, 1, 1])
    assert similarities[0, 1] > 0.4 > similarities[0, 2]


def test_padding_does_not_change_a_sentence(direct, examples):
    tokenizer = embed.load_tokenizer(examples / "assets")
    alone = embed.embed(direct, tokenizer, SENTENCES[:1])
    padded = embed.embed(direct, tokenizer, [SENTENCES[0], 20 * SENTENCES[1]])
    np.testing.assert_allclose(padded[0], alone[0], atol=1e-4)


def test_tells_types_and_leaves_out_short_files(direct, examples, images):
    types = file_type.load_types(examples / "assets")
    contents = [(images / "sign.png").read_bytes(), b"", (images / "draw.py").read_bytes()]
    picture, nothing, program = file_type.guess_types(direct, types, contents)
    assert (picture.type, nothing, program.type) == ("png", None, "python")


def test_features_of_a_file_are_its_ends():
    features = file_type.preprocess(b" \nab\t")
    assert features[:4].tolist() == [97, 98, 9, 256]
    assert features[-5:].tolist() == [256, 32, 10, 97, 98]
    long = bytes([1]) * 3000 + bytes([2]) * 3000
    assert set(file_type.preprocess(long)[:1024]) == {1}
    assert set(file_type.preprocess(long)[1024:]) == {2}


def test_decoding_drops_blanks_and_repeats():
    charset = ["<blank>", "a", "b"]
    steps = np.eye(3, dtype=np.float32)[[0, 1, 1, 0, 1, 2, 2, 0]]
    assert reading.decode(steps, charset) == ("aab", 1.0)
    assert reading.decode(steps[:1], charset) == ("", 0.0)


def test_labels_may_hold_colons():
    answer = np.array([[b"0.5:7:a: b", b"0.25:3:c"]], dtype=object)
    assert labels(answer) == [[Label(0.5, 7, "a: b"), Label(0.25, 3, "c")]]


@pytest.mark.parametrize(
    ("picture", "areas"),
    [
        (["....", "...."], []),
        (["##..", "##.#"], [Box(0, 0, 2, 2), Box(3, 1, 4, 2)]),
        (["#...", ".#..", "..##"], [Box(0, 0, 4, 3)]),
        (["#.#", "#.#", "###"], [Box(0, 0, 3, 3)]),
        (["###", "..#", "#.#", "###"], [Box(0, 0, 3, 4)]),
        (["#", ".", "#"], [Box(0, 0, 1, 1), Box(0, 2, 1, 3)]),
    ],
)
def test_connected_areas(picture, areas):
    mask = np.array([[pixel == "#" for pixel in row] for row in picture])
    assert sorted(connected_areas(mask)) == sorted(areas)


def test_boxes_are_scored_and_grown():
    probabilities = np.zeros((60, 100), np.float32)
    probabilities[10:20, 10:50] = 0.9
    probabilities[40:50, 10:50] = 0.4
    probabilities[30:31, 60:90] = 0.9
    assert find_boxes(probabilities) == [Box(3, 3, 57, 27)]
    assert Box(3, 3, 57, 27).scaled(2, 2, (100, 50)) == Box(6, 6, 100, 50)


def test_reading_order_goes_along_rows_that_are_not_quite_level():
    first, second, below = Box(0, 12, 40, 30), Box(50, 10, 90, 28), Box(0, 29, 40, 45)
    assert in_reading_order([below, second, first]) == [first, second, below]
    assert in_reading_order([]) == []
