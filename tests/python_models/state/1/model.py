"""Tells what it is given, and gives back what it counts in its states."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        inputs = {each.name(): each.as_numpy() for each in request.inputs()}
        told = {
            "inputs": {name: [str(value.dtype), value.tolist()] for name, value in inputs.items()},
            "requested": sorted(request.requested_output_names()),
            "flags": request.flags(),
        }
        text = np.array([[json.dumps(told, sort_keys=True)]], dtype=np.object_)
        tensors = [pb_utils.Tensor("TOLD", text)]
        if inputs["IN"][0, 0] > 0:
            tensors.append(pb_utils.Tensor("COUNTED", inputs["COUNT"] + 1))
            tensors.append(pb_utils.Tensor("LEFT_OVER", inputs["LEFT"] - 1))
        return pb_utils.InferenceResponse(tensors)
