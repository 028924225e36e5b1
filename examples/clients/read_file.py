#!/usr/bin/env python3
"""Reads the text in picture files, which travel to the server as they are.

One request for each: a model in Python (`read_text`) calls the two models that `ocr.py` calls from here,
or an ensemble (`ocr`) has them among its steps; and the client needs no library for pictures.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from connection import argument_parser, connect, run

MODELS = ("read_text", "ocr")


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a picture file")
    parser.add_argument("--model", choices=MODELS, default=MODELS[0], help="what reads them on the server")
    arguments = parser.parse_args()

    connection = connect(arguments.protocol, arguments.url)
    requests = [{"file": as_tensor(Path(path).read_bytes())} for path in arguments.images]
    for path, lines in zip(arguments.images, connection.infer_each(arguments.model, requests, "text")):
        print(path)
        for line in lines:
            print(f"  {line.decode()}")


def as_tensor(file: bytes) -> np.ndarray:
    return np.array([file], dtype=np.object_)


if __name__ == "__main__":
    run(main)
