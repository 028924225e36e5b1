"""Reads the text in picture files by calling two other models of the server.

The picture travels once, and the calls for all words of it are on their way at the same time, so that the
text recogniser's batcher puts them together. What is done between the calls is `reading.py`, the same that
the client `ocr.py` runs far from the models; `fetch_models.py` puts it beside this file.
"""

import asyncio
import io
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import Image, UnidentifiedImageError

import reading


class TritonPythonModel:
    def initialize(self, args):
        self.charset = reading.load_charset(Path(args["model_repository"]))

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        file = pb_utils.get_input_tensor_by_name(request, "file").as_numpy()[0]
        try:
            picture = Image.open(io.BytesIO(file))
            lines = reading.read(Models(), self.charset, picture)
        except UnidentifiedImageError:
            # The client's fault, and told so; any other exception fails the request as the model's own.
            error = pb_utils.TritonError("'file' is no picture", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        tensors = [
            pb_utils.Tensor("text", np.array([line.text for line in lines], np.object_)),
            pb_utils.Tensor("confidence", np.array([line.confidence for line in lines], np.float32)),
            pb_utils.Tensor("box", np.array([line.box for line in lines], np.int32).reshape(-1, 4)),
        ]
        return pb_utils.InferenceResponse(tensors)


class Models:
    """The way to the other models, as the clients have one over the network (`connection.py`)."""

    def infer(self, model, inputs, output):
        """Calls a model, and waits for one of its outputs."""
        return taken(request(model, inputs, output).exec(), output)

    def infer_each(self, model, requests, output):
        """Calls a model for each of `requests` at once."""

        async def all_of_them():
            calls = (request(model, inputs, output).async_exec() for inputs in requests)
            return await asyncio.gather(*calls)

        return [taken(response, output) for response in asyncio.run(all_of_them())]


def request(model, inputs, output):
    tensors = [pb_utils.Tensor(name, array) for name, array in inputs.items()]
    return pb_utils.InferenceRequest(model_name=model, requested_output_names=[output], inputs=tensors)


def taken(response, output):
    if response.has_error():
        raise pb_utils.TritonModelException(response.error().message())
    return pb_utils.get_output_tensor_by_name(response, output).as_numpy()
