"""Tells all that it was told."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.args = dict(args)
        self.args["model_config"] = json.loads(args["model_config"])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        told = {
            "args": self.args,
            "types": {name: type(value).__name__ for name, value in self.args.items()},
            "module": __name__,
            "model_dir": pb_utils.get_model_dir(),
            "id": request.request_id(),
            "correlation_id": request.correlation_id(),
            "flags": request.flags(),
            "timeout": request.timeout(),
            "requested": sorted(request.requested_output_names()),
            "requested_type": type(request.requested_output_names()).__name__,
            "parameters": json.loads(request.parameters() or "null"),
            "parameters_type": type(request.parameters()).__name__,
            "cancelled": request.is_cancelled(),
            "inputs": [
                [each.name(), str(each.as_numpy().dtype), each.is_cpu(),
                 each.as_numpy().flags.writeable, each.as_numpy().flags.aligned]
                for each in request.inputs()
            ],
            "names": sorted(name for name in dir(pb_utils) if not name.startswith("_")),
            "methods": {
                name: sorted(each for each in dir(getattr(pb_utils, name)) if not each.startswith("__"))
                for name in ("Tensor", "InferenceRequest", "InferenceResponse", "TritonError", "Logger", "MetricFamily", "PreferredMemory")
            },
            "repr_type": [repr(type(each)) for each in request.inputs()],
        }
        text = np.array([json.dumps(told, sort_keys=True)], dtype=np.object_)
        return pb_utils.InferenceResponse([pb_utils.Tensor("TOLD", text)])
