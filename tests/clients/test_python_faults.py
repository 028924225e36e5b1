"""Python models that fail in every way there is, one after the other, while others ask for answers.

NEREID_FAULTS sets how many failures there are; each kind comes at least once.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import signal
import threading
import time

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from . import python_cases as cases
from .python_server import INTERPRETER, is_ready, processes, wait_until, write
from .regions import opened_by

FAULTS = int(os.environ.get("NEREID_FAULTS", "1"))
ASKERS = 3
INSTANCES = {"faulty_0_0", "faulty_0_1", "hooks_0"}
# What the others may be told meanwhile.
UNHEALTHY = re.compile(r"Stub process 'faulty_0_\d' is not healthy\.")
# How long what must come may take: on a busy machine a process may be late again and again.
SECONDS_MAX = 120
# How long a process may take to start, and may be stopped.
STUB_SECONDS_MAX = 10
LATE = f"was not ready within {STUB_SECONDS_MAX} s"
# Open files and memory that a server may gain: what a process has shared goes with it.
FILES_MAX, MEMORY_BYTES_MAX = 8, 64 << 20

CONFIG = """backend: "python"
instance_group [{ count: 2 kind: KIND_CPU }]
input [{ name: "WAY" data_type: TYPE_STRING dims: [ 1 ] }, { name: "X" data_type: TYPE_FP32 dims: [ -1 ] optional: true }]
output [{ name: "OUTPUT" data_type: TYPE_STRING dims: [ 1 ] }, { name: "Y" data_type: TYPE_FP32 dims: [ -1 ] }]
"""
SOURCE = """
import os, pathlib, resource, struct, threading, time
import numpy as np
import triton_python_backend_utils as pb_utils
from nereid_stub import requests as inside, wire

FLAG = pathlib.Path({flag!r})

def output(text):
    return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([text], np.object_))])

class TritonPythonModel:
    def initialize(self, args):
        if FLAG.exists():
            FLAG.unlink()
            raise RuntimeError("not this time")
        self.kept = []
    def execute(self, requests):
        return [getattr(self, request.inputs()[0].as_numpy()[0].decode())(request) for request in requests]
    def serve(self, request):
        time.sleep(0.005)
        return output(f"served by {{os.getpid()}}")
    def large(self, request):
        return pb_utils.InferenceResponse([pb_utils.Tensor("Y", pb_utils.get_input_tensor_by_name(request, "X").as_numpy() + 1)])
    def fail(self, request):
        raise ValueError("in execute")
    def leave(self, request):
        os._exit(7)
    def abort(self, request):
        os.abort()
    def loop(self, request):
        FLAG.with_name("looping").write_text(str(os.getpid()))
        while True:
            pass
    def hog(self, request):
        resource.setrlimit(resource.RLIMIT_AS, (1 << 32, resource.RLIM_INFINITY))
        return output(str(len(np.ones(1 << 40, np.uint8))))
    def send_much(self, request):
        return pb_utils.InferenceResponse([pb_utils.Tensor("Y", np.zeros(8 << 20, np.float32))])
    def nothing(self, request):
        return None
    def text(self, request):
        return "no response"
    def other_type(self, request):
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.arange(3))])
    def lie(self, request):
        # A tensor that is shorter than its shape.
        writer = wire.Writer()
        writer.begin(wire.RESPONSES)
        writer.bytes += struct.pack("<IQBBHI", 1, request._number, 3, 0, 1, 0)
        writer.bytes += struct.pack("<H1sBBBqI", 1, b"Y", 11, 1, 0, 1 << 40, 12)
        writer.align()
        writer.bytes += bytes(12)
        writer.end()
        inside.channel.send(writer)
        time.sleep(30)
    def lie_of_memory(self, request):
        writer = wire.Writer()
        writer.begin(wire.FREED)
        writer.pack(wire.COUNT, 1)
        writer.pack(wire.NUMBER, 1 << 60)
        writer.end()
        inside.channel.send(writer)
        time.sleep(30)
    def babble(self, request):
        # One in sixteen random lengths is none that the server refuses: it would wait for the rest.
        inside.channel._outbound.sendall(bytes([255] * 4) + os.urandom(4092))
        time.sleep(30)
    def hang_up(self, request):
        inside.channel._outbound.shutdown(2)
        time.sleep(30)
    def fork(self, request):
        if os.fork() == 0:
            time.sleep(0.5)
            os._exit(0)
        return output("forked")
"""

# Another model, each of whose hooks raises while there is a file of its name.
HOOKS_CONFIG = """backend: "python"
input [{ name: "WAY" data_type: TYPE_STRING dims: [ 1 ] }]
output [{ name: "OUTPUT" data_type: TYPE_STRING dims: [ 1 ] }]
"""
HOOKS_SOURCE = """
import pathlib
import triton_python_backend_utils as pb_utils

def may_raise(hook):
    if (pathlib.Path({flags!r}) / hook).exists():
        raise RuntimeError(f"in {{hook}}")

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        may_raise("auto_complete_config")
        return config
    def initialize(self, args):
        may_raise("initialize")
    def is_ready(self):
        may_raise("is_ready")
        return True
    def execute(self, requests):
        may_raise("execute")
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", each.inputs()[0].as_numpy())]) for each in requests]
    def finalize(self):
        may_raise("finalize")
"""


class Trouble:
    """A server with the models, and the ways to make them fail."""

    def __init__(self, server, flag: pathlib.Path):
        self.server = server
        self.flag = flag

    def ask(self, way: str, **more) -> dict:
        """The answer of the model, or its error."""
        options = {"client_timeout": SECONDS_MAX}
        return cases.infer(self.server, "faulty", options, WAY=np.array([way.encode()], np.object_), **more)

    def signal(self, number: int) -> int:
        """To one of the two processes, whose id it gives."""
        process = processes(self.server)["faulty_0_0"]
        os.kill(process, number)
        return process

    def wait_for_another(self, process: int) -> None:
        """Until another process is in this one's place."""
        wait_until(lambda: processes(self.server).get("faulty_0_0", process) != process, SECONDS_MAX)

    def killed(self) -> None:
        """kill -9."""
        self.wait_for_another(self.signal(signal.SIGKILL))

    def paused(self) -> None:
        """Stopped, and continued in time, unless the machine is so busy that this comes too late."""
        process = self.signal(signal.SIGSTOP)
        wait_until(lambda: not is_ready(self.server, "faulty"), SECONDS_MAX)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)

    def stopped(self) -> None:
        """Stopped for good."""
        self.wait_for_another(self.signal(signal.SIGSTOP))

    def not_starting(self) -> None:
        """Killed, and the next fails to begin."""
        self.flag.touch()
        self.killed()
        wait_until(lambda: not self.flag.exists(), SECONDS_MAX)

    def looping(self) -> None:
        """Never done; somebody has to end it."""
        looping = self.flag.with_name("looping")
        asked = threading.Thread(target=self.ask, args=("loop",), daemon=True)
        asked.start()
        wait_until(lambda: looping.exists() and looping.read_text(), SECONDS_MAX)
        served = {self.ask("serve")["OUTPUT"][2][0] for _ in range(8)}
        assert f"served by {looping.read_text()}" not in served
        os.kill(int(looping.read_text()), signal.SIGKILL)
        looping.unlink()
        asked.join(SECONDS_MAX)
        assert not asked.is_alive()

    def in_hook(self, hook: str) -> None:
        """An exception in a hook of the other model, which serves again when it raises none."""
        flag = self.flag.with_name(hook)
        with triton_grpc.InferenceServerClient(self.server.grpc_address) as client:
            flag.touch()
            if hook == "is_ready":
                wait_until(lambda: not is_ready(self.server, "hooks"), SECONDS_MAX)
            elif hook == "execute":
                assert f"in {hook}" in cases.way(self.server, "hooks", "x")["error"]
            else:
                client.unload_model("hooks")
                wait_until(lambda: "hooks_0" not in processes(self.server), SECONDS_MAX)
                refused = refusal(client)
                assert (refused is None) if hook == "finalize" else (f"in {hook}" in refused), refused
            flag.unlink()
            if not is_ready(self.server, "hooks"):
                assert refusal(client) is None
        wait_until(lambda: is_ready(self.server, "hooks"), SECONDS_MAX)
        assert cases.way(self.server, "hooks", "x")["OUTPUT"][2] == ["x"]

    def ends(self, way: str) -> None:
        """A request whose process does not survive it."""
        answer = self.ask(way)
        assert UNHEALTHY.fullmatch(answer["error"]) and answer["status"] == "StatusCode.UNAVAILABLE", (way, answer)

    def fails(self, way: str, words: str, **more) -> None:
        """A request that fails, and nothing else."""
        assert words in self.ask(way, **more)["error"], way


def refusal(client) -> str | None:
    """Why the other model is not loaded, if it is not. That its process was late, because the machine is busy,
    is no reason."""
    deadline = time.monotonic() + SECONDS_MAX
    while True:
        try:
            client.load_model("hooks")
            return None
        except triton_grpc.InferenceServerException as error:
            if LATE not in error.message() or time.monotonic() > deadline:
                return error.message()


KINDS = {
    "killed": Trouble.killed,
    "paused": Trouble.paused,
    "stopped": Trouble.stopped,
    "not starting": Trouble.not_starting,
    "looping": Trouble.looping,
    **{way: lambda it, way=way: it.ends(way) for way in ("leave", "abort", "lie", "lie_of_memory", "babble", "hang_up")},
    **{
        way: lambda it, way=way, words=words: it.fails(way, words)
        for way, words in (
            ("fail", "ValueError: in execute"),
            ("hog", "Unable to allocate 1.00 TiB"),
            ("send_much", "shm-limit-byte-size"),
            ("nothing", "let go of the request"),
            ("text", "Expected an 'InferenceResponse' object"),
            ("missing", "has no attribute 'missing'"),
        )
    },
    "too large": lambda it: it.fails("large", "shm-limit-byte-size", X=np.zeros(3 << 20, np.float32)),
    "other type": lambda it: it.ask("other_type"),
    "forked": lambda it: it.ask("fork"),
    **{
        f"in {hook}": lambda it, hook=hook: it.in_hook(hook)
        for hook in ("auto_complete_config", "initialize", "is_ready", "execute", "finalize")
    },
}


def test_whatever_a_model_does_the_server_serves_on(start, driver, tmp_path):
    if driver != "io_uring" and FAULTS < len(KINDS):
        pytest.skip("in the short form one event loop is enough")
    flag = tmp_path / "flag"
    write(tmp_path / "repository", "faulty", CONFIG, SOURCE.format(flag=str(flag)))
    write(tmp_path / "repository", "hooks", HOOKS_CONFIG, HOOKS_SOURCE.format(flags=str(tmp_path)))
    limits = ("shm-limit-byte-size=16777216", f"stub-timeout-seconds={STUB_SECONDS_MAX}")
    server = start(
        tmp_path / "repository",
        INTERPRETER,
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in ("faulty", "hooks")),
        *(f"--backend-config=python,{limit}" for limit in limits),
    )
    trouble = Trouble(server, flag)
    seen, stop = [], threading.Event()

    def ask(way: str, **more) -> None:
        while not stop.is_set():
            answer = trouble.ask(way, **more)
            # Of a large tensor its last element is kept, for there are many answers.
            seen.append({"last": answer["Y"][2][-1]} if "Y" in answer else answer)

    values = np.arange(100_000, dtype=np.float32)
    askers = [threading.Thread(target=ask, args=("serve",), daemon=True) for _ in range(ASKERS)]
    askers.append(threading.Thread(target=ask, args=("large",), kwargs={"X": values}, daemon=True))

    def is_whole() -> bool:
        return processes(server).keys() == INSTANCES and all(is_ready(server, model) for model in ("faulty", "hooks"))

    for asker in askers:
        asker.start()
    wait_until(lambda: len(seen) > 20, SECONDS_MAX)
    files, memory = len(os.listdir(f"/proc/{server.process.pid}/fd")), server.memory_bytes()
    for number in range(max(FAULTS, len(KINDS))):
        name, kind = list(KINDS.items())[number % len(KINDS)]
        wait_until(is_whole, SECONDS_MAX)
        assert not opened_by(server.process.pid)
        before = len(seen)
        kind(trouble)
        wait_until(lambda: any("error" not in answer for answer in seen[before:]), SECONDS_MAX)
        assert server.is_running(), name
    wait_until(is_whole, SECONDS_MAX)
    stop.set()
    for asker in askers:
        asker.join(SECONDS_MAX)
        assert not asker.is_alive(), "a request has no answer"
    errors = {answer["error"] for answer in seen if "error" in answer}
    assert all(UNHEALTHY.fullmatch(error) for error in errors), errors
    large = [answer["last"] for answer in seen if "last" in answer]
    assert large and set(large) == {100_000.0}
    assert len(os.listdir(f"/proc/{server.process.pid}/fd")) <= files + FILES_MAX
    assert server.memory_bytes() <= memory + MEMORY_BYTES_MAX
