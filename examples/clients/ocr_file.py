#!/usr/bin/env python3
"""Reads the text in a picture file, which travels to the server as it is.

All that `ocr.py` does here is done by the server, in the ensemble `ocr`: it opens the file, finds where
text is, cuts it out and reads it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from connection import argument_parser, connect, run

MODEL = "ocr"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("image", type=Path, help="a JPEG or PNG file")
    arguments = parser.parse_args()

    connection = connect(arguments.protocol, arguments.url)
    file = np.array([arguments.image.read_bytes()], dtype=np.object_)
    found = connection.infer_outputs(MODEL, {"file": file}, ["text", "confidence", "box"])
    for text, confidence, box in zip(found["text"], found["confidence"], found["box"].tolist()):
        print(f"{text.decode()}  ({confidence:.1%} at {tuple(box)})")


if __name__ == "__main__":
    run(main)
