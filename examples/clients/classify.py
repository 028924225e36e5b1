#!/usr/bin/env python3
"""Says what is in a picture.

Shows the classification extension: the client asks for the best few classes and the server, which
knows the label file, answers with names. Pictures given together travel as one batch.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from connection import Connection, Label, argument_parser, connect, run

MODEL = "image_classifier"
IMAGE_SIZE = 224
CROPPED_SHARE = IMAGE_SIZE / (IMAGE_SIZE + 32)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a picture file")
    parser.add_argument("--count", type=int, default=3, help="how many classes to name")
    arguments = parser.parse_args()

    connection = connect(arguments.protocol, arguments.url)
    pictures = [Image.open(path) for path in arguments.images]
    for path, labels in zip(arguments.images, classify(connection, pictures, arguments.count)):
        print(path)
        for label in labels:
            print(f"  {label.score:6.1%}  {label.name}")


def classify(connection: Connection, pictures: list[Image.Image], count: int) -> list[list[Label]]:
    batch = np.stack([preprocess(picture) for picture in pictures])
    return connection.classify(MODEL, {"image": batch}, "probabilities", count)


def preprocess(picture: Image.Image) -> np.ndarray:
    """The middle of the picture, 224 x 224, as [channel, row, column] of about -1 to 1."""
    side = int(min(picture.size) * CROPPED_SHARE)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    middle = picture.convert("RGB").crop((left, top, left + side, top + side))
    pixels = np.asarray(middle.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC), np.float32)
    return np.ascontiguousarray(((pixels - 127) / 128).transpose(2, 0, 1))


if __name__ == "__main__":
    run(main)
