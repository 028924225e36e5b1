"""The memory that a Python model's process and the server share."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import os
import pathlib

import numpy as np

from . import python_cases as cases
from .python_server import INTERPRETER, processes, wait_until, write


def test_memory_that_a_batch_took_goes_back_when_none_comes(start, tmp_path):
    config = """backend: "python"
input [{ name: "X" data_type: TYPE_FP32 dims: [ -1 ] }]
output [{ name: "Y" data_type: TYPE_FP32 dims: [ -1 ] }]
"""
    source = """
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("Y", r.inputs()[0].as_numpy() + 1)]) for r in requests]
"""
    write(tmp_path / "repository", "more", config, source)
    server = start(tmp_path / "repository", INTERPRETER)
    (process,) = processes(server).values()

    def shared() -> int:
        """Bytes of the memory that both have mapped."""
        found = []
        for file in pathlib.Path(f"/proc/{server.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if "memfd:nereid-python" in os.readlink(file):
                    found.append(os.stat(file).st_blocks * 512)
        return max(found)

    values = np.zeros(10 << 20, np.float32)
    most = 0
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(cases.infer, server, "more", X=values)
        while not asked.done():
            most = max(most, shared())
    assert asked.result()["Y"][2][0] == 1
    # Both halves; the end of the second may pass between two looks.
    assert most >= 1.5 * values.nbytes
    wait_until(lambda: shared() <= 2 * (16 << 20))
    assert cases.infer(server, "more", X=values)["Y"][2][-1] == 1
    assert list(processes(server).values()) == [process]


def test_large_tensors_go_by_reference_and_memory_comes_back(start, tmp_path):
    config = """backend: "python"
input [{ name: "X" data_type: TYPE_FP32 dims: [ -1 ] }, { name: "Z" data_type: TYPE_FP32 dims: [ -1 ] optional: true }]
output [{ name: "Y" data_type: TYPE_FP32 dims: [ -1 ] }]
"""
    source = """
import c_python_backend_utils
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def execute(self, requests):
        print("free:", c_python_backend_utils.shared_memory.free_memory())
        answers = []
        for request in requests:
            values = pb_utils.get_input_tensor_by_name(request, "X").as_numpy()
            part = values[: len(values) // 2] if values[0] else values + 1
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("Y", part)]))
        return answers
"""
    write(tmp_path / "repository", "half", config, source)
    server = start(tmp_path / "repository", INTERPRETER, "--backend-config=python,shm-limit-byte-size=4194304")
    values = np.arange(300_000, dtype=np.float32)
    for _ in range(20):
        assert cases.infer(server, "half", X=values)["Y"][2][-1] == 300_000
        assert cases.infer(server, "half", X=values + 1)["Y"][2][-1] == 150_000
    # Alone, and with another; neither leaves anything behind.
    for inputs in ({"X": np.zeros(600_000, np.float32)}, {"X": values, "Z": values}):
        for _ in range(3):
            too_large = cases.infer(server, "half", **inputs)
            assert too_large["status"] == "StatusCode.UNAVAILABLE"
            assert "no room for 2400000 bytes" in too_large["error"] and "shm-limit-byte-size" in too_large["error"]
        assert cases.infer(server, "half", X=values)["Y"][2][-1] == 300_000
    # All of what the process gives out was free whenever it began.
    wait_until(lambda: server.log.read_text().count("free: 2097152") == 20 * 2 + 2)
    assert server.log.read_text().count("free: ") == 20 * 2 + 2


def test_parts_of_an_input_are_answered_where_they_lie(start, tmp_path):
    """There is room for one of them, were they copied."""
    config = """backend: "python"
input [{ name: "X" data_type: TYPE_FP32 dims: [ -1 ] }]
output [{ name: "WHOLE" data_type: TYPE_FP32 dims: [ -1 ] }, { name: "TAIL" data_type: TYPE_FP32 dims: [ -1 ] },
  { name: "BITS" data_type: TYPE_INT32 dims: [ -1 ] }]
"""
    source = """
import numpy as np
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def execute(self, requests):
        (x,) = [r.inputs()[0].as_numpy() for r in requests]
        parts = {"WHOLE": x, "TAIL": x[7:], "BITS": x.view(np.int32)}
        return [pb_utils.InferenceResponse([pb_utils.Tensor(name, part) for name, part in parts.items()])]
"""
    write(tmp_path / "repository", "parts", config, source)
    server = start(tmp_path / "repository", INTERPRETER, "--backend-config=python,shm-limit-byte-size=4194304")
    values = np.arange(300_000, dtype=np.float32)
    answer = cases.infer(server, "parts", X=values)
    for name, expected in {"WHOLE": values, "TAIL": values[7:], "BITS": values.view(np.int32)}.items():
        np.testing.assert_array_equal(answer[name][2], expected)


def test_a_request_lies_where_the_one_before_it_did(start, tmp_path):
    """Where the model keeps nothing, its memory is free again when the answer is there."""
    config = """backend: "python"
input [{ name: "X" data_type: TYPE_FP32 dims: [ -1 ] }]
output [{ name: "Y" data_type: TYPE_INT64 dims: [ 1 ] }]
"""
    source = """
import numpy as np
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def execute(self, requests):
        places = [r.inputs()[0].as_numpy().__array_interface__["data"][0] for r in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("Y", np.array([place]))]) for place in places]
"""
    write(tmp_path / "repository", "places", config, source)
    server = start(tmp_path / "repository", INTERPRETER)
    values = np.zeros(150_000, np.float32)
    places = collections.Counter(cases.infer(server, "places", X=values)["Y"][2][0] for _ in range(50))
    # By turns in two places, half of the requests would lie in either.
    assert places.most_common(1)[0][1] > 40, places


def test_memory_of_an_answer_that_cannot_be_given_is_free_again(start, tmp_path):
    """Of its first tensor, when there is no room for the second: in what is returned, sent and asked."""
    config = """backend: "python"
input [{ name: "WAY" data_type: TYPE_STRING dims: [ 1 ] }]
output [{ name: "OUTPUT" data_type: TYPE_STRING dims: [ 1 ] }, { name: "A" data_type: TYPE_UINT8 dims: [ -1 ] }]
output [{ name: "B" data_type: TYPE_UINT8 dims: [ -1 ] }]
"""
    source = """
import numpy as np
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def execute(self, requests):
        (request,) = requests
        way = request.inputs()[0].as_numpy()[0]
        # Of the half, which has 2 MiB, the one takes most, and the other wants more than all.
        large = pb_utils.Tensor("A", np.zeros(3 << 19, np.uint8))
        tensors = [large, pb_utils.Tensor("B", np.zeros(3 << 20, np.uint8))]
        if way == b"call":
            pb_utils.InferenceRequest(model_name="halves", inputs=tensors, requested_output_names=["A"]).exec()
        if way == b"send":
            request.get_response_sender().send(pb_utils.InferenceResponse(tensors))
        return [pb_utils.InferenceResponse([large] if way == b"whole" else tensors)]
"""
    write(tmp_path / "repository", "halves", config, source)
    server = start(tmp_path / "repository", INTERPRETER, "--backend-config=python,shm-limit-byte-size=4194304")
    for way in ("return", "send", "call"):
        assert "no room for a tensor of 3145728 bytes" in cases.way(server, "halves", way)["error"]
        assert cases.way(server, "halves", "whole")["A"][1] == [3 << 19]


def test_memory_that_an_answer_names_does_not_go_back_before_it(start, tmp_path):
    """Whatever other threads of the model send meanwhile, by which gone memory goes back too."""
    config = """backend: "python"
input [{ name: "X" data_type: TYPE_FP32 dims: [ -1 ] }]
output [{ name: "Y" data_type: TYPE_FP32 dims: [ -1 ] }]
"""
    source = """
import sys, threading
import triton_python_backend_utils as pb_utils
from nereid_stub import requests as inside, wire
# Threads take turns as often as they can.
sys.setswitchinterval(1e-6)
class TritonPythonModel:
    def initialize(self, args):
        for _ in range(3):
            threading.Thread(target=self.send, daemon=True).start()
    def send(self):
        while True:
            # Nobody waits for that.
            writer = wire.Writer()
            writer.begin(wire.CANCEL_CALL)
            writer.pack(wire.NUMBER, 1 << 60)
            writer.end()
            inside.channel.send(writer)
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("Y", r.inputs()[0].as_numpy())]) for r in requests]
"""
    write(tmp_path / "repository", "echo", config, source)
    server = start(tmp_path / "repository", INTERPRETER)
    values = np.arange(10_000, dtype=np.float32)
    for _ in range(50):
        np.testing.assert_array_equal(cases.infer(server, "echo", X=values)["Y"][2], values)
