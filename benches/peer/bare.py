"""Small requests, 64 B of tensor each, from one client to any server: a bare socket (`bare.c`), Nereid, Triton."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import os
import pathlib
import statistics
import struct
import subprocess
import tempfile

import load
import numpy as np
import servers
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import service_pb2

SOURCE = pathlib.Path(__file__).with_name("bare.c")
PROGRAM = servers.ROOT / "build" / "bench" / "bare"
MODEL = "identity"
ELEMENTS = load.SMALL


@dataclasses.dataclass(frozen=True)
class Line:
    """A protocol, connections, requests in flight on each, and who may use which processors."""

    protocol: str
    connections: int
    depth: int
    place: str

    @property
    def name(self) -> str:
        """How it is named in the table."""
        return f"{self.protocol}, {self.connections * self.depth} in flight, {self.place}"

    def processors(self) -> tuple[set[int], set[int]]:
        """Those of the server and those of the client."""
        every = os.sched_getaffinity(0)
        first = {min(every)}
        return {"apart": (first, every - first), "on one processor": (first, first), "anywhere": (every, every)}[self.place]


# With one in flight, who has to wake whom decides more than all else; left alone that is a matter of luck.
LINES = [
    *(Line(protocol, 1, 1, place) for protocol in ("HTTP", "gRPC") for place in ("apart", "on one processor")),
    # Of connections perf_analyzer opens about as many.
    Line("HTTP", 64, 1, "anywhere"),
    Line("gRPC", 2, 32, "anywhere"),
]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, WINDOW_UPDATE = 0, 1, 4, 8
END_STREAM, END_HEADERS = 1, 4
# No server may be kept from answering because nobody gives back what it has sent.
WINDOW = 0x7FFF_FFFF - 0xFFFF


def compile_program() -> None:
    """Makes the program that is the bare server and the client of all."""
    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]
    subprocess.run(["cc", *flags, "-o", PROGRAM, SOURCE], check=True)


def http_parts() -> list[bytes]:
    """What a client sends over HTTP: nothing, the first request, each other one."""
    tensor = tritonclient.http.InferInput("INPUT0", [1, ELEMENTS], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, ELEMENTS), np.float32), binary_data=True)
    output = tritonclient.http.InferRequestedOutput("OUTPUT0", binary_data=True)
    client = tritonclient.http.InferenceServerClient
    body, json_length = client.generate_request_body([tensor], outputs=[output])
    request = (
        f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAccept: */*\r\n"
        "Content-Type: application/octet-stream\r\n"
        f"Inference-Header-Content-Length: {json_length}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    return [b"", request, request]


def frame(kind: int, flags: int, payload: bytes) -> bytes:
    """A frame of HTTP/2; the client puts in the number of its stream."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags, 0, 0, 0, 0]) + payload


def grpc_parts() -> list[bytes]:
    """The same over gRPC: the first head puts its fields into the server's table, the others point there."""

    def named(index: bytes, value: bytes) -> bytes:
        return index + bytes([len(value)]) + value

    tensor = tritonclient.grpc.InferInput("INPUT0", [1, ELEMENTS], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, ELEMENTS), np.float32))
    message = service_pb2.ModelInferRequest(model_name=MODEL, outputs=[{"name": "OUTPUT0"}])
    message.inputs.append(tensor._get_tensor())
    message.raw_input_contents.append(tensor._get_content())
    payload = message.SerializeToString()
    body = frame(DATA, END_STREAM, struct.pack(">BI", 0, len(payload)) + payload)
    # RFC 7541: POST and http are in the static table, and so are the names of the next three.
    post_http = b"\x83\x86"
    first = post_http + named(b"\x44", b"/inference.GRPCInferenceService/ModelInfer")
    first += named(b"\x41", b"127.0.0.1:8001") + named(b"\x5f", b"application/grpc")
    first += named(named(b"\x40", b"te"), b"trailers")
    other = post_http + b"\xc1\xc0\xbf\xbe"
    before = PREFACE + frame(SETTINGS, 0, b"") + frame(WINDOW_UPDATE, 0, struct.pack(">I", WINDOW))
    return [before, *(frame(HEADERS, END_HEADERS, head) + body for head in (first, other))]


PARTS = {"HTTP": http_parts, "gRPC": grpc_parts}


class BareServer:
    """A process that sends back what comes."""

    def __enter__(self) -> BareServer:
        command = [PROGRAM, "server"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, preexec_fn=servers.end_with_parent
        )
        self.http_port = self.grpc_port = int(self.process.stdout.readline())
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()


def measure(server: BareServer | servers.Server, line: Line, seconds: float) -> tuple[float, float]:
    """CPU time of a server for a request and the median latency of one, in microseconds."""
    before, first, other = PARTS[line.protocol]()
    port = server.http_port if line.protocol == "HTTP" else server.grpc_port
    is_bare = isinstance(server, BareServer)
    done = 0 if is_bare else server.requests_done(MODEL)
    if is_bare:
        # It would send that back as well.
        before = b""
    way = "frames" if line.protocol == "gRPC" else str(len(other) if is_bare else answer_length(port, other))
    arguments = [port, server.process.pid, way, line.connections, line.depth, round(seconds * 1000)]
    found = subprocess.run(
        [PROGRAM, "client", *map(str, arguments)],
        input=b"".join(struct.pack("=I", len(part)) + part for part in (before, first, other)),
        stdout=subprocess.PIPE,
        check=True,
    )
    cpu_us, p50_us, answers = map(float, found.stdout.split())
    if not is_bare and server.requests_done(MODEL) - done < answers:
        raise servers.ServerError(f"{server.name} counts fewer successes than {answers:.0f} ({line.name})")
    return cpu_us, p50_us


def measure_placed(start, line: Line, seconds: float) -> tuple[float, float]:
    """The same of a server of its own, where the line says."""
    every = os.sched_getaffinity(0)
    of_server, of_client = line.processors()
    try:
        os.sched_setaffinity(0, of_server)
        with start() as server:
            os.sched_setaffinity(0, of_client)
            return measure(server, line, seconds)
    finally:
        os.sched_setaffinity(0, every)


def answer_length(port: int, request: bytes) -> int:
    """How long the answer to a request is; those of an identity are all as long."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.connect()
        connection.sock.sendall(request)
        answer = connection.sock.recv(1 << 16)
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200") or f"content-length: {len(body)}".encode() not in head.lower():
        raise servers.ServerError(f"expected one whole answer of status 200, got {answer!r}")
    return len(answer)


def table(nereid: pathlib.Path, flags: tuple[str, ...], rounds: int, seconds: float) -> None:
    """Prints what each server takes, and what that is of the real one's, by the medians over the rounds."""
    compile_program()
    found: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        repository = load.write_repository(pathlib.Path(folder))
        subjects = {
            "bare": BareServer,
            "Nereid": lambda: servers.Server("bound-nereid", nereid, repository, flags),
            "Triton": lambda: servers.Server("bound-triton", servers.TRITON, repository),
        }
        for _ in range(rounds):
            for line in LINES:
                for name, start in subjects.items():
                    found.setdefault((line, name), []).append(measure_placed(start, line, seconds))
    print("| 64 B there and back | server | CPU µs | of Triton's | p50 µs | of Triton's |\n|---|---|---|---|---|---|")
    for (line, name), samples in found.items():
        cells = []
        for which in range(2):
            values = [sample[which] for sample in samples]
            # What else the machine does weighs on all of a round.
            peer = [sample[which] for sample in found[line, "Triton"]]
            ratios = [value / other for value, other in zip(values, peer)]
            cells += [f"{statistics.median(values):.1f}", f"{statistics.median(ratios):.2f}"]
        print(f"| {line.name} | {name} | {' | '.join(cells)} |")
