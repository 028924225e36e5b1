#!/usr/bin/env python3
"""Tells the type of files by their content.

Shows a model without a config.pbtxt: the server reads the shapes from the ONNX file itself. The
input is the first 1024 bytes of a file after leading whitespace, and the last 1024 before trailing
whitespace.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from connection import Connection, argument_parser, connect, run

MODEL = "file_type"
BLOCK_SIZE = 4096
END_SIZE = 1024
PADDING = 256
# The makers of the model do not ask it about files shorter than this.
FILE_SIZE_MIN = 8


class Guess(NamedTuple):
    type: str
    score: float


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    arguments = parser.parse_args()

    connection = connect(arguments.protocol, arguments.url)
    contents = [path.read_bytes() for path in arguments.files]
    for path, guess in zip(arguments.files, guess_types(connection, load_types(arguments.assets), contents)):
        print(f"{path}: {guess.type} ({guess.score:.1%})" if guess else f"{path}: too short to tell")


def load_types(assets: Path) -> list[str]:
    return json.loads((assets / "file_type.json").read_text())["target_labels_space"]


def guess_types(connection: Connection, types: list[str], contents: list[bytes]) -> list[Guess | None]:
    """One guess for each content, None for one too short."""
    long_enough = [place for place, content in enumerate(contents) if len(content) >= FILE_SIZE_MIN]
    guesses: list[Guess | None] = [None] * len(contents)
    if long_enough:
        batch = np.stack([preprocess(contents[place]) for place in long_enough])
        for place, scores in zip(long_enough, connection.infer(MODEL, {"bytes": batch}, "target_label")):
            guesses[place] = Guess(types[scores.argmax()], float(scores.max()))
    return guesses


def preprocess(content: bytes) -> np.ndarray:
    """The bytes at both ends as numbers, padding in the middle."""
    start = content[:BLOCK_SIZE].lstrip()[:END_SIZE]
    end = content[-BLOCK_SIZE:].rstrip()[-END_SIZE:]
    features = np.full(2 * END_SIZE, PADDING, np.int32)
    features[: len(start)] = np.frombuffer(start, np.uint8)
    features[2 * END_SIZE - len(end) :] = np.frombuffer(end, np.uint8)
    return features


if __name__ == "__main__":
    run(main)
