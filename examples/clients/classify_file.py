#!/usr/bin/env python3
"""Says what is in picture files, which travel to the server as they are.

The server decodes, scales and classifies them, in the ensemble `photo_classifier`, so the client needs no
library for pictures and sends a few kilobytes instead of 600.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from connection import Connection, Label, argument_parser, connect, run

MODEL = "photo_classifier"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a JPEG or PNG file")
    parser.add_argument("--count", type=int, default=3, help="how many classes to name")
    arguments = parser.parse_args()

    connection = connect(arguments.protocol, arguments.url)
    files = [Path(path).read_bytes() for path in arguments.images]
    for path, labels in zip(arguments.images, classify(connection, files, arguments.count)):
        print(path)
        for label in labels:
            print(f"  {label.score:6.1%}  {label.name}")


def classify(connection: Connection, files: list[bytes], count: int) -> list[list[Label]]:
    return connection.classify(MODEL, {"file": as_tensor(files)}, "probabilities", count)


def as_tensor(files: list[bytes]) -> np.ndarray:
    """One file a row."""
    return np.array([[file] for file in files], dtype=np.object_)


if __name__ == "__main__":
    run(main)
