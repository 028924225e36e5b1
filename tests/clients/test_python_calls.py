"""What Python models exchange with others: calls of models of every kind, and tensors in clients' shared memory."""

from __future__ import annotations

import ast
import os
import queue
import time

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

from . import models, triton
from . import python_cases as cases
from .python_server import ECHO, INTERPRETER, WAY, write
from .regions import CLIENTS, Region, client_of, every_protocol, given_in, wanted_in

CALLER = """
import asyncio, time

def request(model, inputs, outputs, **more):
    tensors = [pb_utils.Tensor(name, array) for name, array in inputs.items()]
    return pb_utils.InferenceRequest(model_name=model, requested_output_names=outputs, inputs=tensors, **more)

def told(response):
    if response.has_error():
        return f"{response.error().code()}: {response.error().message()}"
    return [each.as_numpy().reshape(-1).tolist() for each in response.output_tensors()]

def repeat(count, delay_ms):
    inputs = {"IN": np.arange(count, dtype=np.int32), "DELAY": np.full(count, delay_ms, np.uint32), "WAIT": np.zeros(1, np.uint32)}
    return request("repeat", inputs, ["OUT"])

START, END = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START, pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END

class TritonPythonModel:
    async def execute(self, requests):
        return [await self.answer(request) for request in requests]
    async def answer(self, request):
        way, *rest = pb_utils.get_input_tensor_by_name(request, "WAY").as_numpy()[0].decode().split()
        found = getattr(self, way)(*rest)
        return output(repr(await found if asyncio.iscoroutine(found) else found))
    def in_sequence(self, model, name):
        name = int(name) if name.isdigit() else name
        calls = [request(model, {"INPUT0": np.array([[value]], np.float32)}, ["OUTPUT0", "OUTPUT1", "OUTPUT3", "OUTPUT4"],
                         correlation_id=name, flags=flags) for value, flags in ((0, 0), (1, START), (2, 0), (3, END), (4, 0))]
        return [told(each.exec()) for each in calls]
    async def together(self):
        calls = [request("gather", {"INPUT0": np.full((1, 4), number, np.float32)}, ["OUTPUT0"]) for number in range(8)]
        return [told(each) for each in await asyncio.gather(*(call.async_exec() for call in calls))]
    def step_by_step(self):
        return told(request("twice", {"INPUT0": np.ones(4, np.float32)}, ["OUTPUT0"]).exec())
    def late(self):
        return told(request("queued", {"INPUT0": np.ones((1, 4), np.float32)}, ["OUTPUT0"], timeout=20_000).exec())
    def onnx(self):
        return told(request("relu", {"x": np.array([[-1, 2]], np.float32)}, ["y"]).exec())
    def cancelled(self):
        # One walks on after it has let go, another never looks at what it has asked for.
        seen, responses = [], repeat(200, 20).exec(decoupled=True)
        for response in responses:
            seen.append(told(response))
            if len(seen) == 2:
                responses.cancel()
        repeat(200, 20).exec(decoupled=True).cancel()
        return len(seen)
    async def cancelled_in_a_coroutine(self):
        responses = await repeat(200, 20).async_exec(decoupled=True)
        responses.cancel()
        responses.cancel()
        return len([told(each) for each in responses])
    def cancelled_when_it_is_over(self):
        responses = repeat(2, 0).exec(decoupled=True)
        seen = [told(each) for each in responses]
        responses.cancel()
        return seen + [told(each) for each in responses]
"""
TWICE = """platform: "ensemble"
input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] }] output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] }]
ensemble_scheduling { step [
  { model_name: "fp32" input_map { key: "INPUT0" value: "INPUT0" } output_map { key: "OUTPUT0" value: "x" } },
  { model_name: "fp32" input_map { key: "INPUT0" value: "x" } output_map { key: "OUTPUT0" value: "OUTPUT0" } }
] }
"""
QUEUED = """max_batch_size: 64 dynamic_batching {
  max_queue_delay_microseconds: 60000000
  default_queue_policy { timeout_action: REJECT allow_timeout_override: true default_timeout_microseconds: 60000000 }
}"""


@pytest.fixture
def calling(start, tmp_path):
    """A server of a model that calls others."""
    called = {**models.identity_models(), **models.sequence_models(), "twice": models.Model(TWICE)}
    called |= {"queued": models.Model(models.identity(QUEUED))}
    if models.has_onnxruntime():
        called["relu"] = models.onnx_models()["relu"]
    repository = models.write(tmp_path / "repository", called)
    write(repository, "caller", WAY, ECHO + CALLER)
    server = start(repository, INTERPRETER)

    def ask(way: str):
        began = time.monotonic()
        answer = cases.way(server, "caller", way)
        assert "OUTPUT" in answer, answer
        assert time.monotonic() - began < 3, "it has waited for something"
        return ast.literal_eval(answer["OUTPUT"][2][0])

    ask.server = server
    return ask


def test_calls_reach_models_of_every_kind(calling):
    """Sequences by number and by name, batches, ensembles, queues with a limit."""
    for model, name, told in [("sequence_direct", "7", 7), ("sequence_text", "seven", b"seven")]:
        before, *within, after = calling(f"in_sequence {model} {name}")
        assert within == [[[1.0], [1], [0], [told]], [[2.0], [0], [0], [told]], [[3.0], [0], [1], [told]]]
        assert "must specify the START flag" in before and "must specify the START flag" in after
    inferences, executions = triton.executions(calling.server, "gather")
    assert calling("together") == [[[float(number)] * 4] for number in range(8)]
    now = triton.executions(calling.server, "gather")
    assert now[0] - inferences == 8 and now[1] - executions < 8
    assert calling("step_by_step") == [[1.0] * 4]
    assert "Request timeout expired" in calling("late")
    if models.has_onnxruntime():
        assert calling("onnx") == [[0.0, 2.0]]


def test_who_lets_go_of_a_call_waits_for_nothing_more(calling):
    """Nor does the model that was called go on; later calls are served."""
    assert 2 <= calling("cancelled") < 10
    assert calling("cancelled_in_a_coroutine") < 10
    assert calling("cancelled_when_it_is_over") == [[[0]], [[1]], []] * 2
    assert calling("step_by_step") == [[1.0] * 4]


def test_calls_in_a_circle_are_refused_however_long_it_is(start, tmp_path):
    """By way of another model, or of an ensemble; where an instance is free the call is served."""
    source = ECHO + """
class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]
    def answer(self, request):
        way = pb_utils.get_input_tensor_by_name(request, "WAY").as_numpy()[0].decode()
        target, _, rest = way.partition(" ")
        if not target:
            return output("the end")
        call = pb_utils.InferenceRequest(
            model_name=target, requested_output_names=["OUTPUT"],
            inputs=[pb_utils.Tensor("WAY", np.array([rest], np.object_))])
        response = call.exec()
        return response if not response.has_error() else output(response.error().message())
"""
    repository = tmp_path / "repository"
    for name, count in (("one", 1), ("two", 2), ("other", 1)):
        write(repository, name, f"{WAY} instance_group [{{ count: {count} kind: KIND_CPU }}]", source)
    maps = 'input_map { key: "WAY" value: "WAY" } output_map { key: "OUTPUT" value: "OUTPUT" }'
    tensors = WAY.partition("\n")[2]
    models.write(repository, {"steps": models.Model(f'platform: "ensemble" {tensors} ensemble_scheduling {{ step [{{ model_name: "one" {maps} }}] }}')})
    server = start(repository, INTERPRETER)
    refused = "model 'one' cannot be called: the call would wait for itself"
    for model, way, expected in [
        ("one", "other", "the end"),
        ("one", "other one", refused),
        ("one", "other two one", refused),
        ("one", "steps", refused),
        ("steps", "one", refused),
        ("two", "two", "the end"),
        ("two", "two two", "model 'two' cannot be called: the call would wait for itself"),
        ("two", "other two", "the end"),
    ]:
        answer = cases.way(server, model, way)
        assert "OUTPUT" in answer and expected in answer["OUTPUT"][2][0], (model, way, answer)


STREAMING = """
import asyncio

class TritonPythonModel:
    async def execute(self, requests):
        await asyncio.gather(*(self.answer(request) for request in requests))
    async def answer(self, request):
        sender = request.get_response_sender()
        for text in pb_utils.get_input_tensor_by_name(request, "WAY").as_numpy()[0].decode().split():
            await asyncio.sleep(0.01)
            sender.send(output(text))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


def test_a_decoupled_model_may_answer_from_a_coroutine(start, tmp_path):
    """Two requests at once, each with its answers in their order."""
    write(tmp_path / "repository", "words", f"{WAY} model_transaction_policy {{ decoupled: true }}", ECHO + STREAMING)
    server = start(tmp_path / "repository", INTERPRETER)
    answers: queue.Queue = queue.Queue()
    with triton_grpc.InferenceServerClient(server.grpc_address) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        for name, text in (("a", b"one two three"), ("b", b"four five")):
            client.async_stream_infer("words", [cases.tensor("WAY", np.array([text], np.object_))], request_id=name)
        found = {"a": [], "b": []}
        for _ in range(5):
            answer = answers.get(timeout=20)
            assert not isinstance(answer, Exception), answer
            found[answer.get_response().id].append(answer.as_numpy("OUTPUT")[0].decode())
    assert found == {"a": ["one", "two", "three"], "b": ["four", "five"]}


TENSORS = """backend: "python"
input [{ name: "X" data_type: TYPE_FP32 dims: [ -1 ] }, { name: "TEXT" data_type: TYPE_STRING dims: [ -1 ] }]
output [{ name: "Y" data_type: TYPE_FP32 dims: [ -1 ] }, { name: "LENGTH" data_type: TYPE_INT64 dims: [ -1 ] }]
"""
COUNTING = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]
    def answer(self, request):
        x, text = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("X", "TEXT"))
        lengths = np.array([len(each) for each in text], np.int64)
        return pb_utils.InferenceResponse([pb_utils.Tensor("Y", x * 2), pb_utils.Tensor("LENGTH", lengths)])
"""


@every_protocol
def test_a_python_model_takes_and_gives_tensors_in_shared_memory(start, tmp_path, protocol):
    """Small ones and large ones; one whose memory the client takes away is an error, and no end of the process."""
    write(tmp_path / "repository", "counting", TENSORS, COUNTING)
    server = start(tmp_path / "repository", INTERPRETER, "--allow-client-shm=true")
    module = CLIENTS[protocol]
    texts = np.array([b"abc", b"", b"longer"], np.object_)
    packed = np.frombuffer(b"".join(len(text).to_bytes(4, "little") + text for text in texts), np.uint8)
    with client_of(server, protocol) as client:
        for elements in (4, 500_000):
            x = np.arange(elements, dtype=np.float32)
            with Region(client, x.nbytes + packed.nbytes) as there, Region(client, x.nbytes + 24) as back:
                shm.set_shared_memory_region(there.handle, [x, packed])
                given = [given_in(module, "X", x, "FP32", there, x.nbytes)]
                given.append(given_in(module, "TEXT", texts, "BYTES", there, packed.nbytes, x.nbytes))
                wanted = [wanted_in(module, "LENGTH", back, 24), wanted_in(module, "Y", back, x.nbytes, 24)]
                client.infer("counting", given, outputs=wanted)
                np.testing.assert_array_equal(shm.get_contents_as_numpy(back.handle, np.int64, (3,)), [3, 0, 6])
                np.testing.assert_array_equal(shm.get_contents_as_numpy(back.handle, np.float32, (elements,), 24), x * 2)
                os.truncate(back.path, 0)
                with pytest.raises(InferenceServerException, match=f"'{back.name}' was truncated while it was in use"):
                    client.infer("counting", given, outputs=wanted)
                os.truncate(there.path, 0)
                with pytest.raises(InferenceServerException, match=f"'{there.name}' was truncated while it was in use"):
                    client.infer("counting", given)
                client.unregister_system_shared_memory()
        sent = [triton.tensor(module, "X", "FP32", np.ones(4, np.float32)), triton.tensor(module, "TEXT", "BYTES", texts)]
        np.testing.assert_array_equal(client.infer("counting", sent).as_numpy("LENGTH"), [3, 0, 6])
