"""Watching the server: live log settings, traces of requests, distributions of durations."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import http.server
import json
import os
import pathlib
import queue
import re
import signal
import threading
import time
import urllib.request

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from tritonclient.utils import InferenceServerException

from . import models, python_server, triton

ARRAY = np.array([1.0, 2.5], dtype=np.float32)
TAGGED = """
metric_tags { key: "team" value: "a" }
model_metrics { metric_control {
  metric_identifier { family: "nv_inference_request_histogram_us" }
  histogram_options { buckets: [ 1, 60000000 ] }
} }
"""
DEFAULT_LINE = re.compile(r'[IWEV]\d{4} \d\d:\d\d:\d\d\.\d{6} \d+ \S+:\d+\] "')
ISO_LINE = re.compile(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ [IWEV] \d+ \S+:\d+\] "')


@pytest.fixture
def small(tmp_path):
    """A repository of a model with its own metrics and one without."""
    chosen = {"tagged": models.Model(models.identity(TAGGED)), "fp32": models.identity_models()["fp32"]}
    return models.write(tmp_path / "repository", chosen)


def clients(server):
    """A client of each protocol."""
    yield triton_grpc, triton_grpc.InferenceServerClient(server.grpc_address)
    yield triton_http, triton_http.InferenceServerClient(server.http_address)


def infer(library, client, model: str = "fp32", request_id: str = "") -> None:
    """One good request."""
    tensor = library.InferInput("INPUT0", [2], "FP32")
    tensor.set_data_from_numpy(ARRAY)
    answer = client.infer(model, [tensor], request_id=request_id)
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), ARRAY)


def told(library, settings) -> dict:
    """Settings as plain values, as HTTP has them."""
    if library is triton_http:
        return settings
    return {
        name: list(value.value) if hasattr(value, "value") else getattr(value, value.WhichOneof("parameter_choice"))
        for name, value in settings.settings.items()
    }


def test_the_log_changes_while_serving(start, small, tmp_path):
    """Levels and formats, by both protocols; the file cannot be moved."""
    log = tmp_path / "own.log"
    server = start(small, f"--log-file={log}")
    for library, client in clients(server):
        now = told(library, client.get_log_settings())
        assert (now["log_file"], now["log_info"], now["log_verbose_level"]) == (str(log), True, 0)
        quiet = told(library, client.update_log_settings({"log_info": False, "log_warning": False}))
        assert (quiet["log_info"], quiet["log_warning"], quiet["log_error"]) == (False, False, True)
        before = log.read_text()
        _break_a_connection(server)
        assert log.read_text() == before
        changed = {"log_info": True, "log_warning": True, "log_verbose_level": 1, "log_format": "ISO8601"}
        assert told(library, client.update_log_settings(changed)).items() >= changed.items()
        # A connection that ends is told of in detail only.
        _break_a_connection(server)
        after = log.read_text()[len(before) :].splitlines()
        assert after and all(ISO_LINE.match(line) for line in after), after
        back = {"log_format": "default", "log_verbose_level": 0}
        assert told(library, client.update_log_settings(back)).items() >= back.items()
        with pytest.raises(InferenceServerException, match="log file location can not be updated"):
            client.update_log_settings({"log_file": "/tmp/other"})
    first = log.read_text().splitlines()[0]
    assert DEFAULT_LINE.match(first), first


def _break_a_connection(server) -> None:
    """Has the server log something: a broken connection in detail."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=5)
    connection.connect()
    connection.sock.sendall(b"NONSENSE\r\n\r\n")
    connection.sock.recv(1000)
    connection.close()
    time.sleep(0.2)


def test_traces_are_written(start, small, tmp_path):
    """Triton's records, of both protocols and of failures, into the files that the flags name."""
    file = tmp_path / "trace.json"
    server = start(
        small,
        f"--trace-config=triton,file={file}",
        "--trace-config=level=TIMESTAMPS",
        "--trace-config=level=TENSORS",
        "--trace-config=rate=1",
    )
    for library, client in clients(server):
        infer(library, client, request_id="r")
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(15)
    records = json.loads(file.read_text())
    assert [r for r in records if "model_name" in r] == [
        {"id": number, "model_name": "fp32", "model_version": 1, "request_id": "r"} for number in (1, 2)
    ]
    wires = {1: ("GRPC_WAITREAD", "GRPC_SEND"), 2: ("HTTP_RECV", "HTTP_SEND")}
    for number, (receiving, sending) in wires.items():
        own = [record for record in records if record["id"] == number]
        stamps = {s["name"]: s["ns"] for record in own for s in record.get("timestamps", ())}
        order = [
            f"{receiving}_START",
            f"{receiving}_END",
            "REQUEST_START",
            "QUEUE_START",
            "COMPUTE_START",
            "COMPUTE_INPUT_END",
            "COMPUTE_OUTPUT_START",
            "COMPUTE_END",
            "REQUEST_END",
            f"{sending}_START",
            f"{sending}_END",
        ]
        assert set(stamps) == {*order, "INFER_RESPONSE_COMPLETE"}
        assert sorted(stamps[name] for name in order) == [stamps[name] for name in order]
        assert abs(time.monotonic_ns() - stamps["REQUEST_START"]) < 60e9
        activities = {record["activity"]: record["tensor"] for record in own if "activity" in record}
        tensor = {"data": "1,2.5", "shape": "2", "dtype": "FP32"}
        assert activities == {
            "TENSOR_QUEUE_INPUT": {"name": "INPUT0", **tensor},
            "TENSOR_BACKEND_OUTPUT": {"name": "OUTPUT0", **tensor},
        }


def test_the_times_of_the_wire_are_those_of_each_answer(start, tmp_path):
    """Of a stream whose model answers more than once, of flat requests, and of those that are refused."""
    file = tmp_path / "trace.json"
    repository = models.write(tmp_path / "repository", {"repeat": models.Model(models.REPEAT), "fp32": models.identity_models()["fp32"]})
    server = start(repository, f"--trace-config=triton,file={file}", "--trace-config=level=TIMESTAMPS", "--trace-config=rate=1")
    answers: queue.Queue = queue.Queue()
    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        given = [("IN", "INT32", [7, 8]), ("DELAY", "UINT32", [0, 300]), ("WAIT", "UINT32", [0])]
        arrays = [(name, kind, np.array(values, dtype=models.TYPES[kind][1])) for name, kind, values in given]
        client.async_stream_infer("repeat", [triton.tensor(triton_grpc, *each) for each in arrays])
        assert [answers.get(timeout=20)[1] for _ in range(2)] == [None, None]
        client.stop_stream()
    for call in ("generate", "generate_stream"):
        body = json.dumps({"INPUT0": [1.0, 2.5]}).encode()
        with urllib.request.urlopen(f"http://{server.http_address}/v2/models/fp32/{call}", body) as answer:
            assert b"2.5" in answer.read()
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(15)
    stamps: dict = {}
    for record in json.loads(file.read_text()):
        for stamp in record.get("timestamps", ()):
            stamps.setdefault(record["id"], {})[stamp["name"]] = stamp["ns"]
    streamed, *flat = (stamps[number] for number in sorted(stamps))
    # From the first response to the last, which the model gives 300 ms later.
    assert streamed["GRPC_SEND_END"] - streamed["GRPC_SEND_START"] >= 250e6
    assert streamed["GRPC_WAITREAD_START"] <= streamed["GRPC_WAITREAD_END"] <= streamed["REQUEST_START"]
    for each in flat:
        assert each["HTTP_RECV_START"] <= each["HTTP_RECV_END"] <= each["REQUEST_START"]
        assert each["HTTP_SEND_START"] <= each["HTTP_SEND_END"]


def test_trace_settings_change_while_serving(start, small, tmp_path):
    """For the server and for one model, with a limit, and files of a few traces each."""
    file = tmp_path / "trace.json"
    server = start(small, f"--trace-config=triton,file={file}", "--trace-config=rate=2")
    for library, client in clients(server):
        now = told(library, client.get_trace_settings())
        value = now["trace_rate"]
        assert (value, now["trace_level"]) == (["2"] if library is triton_grpc else "2", ["OFF"])
        wanted = {"trace_level": ["TIMESTAMPS"], "trace_rate": "1", "trace_count": "3", "log_frequency": "2"}
        client.update_trace_settings("fp32", wanted)
        assert told(library, client.get_trace_settings("tagged"))["trace_level"] == ["OFF"]
        for _ in range(5):
            infer(library, client)
            infer(library, client, "tagged")
        left = told(library, client.get_trace_settings("fp32"))["trace_count"]
        assert left in ("0", ["0"])
        client.update_trace_settings("fp32", dict.fromkeys(wanted))
        assert told(library, client.get_trace_settings("fp32"))["trace_level"] == ["OFF"]
        with pytest.raises(InferenceServerException, match="Request for unknown model : no_such"):
            client.get_trace_settings("no_such")
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(15)
    counts = [
        len({record["id"] for record in json.loads(path.read_text())})
        for path in sorted(tmp_path.glob("trace.json*"))
    ]
    assert counts == [2, 2, 2]


def metrics(server) -> dict[str, float]:
    """Every line of the metrics page."""
    connection = http.client.HTTPConnection("127.0.0.1", server.metrics_port, timeout=5)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines) if name[:1] != "#"}


def test_durations_are_told_as_configured(start, small):
    """Histograms with a model's own buckets, summaries with the operator's quantiles, tags as labels."""
    server = start(
        small,
        "--metrics-config=histogram_latencies=true",
        "--metrics-config=summary_latencies=true",
        "--metrics-config=summary_quantiles=0.5:0.05,0.99:0.001",
        "--metrics-config=counter_latencies=false",
        "--allow-cpu-metrics=false",
    )
    for library, client in clients(server):
        for _ in range(5):
            infer(library, client, "tagged")
    page = metrics(server)
    labels = '{_team="a",model="tagged",version="1"'
    family = "nv_inference_request_histogram_us"
    assert page[f"{family}_count{labels}}}"] == 10
    assert [page[f'{family}_bucket{labels},le="{bound}"}}'] for bound in ("1", "60000000", "+Inf")] == [0, 10, 10]
    assert page[f'{family}_count{{model="fp32",version="1"}}'] == 0
    assert page[f'nv_inference_first_response_histogram_ms_bucket{labels},le="5000"}}'] == 10
    mean = page[f"{family}_sum{labels}}}"] / 10
    median = page[f'nv_inference_request_summary_us{labels},quantile="0.5"}}']
    high = page[f'nv_inference_request_summary_us{labels},quantile="0.99"}}']
    assert 0 < median <= high <= 10.7 * mean + 2
    assert page[f"nv_inference_compute_infer_summary_us_count{labels}}}"] == 10
    assert np.isnan(page['nv_inference_queue_summary_us{model="fp32",version="1",quantile="0.5"}'])
    assert not [name for name in page if "_duration_us" in name or name.startswith("nv_cpu_")]


# Every family of Triton's but those of GPUs, which `test_metrics_of_gpus_come_from_the_management_library` looks at.
STAGES = ("request", "queue", "compute_input", "compute_infer", "compute_output")
FAMILIES = {
    **{f"nv_inference_{name}": "counter" for name in ("request_success", "request_failure", "count", "exec_count")},
    **{f"nv_inference_{stage}_duration_us": "counter" for stage in STAGES},
    **{f"nv_inference_{stage}_summary_us": "summary" for stage in STAGES},
    **{f"nv_cache_{name}_per_model": "counter" for name in ("num_hits", "num_misses", "hit_duration", "miss_duration")},
    **{f"nv_cache_{name}_summary_per_model": "summary" for name in ("hit", "miss")},
    **{f"nv_pinned_memory_pool_{name}_bytes": "gauge" for name in ("total", "used")},
    **{f"nv_cpu_{name}": "gauge" for name in ("utilization", "memory_total_bytes", "memory_used_bytes")},
    "nv_inference_pending_request_count": "gauge",
    "nv_model_load_duration_secs": "gauge",
    "nv_inference_first_response_histogram_ms": "histogram",
}


def test_all_families_are_there_when_they_are_asked_for(start, tmp_path):
    """Each of its kind, with a help and a line at least."""
    cached = models.Model(models.identity("response_cache { enable: true }"))
    settings = ("summary_latencies=true", "histogram_latencies=true", "counter_latencies=true")
    flags = [f"--metrics-config={setting}" for setting in settings]
    server = start(models.write(tmp_path / "repository", {"fp32": cached}), "--cache-config=local,size=1048576", *flags)
    for _ in range(2):
        triton.infer("http", server, "fp32", ARRAY)
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    kinds = dict(line.split()[2:] for line in lines if line.startswith("# TYPE "))
    assert FAMILIES.items() <= kinds.items()
    for name in FAMILIES:
        assert any(line.startswith(f"# HELP {name} ") for line in lines), name
        assert any(re.match(rf"{name}(_count)?[ {{]", line) for line in lines), name


def test_the_machine_is_looked_at_as_often_as_the_flag_says(start, small):
    """A fraction of a millisecond is an interval too."""
    name = "nv_cpu_utilization"
    seldom = start(small, "--metrics-interval-ms=3600000")
    often = start(small, "--metrics-interval-ms=0.5")
    first, before = metrics(seldom)[name], metrics(often)[name]
    python_server.wait_until(lambda: metrics(often)[name] != before)
    assert metrics(seldom)[name] == first


FAILING = """
class TritonPythonModel:
    def execute(self, requests):
        raise RuntimeError("as it was asked to")
"""
FULL = "max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 60000000 default_queue_policy { max_queue_size: 1 } }"
UNTIMELY = """max_batch_size: 8 dynamic_batching {
  max_queue_delay_microseconds: 60000000 default_queue_policy { default_timeout_microseconds: 1000 }
}"""


def test_failures_are_told_by_their_reason(start, tmp_path):
    """REJECTED by the queue, CANCELED by the client, BACKEND where the model fails, OTHER else."""
    repository = models.write(
        tmp_path / "repository",
        {
            "full": models.Model(models.identity(FULL)),
            "untimely": models.Model(models.identity(UNTIMELY)),
            "batched": models.Model(models.identity(models.batched())),
        },
    )
    python_server.write(repository, "failing", models.identity().replace("identity", "python"), FAILING)
    memory = [f"--{name}-byte-size={4 << 20}" for name in ("memory-budget", "pinned-memory-pool")]
    server = start(repository, python_server.INTERPRETER, *memory)

    def failures(model: str) -> dict[str, int]:
        page = metrics(server)
        name = f'nv_inference_request_failure{{model="{model}",reason="%s",version="1"}}'
        told = {reason: int(page[name % reason]) for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER")}
        return {reason: count for reason, count in told.items() if count}

    def fails(model: str, array: np.ndarray = ARRAY, **more) -> None:
        with pytest.raises(InferenceServerException):
            triton.infer("grpc", server, model, array, **more)

    rows = ARRAY.reshape(1, 2)
    # One waits in the queue until it is taken back; there is room for no other.
    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
        given = triton.tensor(triton_grpc, "INPUT0", "FP32", rows)
        waiting = client.async_infer("full", [given], lambda result, error: None)
        pending = 'nv_inference_pending_request_count{model="full",version="1"}'
        python_server.wait_until(lambda: metrics(server)[pending] == 1)
        fails("full", rows)
        fails("full", rows)
        assert failures("full") == {"REJECTED": 2}
        waiting.cancel()

        def takes_the_place() -> bool:
            client.async_infer("full", [given], lambda result, error: None)
            return failures("full").get("CANCELED") == 1

        python_server.wait_until(takes_the_place)
    fails("untimely", rows)
    assert failures("untimely") == {"REJECTED": 1}
    for _ in range(3):
        fails("failing")
    assert failures("failing") == {"BACKEND": 3}
    # It is taken in, and there is no room for its batch.
    fails("batched", np.ones((2, 300_000), dtype=np.float32))
    assert failures("batched") == {"OTHER": 1}


def test_durations_are_counters_by_default(server):
    """As with Triton, nothing more is kept unless it is asked for."""
    page = metrics(server)
    assert any(name.startswith("nv_inference_request_duration_us") for name in page)
    assert not [name for name in page if "histogram" in name or "summary" in name]


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes what a server sends to an OpenTelemetry collector, and reads it by OpenTelemetry's own definitions."""

    spans: list = []

    def do_POST(self):  # noqa: N802  (the base class names it)
        """One batch of spans."""
        body = self.rfile.read(int(self.headers["content-length"]))
        request = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
        assert self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
        for resource in request.resource_spans:
            told = {each.key: each.value.string_value for each in resource.resource.attributes}
            self.spans.extend((told, span) for scope in resource.scope_spans for span in scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        """Nothing."""


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_traces_are_sent_as_spans_of_opentelemetry(start, small, way):
    """Three a request, in the client's trace, which is traced whatever the rate."""
    collector = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Collector,), {"spans": []}))
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{collector.server_port}/v1/traces"
    flags = [
        "mode=opentelemetry",
        f"opentelemetry,url={url}",
        "opentelemetry,resource=service.name=tested",
        "opentelemetry,bsp_schedule_delay=10",
        "level=TIMESTAMPS",
        "rate=1000",
    ]
    server = start(small, *(f"--trace-config={flag}" for flag in flags))
    assert server.get_json("/v2/trace/setting")["trace_mode"] == "opentelemetry"
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    x = np.ones(4, dtype=np.float32)
    triton.infer(way, server, "fp32", x)
    triton.infer(way, server, "fp32", x, headers={"traceparent": f"00-{trace}-{parent}-01"}, request_id="mine")
    spans = collector.RequestHandlerClass.spans
    deadline = time.monotonic() + 20
    while len(spans) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    server.stop()
    collector.shutdown()
    assert len(spans) == 3
    by_name = {span.name: span for _, span in spans}
    request, model, compute = by_name["InferRequest"], by_name["fp32"], by_name["compute"]
    assert {told["service.name"] for told, _ in spans} == {"tested"}
    assert {span.trace_id.hex() for _, span in spans} == {trace}
    assert request.parent_span_id.hex() == parent
    assert (model.parent_span_id, compute.parent_span_id) == (request.span_id, model.span_id)
    attributes = {each.key: each.value for each in model.attributes}
    assert attributes["triton.model_name"].string_value == "fp32"
    assert attributes["triton.model_version"].int_value == 1
    assert attributes["triton.request_id"].string_value == "mine"
    assert [each.name for each in compute.events][0] == "COMPUTE_START"
    assert [each.name for each in model.events][-1] == "REQUEST_END"
    wire = {"http": ("HTTP_RECV", "HTTP_SEND"), "grpc": ("GRPC_WAITREAD", "GRPC_SEND")}[way]
    expected = [f"{wire[0]}_START", f"{wire[0]}_END", "INFER_RESPONSE_COMPLETE", f"{wire[1]}_START", f"{wire[1]}_END"]
    assert [each.name for each in request.events] == expected
    assert request.start_time_unix_nano <= model.start_time_unix_nano
    assert request.end_time_unix_nano >= model.end_time_unix_nano
    assert abs(request.start_time_unix_nano / 1e9 - time.time()) < 60


@contextlib.contextmanager
def stopped(server, names: set[str]):
    """Threads of a server, by their names, do nothing meanwhile: as a debugger has it."""
    seize, interrupt, detach, every_thread = 0x4206, 0x4207, 17, 0x40000000
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    folders = pathlib.Path(f"/proc/{server.process.pid}/task").iterdir()
    # What such a thread starts has its name.
    found = [(int(folder.name), (folder / "comm").read_text().strip()) for folder in folders]
    threads = [thread for thread, name in found if name in names]
    assert {name for _, name in found} >= names
    try:
        for thread in threads:
            assert ptrace(seize, thread, None, None) == 0, os.strerror(ctypes.get_errno())
            assert ptrace(interrupt, thread, None, None) == 0, os.strerror(ctypes.get_errno())
            os.waitpid(thread, every_thread)
        yield
    finally:
        for thread in threads:
            ptrace(detach, thread, None, None)


def test_a_scrape_waits_for_no_reactor(start, small):
    """Neither one over a connection that was kept nor one over a new one, while all of them stand still."""
    server = start(small)
    kept, new = (http.client.HTTPConnection("127.0.0.1", server.metrics_port, timeout=10) for _ in range(2))

    def scrape(connection) -> str:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()

    with triton_grpc.InferenceServerClient(server.grpc_address) as client:
        infer(triton_grpc, client)
        assert 'nv_inference_count{model="fp32",version="1"} 1' in scrape(kept)
        with stopped(server, {"reactor-0", "reactor-1"}):
            with pytest.raises(InferenceServerException, match="Deadline"):
                client.is_server_live(client_timeout=0.2)
            for connection in (kept, new):
                assert 'nv_inference_count{model="fp32",version="1"} 1' in scrape(connection)
        infer(triton_grpc, client)
        assert 'nv_inference_count{model="fp32",version="1"} 2' in scrape(kept)
    kept.close()
    new.close()
