"""Gives back the inputs that are given, and no output for one that is left out."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            given = {each: pb_utils.get_input_tensor_by_name(request, f"INPUT{each}") for each in (0, 1)}
            outputs = [pb_utils.Tensor(f"OUTPUT{each}", one.as_numpy()) for each, one in given.items() if one is not None]
            responses.append(pb_utils.InferenceResponse(outputs))
        return responses
