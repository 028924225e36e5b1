"""Counts down from its input, one response an execution, and has the request scheduled again until it is done."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.left = {}

    def execute(self, requests):
        for request in requests:
            key = request.correlation_id()
            if request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START:
                self.left[key] = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()[0, 0]
            self.left[key] -= 1
            tensors = [
                pb_utils.Tensor("LEFT", np.array([[self.left[key]]], np.int32)),
                pb_utils.Tensor("FLAGS", np.array([[request.flags()]], np.int32)),
            ]
            is_done = self.left[key] == 0
            flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if is_done else 0
            request.get_response_sender().send(pb_utils.InferenceResponse(tensors), flags=flags)
            if is_done:
                del self.left[key]
                request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_ALL)
            else:
                request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
        return None
