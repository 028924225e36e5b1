#!/usr/bin/env python3
"""Reads the text in a picture.

Shows two models in a row: the first finds where text is, the client cuts those places out, and the
second reads them. All cut-outs are sent at once, each a request of its own, and the server's
dynamic batcher runs those of equal width together. Text must be upright; slanted lines are cut out
as upright boxes.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from connection import Connection, argument_parser, connect, run
from text_boxes import Box, find_boxes, in_reading_order
from text_decoding import CONFIDENCE_MIN, decode, read_charset

DETECTION, RECOGNITION = "text_detection", "text_recognition"
DETECTION_SIDE_MAX = 960
DETECTION_SIDE_MULTIPLE = 32
RECOGNITION_HEIGHT = 48
RECOGNITION_WIDTH_MIN = 320
RECOGNITION_WIDTH_MULTIPLE = 160


class Line(NamedTuple):
    text: str
    confidence: float
    box: Box


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("image", help="a picture file")
    arguments = parser.parse_args()

    connection = connect(arguments.protocol, arguments.url)
    for line in read(connection, load_charset(arguments.assets), Image.open(arguments.image)):
        print(f"{line.text}  ({line.confidence:.1%} at {tuple(line.box)})")


def load_charset(assets: Path) -> list[str]:
    return read_charset(assets / "charset.txt")


def read(connection: Connection, charset: list[str], picture: Image.Image) -> list[Line]:
    """The pieces of text in a picture, row by row, each row from left to right."""
    picture = picture.convert("RGB")
    boxes = find_text(connection, picture)
    cutouts = [{"x": recognition_input(picture.crop(box))} for box in boxes]
    answers = connection.infer_each(RECOGNITION, cutouts, "softmax_11.tmp_0")
    lines = [Line(*decode(answer[0], charset), box) for answer, box in zip(answers, boxes)]
    return [line for line in lines if line.text and line.confidence >= CONFIDENCE_MIN]


def find_text(connection: Connection, picture: Image.Image) -> list[Box]:
    probabilities = connection.infer(DETECTION, {"x": detection_input(picture)}, "sigmoid_0.tmp_0")[0, 0]
    height, width = probabilities.shape
    boxes = find_boxes(probabilities)
    scaled = [box.scaled(picture.width / width, picture.height / height, picture.size) for box in boxes]
    return in_reading_order(scaled)


def detection_input(picture: Image.Image) -> np.ndarray:
    """The picture, shrunk if it is large, with both sides multiples of 32."""
    shrink = min(1.0, DETECTION_SIDE_MAX / max(picture.size))
    width, height = (rounded_up(int(side * shrink), DETECTION_SIDE_MULTIPLE) for side in picture.size)
    return normalised(picture.resize((width, height), Image.Resampling.BILINEAR))[np.newaxis]


def recognition_input(cutout: Image.Image) -> np.ndarray:
    """The cut-out 48 pixels high, with grey to its right so that many share the same width."""
    width = max(1, round(cutout.width * RECOGNITION_HEIGHT / cutout.height))
    pixels = normalised(cutout.resize((width, RECOGNITION_HEIGHT), Image.Resampling.BILINEAR))
    padded_width = max(RECOGNITION_WIDTH_MIN, rounded_up(width, RECOGNITION_WIDTH_MULTIPLE))
    padded = np.zeros((1, 3, RECOGNITION_HEIGHT, padded_width), np.float32)
    padded[0, :, :, :width] = pixels
    return padded


def normalised(picture: Image.Image) -> np.ndarray:
    """[blue-green-red, row, column] of -1 to 1, as both models were trained."""
    pixels = np.asarray(picture, np.float32)[:, :, ::-1]
    return np.ascontiguousarray((pixels / 127.5 - 1).transpose(2, 0, 1))


def rounded_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


if __name__ == "__main__":
    run(main)
