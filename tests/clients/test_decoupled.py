"""Models that give any number of responses to a request."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import time

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from . import models, triton

WAIT_SECONDS_MAX = 60


def _inputs(values: list[int], delays_ms: list[int] | None = None, wait_ms: int = 0) -> list:
    delays_ms = [0] * len(values) if delays_ms is None else delays_ms
    return [
        triton.tensor(triton_grpc, "IN", "INT32", np.array(values, np.int32)),
        triton.tensor(triton_grpc, "DELAY", "UINT32", np.array(delays_ms, np.uint32)),
        triton.tensor(triton_grpc, "WAIT", "UINT32", np.array([wait_ms], np.uint32)),
    ]


class Stream:
    """A stream, and what came back on it."""

    def __init__(self, server):
        self.client = triton_grpc.InferenceServerClient(server.grpc_address)
        self._answers = queue.Queue()
        self.client.start_stream(lambda result, error: self._answers.put((result, error)))

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_) -> None:
        self.client.stop_stream(cancel_requests=True)
        self.client.close()

    def ask(self, request_id: str, *inputs, model: str = "repeat", **options) -> None:
        """Sends a request."""
        self.client.async_stream_infer(model, _inputs(*inputs), request_id=request_id, **options)

    def next(self) -> tuple[str, list[int] | None, bool]:
        """The next response: its request, its element and index, and whether it is the last."""
        result, error = self._answers.get(timeout=WAIT_SECONDS_MAX)
        if error is not None:
            raise error
        response = result.get_response()
        final = response.parameters["triton_final_response"].bool_param
        if not response.outputs or response.outputs[0].name not in ("OUT", "IDX"):
            return response.id, None, final
        return response.id, [int(result.as_numpy(name)[0]) for name in ("OUT", "IDX")], final


def test_a_request_gets_a_response_for_each_element(server):
    """The last response with outputs is not the last of all: the model ends without one."""
    with Stream(server) as stream:
        stream.ask("a", [5, 6, 7], enable_empty_final_response=True)
        assert [stream.next() for _ in range(4)] == [
            ("a", [5, 0], False),
            ("a", [6, 1], False),
            ("a", [7, 2], False),
            ("a", None, True),
        ]
        stream.ask("none", [], enable_empty_final_response=True)
        assert stream.next() == ("none", None, True)
        # Who does not ask for it is not told of the end.
        stream.ask("b", [8])
        stream.ask("c", [9])
        assert sorted(stream.next() for _ in range(2)) == [("b", [8, 0], False), ("c", [9, 0], False)]


def test_requests_do_not_wait_for_each_other(server):
    """Neither in one stream, nor for the instance, which is free while it answers on."""
    with Stream(server) as stream:
        stream.ask("slow", [1, 2], [1, 30_000])
        assert stream.next()[0] == "slow"
        for index in range(20):
            stream.ask(f"quick{index}", [3], [0], enable_empty_final_response=True)
        answered = [stream.next() for _ in range(40)]
        assert {each[0] for each in answered} == {f"quick{index}" for index in range(20)}


def test_other_models_of_the_stream_keep_their_order(server):
    """Requests that get one response each are answered in their order, whatever else goes on."""
    with Stream(server) as stream:
        stream.ask("slow", [1, 2], [1, 30_000])
        assert stream.next()[0] == "slow"
        array = np.arange(4, dtype=np.float32)
        for index in range(5):
            tensor = triton.tensor(triton_grpc, "INPUT0", "FP32", array)
            stream.client.async_stream_infer("fp32", [tensor], request_id=str(index))
        for index in range(5):
            assert stream.next() == (str(index), None, True)


def test_a_wrong_request_fails_alone(server):
    """Its error comes on the stream; the others are answered."""
    with Stream(server) as stream:
        stream.ask("wrong", [1, 2], [0])
        with pytest.raises(InferenceServerException, match="got 2 and 1"):
            stream.next()
        stream.ask("right", [1])
        assert stream.next() == ("right", [1, 0], False)


def test_a_client_that_leaves_ends_its_requests(server):
    """Nothing is pending or sent for it any more; the model is free."""
    with Stream(server) as stream:
        stream.ask("left", [1, 2, 3], [0, 60_000, 0])
        assert stream.next()[0] == "left"
    with Stream(server) as stream:
        stream.ask("next", [4])
        assert stream.next() == ("next", [4, 0], False)


def test_many_responses_come_in_order(server):
    """Two thousand of each of four requests at once."""
    with Stream(server) as stream:
        for request in range(4):
            stream.ask(str(request), list(range(2000)))
        seen = {str(request): [] for request in range(4)}
        for _ in range(8000):
            request_id, (value, index), _ = stream.next()
            assert value == index
            seen[request_id].append(index)
        assert all(indices == list(range(2000)) for indices in seen.values())


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_calls_with_one_answer_are_refused(server, way):
    """As the real server says it."""
    module, ask, who = {
        "http": (triton_http, triton.http, "HTTP end point doesn't"),
        "grpc": (triton_grpc, triton.grpc, "ModelInfer RPC doesn't"),
    }[way]
    inputs = [
        triton.tensor(module, name, datatype, np.array([1], kind))
        for name, datatype, kind in (
            ("IN", "INT32", np.int32),
            ("DELAY", "UINT32", np.uint32),
            ("WAIT", "UINT32", np.uint32),
        )
    ]
    with pytest.raises(InferenceServerException, match=f"{who} support models with decoupled"):
        ask(server, model_name="repeat", inputs=inputs)


def _post(server, call: str, body: dict) -> tuple[int, str, str]:
    with contextlib.closing(http.client.HTTPConnection(server.http_address, timeout=60)) as connection:
        connection.request("POST", f"/v2/models/repeat/{call}", json.dumps(body))
        answer = connection.getresponse()
        return answer.status, answer.headers["content-type"], answer.read().decode()


def _body(values: list[int], delays: list[int] | None = None) -> dict:
    return {"IN": values, "DELAY": delays or [0] * len(values), "WAIT": 0}


def test_generate_needs_exactly_one_response(server):
    """One is an answer; none and two are not."""
    status, _, text = _post(server, "generate", _body([7]))
    answer = json.loads(text)
    assert (status, answer["OUT"], answer["IDX"]) == (200, 7, 0)
    for values in ([], [1, 2]):
        status, _, text = _post(server, "generate", _body(values))
        assert status == 400
        assert json.loads(text)["error"].startswith("generate expects model to produce exactly 1 response")


def test_generate_stream_gives_each_response_as_an_event(server):
    """The first comes before the others are there."""
    status, content_type, text = _post(server, "generate_stream", _body([4, 5, 6]))
    assert (status, content_type) == (200, "text/event-stream; charset=utf-8")
    events = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line]
    assert [(event["OUT"], event["IDX"]) for event in events] == [(4, 0), (5, 1), (6, 2)]
    assert _post(server, "generate_stream", _body([]))[::2] == (200, "")

    with contextlib.closing(http.client.HTTPConnection(server.http_address, timeout=60)) as connection:
        began = time.monotonic()
        connection.request("POST", "/v2/models/repeat/generate_stream", json.dumps(_body([1, 2], [0, 30_000])))
        assert b'"OUT":1' in connection.getresponse().readline()
        assert time.monotonic() - began < 25


def test_statistics_tell_of_each_response(start, tmp_path):
    """By their place; an end without a response counts as empty."""
    server = start(models.write(tmp_path / "models", {"repeat": models.Model(models.REPEAT)}))
    with Stream(server) as stream:
        stream.ask("a", [1, 2], enable_empty_final_response=True)
        while not stream.next()[2]:
            pass
    with contextlib.closing(triton_http.InferenceServerClient(server.http_address)) as client:
        (told,) = client.get_inference_statistics("repeat")["model_stats"]
    assert (told["inference_count"], told["execution_count"]) == (1, 1)
    assert told["inference_stats"]["success"]["count"] == 1
    responses = told["response_stats"]
    assert sorted(responses) == ["0", "1", "2"]
    assert [responses[place]["success"]["count"] for place in "012"] == [1, 1, 0]
    assert responses["2"]["empty_response"]["count"] == 1
