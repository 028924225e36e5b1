"""Sends each element of its input as a response, from a thread that goes on after `execute` has returned."""

import threading

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.threads = []

    def execute(self, requests):
        for request in requests:
            values = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy().copy()
            if len(values) and values[0] < 0:
                raise ValueError("a negative number")
            thread = threading.Thread(target=self.answer, args=(request.get_response_sender(), values))
            self.threads.append(thread)
            thread.start()
        return None

    def answer(self, sender, values):
        for index, value in enumerate(values):
            if value == 13:
                error = pb_utils.TritonError("13 is not repeated", pb_utils.TritonError.INVALID_ARG)
                sender.send(pb_utils.InferenceResponse(error=error))
                continue
            tensors = [
                pb_utils.Tensor("OUT", np.array([value], np.int32)),
                pb_utils.Tensor("INDEX", np.array([index], np.uint32)),
            ]
            sender.send(pb_utils.InferenceResponse(tensors))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def finalize(self):
        for thread in self.threads:
            thread.join()
