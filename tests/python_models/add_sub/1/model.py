"""The sum and the difference of two tensors, in the types that the configuration names."""

import json

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.types = {
            name: pb_utils.triton_string_to_numpy(pb_utils.get_output_config_by_name(config, name)["data_type"])
            for name in ("SUM", "DIFFERENCE")
        }

    def execute(self, requests):
        responses = []
        for request in requests:
            left = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
            right = pb_utils.get_input_tensor_by_name(request, "INPUT1").as_numpy()
            tensors = [
                pb_utils.Tensor("SUM", (left + right).astype(self.types["SUM"])),
                pb_utils.Tensor("DIFFERENCE", (left - right).astype(self.types["DIFFERENCE"])),
            ]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
        return responses
