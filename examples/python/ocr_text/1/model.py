"""Makes texts of probabilities of characters, and leaves out lines that are no text."""

from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from reading import CONFIDENCE_MIN, decode, load_charset


class TritonPythonModel:
    def initialize(self, args):
        self.charset = load_charset(Path(args["model_repository"]))

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        characters, boxes = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("characters", "box"))
        lines = [decode(steps, self.charset) for steps in characters]
        kept = [number for number, (text, confidence) in enumerate(lines) if text and confidence >= CONFIDENCE_MIN]
        texts = np.array([lines[number][0].encode() for number in kept], np.object_)
        confidences = np.array([lines[number][1] for number in kept], np.float32)
        tensors = [("text", texts), ("confidence", confidences), ("box", boxes[kept])]
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, tensor) for name, tensor in tensors])
