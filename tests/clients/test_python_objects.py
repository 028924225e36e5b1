"""Python models: what models do with what they are given, beyond what the examples show."""

from __future__ import annotations

import numpy as np

from . import python_cases as cases
from .python_server import ECHO, INTERPRETER, WAY, write


def test_a_model_may_change_its_execute(start, tmp_path):
    """As those do that load what they need with the first request."""
    source = ECHO + """
class TritonPythonModel:
    def execute(self, requests):
        self.execute = self.execute_later
        return [output("first") for _ in requests]
    def execute_later(self, requests):
        if requests[0].inputs()[0].as_numpy()[0] == b"none":
            del TritonPythonModel.execute, self.execute
        return [output("later") for _ in requests]
"""
    write(tmp_path / "repository", "model", WAY, source)
    server = start(tmp_path / "repository", INTERPRETER)
    answers = [cases.way(server, "model", way)["OUTPUT"][2][0] for way in ("a", "b", "none")]
    assert answers == ["first", "later", "later"]
    assert "does not implement `execute` method" in cases.way(server, "model", "x")["error"]


def test_requests_of_an_execution_that_failed_are_gone(start, tmp_path):
    """At once, for their memory is the server's: also where the collector of cycles never runs."""
    source = ECHO + """
import gc, weakref
gc.disable()
class TritonPythonModel:
    def initialize(self, args):
        self.last = None
    def execute(self, requests):
        is_gone = self.last is None or self.last() is None
        self.last = weakref.ref(requests[0])
        if requests[0].inputs()[0].as_numpy()[0] == b"raise":
            raise ValueError("wanted")
        return [output("gone" if is_gone else "there")]
"""
    write(tmp_path / "repository", "model", WAY, source)
    server = start(tmp_path / "repository", INTERPRETER)
    assert "ValueError: wanted" in cases.way(server, "model", "raise")["error"]
    assert cases.way(server, "model", "x")["OUTPUT"][2] == ["gone"]


def test_tensors_are_found_by_name_in_what_stands_for_requests_and_responses(start, tmp_path):
    source = ECHO + """
class Wrapped:
    def __init__(self, request):
        self.inputs = self.output_tensors = lambda: tuple(request.inputs())
class TritonPythonModel:
    def execute(self, requests):
        wrapped = Wrapped(requests[0])
        ways = pb_utils.get_input_tensor_by_name, pb_utils.get_output_tensor_by_name
        found = [way(wrapped, name) for way in ways for name in ("WAY", "\\ud800", None, "NONE")]
        return [output(str([each and each.name() for each in found]))]
"""
    write(tmp_path / "repository", "model", WAY, source)
    server = start(tmp_path / "repository", INTERPRETER)
    answer = cases.way(server, "model", "x")
    assert answer["OUTPUT"][2] == [str(2 * ["WAY", None, None, None])]


def test_what_no_message_can_hold_fails_its_request_alone(start, tmp_path):
    """The process goes on."""
    config = WAY + 'output [{ name: "MORE" data_type: TYPE_FP64 dims: [ -1 ] }]\n'
    source = ECHO + """
import os
class TritonPythonModel:
    def execute(self, requests):
        way = requests[0].inputs()[0].as_numpy()[0].decode()
        if way == "dimensions":
            more = pb_utils.Tensor("MORE", np.zeros((1,) * 33))
            return [pb_utils.InferenceResponse([more])]
        if way == "correlation":
            pb_utils.InferenceRequest("", None, [], ["Y"], "model")
        return [output(str(os.getpid()))]
"""
    write(tmp_path / "repository", "model", config, source)
    server = start(tmp_path / "repository", INTERPRETER)

    def process() -> str:
        return cases.way(server, "model", "x")["OUTPUT"][2][0]

    before = process()
    refused = cases.way(server, "model", "dimensions")["error"]
    assert "33 dimensions, at most 32 are possible" in refused
    assert "Correlation ID must be integer or string" in cases.way(server, "model", "correlation")["error"]
    assert process() == before


def test_an_array_that_was_made_smaller_in_place_is_no_tensor_any_more(start, tmp_path):
    source = ECHO + """
import numpy as np
class TritonPythonModel:
    def execute(self, requests):
        values = np.zeros(1 << 20, np.float32)
        tensor = pb_utils.Tensor("OUTPUT", values)
        if requests[0].inputs()[0].as_numpy()[0] == b"shrink":
            values.resize(4, refcheck=False)
            return [pb_utils.InferenceResponse([tensor])]
        return [output("whole")]
"""
    write(tmp_path / "repository", "model", WAY, source)
    server = start(tmp_path / "repository", INTERPRETER)
    answer = cases.way(server, "model", "shrink")
    assert "the elements of tensor 'OUTPUT' no longer have its shape" in answer["error"]
    assert cases.way(server, "model", "x")["OUTPUT"][2] == ["whole"]
