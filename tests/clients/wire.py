"""HTTP/2 frame by frame, so that tests can also send what no client library would."""

from __future__ import annotations

import socket
import ssl
import struct

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
ACK = END_STREAM = 1
END_HEADERS = 4
SETTINGS_INITIAL_WINDOW = 4
SERVICE = "/inference.GRPCInferenceService/"
WAIT_SECONDS_MAX = 60
# What every peer takes in one frame.
FRAME_BYTES_MAX = 16384


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def message(body: bytes, flag: int = 0, length: int | None = None) -> bytes:
    """A gRPC message; its header may lie about flag and length."""
    return struct.pack(">BI", flag, len(body) if length is None else length) + body


def request_headers(path: str, content_type: str = "application/grpc", more: tuple = ()) -> bytes:
    """The header block of a call. Nothing is put into the dynamic table."""
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", content_type),
        ("te", "trailers"),
        *more,
    ]
    return b"".join(b"\0" + _string(name.encode()) + _string(value.encode()) for name, value in fields)


def _string(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes([len(text)]) + text
    rest, out = len(text) - 127, bytearray([127])
    while rest >= 128:
        out.append(rest % 128 + 128)
        rest //= 128
    return bytes(out) + bytes([rest]) + text


class Answer:
    """What came on one stream."""

    def __init__(self):
        self.headers: dict[str, str] = {}
        self.data = b""
        self.reset: int | None = None
        self.ended = False

    @property
    def grpc_status(self) -> int | None:
        """The call's status, if it has one."""
        status = self.headers.get("grpc-status")
        return None if status is None else int(status)


class Connection:
    """A connection that has said hello, and what came over it."""

    def __init__(self, server, window: int = 1 << 30, tls: ssl.SSLContext | None = None):
        self.socket = socket.create_connection(("127.0.0.1", server.grpc_port), timeout=WAIT_SECONDS_MAX)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_hostname="127.0.0.1")
        self.decoder = hpack.Decoder()
        self.answers: dict[int, Answer] = {}
        self.pongs = 0
        self.pings = 0
        self.answers_pings = True
        self.goaway: int | None = None
        self.goaway_text = b""
        self.closed = False
        self._next = 1
        settings = struct.pack(">HI", SETTINGS_INITIAL_WINDOW, window)
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0, settings))
        if window:
            self.socket.sendall(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 30)))

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_) -> None:
        self.socket.close()

    def send(self, *frames: bytes) -> None:
        """Sends; that the server has hung up is for `read` to find."""
        try:
            self.socket.sendall(b"".join(frames))
        except (BrokenPipeError, ConnectionResetError):
            self.closed = True

    def new_stream(self) -> int:
        """A stream's number."""
        number, self._next = self._next, self._next + 2
        return number

    def call(self, method: str, body: bytes, end: bool = True, **headers) -> int:
        """Sends a call whose body is `body` as it is."""
        stream = self.new_stream()
        path = method if method.startswith("/") else SERVICE + method
        block = request_headers(path, **headers)
        pieces = [body[at : at + FRAME_BYTES_MAX] for at in range(0, len(body), FRAME_BYTES_MAX)] or [b""]
        self.send(
            frame(HEADERS, END_HEADERS, stream, block),
            *(frame(DATA, 0, stream, piece) for piece in pieces[:-1]),
            frame(DATA, END_STREAM if end else 0, stream, pieces[-1]),
        )
        return stream

    def read_until(self, done) -> None:
        """Reads frames until `done` holds or the connection has ended."""
        while not self.closed and not done():
            self.read_frame()

    def answer(self, stream: int) -> Answer:
        """The whole answer on a stream."""
        self.read_until(lambda: stream in self.answers and self.answers[stream].ended)
        return self.answers.get(stream, Answer())

    def read_frame(self) -> None:
        """Takes in one frame."""
        head = self._exactly(9)
        if head is None:
            return
        payload = self._exactly(int.from_bytes(head[:3], "big"))
        if payload is None:
            return
        kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
        answer = self.answers.setdefault(stream, Answer()) if stream else Answer()
        if kind == HEADERS:
            answer.headers.update(self.decoder.decode(payload))
        elif kind == DATA:
            answer.data += payload
        elif kind == RST_STREAM:
            answer.reset = int.from_bytes(payload, "big")
            answer.ended = True
        elif kind == GOAWAY:
            self.goaway = int.from_bytes(payload[4:8], "big")
            self.goaway_text = payload[8:]
        elif kind == PING and flags & ACK:
            self.pongs += 1
        elif kind == PING:
            self.pings += 1
            if self.answers_pings:
                self.send(frame(PING, ACK, 0, payload))
        elif kind == SETTINGS and not flags & ACK:
            self.send(frame(SETTINGS, ACK, 0))
        if kind in (DATA, HEADERS) and flags & END_STREAM:
            answer.ended = True

    def _exactly(self, count: int) -> bytes | None:
        got = b""
        while len(got) < count:
            try:
                piece = self.socket.recv(count - len(got))
            except ConnectionResetError:
                piece = b""
            if not piece:
                self.closed = True
                return None
            got += piece
        return got
