"""What is noted of requests that are traced: in the files of Triton's own form, and in spans of OpenTelemetry.

    build/venv/bin/python -m tests.differential.traces

records what the real Triton notes; the file it writes is committed, so that the tests run where the real server is
not installed.
"""

from __future__ import annotations

import http.server
import json
import pathlib
import shutil
import threading
import time

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from . import repository
from .record import FOLDER, servers

GOLDEN = FOLDER / "triton-2.51-traces.json"
MODELS = ("identity", "identity_batched", "identity_labels", "ensemble", "cached")
CLIENTS = {"http": triton_http, "grpc": triton_grpc}
CACHE = "--cache-config=local,size=1048576"
SECONDS_MAX = 20
# What numbers the traces of a run.
NUMBERS = ("triton.trace_id", "triton.trace_parent_id")

# Each request by its name: the model, the shape of its input, and how many classes of the output are wanted
# instead of it. In this order: the second of a kept answer is a hit. After a request that is refused the real server
# writes no file any more, so that there is none here.
REQUESTS: dict[str, tuple[str, tuple[int, ...], int]] = {
    "plain": ("identity", (2,), 0),
    "batched": ("identity_batched", (2, 3), 0),
    "classes": ("identity_labels", (1, 4), 2),
    "ensemble": ("ensemble", (1, 2), 0),
    "miss": ("cached", (1, 2), 0),
    "hit": ("cached", (1, 2), 0),
}
NAMES = [f"{protocol}/{name}" for protocol in CLIENTS for name in REQUESTS]


class Player:
    """A server that is asked, and what it notes."""

    def __init__(self, name: str, binary: pathlib.Path, folder: pathlib.Path, *flags: str):
        self.name, self.binary, self.folder, self.flags = name, binary, folder, flags
        shutil.rmtree(folder, ignore_errors=True)
        written = repository.write(folder / "all", cached=True)
        for model in MODELS:
            shutil.copytree(written / model, folder / "models" / model)

    def records(self) -> dict[str, list]:
        """Of each request what the file has of it, and of those that served it."""
        file = self.folder / "trace.json"
        self._play(lambda: None, "level=TIMESTAMPS", "level=TENSORS", "rate=1", f"triton,file={file}")
        return _records(json.loads(file.read_text()))

    def spans(self) -> dict[str, list]:
        """Of each request its spans."""
        spans: list[dict] = []
        collector = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Collector,), {"spans": spans}))
        threading.Thread(target=collector.serve_forever, daemon=True).start()

        def all_have_come() -> None:
            deadline = time.monotonic() + SECONDS_MAX
            while sum("parentSpanId" not in span for span in spans) < len(NAMES) and time.monotonic() < deadline:
                time.sleep(0.02)

        url = f"http://127.0.0.1:{collector.server_port}/v1/traces"
        told = ("mode=opentelemetry", f"opentelemetry,url={url}", "opentelemetry,bsp_schedule_delay=10")
        self._play(all_have_come, *told, "level=TIMESTAMPS", "rate=1")
        collector.shutdown()
        return _spans(spans)

    def _play(self, before_the_end, *settings: str) -> None:
        flags = (CACHE, "--allow-http=true", *(f"--trace-config={each}" for each in settings), *self.flags)
        with servers.Server(self.name, self.binary, self.folder / "models", flags, self.folder / "log") as server:
            addresses = {"http": server.http_address, "grpc": server.grpc_address}
            for protocol, library in CLIENTS.items():
                with library.InferenceServerClient(addresses[protocol]) as client:
                    for request in REQUESTS:
                        _send(library, client, f"{protocol}/{request}", *REQUESTS[request])
            before_the_end()


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes spans in either form of OTLP: the real server sends JSON, ours protobuf."""

    spans: list[dict] = []

    def do_POST(self):  # noqa: N802  (the base class names it)
        """One batch of spans."""
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers["content-type"] == "application/json":
            request = json.loads(body)
        else:
            message = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
            request = json_format.MessageToDict(message, use_integers_for_enums=True)
        scopes = (scope for resource in request["resourceSpans"] for scope in resource["scopeSpans"])
        self.spans.extend(span for scope in scopes for span in scope["spans"])
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        """Nothing."""


def _send(library, client, name: str, model: str, shape: tuple[int, ...], classes: int) -> None:
    tensor = library.InferInput("INPUT0", list(shape), "FP32")
    # Each protocol has values of its own, so that neither finds what the other left in the cache.
    first = 1 if library is triton_http else 10
    tensor.set_data_from_numpy(np.arange(first, first + np.prod(shape), dtype=np.float32).reshape(shape))
    wanted = [library.InferRequestedOutput("OUTPUT0", class_count=classes)]
    client.infer(model, [tensor], outputs=wanted, request_id=name)


def _records(found: list[dict]) -> dict[str, list]:
    traces: dict[int, dict] = {}
    for record in found:
        trace = traces.setdefault(record.pop("id"), {"moments": [], "tensors": []})
        trace["moments"] += [stamp["name"] for stamp in record.pop("timestamps", ())]
        if "activity" in record:
            trace["tensors"].append([record["activity"], record["tensor"]])
        else:
            trace.update(record)
    told: dict[str, list] = {}
    for _, trace in sorted(traces.items()):
        trace["serves"] = bool(trace.pop("parent_id", None))
        trace["moments"].sort()
        told.setdefault(trace.pop("request_id"), []).append(trace)
    return told


def _spans(found: list[dict]) -> dict[str, list]:
    names = {span["spanId"]: span["name"] for span in found}
    requests: dict[str, str] = {}
    told: dict[str, list] = {}
    for span in found:
        span["attributes"] = {
            each["key"]: each["value"] for each in span.get("attributes", ()) if each["key"] not in NUMBERS
        }
        if "triton.request_id" in span["attributes"]:
            requests[span["traceId"]] = span["attributes"]["triton.request_id"]["stringValue"]
    for span in found:
        told.setdefault(requests[span["traceId"]], []).append(
            {
                "name": span["name"],
                "in": names.get(span.get("parentSpanId", "")),
                "kind": span["kind"],
                "attributes": span["attributes"],
                "events": sorted(event["name"] for event in span.get("events", ())),
            }
        )
    for spans in told.values():
        spans.sort(key=lambda span: (span["in"] or "", span["name"], span["events"]))
    return told


def play(name: str, binary: pathlib.Path, folder: pathlib.Path, *flags: str) -> dict[str, dict]:
    """What a server notes of each request, in both forms."""
    player = Player(name, binary, folder, *flags)
    records, spans = player.records(), player.spans()
    return {request: {"records": records.get(request), "spans": spans.get(request)} for request in NAMES}


def play_real(folder: pathlib.Path) -> dict[str, dict]:
    """What the real server notes."""
    caches = servers.TRITON.parents[1] / "caches"
    return play("triton-traces", servers.TRITON, folder, f"--cache-directory={caches}")


def main() -> None:
    """Records what the real server notes."""
    told = play_real(servers.ROOT / "build" / "differential" / "traces-triton")
    lines = (
        f' "{name}": {{\n  "records": {json.dumps(each["records"])},\n  "spans": {json.dumps(each["spans"])}\n }}'
        for name, each in told.items()
    )
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{len(told)} requests written to {GOLDEN.relative_to(servers.ROOT)}")


if __name__ == "__main__":
    main()
