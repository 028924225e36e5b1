"""Clients that ask for large answers and never read them, over gRPC and over HTTP.

Ordinary clients read whatever comes, so these write their bytes themselves: HTTP/2 frames (RFC 9113) with
uncompressed headers (RFC 7541), and pipelined HTTP/1.1. They announce windows of the largest size and keep a
small receive buffer, so that it is the connection itself that fills up. All they hold is bounded, and closed
at the end of the `with` block.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time

CONNECTIONS = 4
ELEMENTS = 150_000
REQUESTS_PER_CONNECTION = 16
RECEIVE_BUFFER = 4096
SEND_SECONDS_MAX = 2.0
WINDOW_MAX = 2**31 - 1
DATA, HEADERS, SETTINGS, WINDOW_UPDATE = 0, 1, 4, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
INITIAL_WINDOW_SIZE = 4
FRAME_MAX = 16384
WINDOW_DEFAULT = 65535


@contextlib.contextmanager
def silent_clients(grpc_port: int, http_port: int):
    """Opens the connections and sends what the server takes; yields how many bytes of tensors that were."""
    with contextlib.ExitStack() as stack:
        sent = 0
        for number in range(CONNECTIONS):
            over_grpc = number % 2 == 0
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            client.settimeout(SEND_SECONDS_MAX)
            client.connect(("127.0.0.1", grpc_port if over_grpc else http_port))
            sent += _over_grpc(client) if over_grpc else _over_http(client)
        yield sent


def _over_http(client: socket.socket) -> int:
    tensor = {"name": "INPUT0", "datatype": "FP32", "shape": [1, ELEMENTS]}
    tensor["parameters"] = {"binary_data_size": ELEMENTS * 4}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    body = header + bytes(ELEMENTS * 4)
    request = (
        f"POST /v2/models/identity/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        f"Inference-Header-Content-Length: {len(header)}\r\n\r\n"
    ).encode() + body
    return ELEMENTS * 4 * _send(client, [request] * REQUESTS_PER_CONNECTION)


def _over_grpc(client: socket.socket) -> int:
    client.sendall(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + _frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, WINDOW_MAX))
        + _frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WINDOW_MAX - WINDOW_DEFAULT))
    )
    stream_window, connection_window = _windows(client)
    elements = min(ELEMENTS, (min(stream_window, connection_window) - 200) // 4)
    message = _infer_request(elements)
    body = struct.pack(">BI", 0, len(message)) + message
    count = min(REQUESTS_PER_CONNECTION, connection_window // len(body))
    requests = []
    for stream in range(1, 2 * count, 2):
        frames = [_frame(HEADERS, END_HEADERS, stream, _request_headers())]
        for start in range(0, len(body), FRAME_MAX):
            last = start + FRAME_MAX >= len(body)
            frames.append(_frame(DATA, END_STREAM if last else 0, stream, body[start : start + FRAME_MAX]))
        requests.append(b"".join(frames))
    return elements * 4 * _send(client, requests)


def _windows(client: socket.socket) -> tuple[int, int]:
    """What may be sent on a stream and on the connection: the server says so first; nothing is read later."""
    stream, connection, pending = WINDOW_DEFAULT, WINDOW_DEFAULT, b""
    time.sleep(0.1)
    pending = client.recv(2048)
    while len(pending) >= 9:
        length, kind, flags = int.from_bytes(pending[:3]), pending[3], pending[4]
        payload, pending = pending[9 : 9 + length], pending[9 + length :]
        if kind == SETTINGS and not flags & ACK:
            for at in range(0, length, 6):
                setting, value = struct.unpack(">HI", payload[at : at + 6])
                stream = value if setting == INITIAL_WINDOW_SIZE else stream
        elif kind == WINDOW_UPDATE:
            connection += struct.unpack(">I", payload)[0]
    client.sendall(_frame(SETTINGS, ACK, 0, b""))
    return stream, connection


def _send(client: socket.socket, requests: list[bytes]) -> int:
    """Sends until the server takes no more; how many requests it took."""
    for number, request in enumerate(requests):
        try:
            client.sendall(request)
        except OSError:
            return number
    return len(requests)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _request_headers() -> bytes:
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/inference.GRPCInferenceService/ModelInfer",
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    # Literal fields, not indexed, with new names; every length fits seven bits.
    return b"".join(
        b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
        for name, value in fields.items()
    )


def _infer_request(elements: int) -> bytes:
    """A ModelInferRequest: model_name, one of inputs, one of raw_input_contents."""
    shape = _varint(1) + _varint(elements)
    tensor = _field(1, b"INPUT0") + _field(2, b"FP32") + _field(3, shape)
    return _field(1, b"identity") + _field(5, tensor) + _field(7, bytes(elements * 4))


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    encoded = b""
    while value > 127:
        encoded += bytes((value & 127 | 128,))
        value >>= 7
    return encoded + bytes((value,))
