"""Calls other models at the same time, from a coroutine."""

import asyncio

import numpy as np
import triton_python_backend_utils as pb_utils


def add_sub(left, right):
    return pb_utils.InferenceRequest(
        model_name="add_sub",
        requested_output_names=["SUM"],
        inputs=[
            pb_utils.Tensor("INPUT0", np.array([[left]], np.float32)),
            pb_utils.Tensor("INPUT1", np.array([[right]], np.float32)),
        ],
    )


class TritonPythonModel:
    async def execute(self, requests):
        return [await self.answer(request) for request in requests]

    async def answer(self, request):
        way = pb_utils.get_input_tensor_by_name(request, "WAY").as_numpy()[0].decode()
        if way == "fail":
            raise ValueError("in a coroutine")
        if way == "many":
            responses = await asyncio.gather(*(add_sub(value, 1).async_exec() for value in range(20)))
            text = str([each.output_tensors()[0].as_numpy().reshape(-1).tolist() for each in responses])
        elif way == "decoupled":
            call = pb_utils.InferenceRequest(
                model_name="repeat",
                requested_output_names=["OUT"],
                inputs=[pb_utils.Tensor("IN", np.array([4, 5], np.int32))],
            )
            responses = await call.async_exec(decoupled=True)
            text = str([[t.as_numpy().tolist() for t in each.output_tensors()] for each in responses])
        else:
            await asyncio.sleep(0.01)
            text = "slept"
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([text], np.object_))])
