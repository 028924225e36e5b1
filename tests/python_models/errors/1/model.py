"""Fails in the way that its input names."""

import numpy as np
import triton_python_backend_utils as pb_utils


def output(text):
    return pb_utils.Tensor("OUTPUT", np.array([text], dtype=np.object_))


class TritonPythonModel:
    def execute(self, requests):
        ways = [
            pb_utils.get_input_tensor_by_name(request, "WAY").as_numpy()[0].decode() for request in requests
        ]
        way = ways[0]
        if way == "raise":
            raise ValueError("a value that is wrong")
        if way == "none":
            return None
        if way == "not a list":
            return "text"
        if way == "too many":
            return [pb_utils.InferenceResponse([output("a")]), pb_utils.InferenceResponse([output("b")])]
        if way == "no response":
            return ["text"]
        if way == "a None":
            return [None]
        if way == "unknown output":
            return [pb_utils.InferenceResponse([pb_utils.Tensor("ELSE", np.array([1]))])]
        if way == "one more output":
            return [pb_utils.InferenceResponse([pb_utils.Tensor("ELSE", np.array([1])), output("a")])]
        if way == "no output":
            return [pb_utils.InferenceResponse([])]
        if way == "other type":
            return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([1, 2], dtype=np.int64))])]
        if way == "other shape":
            return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([["a"], ["b"]], dtype=np.object_))])]
        if way == "response and error":
            return [pb_utils.InferenceResponse([output("a")], pb_utils.TritonError("and an error"))]
        if way.startswith("error"):
            code = way.partition(" ")[2]
            error = pb_utils.TritonError("an error", getattr(pb_utils.TritonError, code)) if code else (
                pb_utils.TritonError("an error without a code"))
            return [pb_utils.InferenceResponse([], error)]
        if way == "empty name":
            return [pb_utils.InferenceResponse([pb_utils.Tensor("", np.array([1]))])]
        if way == "bad array":
            return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", "text")])]
        if way == "bad type":
            return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([1j]))])]
        if way == "model exception":
            raise pb_utils.TritonModelException("raised by the model")
        if way == "nested":
            return self._nested()
        if way == "parameters":
            return [pb_utils.InferenceResponse([output("a")], parameters={"text": "t", "whole": 7, "truth": True})]
        if way == "bad parameters":
            return [pb_utils.InferenceResponse([output("a")], parameters={"list": [1]})]
        if way == "sender":
            requests[0].get_response_sender().send(
                pb_utils.InferenceResponse([output("sent")]), pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            return None
        if way == "sender twice":
            sender = requests[0].get_response_sender()
            sender.send(pb_utils.InferenceResponse([output("one")]))
            try:
                sender.send(pb_utils.InferenceResponse([output("two")]))
            except Exception as error:
                self.seen = str(error)
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            return None
        if way == "sender flags":
            try:
                requests[0].get_response_sender().send(flags=3)
            except Exception as error:
                return [pb_utils.InferenceResponse([output(f"{type(error).__name__}: {error}")])]
        if way == "sender nothing":
            try:
                requests[0].get_response_sender().send()
            except Exception as error:
                return [pb_utils.InferenceResponse([output(f"{type(error).__name__}: {error}")])]
        if way == "sender final first":
            try:
                requests[0].get_response_sender().send(flags=1)
            except Exception as error:
                return [pb_utils.InferenceResponse([output(f"{type(error).__name__}: {error}")])]
        if way == "sender and return":
            requests[0].get_response_sender().send(
                pb_utils.InferenceResponse([output("sent")]), pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            return [pb_utils.InferenceResponse([output("returned")])]
        return [pb_utils.InferenceResponse([output(each)]) for each in ways]

    def _nested(self):
        raise KeyError("deeper")
