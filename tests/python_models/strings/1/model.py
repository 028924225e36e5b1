"""Text in and out, as str, bytes and NumPy's fixed-length strings."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            texts = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()
            upper = np.array([text.decode("utf-8").upper() for text in texts.reshape(-1)], dtype=np.object_)
            length = np.array([len(text) for text in texts.reshape(-1)], dtype=np.int32)
            fixed = np.char.encode(texts.astype(np.bytes_).astype(str) if texts.size == 0 else np.array(
                [text.decode("utf-8")[:3] for text in texts.reshape(-1)]), "utf-8")
            responses.append(
                pb_utils.InferenceResponse([
                    pb_utils.Tensor("UPPER", upper.reshape(texts.shape)),
                    pb_utils.Tensor("LENGTH", length.reshape(texts.shape)),
                    pb_utils.Tensor("FIXED", fixed.reshape(texts.shape)),
                ])
            )
        return responses
