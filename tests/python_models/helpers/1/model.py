"""Calls what no other model here calls, and tells what it gives."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils

ELEMENTS = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "object")


def raised(what, *arguments):
    """What a call raises."""
    try:
        return repr(what(*arguments))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "X", "data_type": "TYPE_FP32", "dims": [-1]})
        config.add_output({"name": "TOLD", "data_type": "TYPE_STRING", "dims": [1]})
        config.set_model_transaction_policy({"decoupled": False})
        assert [each["name"] for each in config.as_dict()["input"]] == ["X"]
        return config

    def initialize(self, args):
        self.config = json.loads(args["model_config"])
        pb_utils.Logger.log("said as it is")
        pb_utils.Logger.log("said as a warning", pb_utils.Logger.WARNING)
        pb_utils.Logger.log_info("good to know")
        pb_utils.Logger.log_error("an error")
        pb_utils.Logger.log_verbose("only for who looks closely")

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        told = {
            "of numpy": [raised(pb_utils.numpy_to_triton_type, np.dtype(name).type) for name in ELEMENTS],
            "to numpy": [np.dtype(pb_utils.triton_to_numpy_type(number)).name for number in range(1, 14)],
            "by name": [np.dtype(pb_utils.triton_string_to_numpy(f"TYPE_{name}")).name for name in ("BOOL", "FP16", "STRING")],
            "unknown": [raised(pb_utils.triton_string_to_numpy, "TYPE_NONE"), raised(pb_utils.triton_to_numpy_type, 99)],
            "strings": self.strings(),
            "configuration": [
                pb_utils.get_input_config_by_name(self.config, "X")["dims"],
                pb_utils.get_output_config_by_name(self.config, "TOLD")["data_type"],
                pb_utils.get_input_config_by_name(self.config, "none"),
                pb_utils.using_decoupled_model_transaction_policy(self.config),
            ],
            "completing": self.completing(),
            "tensor": self.tensor(request),
            "call": self.call(),
            "codes": [int(getattr(pb_utils.TritonError, name)) for name in (
                "UNKNOWN", "INTERNAL", "NOT_FOUND", "INVALID_ARG", "UNAVAILABLE", "UNSUPPORTED", "ALREADY_EXISTS", "CANCELLED")],
            "memory": [repr(pb_utils.TRITONSERVER_MEMORY_CPU), repr(pb_utils.TRITONSERVER_MEMORY_GPU)],
            "kinds": [repr(kind) for kind in (
                pb_utils.MetricFamily.COUNTER, pb_utils.MetricFamily.GAUGE, pb_utils.MetricFamily.HISTOGRAM)],
            "trace": request.trace().get_context(),
        }
        return pb_utils.InferenceResponse([pb_utils.Tensor("TOLD", np.array([json.dumps(told)], np.object_))])

    def strings(self):
        texts = np.array([["a", "b\u00e9"], [b"", b"\xff\x00"]], np.object_)
        packed = pb_utils.serialize_byte_tensor(texts)
        there = pb_utils.deserialize_bytes_tensor(packed.tobytes() if hasattr(packed, "tobytes") else packed)
        return [
            (packed.tobytes() if hasattr(packed, "tobytes") else bytes(packed)).hex(),
            [each.hex() for each in there.tolist()],
            raised(pb_utils.serialize_byte_tensor, np.zeros(2, np.float32)),
        ]

    def completing(self):
        def config():
            return pb_utils.ModelConfig(json.dumps({"name": "m", "input": [], "output": [], "max_batch_size": 0}))

        same, batched = config(), config()
        same.add_input({"name": "A", "data_type": "TYPE_FP32", "dims": [1]})
        batched.set_max_batch_size(4)
        batched.set_dynamic_batching()
        return [
            raised(same.add_input, {"name": "A", "data_type": "TYPE_FP32", "dims": [1]}),
            raised(same.add_input, {"name": "A", "data_type": "TYPE_INT8", "dims": [1]}),
            raised(same.add_input, {"name": "A", "data_type": "TYPE_FP32", "dims": [2]}),
            raised(same.add_input, {"name": "B", "data_type": "TYPE_FP32"}),
            raised(same.add_output, {"name": "B", "dims": [1]}),
            raised(same.add_output, {"data_type": "TYPE_FP32", "dims": [1]}),
            raised(same.add_output, {"name": "B", "data_type": "TYPE_FP32", "dims": [1], "more": 1}),
            raised(same.set_model_transaction_policy, {"decoupled": True}),
            raised(same.set_model_transaction_policy, {"decoupled": False}),
            raised(same.set_model_transaction_policy, {"other": True}),
            raised(batched.set_max_batch_size, 2),
            raised(batched.set_max_batch_size, 8),
            same.as_dict(),
            batched.as_dict(),
        ]

    def tensor(self, request):
        (given,) = request.inputs()
        made = pb_utils.Tensor("MADE", np.arange(6, dtype=np.int16).reshape(2, 3)[:, ::2])
        empty = pb_utils.Tensor("EMPTY", np.zeros((0, 3), np.float64))
        return [[each.name(), list(each.shape()), each.is_cpu(), each.as_numpy().tolist()]
                for each in (given, made, empty)]

    def call(self):
        call = pb_utils.InferenceRequest(
            model_name="describe",
            requested_output_names=["TOLD"],
            inputs=[pb_utils.Tensor("X", np.ones(2, np.float32))],
            request_id="the call",
            correlation_id=5,
            flags=pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START,
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
            parameters={"text": "x", "number": 3, "flag": True},
        )
        flags = [call.flags()]
        call.set_flags(pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START | pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END)
        flags.append(call.flags())
        response = call.exec()
        if response.has_error():
            return [flags, response.error().message()]
        told = json.loads(pb_utils.get_output_tensor_by_name(response, "TOLD").as_numpy()[0])
        return [flags, {name: told[name] for name in ("id", "correlation_id", "flags", "timeout", "requested", "parameters")}]
