"""Reads the text in a picture, by two models in a row.

The first finds where text is, those places are cut out, and the second reads them. All cut-outs are
sent at once, each a request of its own, and the server's dynamic batcher runs those of equal width
together. Text must be upright; slanted lines are cut out as upright boxes.

Whoever has a way to the models can use it: the client `ocr.py`, and `read_text`, a model in Python.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from text_boxes import Box, find_boxes, in_reading_order

if TYPE_CHECKING:
    from connection import Connection

DETECTION, RECOGNITION = "text_detection", "text_recognition"
DETECTION_SIDE_MAX = 960
DETECTION_SIDE_MULTIPLE = 32
RECOGNITION_HEIGHT = 48
RECOGNITION_WIDTH_MIN = 320
RECOGNITION_WIDTH_MULTIPLE = 160
CONFIDENCE_MIN = 0.5
BLANK = 0


class Line(NamedTuple):
    text: str
    confidence: float
    box: Box


def load_charset(assets: Path) -> list[str]:
    return (assets / "charset.txt").read_text("utf-8").rstrip("\n").split("\n")


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


def decode(steps: np.ndarray, charset: list[str]) -> tuple[str, float]:
    """Text and mean confidence of [step, character] probabilities (CTC, best path).

    The same character in steps that touch counts once; a blank between keeps doubled letters.
    """
    best, confidence = steps.argmax(axis=1), steps.max(axis=1)
    kept = (best != BLANK) & (best != np.concatenate(([BLANK], best[:-1])))
    text = "".join(charset[character] for character in best[kept])
    return text.strip(), float(confidence[kept].mean()) if kept.any() else 0.0


def rounded_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
