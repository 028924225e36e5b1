"""HTTP by curl: infer, compressed bodies, keep-alive and methods."""

from __future__ import annotations

import gzip
import json
import subprocess
import zlib

import numpy as np
import pytest

VALUES = [1.5, -2.0, 3.25]
REQUEST = {"inputs": [{"name": "INPUT0", "shape": [3], "datatype": "FP32", "data": VALUES}]}
INFER = "/v2/models/fp32/infer"


def curl(server, path: str, *options: str, body: bytes | None = None) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the last response."""
    command = ["curl", "-sS", "-i", "--max-time", "30", *options, f"http://{server.http_address}{path}"]
    if body is not None:
        command += ["--data-binary", "@-"]
    done = subprocess.run(command, input=body, capture_output=True, check=True)
    rest = done.stdout
    while True:
        head, _, rest = rest.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        status = int(lines[0].split()[1])
        if status != 100:
            break
    return status, {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:])}, rest


def outputs(body: bytes) -> list[float]:
    """The numbers of a JSON answer."""
    return json.loads(body)["outputs"][0]["data"]


def test_json(server):
    """In and out."""
    status, headers, body = curl(server, INFER, body=json.dumps(REQUEST).encode())
    assert (status, outputs(body)) == (200, VALUES)
    assert headers["content-type"] == "application/json"


def test_binary(server):
    """Behind a JSON header whose length is told."""
    raw = np.array(VALUES, "<f4").tobytes()
    head = {
        "inputs": [{**REQUEST["inputs"][0], "parameters": {"binary_data_size": len(raw)}}],
        "outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": True}}],
    }
    del head["inputs"][0]["data"]
    text = json.dumps(head).encode()
    length = f"Inference-Header-Content-Length: {len(text)}"
    status, headers, body = curl(server, INFER, "-H", length, body=text + raw)
    assert status == 200
    assert body[int(headers["inference-header-content-length"]) :] == raw


@pytest.mark.parametrize("packing, pack, unpack", [
    ("gzip", gzip.compress, gzip.decompress),
    ("deflate", zlib.compress, zlib.decompress),
])  # fmt: skip
def test_packed_bodies(server, packing, pack, unpack):
    """Both directions."""
    options = ("-H", f"Content-Encoding: {packing}", "-H", f"Accept-Encoding: {packing}")
    status, headers, body = curl(server, INFER, *options, body=pack(json.dumps(REQUEST).encode()))
    assert (status, headers["content-encoding"]) == (200, packing)
    assert outputs(unpack(body)) == VALUES


@pytest.mark.parametrize("options", [
    ("-H", "Transfer-Encoding: chunked"),
    ("-H", "Expect: 100-continue"),
    ("-H", "Transfer-Encoding: chunked", "-H", "Expect: 100-continue"),
    ("--http1.0",),
])  # fmt: skip
def test_ways_to_send_a_body(server, options):
    """They make no difference."""
    status, _, body = curl(server, INFER, *options, body=json.dumps(REQUEST).encode())
    assert (status, outputs(body)) == (200, VALUES)


def test_a_connection_is_used_again(server):
    """curl says how many it opened: one for three requests."""
    url = f"http://{server.http_address}/v2/health/ready"
    command = ["curl", "-sS", "-w", "%{http_code} %{num_connects}\n", url, url, url]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    assert done.stdout.split() == ["200", "1", "200", "0", "200", "0"]


@pytest.mark.parametrize("method, path, status", [
    ("GET", "/v2", 200),
    ("GET", "/no/such/path", 404),
    ("GET", INFER, 405),
    ("DELETE", "/v2/models/fp32", 405),
    ("POST", "/v2/health/live", 405),
])  # fmt: skip
def test_methods_and_paths(server, method, path, status):
    """Known paths with other methods are 405, unknown ones 404."""
    got, headers, _ = curl(server, path, "-X", method)
    assert got == status
    assert ("allow" in headers) == (status == 405)


def test_head_has_no_body(server):
    """Whatever its status: curl would wait for a body that is announced, or complain of one sent."""
    status, _, body = curl(server, "/v2/health/ready", "--head")
    assert status in (200, 405) and body == b""


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b'{"inputs": 3}', b"[" * 100_000])
def test_malformed_json_is_a_bad_request(server, body):
    """With a text that says why."""
    status, _, answer = curl(server, INFER, body=body)
    assert status == 400 and json.loads(answer)["error"]


def test_a_packed_bomb_is_refused(server):
    """128 MB of zeros in 128 KB; the limit is 64 MB."""
    bomb = gzip.compress(bytes(128 << 20), 1)
    status, _, _ = curl(server, INFER, "-H", "Content-Encoding: gzip", body=bomb)
    assert 400 <= status < 500


def test_generate(server):
    """Flat JSON in and out, alone and as a stream's event."""
    path = "/v2/models/fp32/generate"
    status, _, body = curl(server, path, body=b'{"INPUT0": [1, 2.5], "id": "x", "temperature": 0.5}')
    expected = {"OUTPUT0": [1.0, 2.5], "id": "x", "model_name": "fp32", "model_version": "1"}
    assert (status, json.loads(body)) == (200, expected)
    status, headers, body = curl(server, path + "_stream", body=b'{"INPUT0": 3}')
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert body == b'data: {"OUTPUT0":3.0,"model_name":"fp32","model_version":"1"}\n\n'
    for call in (path, path + "_stream"):
        status, headers, body = curl(server, call, body=b'{"INPUT0": "x"}')
        assert (status, headers["content-type"]) == (400, "application/json")
        assert "non-number" in json.loads(body)["error"]
