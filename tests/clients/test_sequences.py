"""Requests of one sequence: their order, what the model is told of it, and what is refused."""

from __future__ import annotations

import contextlib
import queue
import random
import threading
import time

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from . import models, onnx_file, triton

STRATEGIES = ["sequence_direct", "sequence_oldest"]
IDLE_SECONDS = 1.0


@pytest.fixture(params=["http", "grpc"])
def ask(request, server):
    """Sends one request of a sequence and returns the outputs."""
    module = {"http": triton_http, "grpc": triton_grpc}[request.param]
    way = {"http": triton.http, "grpc": triton.grpc}[request.param]

    def ask(model: str, value: float, sequence, flags: str = "", rows: int = 1) -> list:
        tensor = triton.tensor(module, "INPUT0", "FP32", np.full((rows, 1), value, np.float32))
        result = way(
            server,
            model_name=model,
            inputs=[tensor],
            sequence_id=sequence,
            sequence_start="s" in flags,
            sequence_end="e" in flags,
        )
        return [result.as_numpy(f"OUTPUT{index}").item() for index in range(5)]

    return ask


@pytest.mark.parametrize("model", STRATEGIES)
def test_a_model_is_told_of_its_sequence(ask, model):
    """START, READY, END and the correlation id are inputs of the model."""
    assert ask(model, 1, 2**40, "s") == [1, 1, 1, 0, 2**40]
    assert ask(model, 2, 2**40) == [2, 0, 1, 0, 2**40]
    # Who starts anew is told so.
    assert ask(model, 3, 2**40, "s") == [3, 1, 1, 0, 2**40]
    assert ask(model, 4, 2**40, "e") == [4, 0, 1, 1, 2**40]
    assert ask(model, 5, 2**40, "se") == [5, 1, 1, 1, 2**40]


def test_controls_have_the_type_and_values_of_the_configuration(ask):
    """Numbers of four and eight bytes, booleans, texts."""
    assert ask("sequence_fp32", 1, 7, "s") == [1, 0.5, 0.5, -1, 7]
    assert ask("sequence_fp32", 1, 7, "e") == [1, -1, 0.5, 0.5, 7]
    assert ask("sequence_bool", 1, 8, "se") == [1, False, False, False, 8]
    assert ask("sequence_int64", 1, 9, "se") == [1, 1, 1, 1, 9]
    assert ask("sequence_text", 1, "a name", "se")[4] == b"a name"
    assert ask("sequence_text", 1, 12, "se")[4] == b"12"


def test_wrong_requests_are_refused(ask):
    """With the real server's words, and the sequence goes on."""
    ask("sequence_direct", 1, 21, "s")
    for sequence, flags, rows, words in [
        (0, "s", 1, "must specify a non-zero or non-empty correlation ID"),
        (22, "", 1, "sequence 22 to model 'sequence_direct' must specify the START flag"),
        (22, "e", 1, "must specify the START flag"),
        (22, "s", 2, "must specify batch-size 1"),
        ("name", "s", 1, "sequence 'name' to model 'sequence_direct' must specify a number"),
        ("x" * 129, "s", 1, "cannot be longer than 128"),
    ]:
        with pytest.raises(InferenceServerException, match=words):
            ask("sequence_direct", 1, sequence, flags, rows)
    assert ask("sequence_direct", 2, 21, "e") == [2, 0, 1, 1, 21]


@pytest.mark.parametrize("model", STRATEGIES)
def test_an_idle_sequence_is_over(ask, model):
    """After max_sequence_idle_microseconds its slot is free, and it must start anew."""
    for sequence in range(31, 35):
        ask(model, 1, sequence, "s")
    began = time.monotonic()
    # It waits for a slot until one of those is idle for long enough.
    assert ask(model, 2, 35, "se")[4] == 35
    if model == "sequence_direct":
        assert time.monotonic() - began > 0.5 * IDLE_SECONDS
    time.sleep(1.5 * IDLE_SECONDS)
    with pytest.raises(InferenceServerException, match="START flag"):
        ask(model, 3, 31)


class Streams:
    """Many sequences over one gRPC stream."""

    def __init__(self, server):
        self.client = triton_grpc.InferenceServerClient(server.grpc_address)
        self.answers = queue.Queue()
        self.client.start_stream(lambda result, error: self.answers.put((result, error)))

    def send(self, model: str, sequence: int, index: int, count: int) -> None:
        tensor = triton.tensor(triton_grpc, "INPUT0", "FP32", np.full((1, 1), index, np.float32))
        self.client.async_stream_infer(
            model,
            [tensor],
            request_id=f"{sequence}/{index}",
            sequence_id=sequence,
            sequence_start=index == 0,
            sequence_end=index == count - 1,
        )


@pytest.mark.parametrize("model", STRATEGIES)
def test_many_more_sequences_than_slots_all_come_to_their_end(server, model):
    """Each in its order, however their requests lie among each other."""
    sequences, count = 60, 8
    streams = Streams(server)
    order = [sequence for sequence in range(1, sequences + 1) for _ in range(count)]
    random.Random(3).shuffle(order)
    sent = dict.fromkeys(order, 0)
    for sequence in order:
        streams.send(model, 1000 + sequence, sent[sequence], count)
        sent[sequence] += 1
    for _ in order:
        result, error = streams.answers.get(timeout=60)
        assert error is None, error
        sequence, index = map(int, result.get_response().id.split("/"))
        told = [result.as_numpy(f"OUTPUT{place}").item() for place in range(5)]
        assert told == [index, index == 0, 1, index == count - 1, sequence]
    streams.client.stop_stream()
    streams.client.close()


def test_clients_on_several_connections_share_the_slots(server):
    """A slot is found though its sequence's requests come to different reactors."""
    failures = []

    def client(number: int) -> None:
        clients = [triton_grpc.InferenceServerClient(server.grpc_address) for _ in range(2)]
        try:
            for index in range(30):
                tensor = triton.tensor(triton_grpc, "INPUT0", "FP32", np.full((1, 1), index, np.float32))
                result = clients[index % 2].infer(
                    "sequence_oldest",
                    [tensor],
                    sequence_id=2000 + number,
                    sequence_start=index == 0,
                    sequence_end=index == 29,
                )
                assert result.as_numpy("OUTPUT0").item() == index
        except Exception as error:  # noqa: BLE001 (told to the test's thread)
            failures.append(error)
        finally:
            for each in clients:
                each.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures


def test_rows_of_a_direct_batch_are_counted_with_their_gaps(start, tmp_path):
    """The batch is as large as its highest row, as with the real server; requests are counted once."""
    config = models.sequence("direct { }")
    server = start(models.write(tmp_path / "models", {"direct": models.Model(config)}))

    def send(value: float, sequence: int, flags: str = "") -> None:
        tensor = triton.tensor(triton_grpc, "INPUT0", "FP32", np.full((1, 1), value, np.float32))
        options = {"sequence_start": "s" in flags, "sequence_end": "e" in flags}
        triton.grpc(server, model_name="direct", inputs=[tensor], sequence_id=sequence, **options)

    for sequence in (11, 22, 33):
        send(1, sequence, "s")
    for sequence, flags in ((11, ""), (33, ""), (22, "e"), (44, "s")):
        send(1, sequence, flags)
    with contextlib.closing(triton_http.InferenceServerClient(server.http_address)) as client:
        (told,) = client.get_inference_statistics("direct")["model_stats"]
    assert (told["inference_count"], told["execution_count"]) == (7, 7)
    sizes = {each["batch_size"]: each["compute_infer"]["count"] for each in told["batch_stats"]}
    assert sizes == {1: 2, 2: 3, 3: 2}


@pytest.mark.parametrize("strategy", ["direct { }", "oldest { max_candidate_sequences: 4 }"])
def test_wrong_requests_take_no_slot(start, tmp_path, strategy):
    """However many there were, as many sequences as there are slots begin at once."""
    config = models.sequence(strategy).replace("idle_microseconds: 1000000", "idle_microseconds: 600000000")
    server = start(models.write(tmp_path / "models", {"m": models.Model(config)}))
    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:

        def send(sequence, flags: str, shape=(1, 1)) -> None:
            tensor = triton.tensor(triton_grpc, "INPUT0", "FP32", np.ones(shape, np.float32))
            options = {"sequence_start": "s" in flags, "sequence_end": "e" in flags}
            client.infer("m", [tensor], sequence_id=sequence, client_timeout=10, **options)

        wrong = [(0, "s", (1, 1)), ("", "se", (1, 1)), ("text", "s", (1, 1)), (7, "s", (1, 2)), (7, "s", (2, 1))]
        for number in range(20):
            for sequence, flags, shape in [*wrong, (100 + number, "e", (1, 1)), (200 + number, "", (1, 1))]:
                with pytest.raises(InferenceServerException) as refused:
                    send(sequence, flags, shape)
                assert "Deadline" not in str(refused.value)
        for sequence in range(1, 5):
            send(sequence, "s")
        for sequence in range(1, 5):
            send(sequence, "e")
        for sequence in range(11, 15):
            send(sequence, "s")


@pytest.mark.parametrize("strategy", ["direct { }", "oldest { max_candidate_sequences: 2147483647 }"])
def test_any_number_of_slots_may_be_configured(start, tmp_path, strategy):
    """They cost nothing before they are used: the model is loaded and serves."""
    config = models.sequence(strategy).replace("max_batch_size: 4", "max_batch_size: 2147483647")
    server = start(models.write(tmp_path / "models", {"m": models.Model(config)}))
    assert server.ready_seconds < 20
    tensor = triton.tensor(triton_grpc, "INPUT0", "FP32", np.ones((1, 1), np.float32))
    for sequence in range(1, 20):
        triton.grpc(server, model_name="m", inputs=[tensor], sequence_id=sequence, sequence_start=True)


@pytest.mark.parametrize("strategy", ["direct { }", "oldest { max_candidate_sequences: 1 }"])
def test_who_leaves_while_waiting_gives_the_slot_on(start, tmp_path, strategy):
    """As with the real server: the sequence is over, and the next has its slot at once."""
    config = models.sequence(strategy).replace("max_batch_size: 4", "max_batch_size: 1")
    config = config.replace("idle_microseconds: 1000000", "idle_microseconds: 600000000")
    config += 'parameters { key: "execute_delay_ms" value { string_value: "300" } }'
    server = start(models.write(tmp_path / "models", {"m": models.Model(config)}))
    answers: queue.Queue = queue.Queue()
    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:

        def send(name: str, sequence: int, flags: str = ""):
            tensor = triton.tensor(triton_grpc, "INPUT0", "FP32", np.ones((1, 1), np.float32))
            options = {"sequence_start": "s" in flags, "sequence_end": "e" in flags}
            call = client.async_infer(
                "m", [tensor], lambda result, error: answers.put((name, error)), sequence_id=sequence, **options
            )
            # They must come in this order, while the first runs.
            time.sleep(0.03)
            return call

        send("first", 1, "s")
        leaves = send("leaves", 2, "s")
        send("behind", 2)
        send("next", 3, "se")
        leaves.cancel()
        send("last", 1, "e")
        got = dict(answers.get(timeout=20) for _ in range(5))
        assert [got[name] for name in ("first", "last", "next")] == [None] * 3
        assert "its client has left while a request waited" in got["behind"].message()
        send("late", 2)
        assert "must specify the START flag" in answers.get(timeout=20)[1].message()


def test_sequences_under_way_end_with_their_model_and_leave_nobody_waiting(start, tmp_path):
    """What is answered is right, what is not is told why, while the model goes and comes again."""
    written = models.write(tmp_path / "models", {"m": models.Model(models.sequence("direct { }"))})
    server = start(written, "--model-control-mode=explicit", "--load-model=m")
    stop = threading.Event()
    answered, refused = [], []

    def client(number: int) -> None:
        with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as own:
            index = 0
            while not stop.is_set():
                tensor = triton.tensor(triton_grpc, "INPUT0", "FP32", np.full((1, 1), index, np.float32))
                options = {"sequence_start": index == 0, "sequence_end": index == 9}
                try:
                    result = own.infer("m", [tensor], sequence_id=number, client_timeout=20, **options)
                    answered.append(result.as_numpy("OUTPUT0").item() == index)
                    index = (index + 1) % 10
                except InferenceServerException as error:
                    refused.append(str(error))
                    index = 0

    threads = [threading.Thread(target=client, args=(number,)) for number in range(1, 7)]
    for thread in threads:
        thread.start()
    with contextlib.closing(triton_http.InferenceServerClient(server.http_address)) as control:
        for _ in range(3):
            time.sleep(0.2)
            control.unload_model("m")
            control.load_model("m")
    time.sleep(0.2)
    stop.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert answered and all(answered)
    known = ("is not found", "START flag", "is being unloaded", "no available versions")
    assert all(any(words in text for words in known) for text in refused), set(refused)


def _summing(strategy: str, initial: str, more: str = "") -> str:
    return f"""
        backend: "onnxruntime"
        max_batch_size: 4
        input {{ name: "x" data_type: TYPE_FP32 dims: 1 }}
        output {{ name: "y" data_type: TYPE_FP32 dims: 1 }}
        sequence_batching {{
          {strategy}
          max_sequence_idle_microseconds: 60000000
          state {{ input_name: "so_far" output_name: "sum" data_type: TYPE_FP32 dims: 1 {more}
            initial_state {{ name: "begin" data_type: TYPE_FP32 dims: 1 {initial} }} }}
        }}
    """


@pytest.mark.skipif(not models.has_onnxruntime(), reason="ONNX Runtime is not installed")
@pytest.mark.parametrize("strategy", ["direct { }", "oldest { }"])
@pytest.mark.parametrize("more", ["", "use_same_buffer_for_input_output: true"], ids=["", "same buffer"])
@pytest.mark.parametrize("initial, begin", [("zero_data: true", 0), ('data_file: "ten"', 10)])
def test_a_sequence_carries_its_state(start, tmp_path, strategy, initial, begin, more):
    """From what the configuration says that it begins with, each its own, until it ends."""
    repository = models.write(tmp_path / "repository", {"sums": models.Model(_summing(strategy, initial, more), {1: onnx_file.sums()})})
    (repository / "sums" / "initial_state").mkdir()
    (repository / "sums" / "initial_state" / "ten").write_bytes(np.float32(10).tobytes())
    server = start(repository)

    def ask(sequence: int, value: float, flags: str = "") -> float:
        given = triton.tensor(triton_grpc, "x", "FP32", np.full((1, 1), value, np.float32))
        told = {"sequence_id": sequence, "sequence_start": "s" in flags, "sequence_end": "e" in flags}
        return triton.grpc(server, model_name="sums", inputs=[given], **told).as_numpy("y").item() - begin

    assert [ask(1, 1, "s"), ask(1, 2), ask(2, 100, "s"), ask(1, 4)] == [1, 3, 100, 7]
    assert [ask(2, 200), ask(1, 8, "e"), ask(2, 400, "e")] == [300, 15, 700]
    # The next of that number, and one that starts anew before it has ended, begin at the beginning.
    assert [ask(1, 5, "s"), ask(1, 5), ask(1, 6, "s"), ask(1, 1, "e")] == [5, 10, 6, 7]


COLLECTING = """
    backend: "onnxruntime"
    max_batch_size: 4
    input {{ name: "x" data_type: TYPE_FP32 dims: 1 }}
    output {{ name: "y" data_type: TYPE_FP32 dims: -1 }}
    sequence_batching {{
      {strategy}
      max_sequence_idle_microseconds: 60000000
      state {{ input_name: "so_far" output_name: "all" data_type: TYPE_FP32 dims: -1 use_growable_memory: true
        initial_state {{ name: "begin" data_type: TYPE_FP32 dims: 1 zero_data: true }} }}
    }}
"""


@pytest.mark.skipif(not models.has_onnxruntime(), reason="ONNX Runtime is not installed")
@pytest.mark.parametrize("strategy", ["direct { }", "oldest { }"])
def test_a_state_may_grow(start, tmp_path, strategy):
    """With each request, and of sequences that come together to different sizes."""
    model = models.Model(COLLECTING.format(strategy=strategy), {1: onnx_file.collects()})
    server = start(models.write(tmp_path / "repository", {"all": model}))
    answers: dict[int, list] = {}
    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
        for turn in range(1, 6):
            come: queue.Queue = queue.Queue()
            # One more of them in each turn.
            for sequence in range(1, turn + 1):
                given = triton.tensor(triton_grpc, "x", "FP32", np.full((1, 1), turn, np.float32))
                told = {"sequence_id": sequence, "sequence_start": sequence == turn, "sequence_end": turn == 5}
                tell = lambda result, error, sequence=sequence: come.put((sequence, error or result))  # noqa: E731
                client.async_infer("all", [given], tell, **told)
            for _ in range(turn):
                sequence, answer = come.get(timeout=20)
                answers[sequence] = answer.as_numpy("y")[0].tolist()
    assert answers == {sequence: [0, *range(sequence, 6)] for sequence in range(1, 6)}


@pytest.mark.parametrize(
    ("strategy", "company"),
    [
        ("direct { max_queue_delay_microseconds: 700000 minimum_slot_utilization: 1 }", 4),
        ("direct { max_queue_delay_microseconds: 700000 minimum_slot_utilization: 0.5 }", 2),
        ("oldest { max_candidate_sequences: 4 max_queue_delay_microseconds: 700000 preferred_batch_size: [ 2, 4 ] }", 2),
        # As many candidates as there are rows.
        ("oldest { max_queue_delay_microseconds: 700000 preferred_batch_size: [ 4 ] }", 4),
    ],
)
def test_sequences_wait_for_company_as_configured(start, tmp_path, strategy, company):
    """One alone as long as is allowed; as many as are wanted run together, at once."""
    server = start(models.write(tmp_path / "repository", {"waits": models.Model(models.sequence(strategy))}))

    def ask(count: int) -> float:
        done: queue.Queue = queue.Queue()
        with contextlib.ExitStack() as clients:
            began = time.monotonic()
            for number in range(count):
                client = clients.enter_context(contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)))
                given = triton.tensor(triton_grpc, "INPUT0", "FP32", np.zeros((1, 1), np.float32))
                client.async_infer(
                    "waits", [given], lambda result, error: done.put(error), sequence_id=number + 1, sequence_start=True, sequence_end=True
                )
            assert [done.get(timeout=20) for _ in range(count)] == [None] * count
            return time.monotonic() - began

    assert ask(1) >= 0.69
    before = triton.executions(server, "waits")[1]
    assert ask(company) < 0.69
    assert triton.executions(server, "waits")[1] == before + 1
