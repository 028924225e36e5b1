"""Calls other models, in the way that its input names, and tells what came of it."""

import numpy as np
import triton_python_backend_utils as pb_utils


def add_sub(left, right, outputs=("SUM", "DIFFERENCE"), **options):
    return pb_utils.InferenceRequest(
        model_name=options.pop("model", "add_sub"),
        requested_output_names=list(outputs),
        inputs=[
            pb_utils.Tensor("INPUT0", np.array([left], np.float32)),
            pb_utils.Tensor("INPUT1", np.array([right], np.float32)),
        ],
        **options,
    )


def told(response):
    if response.has_error():
        return f"error {response.error().code()}: {response.error().message()}"
    return " ".join(
        f"{each.name()}={each.as_numpy().reshape(-1).tolist()}"
        for each in sorted(response.output_tensors(), key=lambda each: each.name())
    )


def repeat(*values):
    return pb_utils.InferenceRequest(
        model_name="repeat",
        requested_output_names=["OUT"],
        inputs=[pb_utils.Tensor("IN", np.array(values, np.int32))],
    )


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        way = pb_utils.get_input_tensor_by_name(request, "WAY").as_numpy()[0].decode()
        try:
            text = getattr(self, way)()
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([text], np.object_))])

    def once(self):
        return told(add_sub([1, 2], [3, 4]).exec())

    def one_output(self):
        return told(add_sub([1], [3], ["SUM"]).exec())

    def version(self):
        return told(add_sub([1], [3], model_version=1).exec())

    def loop(self):
        values = np.array([[1]], np.float32)
        while values.sum() < 100:
            request = pb_utils.InferenceRequest(
                model_name="add_sub",
                requested_output_names=["SUM"],
                inputs=[pb_utils.Tensor("INPUT0", values), pb_utils.Tensor("INPUT1", values)],
            )
            values = pb_utils.get_output_tensor_by_name(request.exec(), "SUM").as_numpy()
        return str(values.tolist())

    def condition(self):
        response = add_sub([5], [3]).exec()
        difference = pb_utils.get_output_tensor_by_name(response, "DIFFERENCE").as_numpy()
        return told((repeat(1) if difference[0, 0] < 0 else add_sub(difference[0], [10])).exec())

    def unknown_model(self):
        return told(add_sub([1], [3], model="nothing").exec())

    def unknown_version(self):
        return told(add_sub([1], [3], model_version=7).exec())

    def unknown_output(self):
        return told(add_sub([1], [3], ["ELSE"]).exec())

    def wrong_shape(self):
        return told(add_sub([1], [3, 4, 5]).exec())

    def wrong_type(self):
        request = pb_utils.InferenceRequest(
            model_name="add_sub",
            requested_output_names=["SUM"],
            inputs=[pb_utils.Tensor(name, np.array([[1]], np.int32)) for name in ("INPUT0", "INPUT1")],
        )
        return told(request.exec())

    def failing(self):
        request = pb_utils.InferenceRequest(
            model_name="errors",
            requested_output_names=["OUTPUT"],
            inputs=[pb_utils.Tensor("WAY", np.array(["error NOT_FOUND"], np.object_))],
        )
        return told(request.exec())

    def decoupled(self):
        return " | ".join(told(each) for each in repeat(7, 8, 9).exec(decoupled=True))

    def decoupled_error(self):
        return " | ".join(told(each) for each in repeat(7, 13, 9).exec(decoupled=True))

    def decoupled_twice(self):
        responses = repeat(7, 8).exec(decoupled=True)
        return " | ".join(told(each) for _ in range(2) for each in responses)

    def decoupled_as_one(self):
        return told(repeat(7, 8, 9).exec())

    def one_as_decoupled(self):
        return " | ".join(told(each) for each in add_sub([1], [2]).exec(decoupled=True))

    def large(self):
        values = np.arange(100_000, dtype=np.float32)
        response = add_sub(values, values, ["SUM"]).exec()
        return str(np.array_equal(response.output_tensors()[0].as_numpy(), [values * 2]))

    def missing_arguments(self):
        return told(pb_utils.InferenceRequest(model_name="add_sub").exec())
