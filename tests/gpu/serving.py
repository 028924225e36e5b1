"""A server for the steps of `tests/gpu/run.sh`, the models that it serves, and requests that are looked at. Needs no
client's package: requests are JSON."""

from __future__ import annotations

import base64
import json
import pathlib
import socket
import struct
import subprocess
import time
import urllib.request
import zlib

import numpy as np
from clients import device_memory

COLUMNS = 150_528
ROW_BYTES = 4 * COLUMNS
READY_SECONDS_MAX = 120
STOP_SECONDS_MAX = 30
SIDE = 16


def free_ports(count: int) -> list[int]:
    """Ports that nobody has."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Server:
    """A server as long as a `with` block lasts."""

    def __init__(self, nereid: pathlib.Path, folder: pathlib.Path, repository: pathlib.Path, *flags: str):
        http, grpc = free_ports(2)
        self.http, self.grpc = f"127.0.0.1:{http}", f"127.0.0.1:{grpc}"
        addresses = ["--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--allow-metrics=false"]
        ports = [f"--http-port={http}", f"--grpc-port={grpc}"]
        self.command = [str(nereid), f"--model-repository={repository}", *addresses, *ports, *flags]
        self.log = folder / f"server-{http}.log"

    def __enter__(self) -> Server:
        print("$", *self.command, flush=True)
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + READY_SECONDS_MAX
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError("the server is not ready:\n" + self.log.read_text(errors="replace")[-4000:])
            time.sleep(0.1)
        return self

    def __exit__(self, *_) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # Also when a step's time is over.
            self.process.kill()
            self.process.wait()

    def is_ready(self) -> bool:
        """Whether the server answers so."""
        try:
            with urllib.request.urlopen(f"http://{self.http}/v2/health/ready", timeout=5):
                return True
        except OSError:
            return False

    def ask(self, path: str, body: dict | None = None) -> dict:
        """What it answers to a request in JSON."""
        content = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(f"http://{self.http}/v2/{path}", content, timeout=60) as answer:
            return json.loads(answer.read() or b"{}")

    def infer(self, model: str, tensors: dict[str, tuple[str, np.ndarray]]) -> dict[str, dict]:
        """A model's outputs by name; what it is given travels behind the JSON as it is."""
        given, contents = [], []
        for name, (datatype, array) in tensors.items():
            strings = (struct.pack("<I", len(each)) + each for each in array.ravel()) if datatype == "BYTES" else None
            contents.append(array.tobytes() if strings is None else b"".join(strings))
            size = {"binary_data_size": len(contents[-1])}
            given.append({"name": name, "datatype": datatype, "shape": list(array.shape), "parameters": size})
        head = json.dumps({"inputs": given}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
        url = f"http://{self.http}/v2/models/{model}/infer"
        request = urllib.request.Request(url, head + b"".join(contents), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return {output["name"]: output for output in json.loads(answer.read())["outputs"]}

    def inferences(self, model: str) -> int:
        """Requests that a model has answered."""
        [statistics] = self.ask(f"models/{model}/stats")["model_stats"]
        return int(statistics["inference_count"])


def rate(report: pathlib.Path) -> str:
    """What `nereid bench` has reported of one load."""
    [load] = json.loads(report.read_text())["results"]
    return f"{load['infer_per_s']:.0f} requests/s, mean {load['latency_mean_us']:.0f} µs"


def softmax_repository(folder: pathlib.Path) -> pathlib.Path:
    """A chain of one step."""
    write(
        folder,
        "softmax",
        f"""
backend: "ops" max_batch_size: 64 dynamic_batching {{}}
input [{{ name: "INPUT0" data_type: TYPE_FP32 dims: [ {COLUMNS} ] }}]
output [{{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ {COLUMNS} ] }}]
parameters {{ key: "chain" value: {{ string_value: "[{{\\"op\\": \\"softmax\\"}}]" }} }}
instance_group {{ kind: KIND_GPU }}
""",
    )
    return folder


def picture_repository(folder: pathlib.Path) -> pathlib.Path:
    """A chain that begins with files, on a device and on the processors."""
    steps = [{"op": "decode"}, {"op": "resize", "size": [SIDE, SIDE]}, {"op": "normalize", "mean": 0.5}]
    chain = json.dumps([*steps, {"op": "layout", "to": "CHW"}]).replace('"', '\\"')
    for name, kind in (("device", "KIND_GPU"), ("processors", "KIND_CPU")):
        write(
            folder,
            name,
            f"""
backend: "ops" max_batch_size: 8 dynamic_batching {{}}
input [{{ name: "FILE" data_type: TYPE_STRING dims: [ 1 ] }}]
output [{{ name: "OUTPUT" data_type: TYPE_FP32 dims: [ 3, {SIDE}, {SIDE} ] }}]
parameters {{ key: "chain" value: {{ string_value: "{chain}" }} }}
instance_group {{ kind: {kind} }}
""",
        )
    return folder


def write(folder: pathlib.Path, name: str, config: str) -> None:
    """A model without a file."""
    (folder / name / "1").mkdir(parents=True)
    (folder / name / "config.pbtxt").write_text(config)


def check_shared_memory(server: Server, host: bool) -> int:
    """Inputs and outputs in memory of a device; gives how many requests were right."""
    count = 8
    size = 2 * count * ROW_BYTES
    memory = device_memory.HostMemory(size) if host else device_memory.CudaMemory("libcuda.so.1", size)
    try:
        handle = base64.b64encode(memory.handle).decode()
        region = {"raw_handle": {"b64": handle}, "device_id": 0, "byte_size": size}
        server.ask("cudasharedmemory/region/rows/register", region)
        for number in range(count):
            row = np.random.default_rng(number).standard_normal((1, COLUMNS)).astype(np.float32)
            start = 2 * number * ROW_BYTES
            memory.write(row.tobytes(), start)

            def place(offset: int) -> dict:
                return {"shared_memory_region": "rows", "shared_memory_offset": offset, "shared_memory_byte_size": ROW_BYTES}

            tensor = {"name": "INPUT0", "datatype": "FP32", "shape": [1, COLUMNS], "parameters": place(start)}
            output = {"name": "OUTPUT0", "parameters": place(start + ROW_BYTES)}
            server.ask("models/softmax/infer", {"inputs": [tensor], "outputs": [output]})
            got = device_memory.array(memory, (1, COLUMNS), start + ROW_BYTES)
            powers = np.exp(row.astype(np.float64) - row.max())
            np.testing.assert_allclose(got, powers / powers.sum(), rtol=1e-5)
        server.ask("cudasharedmemory/unregister", {})
    finally:
        memory.close()
    return count


def png(width: int, height: int, seed: int) -> bytes:
    """A picture of noise as a file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def check_pictures(server: Server) -> int:
    """That files become the same on a device and on the processors; gives how many did."""
    count = 12
    for number in range(count):
        files = [png(20 + 7 * number + each, 33 - each, number) for each in range(1 + number % 3)]
        got, expected = (tensor(server, model, files) for model in ("device", "processors"))
        assert got.shape == (len(files), 3, SIDE, SIDE), got.shape
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    return count


def tensor(server: Server, model: str, files: list[bytes]) -> np.ndarray:
    """What a chain makes of files."""
    given = np.array(files, dtype=np.object_).reshape(-1, 1)
    output = server.infer(model, {"FILE": ("BYTES", given)})["OUTPUT"]
    return np.array(output["data"], dtype=np.float32).reshape(output["shape"])
