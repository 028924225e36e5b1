#!/usr/bin/env python3
"""Reads the text in a picture: the client prepares what each of two models is asked (`reading.py`)."""

from __future__ import annotations

from PIL import Image

from connection import argument_parser, connect, run
from reading import load_charset, read


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("image", help="a picture file")
    arguments = parser.parse_args()

    connection = connect(arguments.protocol, arguments.url)
    for line in read(connection, load_charset(arguments.assets), Image.open(arguments.image)):
        print(f"{line.text}  ({line.confidence:.1%} at {tuple(line.box)})")


if __name__ == "__main__":
    run(main)
