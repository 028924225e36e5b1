"""Python models: what a model learns of a request, hands on of it, and lets become of it."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import json
import pathlib
import queue
import subprocess
import sys
import tarfile
import threading

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from . import models, python_cases as cases, triton
from .python_server import ECHO, INTERPRETER, WAY, is_ready, wait_until, write

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_iterative_requests_share_batches_and_end_by_themselves(start, tmp_path):
    server = start(cases.copy_models(tmp_path / "repository"), INTERPRETER)

    def ask(count: int) -> list:
        answers = cases.stream(server, "again", IN=np.array([[count]], np.int32))
        return [each["LEFT"][2][0][0] for each in answers if each]

    counts = [1, 30, 7, 30, 30, 2, 30, 9]
    with concurrent.futures.ThreadPoolExecutor(len(counts)) as pool:
        got = list(pool.map(ask, counts))
    assert got == [list(range(count - 1, -1, -1)) for count in counts]

    def told() -> dict:
        return server.get_json("/v2/models/again/stats")["model_stats"][0]

    # A model that sends its responses itself has its last execution counted when it returns.
    wait_until(lambda: int(told()["inference_count"]) == sum(counts))
    stats = told()
    assert int(stats["inference_stats"]["success"]["count"]) == len(counts)
    assert int(stats["execution_count"]) < sum(counts)
    # The responses of all turns are counted in their order.
    assert int(stats["response_stats"]["29"]["success"]["count"]) == 4


def test_an_iterative_request_whose_client_leaves_is_not_run_again(start, tmp_path):
    server = start(cases.copy_models(tmp_path / "repository"), INTERPRETER)

    def executions() -> int:
        return triton.executions(server, "again")[1]

    with triton_grpc.InferenceServerClient(server.grpc_address) as client:
        client.start_stream(lambda result, error: None)
        tensor = cases.tensor("IN", np.array([[10**9]], np.int32))
        client.async_stream_infer("again", [tensor])
        wait_until(lambda: executions() > 3)
        client.stop_stream(cancel_requests=True)

    def rests() -> bool:
        before = executions()
        threading.Event().wait(0.2)
        return executions() == before

    wait_until(rests)
    # Its place is free for others.
    assert cases.stream(server, "again", IN=np.array([[1]], np.int32))[0]["LEFT"][2] == [[0]]


def test_a_model_without_iterative_sequences_cannot_have_a_request_run_again(start, tmp_path):
    source = ECHO + """
class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
        return [None for _ in requests]
"""
    write(tmp_path / "repository", "plain", WAY, source)
    server = start(tmp_path / "repository", INTERPRETER)
    answer = cases.way(server, "plain", "x")
    assert answer["status"] == "StatusCode.UNIMPLEMENTED"
    assert "model 'plain' released a request to be scheduled again" in answer["error"]
    assert "iterative_sequence" in answer["error"]


def test_is_ready_is_the_models_to_say(start, tmp_path):
    """Also while it is at work; what it raises counts as no, and the requests that come are answered."""
    flag = tmp_path / "flag"
    flag.write_text("yes")
    source = ECHO + f"""
import pathlib, time
class TritonPythonModel:
    def is_ready(self):
        return {{"yes": lambda: True, "no": lambda: False}}[pathlib.Path({str(flag)!r}).read_text()]()
    def execute(self, requests):
        time.sleep(3 if requests[0].inputs()[0].as_numpy()[0] == b"long" else 0)
        return [output("a") for _ in requests]
"""
    write(tmp_path / "repository", "says", WAY, source)
    server = start(tmp_path / "repository", INTERPRETER)
    assert is_ready(server, "says")
    at_work = threading.Thread(target=cases.way, args=(server, "says", "long"))
    at_work.start()
    flag.write_text("no")
    wait_until(lambda: not is_ready(server, "says"), 5)
    flag.write_text("yes")
    wait_until(lambda: is_ready(server, "says"), 5)
    at_work.join()
    flag.write_text("else")
    wait_until(lambda: not is_ready(server, "says"), 5)
    assert "KeyError: 'else'" in server.log.read_text()
    assert cases.way(server, "says", "x")["OUTPUT"][2] == ["a"]


WATCHES = """
import threading, time
class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            threading.Thread(target=self.watch, args=(request, sender)).start()
    def watch(self, request, sender):
        deadline = time.monotonic() + 20
        while not request.is_cancelled() and time.monotonic() < deadline:
            time.sleep(0.01)
        print("told:", request.is_cancelled(), sender.is_cancelled())
        sender.send(output("late"), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        print("told after the end:", request.is_cancelled(), sender.is_cancelled())
"""


@pytest.mark.parametrize("decoupled", [False, True])
def test_a_model_learns_that_its_client_has_left(start, tmp_path, decoupled):
    """By the request and by its response sender."""
    policy = "model_transaction_policy { decoupled: true }" if decoupled else ""
    write(tmp_path / "repository", "watches", WAY + policy, ECHO + WATCHES)
    server = start(tmp_path / "repository", INTERPRETER)
    tensor = cases.tensor("WAY", np.array([b"x"], np.object_))
    with triton_grpc.InferenceServerClient(server.grpc_address) as client:
        if decoupled:
            client.start_stream(lambda result, error: None)
            client.async_stream_infer("watches", [tensor])
            threading.Event().wait(0.3)
            assert "told" not in server.log.read_text()
            client.stop_stream(cancel_requests=True)
        else:
            call = client.async_infer("watches", [tensor], lambda result, error: None)
            threading.Event().wait(0.3)
            assert "told" not in server.log.read_text()
            call.cancel()
        wait_until(lambda: "told: True True" in server.log.read_text(), 10)
        wait_until(lambda: "told after the end: False False" in server.log.read_text(), 10)


# --- DLPack

NUMBERS = {name: config for name, (config, _) in models.TYPES.items() if name not in ("BYTES", "BF16")}
DLPACK = """
import numpy as np
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([self.twice(each) for each in request.inputs()]) for request in requests]
    def twice(self, tensor):
        values = np.from_dlpack(tensor)
        assert np.shares_memory(values, tensor.as_numpy())
        assert tensor.__dlpack_device__() == (1, 0) and tensor.is_cpu()
        return pb_utils.Tensor.from_dlpack(tensor.name(), np.concatenate([values, values]))
"""


def tensors(names: dict[str, str], kind: str, more: str) -> str:
    """The inputs or outputs of a configuration, one of each type, under the type's name."""
    each = ", ".join(f'{{ name: "{name}" data_type: TYPE_{config} dims: [ -1 ] {more} }}' for name, config in names.items())
    return f"{kind} [ {each} ]\n"


def test_dlpack_hands_tensors_to_numpy_and_back(start, tmp_path):
    """Of every type that NumPy has, small ones and large ones, without a copy."""
    config = 'backend: "python"\n' + tensors(NUMBERS, "input", "optional: true") + tensors(NUMBERS, "output", "")
    write(tmp_path / "repository", "dlpack", config, DLPACK)
    server = start(tmp_path / "repository", INTERPRETER)
    for name in NUMBERS:
        for length in (3, 40_000):
            given = triton.values(name, (length,))
            with triton_grpc.InferenceServerClient(server.grpc_address) as client:
                outputs = [triton_grpc.InferRequestedOutput(name)]
                result = client.infer("dlpack", [triton.tensor(triton_grpc, name, name, given)], outputs=outputs)
            np.testing.assert_array_equal(result.as_numpy(name), np.concatenate([given, given]), name)


# A folder of that name, which Python would take too, has no loader.
TORCH = getattr(importlib.util.find_spec("torch"), "loader", None) is not None
BF16 = """
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([self.answer(each) for each in request.inputs()]) for request in requests]
    def answer(self, tensor):
        assert tensor.triton_dtype() == 14
        try:
            tensor.as_numpy()
        except pb_utils.TritonModelException as error:
            assert "BF16" in str(error)
        {way}
"""
BF16_WAYS = {
    "capsule": 'return pb_utils.Tensor.from_dlpack("Y", tensor.to_dlpack())',
    "object": 'return pb_utils.Tensor.from_dlpack("Y", tensor)',
    # What a library does that has such a type: it reads the capsule's structure, and hands over one of its own.
    "library": """import ctypes, struct
        import ml_dtypes
        import numpy as np
        api = ctypes.pythonapi
        api.PyCapsule_GetPointer.restype = ctypes.c_void_p
        api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
        api.PyCapsule_New.restype = ctypes.py_object
        api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        capsule = tensor.__dlpack__()
        theirs = ctypes.string_at(api.PyCapsule_GetPointer(capsule, b"dltensor"), 64)
        data, kind, _, rank, code, bits, lanes, shape, strides, offset = struct.unpack("<QiiiBBHQQQ", theirs[:48])
        assert (kind, rank, code, bits, lanes) == (1, 1, 4, 16, 1)
        length = ctypes.c_int64.from_address(shape).value
        read = ctypes.string_at(data + offset, 2 * length)
        values = np.frombuffer(read, ml_dtypes.bfloat16) * ml_dtypes.bfloat16(1)
        dims = (ctypes.c_int64 * 1)(len(values))
        mine = struct.pack(
            "<QiiiBBHQQQQQ", values.ctypes.data, 1, 0, 1, 4, 16, 1, ctypes.addressof(dims), 0, 0, 0, 0
        )
        mine = ctypes.create_string_buffer(mine, len(mine))
        self.kept = values, dims, mine
        return pb_utils.Tensor.from_dlpack("Y", api.PyCapsule_New(ctypes.addressof(mine), b"dltensor", None))""",
    "torch": """import torch
        values = torch.from_dlpack(tensor)
        assert values.dtype == torch.bfloat16
        return pb_utils.Tensor.from_dlpack("Y", values * 1)""",
}


@pytest.mark.parametrize("way", BF16_WAYS)
def test_bfloat16_travels_by_dlpack(start, tmp_path, way):
    """NumPy has no such type, so it is the only way."""
    if way == "torch" and not TORCH:
        pytest.skip("there is no PyTorch in this environment")
    config = 'backend: "python"\n' + (
        'input [{ name: "X" data_type: TYPE_BF16 dims: [ -1 ] }]\noutput [{ name: "Y" data_type: TYPE_BF16 dims: [ -1 ] }]'
    )
    write(tmp_path / "repository", "bf16", config, BF16.replace("{way}", BF16_WAYS[way]))
    server = start(tmp_path / "repository", INTERPRETER)
    for length in (5, 20_000):
        given = triton.values("BF16", (length,))
        result = triton.infer("http", server, "bf16", given, "BF16", input_name="X")
        np.testing.assert_array_equal(result.as_numpy("Y").astype(ml_dtypes.bfloat16), given)


def test_what_dlpack_cannot_hold_is_refused(start, tmp_path):
    """In the real back end's words where it has any."""
    source = ECHO + """
def told(way):
    try:
        return str(way())
    except Exception as error:
        return f"{type(error).__name__}: {error}"
class TritonPythonModel:
    def execute(self, requests):
        return [output(told(getattr(self, each.inputs()[0].as_numpy()[0].decode()))) for each in requests]
    def strings(self):
        return pb_utils.Tensor("A", np.array(["a"], np.object_)).to_dlpack()
    def twice(self):
        capsule = pb_utils.Tensor("A", np.arange(3.0)).to_dlpack()
        pb_utils.Tensor.from_dlpack("B", capsule)
        return pb_utils.Tensor.from_dlpack("C", capsule)
    def strided(self):
        return pb_utils.Tensor.from_dlpack("A", np.arange(6.0).reshape(2, 3).T)
    def number(self):
        return pb_utils.Tensor.from_dlpack("A", 7)
    def complex(self):
        return pb_utils.Tensor.from_dlpack("A", np.array([1j]))
    def nameless(self):
        return pb_utils.Tensor.from_dlpack("", np.arange(3.0))
"""
    write(tmp_path / "repository", "refuses", WAY, source)
    server = start(tmp_path / "repository", INTERPRETER)
    for way, words in (
        ("strings", "TritonModelException: DLPack does not have support for string tensors."),
        ("twice", "TritonModelException: expected an unused DLPack capsule"),
        ("strided", "TritonModelException: DLPack tensor is not contiguous."),
        ("number", "TritonModelException: Provided tensor is not supported."),
        ("complex", "TritonModelException: DLPack dtype is not supported."),
        ("nameless", "TritonModelException: Tensor name cannot be an empty string."),
    ):
        assert cases.way(server, "refuses", way)["OUTPUT"][2][0].startswith(words), way


# --- Environments

ENVIRONMENT = """
import sys
import only_here
class TritonPythonModel:
    def execute(self, requests):
        return [output(f"{only_here.NAME} {sys.prefix}") for _ in requests]
"""


@pytest.mark.parametrize("form", ["folder", "archive", "in the model"])
def test_a_model_brings_its_environment(start, tmp_path, form):
    """A virtual environment, or an archive of one as conda-pack makes it, with bin/python at its top."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "only_here.py").write_text(f"NAME = {form!r}\n")
    # NumPy is found where this program has it.
    (site / "rest.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")) + "\n")
    place = str(environment)
    repository = tmp_path / "repository"
    if form != "folder":
        archive = tmp_path / "environment.tar.gz"
        with tarfile.open(archive, "w:gz") as file:
            file.add(environment, ".")
        place = str(archive)
    if form == "in the model":
        place = "$$TRITON_MODEL_DIRECTORY/environment.tar.gz"
    config = WAY + f'parameters {{ key: "EXECUTION_ENV_PATH" value: {{ string_value: "{place}" }} }}\n'
    write(repository, "packed", config, ECHO + ENVIRONMENT)
    write(repository, "second", config.replace("$$TRITON_MODEL_DIRECTORY", str(repository / "packed")), ECHO + ENVIRONMENT)
    if form == "in the model":
        archive.rename(repository / "packed" / "environment.tar.gz")
    server = start(repository, INTERPRETER)
    told = [cases.way(server, model, "x")["OUTPUT"][2][0] for model in ("packed", "second")]
    prefixes = {text.removeprefix(form + " ") for text in told}
    assert all(text.startswith(form + " ") for text in told)
    # Both run in the same, and an archive's does not stay.
    (prefix,) = prefixes
    assert (prefix == str(environment)) == (form == "folder")
    server.stop()
    assert pathlib.Path(prefix).exists() == (form == "folder")


# --- Traces

CALLS = """
class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]
    def answer(self, request):
        way = request.inputs()[0].as_numpy()[0].decode()
        trace = {} if way == "alone" else {"trace": request.trace()}
        call = pb_utils.InferenceRequest(
            model_name="called", requested_output_names=["OUTPUT"], inputs=request.inputs(), **trace)
        response = call.exec()
        assert not response.has_error()
        return output(str(request.trace().get_context()))
"""


def calling(tmp_path):
    """A repository with a model that calls another in the trace of its request."""
    write(tmp_path / "repository", "calls", WAY, ECHO + CALLS)
    source = ECHO + "class TritonPythonModel:\n    def execute(self, requests):\n        return [output('a') for _ in requests]\n"
    write(tmp_path / "repository", "called", WAY, source)
    return tmp_path / "repository"


def test_calls_are_noted_in_the_trace_of_the_request_that_they_serve(start, tmp_path):
    file = tmp_path / "trace.json"
    flags = ("level=TIMESTAMPS", "rate=1", f"triton,file={file}")
    server = start(calling(tmp_path), INTERPRETER, *(f"--trace-config={flag}" for flag in flags))
    for way in ("within", "alone"):
        assert cases.way(server, "calls", way)["OUTPUT"][2] == ["None"]
    server.stop()
    heads = [each for each in json.loads(file.read_text()) if "model_name" in each]
    names = {head["id"]: head["model_name"] for head in heads}
    parents = sorted((head["model_name"], str(names.get(head.get("parent_id")))) for head in heads)
    assert parents == [("called", "None"), ("called", "calls"), ("calls", "None"), ("calls", "None")]


def test_a_model_is_told_the_context_of_its_trace(start, tmp_path):
    """In OpenTelemetry's form, so that what it notes itself becomes part of the client's trace."""
    flags = ("mode=opentelemetry", "opentelemetry,url=http://127.0.0.1:9/v1/traces", "level=TIMESTAMPS", "rate=1000")
    server = start(calling(tmp_path), INTERPRETER, *(f"--trace-config={flag}" for flag in flags))
    tensor = triton.tensor(triton_http, "WAY", "BYTES", np.array([b"within"], np.object_))
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
    told = triton.http(server, model_name="calls", inputs=[tensor], headers=headers).as_numpy("OUTPUT")[0]
    version, trace, span, recorded = json.loads(told)["traceparent"].split("-")
    assert (version, trace, recorded) == ("00", TRACE, "01")
    assert span != SPAN and len(span) == 16
    # A request that is not traced has none.
    assert triton.http(server, model_name="calls", inputs=[tensor]).as_numpy("OUTPUT")[0] == b"None"


# --- The order of answers

SLOW = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        responses = [self.answer(request) for request in requests]
        return None if DECOUPLED else responses

    def answer(self, request):
        seconds = pb_utils.get_input_tensor_by_name(request, "SECONDS")
        response = pb_utils.InferenceResponse([pb_utils.Tensor("OUT", seconds.as_numpy())])
        if DECOUPLED:
            sender = request.get_response_sender()
            sender.send(response)
        time.sleep(float(seconds.as_numpy()[0][0]))
        if DECOUPLED:
            sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return response
"""
SLOW_CONFIG = """
backend: "python"
max_batch_size: 1
dynamic_batching {{ preserve_ordering: {ordered} }}
model_transaction_policy {{ decoupled: {decoupled} }}
instance_group [ {{ count: 2 }} ]
input [ {{ name: "SECONDS" data_type: TYPE_FP32 dims: [ 1 ] }} ]
output [ {{ name: "OUT" data_type: TYPE_FP32 dims: [ 1 ] }} ]
"""


def test_answers_keep_the_order_of_the_requests_where_that_is_wanted(start, tmp_path):
    """A quick one waits for a slow one before it, with all of its responses."""
    for ordered in ("true", "false"):
        for decoupled in ("true", "false"):
            config = SLOW_CONFIG.format(ordered=ordered, decoupled=decoupled)
            source = f"DECOUPLED = {decoupled.title()}\n{SLOW}"
            write(tmp_path / "repository", f"slow_{ordered}_{decoupled}", config, source)
    server = start(tmp_path / "repository", INTERPRETER)

    def answered(model: str, is_decoupled: bool) -> list[str]:
        answers: queue.Queue = queue.Queue()
        tell = lambda result, error: answers.put(error or result)  # noqa: E731
        with triton_grpc.InferenceServerClient(server.grpc_address) as client:
            if is_decoupled:
                client.start_stream(tell)
            for name, seconds in (("slow", 0.6), ("quick", 0)):
                tensors = [cases.tensor("SECONDS", np.array([[seconds]], np.float32))]
                if is_decoupled:
                    client.async_stream_infer(model, tensors, request_id=name)
                else:
                    # On a stream such answers are in order by themselves.
                    client.async_infer(model, tensors, tell, request_id=name)
                threading.Event().wait(0.1)
            return [answers.get(timeout=20).get_response().id for _ in range(4 if is_decoupled else 2)]

    assert answered("slow_true_false", False) == ["slow", "quick"]
    assert answered("slow_false_false", False) == ["quick", "slow"]
    assert answered("slow_true_true", True) == ["slow", "slow", "quick", "quick"]
    assert answered("slow_false_true", True) == ["slow", "quick", "quick", "slow"]


LATE = """
import threading, time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            seconds = pb_utils.get_input_tensor_by_name(request, "SECONDS").as_numpy()
            threading.Thread(target=self.answer, args=(request.get_response_sender(), seconds)).start()

    def answer(self, sender, seconds):
        response = pb_utils.InferenceResponse([pb_utils.Tensor("OUT", seconds)])
        sender.send(response)
        time.sleep(float(seconds[0][0]))
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
LATE_CONFIG = """
backend: "python"
max_batch_size: 4
sequence_batching {{ oldest {{ max_candidate_sequences: 4 preserve_ordering: {ordered} }} }}
model_transaction_policy {{ decoupled: true }}
input [ {{ name: "SECONDS" data_type: TYPE_FP32 dims: [ 1 ] }} ]
output [ {{ name: "OUT" data_type: TYPE_FP32 dims: [ 1 ] }} ]
"""


def test_answers_of_several_sequences_keep_the_order_where_that_is_wanted(start, tmp_path):
    """As the real server has it: what is answered later holds back the answers of other sequences too."""
    for ordered in ("true", "false"):
        write(tmp_path / "repository", f"late_{ordered}", LATE_CONFIG.format(ordered=ordered), LATE)
    server = start(tmp_path / "repository", INTERPRETER)

    def answered(model: str) -> list[str]:
        answers: queue.Queue = queue.Queue()
        with triton_grpc.InferenceServerClient(server.grpc_address) as client:
            client.start_stream(lambda result, error: answers.put(error or result))
            whole = {"sequence_start": True, "sequence_end": True}
            for sequence, (name, seconds) in enumerate((("slow", 0.6), ("quick", 0)), start=1):
                tensors = [cases.tensor("SECONDS", np.array([[seconds]], np.float32))]
                client.async_stream_infer(model, tensors, request_id=name, sequence_id=sequence, **whole)
                threading.Event().wait(0.1)
            return [answers.get(timeout=20).get_response().id for _ in range(4)]

    for _ in range(2):
        assert answered("late_true") == ["slow", "slow", "quick", "quick"]
    assert answered("late_false") == ["slow", "quick", "quick", "slow"]


def test_a_model_that_takes_single_requests_cannot_have_what_needs_batches(start, tmp_path):
    allowed = 'parameters { key: "allowed_batch_sizes" value { string_value: "1" } }'
    plain = SLOW_CONFIG.format(ordered="false", decoupled="false")
    write(tmp_path / "repository", "allowed", plain + allowed, f"DECOUPLED = False\n{SLOW}")
    server = start(tmp_path / "repository", INTERPRETER, "--exit-on-error=false", "--strict-readiness=false")
    with triton_grpc.InferenceServerClient(server.grpc_address) as client:
        reasons = {each.name: each.reason for each in client.get_model_repository_index().models}
    assert "takes single requests: it cannot fill batches up to 'allowed_batch_sizes'" in reasons["allowed"]
