"""Has a request scheduled again as often as its input says, then answers with the flags that it saw."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.seen = {}

    def execute(self, requests):
        responses = []
        for request in requests:
            seen = self.seen.setdefault(request.correlation_id(), [])
            seen.append(request.flags())
            if len(seen) <= pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()[0]:
                request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
                responses.append(None)
                continue
            del self.seen[request.correlation_id()]
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("TURNS", np.array(seen, np.int32))]))
        return responses
