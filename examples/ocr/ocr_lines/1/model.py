"""Cuts lines of text out of a picture.

It needs NumPy alone. `text_boxes.py` is the file of the example clients, which do the same on their side.
"""

import numpy as np
import triton_python_backend_utils as pb_utils

from text_boxes import find_boxes, in_reading_order

HEIGHT = 48
WIDTH_MIN = 320
WIDTH_MULTIPLE = 160
# As many as text_recognition takes in a batch.
LINES_MAX = 32


class TritonPythonModel:
    def execute(self, requests):
        return [answer(request) for request in requests]


def answer(request):
    picture, found = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("picture", "map"))
    boxes = lines_of(picture, found[0])
    if len(boxes) > LINES_MAX:
        error = pb_utils.TritonError(f"the picture has {len(boxes)} lines of text, expected at most {LINES_MAX}")
        return pb_utils.InferenceResponse(error=error)
    # A picture without text is read as one empty line, for a batch has at least one.
    cutouts = [cut_out(picture, box) for box in boxes] or [np.zeros((3, HEIGHT, WIDTH_MIN), np.float32)]
    width = max(cutout.shape[2] for cutout in cutouts)
    lines = np.zeros((len(cutouts), 3, HEIGHT, width), np.float32)
    for line, cutout in zip(lines, cutouts):
        line[:, :, : cutout.shape[2]] = cutout
    places = np.array(boxes or [(0, 0, 0, 0)], np.int32)
    return pb_utils.InferenceResponse([pb_utils.Tensor("lines", lines), pb_utils.Tensor("box", places)])


def lines_of(picture, found):
    """The boxes of lines in a picture that fills the upper left of the map."""
    height, width = picture.shape[:2]
    scale = max(height / found.shape[0], width / found.shape[1])
    return in_reading_order([box.scaled(scale, scale, (width, height)) for box in find_boxes(found)])


def cut_out(picture, box):
    """[blue-green-red, row, column] of -1 to 1, 48 rows high; grey to the right, so that lines have few widths."""
    pixels = picture[box.top : box.bottom, box.left : box.right]
    width = max(1, round(pixels.shape[1] * HEIGHT / pixels.shape[0]))
    resized = along(along(pixels.astype(np.float32), HEIGHT, 0), width, 1)
    padded = np.zeros((3, HEIGHT, max(WIDTH_MIN, -(-width // WIDTH_MULTIPLE) * WIDTH_MULTIPLE)), np.float32)
    padded[:, :, :width] = (resized[:, :, ::-1] / 127.5 - 1).transpose(2, 0, 1)
    return padded


def along(pixels, size, axis):
    """The picture with `size` pixels along an axis; each is the mean of those that it covers, near ones more."""
    given = pixels.shape[axis]
    reach = max(given / size, 1)
    centres = (np.arange(size)[:, None] + 0.5) * given / size
    weights = np.maximum(1 - np.abs(np.arange(given) + 0.5 - centres) / reach, 0).astype(np.float32)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.moveaxis(np.tensordot(weights, pixels, (1, axis)), 0, axis)
