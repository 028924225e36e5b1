"""What a case is: one request in raw form, sent to a server, and the answer as plain data.

An answer is a dictionary that two servers can be compared by and that fits a JSON file. What differs from
run to run (times, the server's version) is replaced by a mark.
"""

from __future__ import annotations

import base64
import dataclasses
import gzip
import http.client
import json
import zlib
from typing import Any

import grpc
from google.protobuf import json_format
from tritonclient.grpc import service_pb2, service_pb2_grpc

SERVICE = "/inference.GRPCInferenceService/"
SECONDS_MAX = 15.0
KEPT_HEADERS = ("content-type", "content-encoding", "inference-header-content-length", "allow")
VARIES = "(varies)"


def steady(value: Any) -> Any:
    """The value with everything that differs from run to run replaced by a mark."""
    if isinstance(value, dict):
        marked = {key: steady(each) for key, each in value.items()}
        # How long something took, beside how often it was done.
        if value.keys() <= {"count", "ns"} and value.get("count") not in (None, 0, "0"):
            marked["ns"] = VARIES
        if value.get("last_inference") not in (None, 0, "0"):
            marked["last_inference"] = VARIES
        return marked
    if isinstance(value, list):
        return [steady(each) for each in value]
    return value


def steady_metrics(text: str) -> list[str]:
    """The lines of a metrics page, in order of their text, with times and sizes replaced by a mark."""
    lines = []
    for line in text.splitlines():
        name = line.rpartition(" ")[0]
        is_count = name.startswith("nv_inference_") and "_us{" not in name
        lines.append(line if line.startswith("#") or is_count else f"{name} {VARIES}")
    return sorted(lines)


def printable(data: bytes) -> str:
    """Bytes as text where they are text, else in base64 and marked so."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(data).decode()


@dataclasses.dataclass(frozen=True)
class HttpCase:
    """One HTTP request."""

    name: str
    path: str
    method: str = "GET"
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    setup: str = "default"
    service: str = "http"

    def request(self) -> dict:
        """The request for a reader of the recorded file."""
        shown = printable(self.body)
        return {
            "protocol": self.service,
            "method": self.method,
            "path": self.path,
            **({"headers": dict(self.headers)} if self.headers else {}),
            **({"body": shown if len(shown) <= 600 else shown[:600] + "…"} if self.body else {}),
        }

    def send(self, server) -> dict:
        """The answer of one server."""
        port = server.metrics_port if self.service == "metrics" else server.http_port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS_MAX)
        try:
            connection.request(self.method, self.path, body=self.body or None, headers=dict(self.headers))
            response = connection.getresponse()
            answer = self._answer(response, response.read())
        except (OSError, http.client.HTTPException) as error:
            return {"broken": type(error).__name__}
        finally:
            connection.close()
        if self.service == "metrics" and "text" in answer:
            answer["text"] = steady_metrics(answer["text"])
        return answer

    @staticmethod
    def _answer(response: http.client.HTTPResponse, body: bytes) -> dict:
        headers = {key.lower(): value for key, value in response.getheaders() if key.lower() in KEPT_HEADERS}
        encoding = headers.get("content-encoding")
        if encoding == "gzip":
            body = gzip.decompress(body)
        elif encoding == "deflate":
            body = zlib.decompress(body)
        answer: dict[str, Any] = {"status": response.status, "headers": headers}
        json_bytes = int(headers.get("inference-header-content-length", len(body)))
        head, tail = body[:json_bytes], body[json_bytes:]
        try:
            answer["json"] = steady(json.loads(head))
        except ValueError:
            answer["text"] = printable(head)
        if tail:
            answer["binary"] = base64.b64encode(tail).decode()
        return answer


@dataclasses.dataclass(frozen=True)
class GrpcCase:
    """One unary call: a message of the service, or bytes that are none."""

    name: str
    method: str
    message: Any
    setup: str = "default"
    metadata: tuple[tuple[str, str], ...] = ()
    service: str = SERVICE

    def request(self) -> dict:
        """The request for a reader of the recorded file."""
        shown: dict[str, Any] = {"protocol": "grpc", "method": self.method}
        if self.service != SERVICE:
            shown["service"] = self.service
        if self.metadata:
            shown["metadata"] = dict(self.metadata)
        if isinstance(self.message, bytes):
            return {**shown, "bytes": self.message.hex()}
        return {**shown, "message": _shown(self.message)}

    def send(self, server) -> dict:
        """The answer of one server."""
        with _channel(server) as channel:
            call = channel.unary_unary(self.service + self.method)
            try:
                raw = call(_bytes(self.message), timeout=SECONDS_MAX, metadata=self.metadata)
            except grpc.RpcError as error:
                return _grpc_error(error)
        if self.service != SERVICE:
            return {"code": "OK", "bytes": raw.hex()}
        response = _response_class(self.method)()
        response.ParseFromString(raw)
        return {"code": "OK", "message": _shown(response)}


@dataclasses.dataclass(frozen=True)
class StreamCase:
    """Requests down one `ModelStreamInfer` stream, and everything that comes back."""

    name: str
    messages: tuple[Any, ...]
    metadata: tuple[tuple[str, str], ...] = ()
    setup: str = "default"

    def request(self) -> dict:
        """The requests for a reader of the recorded file."""
        return {
            "protocol": "grpc",
            "method": "ModelStreamInfer",
            **({"metadata": dict(self.metadata)} if self.metadata else {}),
            "messages": [_shown(each) for each in self.messages],
        }

    def send(self, server) -> dict:
        """The answers of one server, in order, and how the stream ended."""
        answers = []
        with _channel(server) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            try:
                for response in stub.ModelStreamInfer(
                    iter(self.messages), timeout=SECONDS_MAX, metadata=self.metadata
                ):
                    answers.append(_shown(response))
            except grpc.RpcError as error:
                return {"messages": answers, **_grpc_error(error)}
        return {"messages": answers, "code": "OK"}


def _channel(server) -> grpc.Channel:
    size = ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)
    return grpc.insecure_channel(server.grpc_address, options=size)


def _grpc_error(error: grpc.RpcError) -> dict:
    details = error.details() or ""
    # A server that died gives as many texts as there are ways to lose a connection.
    if error.code() == grpc.StatusCode.UNAVAILABLE and "127.0.0.1" in details:
        return {"broken": "connection lost"}
    return {"code": error.code().name, "details": details}


def _response_class(method: str):
    return getattr(service_pb2, f"{method}Response")


def _bytes(message: Any) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def _shown(message: Any) -> Any:
    fields = json_format.MessageToDict(message, preserving_proto_field_name=True)
    for raw in ("raw_input_contents", "raw_output_contents"):
        for index, each in enumerate(fields.get(raw, ())):
            if len(each) > 400:
                fields[raw][index] = f"{len(base64.b64decode(each))} bytes"
    return steady(_sorted(fields))


def _sorted(value: Any) -> Any:
    """The value with its keys in order: protobuf maps have none of their own."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(each) for each in value] if isinstance(value, list) else value
