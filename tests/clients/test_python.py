"""Python models: the answers of the real Triton, and what it does not do."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import pathlib
import queue
import re
import signal
import subprocess
import threading
import urllib.request

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from . import python_cases as cases
from .python_server import ECHO, INTERPRETER, WAY, is_ready, processes, wait_until, write
from .regions import opened_by

# NEREID_FAULTS sets how often a process is ended under load.
FAULTS = int(os.environ.get("NEREID_FAULTS", "3"))
GOLDEN = json.loads(cases.ANSWERS.read_text())

# Where the answers differ on purpose: docs/src/differences.md says why.
CALLED = "__ErrorCode.{}: Model {} - Error when running inference: "
DIFFERENT = {
    "bls: unknown_model": "__ErrorCode.NOT_FOUND",
    "bls: unknown_version": "__ErrorCode.NOT_FOUND",
    "bls: unknown_output": "__ErrorCode.INVALID_ARG",
    "bls: failing": "__ErrorCode.NOT_FOUND",
    "bls: decoupled_as_one": "__ErrorCode.UNSUPPORTED",
}


@pytest.fixture
def repository(tmp_path) -> pathlib.Path:
    """All models."""
    return cases.copy_models(tmp_path / "repository")


PLAIN = """backend: "identity"
input [{ name: "INPUT0" data_type: TYPE_STRING dims: [ 1 ] }]
output [{ name: "OUTPUT0" data_type: TYPE_STRING dims: [ 1 ] }]
"""


def compare(answers: dict) -> None:
    """Holds the answers of all models to the real Triton's."""
    assert answers.keys() == GOLDEN.keys()
    for name, expected in GOLDEN.items():
        got = answers[name]
        if name == cases.NAMES:
            assert not {f"{where}.{each}" for where, names in expected.items() for each in set(names) - set(got[where])}
            continue
        if name in DIFFERENT:
            code = DIFFERENT[name]
            expected = json.loads(json.dumps(expected).replace("__ErrorCode.INTERNAL", code))
        if name == "bls: decoupled_error":
            # The real server drops the error of the response in the middle.
            text = got["OUTPUT"][2][0]
            assert text == "OUT=[7] | error __ErrorCode.INVALID_ARG: 13 is not repeated | OUT=[9] | "
            continue
        assert got == expected, name


def test_models_answer_as_in_the_real_server(start, repository):
    sizes = ("shm-default-byte-size=1048576", "shm-growth-byte-size=1048576", "shm-region-prefix-name=mine")
    server = start(repository, INTERPRETER, *(f"--backend-config=python,{size}" for size in sizes))
    answers = cases.ask_all(server, repository)
    compare(answers)
    logged = {text: level for level, text in re.findall(r'^([IWE]).*\] "helpers \(helpers_0\): (.*)"$', server.log.read_text(), re.M)}
    assert logged == {"said as it is": "I", "said as a warning": "W", "good to know": "I", "an error": "E"}


def test_the_recording_is_what_the_real_server_answers(tmp_path):
    """Where it is installed."""
    if not cases.servers.peer_is_usable():
        pytest.skip("the real server is not installed: scripts/setup_peer.sh installs it")
    if why := cases.python_backend.prepare():
        pytest.skip(why)
    answers = cases.ask_the_real_server(tmp_path)
    assert {name for name in GOLDEN.keys() | answers.keys() if answers.get(name) != GOLDEN.get(name)} == set()


def test_a_process_that_is_killed_fails_its_requests_and_comes_back(start, tmp_path):
    folder = tmp_path / "repository"
    source = ECHO + """
import time
class TritonPythonModel:
    def initialize(self, args):
        # So long that who looks now and then sees that it is not ready.
        time.sleep(0.5)
    def execute(self, requests):
        time.sleep(0.02)
        return [output("served") for _ in requests]
"""
    write(folder, "slow", WAY + "instance_group [{ count: 2 }]", source)
    server = start(folder, INTERPRETER)
    seen, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            seen.append(cases.way(server, "slow", "x"))

    askers = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for asker in askers:
        asker.start()
    for _ in range(FAULTS):
        wait_until(lambda: {"slow_0_0", "slow_0_1"} == processes(server).keys() and is_ready(server, "slow"))
        os.kill(processes(server)["slow_0_0"], signal.SIGKILL)
        wait_until(lambda: not is_ready(server, "slow"), 5)
    wait_until(lambda: is_ready(server, "slow"))
    stop.set()
    for asker in askers:
        asker.join()
    errors = {each["error"] for each in seen if "error" in each}
    assert errors <= {"Stub process 'slow_0_0' is not healthy."}
    assert any("OUTPUT" in each for each in seen)
    assert cases.way(server, "slow", "x")["OUTPUT"][2] == ["served"]


def test_a_process_that_is_stopped_is_not_ready_until_it_goes_on(start, repository):
    server = start(repository, INTERPRETER)
    process = processes(server)["errors_0"]
    os.kill(process, signal.SIGSTOP)
    wait_until(lambda: not is_ready(server, "errors"), 5)
    assert is_ready(server, "add_sub")
    os.kill(process, signal.SIGCONT)
    wait_until(lambda: is_ready(server, "errors"), 5)
    assert "OUTPUT" in cases.way(server, "errors", "plain")


def test_a_passive_group_has_no_instances(start, tmp_path):
    """And the others have as many as they say, by the names of their groups."""
    groups = [
        '{ name: "many" count: 2 kind: KIND_CPU }',
        '{ name: "one" kind: KIND_MODEL }',
        '{ name: "none" count: 2 kind: KIND_CPU passive: true }',
    ]
    config = f"{WAY}instance_group [ {', '.join(groups)} ]"
    source = f"{ECHO}\nclass TritonPythonModel:\n    def execute(self, requests):\n        return [output('') for _ in requests]\n"
    write(tmp_path / "repository", "grouped", config, source)
    server = start(tmp_path / "repository", INTERPRETER)
    assert processes(server).keys() == {"many_0", "many_1", "one_0"}


def test_no_process_outlives_its_server(start, repository):
    server = start(repository, INTERPRETER)
    running = processes(server)
    # What is shared has no name.
    assert not set().union(*map(opened_by, [server.process.pid, *running.values()]))
    assert {"add_sub_0", "errors_0"} <= running.keys()
    server.kill()

    def is_gone(process: int) -> bool:
        status = subprocess.run(["ps", "-o", "stat=", str(process)], capture_output=True, text=True)
        return status.stdout.strip() in ("", "Z", "Z+")

    wait_until(lambda: all(is_gone(each) for each in running.values()), 10)


def test_a_list_of_processes_shows_a_line_for_each_instance(start, repository):
    server = start(repository, INTERPRETER)
    found = processes(server)
    assert found
    for name, process in found.items():
        words = pathlib.Path(f"/proc/{process}/cmdline").read_text().rstrip("\0").split("\0")
        assert words[-1] == name
        assert len(" ".join(words)) < 400 and "\n" not in "".join(words), words


def test_what_a_model_prints_and_logs_is_in_the_log(start, tmp_path):
    source = ECHO + """
class TritonPythonModel:
    def initialize(self, args):
        print("printed at the start")
    def execute(self, requests):
        pb_utils.Logger.log_warn("a warning of the model")
        return [output("a") for _ in requests]
    def finalize(self):
        print("printed at the end")
"""
    write(tmp_path / "repository", "talks", WAY, source)
    server = start(tmp_path / "repository", INTERPRETER)
    assert "OUTPUT" in cases.way(server, "talks", "x")
    server.stop()
    log = server.log.read_text()
    assert "talks (talks_0): printed at the start" in log
    assert "model.py:12] \"talks (talks_0): a warning of the model\"" in log
    assert "talks (talks_0): printed at the end" in log


def test_a_model_that_logs_much_at_its_start_is_heard_at_once(start, driver, tmp_path):
    """And one that never ends is given up all the same."""
    if driver != "io_uring":
        pytest.skip("it takes long, and no event loop is in it yet")
    source = ECHO + """
import time
class TritonPythonModel:
    def initialize(self, args):
        for count in range(60):
            pb_utils.Logger.log_info(f"line {count}")
        while args["model_name"] == "endless":
            pb_utils.Logger.log_info("and so on")
            time.sleep(0.01)
    def execute(self, requests):
        return [output("a") for _ in requests]
"""
    write(tmp_path / "repository", "talks", WAY, source)
    write(tmp_path / "repository", "endless", WAY, source)
    server = start(
        tmp_path / "repository",
        INTERPRETER,
        "--backend-config=python,stub-timeout-seconds=4",
        "--exit-on-error=false",
        "--strict-readiness=false",
    )
    # If each line had to wait for the next look at the process, the start would take too long.
    assert "OUTPUT" in cases.way(server, "talks", "x")
    assert not is_ready(server, "endless")
    log = server.log.read_text()
    assert "talks (talks_0): line 59" in log
    assert "'endless_0' of model 'endless' was not ready within 4 s" in log


def test_exceptions_in_hooks_are_told(start, tmp_path):
    folder = tmp_path / "repository"
    failing = "class TritonPythonModel:\n    {}\n        raise RuntimeError('in the hook')\n"
    write(folder, "importing", WAY, "import nothing_of_this_name\n")
    write(folder, "initializing", WAY, failing.format("def initialize(self, args):"))
    write(folder, "completing", WAY, failing.format("@staticmethod\n    def auto_complete_config(config):"))
    write(folder, "empty", WAY, "x = 1\n")
    write(folder, "ending", WAY, ECHO + failing.format("def finalize(self):") + (
        "    def execute(self, requests):\n        return [output('a') for _ in requests]\n"))
    server = start(folder, INTERPRETER, "--exit-on-error=false", "--strict-readiness=false")
    for model, text in (
        ("importing", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("initializing", "RuntimeError: in the hook"),
        ("completing", "RuntimeError: in the hook"),
        ("empty", "TritonPythonModel"),
    ):
        assert not is_ready(server, model)
        assert text in server.log.read_text()
    assert "OUTPUT" in cases.way(server, "ending", "x")
    server.stop()
    assert "in the hook" in server.log.read_text().partition("stopping")[2]


def test_an_error_of_what_is_no_text_is_told(start, tmp_path):
    """Its process goes on."""
    source = ECHO + """
import os
class TritonPythonModel:
    def execute(self, requests):
        if pb_utils.get_input_tensor_by_name(requests[0], "WAY").as_numpy()[0] == b"half":
            raise ValueError("half of a pair: \\ud800.")
        return [output(str(os.getpid())) for _ in requests]
"""
    write(tmp_path / "repository", "halves", WAY, source)
    server = start(tmp_path / "repository", INTERPRETER)
    process = cases.way(server, "halves", "x")["OUTPUT"]
    assert "ValueError: half of a pair: ?." in cases.way(server, "halves", "half")["error"]
    assert cases.way(server, "halves", "x")["OUTPUT"] == process


def test_a_call_that_would_wait_for_itself_is_refused(start, tmp_path):
    source = ECHO + """
class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]
    def answer(self, request):
        target = pb_utils.get_input_tensor_by_name(request, "WAY").as_numpy()[0].decode()
        call = pb_utils.InferenceRequest(
            model_name=target, requested_output_names=["OUTPUT"],
            inputs=[pb_utils.Tensor("WAY", np.array(["first"], np.object_))])
        response = call.exec()
        return output(response.error().message() if response.has_error() else "answered")
"""
    for name in ("first", "second"):
        write(tmp_path / "repository", name, WAY, source)
    server = start(tmp_path / "repository", INTERPRETER)
    refused = "Model first - Error when running inference: model 'first' cannot be called: the call would wait for itself"
    for model, target, expected in (("first", "first", refused), ("first", "second", "answered")):
        answer = cases.way(server, model, target)
        assert answer["OUTPUT"][2][0].startswith(expected), answer


def test_metrics_of_models_are_on_the_page(start, tmp_path):
    source = ECHO + """
class TritonPythonModel:
    def initialize(self, args):
        kinds = pb_utils.MetricFamily
        self.counts = pb_utils.MetricFamily("asked", "How often", kinds.COUNTER)
        self.count = self.counts.Metric(labels={"model": args["model_name"]})
        self.sizes = pb_utils.MetricFamily(name="sizes", description="Sizes", kind=kinds.HISTOGRAM)
        self.size = self.sizes.Metric(labels={}, buckets=[1.0, 10.0])
    def execute(self, requests):
        self.count.increment(len(requests))
        self.size.observe(5)
        try:
            self.count.increment(-1)
        except pb_utils.TritonModelException as error:
            return [output(f"{self.count.value()} {error}") for _ in requests]
"""
    write(tmp_path / "repository", "counts", WAY, source)
    server = start(tmp_path / "repository", INTERPRETER)
    text = cases.way(server, "counts", "x")["OUTPUT"][2][0]
    assert text == (
        "1.0 Failed to increment metric value: TRITONSERVER_METRIC_KIND_COUNTER can only be incremented "
        "monotonically by non-negative values."
    )
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics") as page:
        lines = page.read().decode().splitlines()
    assert 'asked{model="counts"} 1' in lines
    assert 'sizes_bucket{le="10"} 1' in lines


def test_the_statistics_tell_the_memory_of_processes(start, tmp_path):
    """What all instances of a model have resident; other models report none."""
    source = ECHO + """
class TritonPythonModel:
    def initialize(self, args):
        self.ballast = np.ones(32 << 20, dtype=np.uint8)
    def execute(self, requests):
        return [output("x") for _ in requests]
"""
    write(tmp_path / "repository", "one", WAY, source)
    write(tmp_path / "repository", "two", WAY + "instance_group [{ count: 2 kind: KIND_CPU }]", source)
    write(tmp_path / "repository", "plain", PLAIN, "")
    server = start(tmp_path / "repository", INTERPRETER)
    stats = {each["name"]: each for each in server.get_json("/v2/models/stats")["model_stats"]}
    (one,), (two,) = stats["one"]["memory_usage"], stats["two"]["memory_usage"]
    assert (one["type"], one["id"]) == ("CPU", 0)
    assert 32 << 20 < one["byte_size"] < 1 << 30 and two["byte_size"] > 1.5 * one["byte_size"]
    assert stats["plain"]["memory_usage"] == []
    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
        (usage,) = client.get_inference_statistics("one").model_stats[0].memory_usage
    assert usage.type == "CPU" and usage.byte_size > 32 << 20


def test_a_stream_may_end_with_the_code_of_a_failure(start, tmp_path):
    """Where the client asks for that by a header. What is refused before a model sees it is a message as ever."""
    source = ECHO + """
class TritonPythonModel:
    def execute(self, requests):
        error = pb_utils.TritonError("no more", pb_utils.TritonError.UNAVAILABLE)
        return [pb_utils.InferenceResponse(error=error) for _ in requests]
"""
    write(tmp_path / "repository", "failing", WAY, source)
    write(tmp_path / "repository", "plain", PLAIN, "")
    server = start(tmp_path / "repository", INTERPRETER)
    for headers, status, count in [
        ({"triton_grpc_error": "true"}, "StatusCode.UNAVAILABLE", 3),
        ({"triton_grpc_error": "false"}, None, 4),
        ({}, None, 4),
    ]:
        answers: queue.Queue = queue.Queue()
        with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
            client.start_stream(lambda result, error: answers.put((result, error)), headers=headers)  # noqa: B023
            for model, shape in [("no_such", [1]), ("failing", [2]), ("failing", [1]), ("plain", [1])]:
                given = triton_grpc.InferInput("INPUT0" if model == "plain" else "WAY", shape, "BYTES")
                given.set_data_from_numpy(np.array([b"x"] * shape[0], dtype=np.object_))
                client.async_stream_infer(model, [given])
            got = [answers.get(timeout=20) for _ in range(count)]
            client.stop_stream(cancel_requests=True)
        messages = [error and error.message() for _, error in got]
        assert "unknown model" in messages[0] and "unexpected shape" in messages[1]
        assert messages[2].startswith("no more") and got[2][1].status() == status
        assert messages[3:] == [None] * (count - 3)


def test_a_language_models_cache_is_told_to_who_asks(start, tmp_path):
    """In a header, in either form that load balancers read; without the header of theirs it is not."""
    source = ECHO + """
class TritonPythonModel:
    def initialize(self, args):
        kinds = pb_utils.MetricFamily
        self.blocks = pb_utils.MetricFamily("nv_trt_llm_kv_cache_block_metrics", "Blocks", kinds.GAUGE)
        of = lambda kind: self.blocks.Metric(labels={"kv_cache_block_type": kind, "model": "m", "version": "1"})
        self.metrics = {kind: of(kind) for kind in ("used", "max", "tokens_per")}
        for kind, value in (("max", 8), ("tokens_per", 64)):
            self.metrics[kind].set(value)
    def execute(self, requests):
        self.metrics["used"].increment(2)
        return [output("x") for _ in requests]
"""
    write(tmp_path / "repository", "m", WAY, source)
    server = start(tmp_path / "repository", INTERPRETER)
    expected = {
        ("generate", "text"): "TEXT named_metrics.kv_cache_utilization=0.250000, named_metrics.max_token_capacity=512",
        ("generate_stream", "json"): 'JSON {"named_metrics":{"kv_cache_utilization":0.5,"max_token_capacity":512}}',
        ("generate", "xml"): None,
        ("generate", None): None,
    }
    for (call, form), told in expected.items():
        url = f"http://{server.http_address}/v2/models/m/{call}"
        headers = {"endpoint-load-metrics-format": form} if form else {}
        with urllib.request.urlopen(urllib.request.Request(url, b'{"WAY": "x"}', headers)) as answer:
            assert answer.headers["endpoint-load-metrics"] == told


def test_models_load_and_unload_others(start, tmp_path):
    folder = tmp_path / "repository"
    source = ECHO + """
import json
CONFIG = {
    "backend": "python",
    "input": [{"name": "WAY", "data_type": "TYPE_STRING", "dims": [1]}],
    "output": [{"name": "OUTPUT", "data_type": "TYPE_STRING", "dims": [1]}],
}
class TritonPythonModel:
    def brought(self):
        pb_utils.load_model("brought", json.dumps(CONFIG), {"file:1/model.py": b"class TritonPythonModel: pass"})
        before = pb_utils.is_model_ready("brought")
        pb_utils.unload_model("brought", unload_dependents=True)
        return before, pb_utils.is_model_ready("brought")
    def execute(self, requests):
        if requests[0].inputs()[0].as_numpy()[0] == b"brought":
            return [output(str(self.brought())) for _ in requests]
        before = pb_utils.is_model_ready("other")
        pb_utils.load_model("other")
        between = pb_utils.is_model_ready("other", "1")
        pb_utils.unload_model("other")
        try:
            pb_utils.load_model("nothing")
        except pb_utils.TritonModelException as error:
            return [output(f"{before} {between} {error}") for _ in requests]
"""
    write(folder, "loads", WAY, source)
    write(folder, "other", WAY, ECHO + "class TritonPythonModel:\n    pass\n")
    server = start(folder, INTERPRETER, "--model-control-mode=explicit", "--load-model=loads")
    text = cases.way(server, "loads", "x")["OUTPUT"][2][0]
    assert text.startswith("False True failed to load 'nothing'")
    assert cases.way(server, "loads", "brought")["OUTPUT"][2] == ["(True, False)"]


def test_an_instance_that_an_edit_adds_is_told_the_configuration_that_was_loaded(start, tmp_path):
    """As by the real server, which reads a model's configuration for its back end once."""
    folder = tmp_path / "repository"
    source = f"""{ECHO}
import json
class TritonPythonModel:
    def initialize(self, args):
        (group,) = json.loads(args["model_config"])["instance_group"]
        self.told = f"{{args['model_instance_name']}} of {{group['count']}}"
    def execute(self, requests):
        time.sleep(0.02)
        return [output(self.told) for _ in requests]
""".replace("import json", "import json, time")
    group = "instance_group [{ kind: KIND_CPU count: %d }]"
    write(folder, "edited", WAY + group % 1, source)
    server = start(folder, INTERPRETER, "--model-control-mode=explicit", "--load-model=edited")
    assert cases.way(server, "edited", "x")["OUTPUT"][2] == ["edited_0_0 of 1"]
    (folder / "edited" / "config.pbtxt").write_text(WAY + group % 2)
    with triton_grpc.InferenceServerClient(server.grpc_address) as client:
        client.load_model("edited")
        (now,) = client.get_model_config("edited").config.instance_group
    assert now.count == 2
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: cases.way(server, "edited", "x")["OUTPUT"][2][0], range(16)))
    assert set(answers) == {"edited_0_0 of 1", "edited_0_1 of 1"}


def test_requests_that_wait_keep_their_answers_and_run_one_by_one(start, tmp_path):
    config = """backend: "python"
input [{ name: "X" data_type: TYPE_INT32 dims: [ 1 ] }]
output [{ name: "Y" data_type: TYPE_INT32 dims: [ 1 ] }]
"""
    source = """
import time
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def execute(self, requests):
        (request,) = requests
        value = int(request.inputs()[0].as_numpy()[0])
        if value % 10 == 3:
            raise ValueError(f"not {value}")
        if value % 10 == 5:
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(f"nor {value}"))]
        if value % 50 == 7:
            time.sleep(0.01)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("Y", request.inputs()[0].as_numpy())])]
"""
    write(tmp_path / "repository", "one", config, source)
    server = start(tmp_path / "repository", INTERPRETER)

    def ask(value: int):
        answer = cases.infer(server, "one", X=np.array([value], np.int32))
        return answer["Y"][2][0] if "Y" in answer else answer["error"]

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, range(600)))
    for value, answer in enumerate(answers):
        if value % 10 == 3:
            assert f"ValueError: not {value}\n" in answer, value
        else:
            assert answer == (f"nor {value}" if value % 10 == 5 else value)
