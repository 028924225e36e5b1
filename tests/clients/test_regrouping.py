"""Other instance groups for a model that is served: it stays loaded, with the instances that stay."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import threading

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from . import models, triton
from .python_server import ECHO, INTERPRETER, WAY, processes, wait_until, write

# Else there are processes that complete configurations, too.
PYTHON = (INTERPRETER, "--disable-auto-complete-config")
EXPLICIT = ("--model-control-mode=explicit", "--load-model=*")
POLL = ("--model-control-mode=poll", "--repository-poll-secs=1")
SECONDS_MAX = 60

# Says which process answers.
SOURCE = ECHO + """
import os, time
class TritonPythonModel:
    def initialize(self, args):
        if os.path.exists(os.environ.get("FAILS", "")):
            raise Exception("as planned")
        self.sums = {}
    def execute(self, requests):
        time.sleep(0.002)
        return [output(self.answer(request)) for request in requests]
    def answer(self, request):
        sequence = request.correlation_id()
        self.sums[sequence] = self.sums.get(sequence, 0) + 1
        return f"{os.getpid()} {self.sums[sequence]}"
"""


def _groups(*counts: int) -> str:
    """The instance groups of a configuration."""
    groups = (f'{{ name: "g{index}" count: {count} kind: KIND_CPU }}' for index, count in enumerate(counts))
    return f"instance_group [ {', '.join(groups)} ]\n"


def _way(server, model: str, **request) -> list[str]:
    """Who answers: its process and how many requests of the sequence it has had."""
    shape = [1, 1] if "sequence_id" in request else [1]
    tensor = triton.tensor(triton_grpc, "WAY", "BYTES", np.full(shape, b"x", np.object_))
    answer = triton.grpc(server, model_name=model, inputs=[tensor], **request)
    return answer.as_numpy("OUTPUT").flatten()[0].decode().split()


def _count(server, model: str) -> int:
    return server.get_json(f"/v2/models/{model}/stats")["model_stats"][0]["inference_count"]


@contextlib.contextmanager
def _client(server):
    with contextlib.closing(triton_http.InferenceServerClient(server.http_address)) as client:
        yield client


@pytest.mark.parametrize("how", ["file", "override", "poll"])
def test_only_the_instances_change(start, tmp_path, how):
    """Processes that stay are the same ones, nothing is counted from the beginning, and the model is ready all
    the time."""
    folder = tmp_path / "repository"
    write(folder, "m", WAY + _groups(1), SOURCE)
    server = start(folder, *PYTHON, *(POLL if how == "poll" else EXPLICIT))
    with _client(server) as client:

        def change(counts: tuple[int, ...], options: str = ""):
            if how == "override":
                config = client.get_model_config("m")
                config["instance_group"] = [
                    {"name": f"g{index}", "count": count, "kind": "KIND_CPU"} for index, count in enumerate(counts)
                ]
                config["parameters"] = {"p": {"string_value": options}} if options else {}
                client.load_model("m", config=json.dumps(config))
            else:
                (folder / "m" / "config.pbtxt").write_text(WAY + _groups(*counts) + options)
                if how == "file":
                    client.load_model("m")

            def is_done() -> bool:
                assert client.is_model_ready("m") and client.is_server_ready()
                groups = client.get_model_config("m")["instance_group"]
                return [group["count"] for group in groups] == [*counts] and len(processes(server)) == sum(counts)

            wait_until(is_done)

        first = processes(server)
        assert first.keys() == {"g0_0"}
        assert int(_way(server, "m")[0]) == first["g0_0"]
        change((3,))
        more = processes(server)
        assert more.keys() == {"g0_0", "g0_1", "g0_2"} and first.items() <= more.items()
        # A second group takes one over, whose name it keeps.
        change((2, 1))
        assert processes(server) == more
        change((2,))
        fewer = processes(server)
        assert len(fewer) == 2 and fewer.items() <= more.items() and first.items() <= fewer.items()
        assert int(_way(server, "m")[0]) in fewer.values()
        assert _count(server, "m") == 2
        # Anything else, and all are made anew.
        options = "p" if how == "override" else 'parameters { key: "p" value { string_value: "p" } }'
        change((2,), options)
        wait_until(lambda: _count(server, "m") == 0 and not fewer.items() & processes(server).items())
        assert "failed" not in server.log.read_text()


def test_an_instance_that_fails_leaves_all_as_it_was(start, tmp_path, monkeypatch):
    """The error and the index say of the version that it is served; so does the real server."""
    monkeypatch.setenv("FAILS", str(tmp_path / "fails"))
    folder = tmp_path / "repository"
    write(folder, "m", WAY + _groups(1), SOURCE)
    server = start(folder, *PYTHON, *EXPLICIT)
    before = processes(server)
    (tmp_path / "fails").touch()
    (folder / "m" / "config.pbtxt").write_text(WAY + _groups(3))
    with _client(server) as client:
        with pytest.raises(InferenceServerException, match="version 1 is at READY state: .*as planned"):
            client.load_model("m")
        (row,) = client.get_model_repository_index()
        assert (row["version"], row["state"]) == ("1", "READY") and "as planned" in row["reason"]
        assert client.is_model_ready("m") and client.get_model_config("m")["instance_group"][0]["count"] == 1
        assert int(_way(server, "m")[0]) == before["g0_0"] and processes(server) == before
        (tmp_path / "fails").unlink()
        client.load_model("m")
        (row,) = client.get_model_repository_index()
        assert (row["state"], row.get("reason", "")) == ("READY", "")
    assert len(processes(server)) == 3 and before.items() <= processes(server).items()


CHAIN = r"""parameters { key: "chain" value: { string_value: "[{\"op\": \"softmax\"}]" } }"""
DELAY = ' parameters { key: "execute_delay_ms" value { string_value: "2" } }'


@pytest.mark.parametrize("config, kind, shape, factor", [
    (models.identity(), "KIND_CPU", (4,), 1),
    (models.identity(models.batched() + DELAY), "KIND_CPU", (1, 4), 1),
    (models.identity(models.batched() + CHAIN, dims="4").replace("identity", "ops"), "KIND_GPU", (1, 4), 0.25),
], ids=["reactors", "threads", "lanes"])  # fmt: skip
def test_no_request_fails_while_instances_come_and_go(start, tmp_path, config, kind, shape, factor):
    """Each is answered, and counted once."""

    def written(count: int) -> str:
        gpus = "gpus: [ 0 ]" if kind == "KIND_GPU" else ""
        return f"{config}\ninstance_group [{{ count: {count} kind: {kind} {gpus} }}]"

    folder = models.write(tmp_path / "repository", {"m": models.Model(written(1))})
    server = start(folder, "--device=host", *EXPLICIT)
    array, stop, done, failed = np.ones(shape, np.float32), threading.Event(), [0] * 6, []

    def ask(index: int):
        with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
            given = triton.tensor(triton_grpc, "INPUT0", "FP32", array)
            while not stop.is_set():
                try:
                    np.testing.assert_allclose(client.infer("m", [given]).as_numpy("OUTPUT0"), array * factor)
                    done[index] += 1
                except Exception as error:  # noqa: BLE001  (each is a failure of the test)
                    failed.append(error)

    asking = [threading.Thread(target=ask, args=(index,)) for index in range(len(done))]
    for thread in asking:
        thread.start()
    with _client(server) as client:
        for turn in range(20):
            seen = list(done)
            wait_until(lambda seen=seen: failed or all(now > then for now, then in zip(done, seen)))
            (folder / "m" / "config.pbtxt").write_text(written(turn % 4 + 1))
            client.load_model("m")
            assert client.get_model_config("m")["instance_group"][0]["count"] == turn % 4 + 1
    stop.set()
    for thread in asking:
        thread.join(SECONDS_MAX)
    assert failed == [] and _count(server, "m") == sum(done)


SEQUENCES = WAY + "max_batch_size: 1 sequence_batching { direct { } max_sequence_idle_microseconds: 60000000 }\n"


def _asking(server):
    """What sends a request of a sequence, which begins (`s`) or ends (`e`) with it."""

    def ask(sequence: int, flags: str = "") -> list[str]:
        flags = {"sequence_start": "s" in flags, "sequence_end": "e" in flags}
        return _way(server, "m", sequence_id=sequence, client_timeout=SECONDS_MAX, **flags)

    return ask


def test_sequences_go_on_where_they_began(start, tmp_path):
    """Also on an instance that leaves, until they are over. Those that wait begin on one that comes."""
    folder = tmp_path / "repository"
    write(folder, "m", SEQUENCES + _groups(2), SOURCE)
    server = start(folder, *PYTHON, *EXPLICIT)

    ask = _asking(server)
    with _client(server) as client, concurrent.futures.ThreadPoolExecutor() as threads:

        def change(count: int):
            (folder / "m" / "config.pbtxt").write_text(SEQUENCES + _groups(count))
            client.load_model("m")

        one, two = ask(1, "s")[0], ask(2, "s")[0]
        assert one != two and {int(one), int(two)} == set(processes(server).values())
        change(1)
        assert (ask(1), ask(2)) == ([one, "2"], [two, "2"])
        # The one place that stays is taken.
        third = threads.submit(ask, 3, "s")
        stays = str(processes(server)["g0_0"])
        staying, leaving = (1, 2) if one == stays else (2, 1)
        ask(leaving, "e")
        wait_until(lambda: len(processes(server)) == 1)
        assert not third.done()
        assert ask(staying) == [stays, "3"] and ask(staying, "e") == [stays, "4"]
        assert third.result(SECONDS_MAX) == [stays, "1"]
        fourth = threads.submit(ask, 4, "s")
        change(2)
        assert fourth.result(SECONDS_MAX)[0] != stays and ask(3, "e") == [stays, "2"]
        # A leaving instance with no sequence ends at once.
        ask(4, "e")
        change(1)
        wait_until(lambda: len(processes(server)) == 1)
        assert os.path.exists(f"/proc/{stays}") and ask(5, "se") == [stays, "1"]


def test_an_instance_that_comes_is_no_instance_that_leaves(start, tmp_path):
    """One with a sequence leaves, and another comes before that is over: each has its own, and nothing is lost."""
    folder = tmp_path / "repository"
    write(folder, "m", SEQUENCES + _groups(2), SOURCE)
    server = start(folder, *PYTHON, *EXPLICIT)

    ask = _asking(server)
    with _client(server) as client:
        one, two = ask(1, "s")[0], ask(2, "s")[0]
        for count in (1, 2):
            (folder / "m" / "config.pbtxt").write_text(SEQUENCES + _groups(count))
            client.load_model("m")
        three = ask(3, "s")[0]
        assert three not in (one, two)
        assert (ask(1), ask(2), ask(3)) == ([one, "2"], [two, "2"], [three, "2"])
        assert (ask(1, "e"), ask(2, "e")) == ([one, "3"], [two, "3"])
        wait_until(lambda: len(processes(server)) == 2)
        stays = {one, two} & set(map(str, processes(server).values()))
        assert ask(3) == [three, "3"] and {ask(4, "s")[0]} == stays and ask(3, "e") == [three, "4"]
