"""Cuts the lines of text out of a picture in which text_detection has found them."""

import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import Image

from reading import RECOGNITION_HEIGHT, RECOGNITION_WIDTH_MIN, recognition_input
from text_boxes import find_boxes, in_reading_order

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
    whole = Image.fromarray(picture)
    # A picture without text is read as one empty line, for a batch has at least one.
    empty = np.zeros((1, 3, RECOGNITION_HEIGHT, RECOGNITION_WIDTH_MIN), np.float32)
    cutouts = [recognition_input(whole.crop(box)) for box in boxes] or [empty]
    lines = np.zeros((len(cutouts), 3, RECOGNITION_HEIGHT, max(each.shape[3] for each in cutouts)), np.float32)
    for line, cutout in zip(lines, cutouts):
        line[:, :, : cutout.shape[3]] = cutout[0]
    places = np.array(boxes or [(0, 0, 0, 0)], np.int32)
    return pb_utils.InferenceResponse([pb_utils.Tensor("lines", lines), pb_utils.Tensor("box", places)])


def lines_of(picture, found):
    """The boxes of lines in a picture that fills the upper left of the map."""
    height, width = picture.shape[:2]
    scale = max(height / found.shape[0], width / found.shape[1])
    return in_reading_order([box.scaled(scale, scale, (width, height)) for box in find_boxes(found)])
