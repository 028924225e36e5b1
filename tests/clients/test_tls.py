"""TLS and mutual TLS on both protocols, with certificates made here."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import time

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from . import certificates, models, triton, wire

READY_SECONDS_MAX = 60
# The server looks at its files once a second at most.
RELOAD_SECONDS_MAX = 20
STOP_SECONDS_MAX = 1.0
ARRAY = np.arange(300_000, dtype=np.float32)


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """Two roots, and what the first one signed."""
    folder = tmp_path_factory.mktemp("pki")
    root, stranger = certificates.Root(folder, "root"), certificates.Root(folder, "stranger")
    return {
        "root": root,
        "stranger": stranger,
        "server": root.sign("server"),
        "client": root.sign("client"),
        "strange client": stranger.sign("strange"),
    }


def _context(pki, client: str | None = None, root: str = "root") -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=pki[root].certificate)
    if client:
        context.load_cert_chain(*pki[client])
    return context


def _ready(server, context: ssl.SSLContext) -> bool:
    connection = http.client.HTTPSConnection("127.0.0.1", server.http_port, context=context, timeout=5)
    with contextlib.closing(connection):
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200


def _wait_ready(server, context: ssl.SSLContext) -> None:
    deadline = time.monotonic() + READY_SECONDS_MAX
    while time.monotonic() < deadline:
        assert server.is_running(), server.log_tail()
        with contextlib.suppress(ConnectionRefusedError):
            if _ready(server, context):
                return
        time.sleep(0.01)
    pytest.fail(f"not ready: {server.log_tail()}")


@pytest.fixture
def tls(start, pki, tmp_path):
    """Starts a server with both ports behind TLS."""
    repository = models.write(tmp_path / "repository", {"fp32": models.identity_models()["fp32"]})

    def begin(mutual: bool = False, identity=None, roots=pki["root"].certificate):
        certificate, key = identity or pki["server"]
        flags = []
        for protocol in ("http", "grpc"):
            flags += [
                f"--{protocol}-server-cert={certificate}",
                f"--{protocol}-server-key={key}",
                f"--{protocol}-root-cert={roots}",
                f"--{protocol}-use-ssl{'-mutual' if mutual else ''}=true",
            ]
        context = _context(pki, "client" if mutual else None)
        return start(repository, *flags, wait=lambda server: _wait_ready(server, context))

    return begin


def _grpc(server, pki, client: str | None = None, root: str = "root"):
    certificate, key = pki[client] if client else (None, None)
    return triton_grpc.InferenceServerClient(
        server.grpc_address,
        ssl=True,
        root_certificates=str(pki[root].certificate),
        certificate_chain=certificate and str(certificate),
        private_key=key and str(key),
    )


def _infer(client, module) -> None:
    result = client.infer("fp32", [triton.tensor(module, "INPUT0", "FP32", ARRAY)])
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), ARRAY)


@pytest.mark.parametrize("mutual", [False, True], ids=["server only", "mutual"])
def test_who_has_what_it_takes_is_served(tls, pki, mutual):
    """With tensors of many TLS records."""
    server = tls(mutual)
    with contextlib.closing(_grpc(server, pki, "client" if mutual else None)) as client:
        _infer(client, triton_grpc)
    context = _context(pki, "client" if mutual else None)
    client = triton_http.InferenceServerClient(
        server.http_address, ssl=True, ssl_context_factory=lambda: context
    )
    with contextlib.closing(client):
        _infer(client, triton_http)


def test_a_stream_runs_over_tls(tls, pki):
    """Several requests in flight on one stream."""
    server = tls()
    answers = []
    with contextlib.closing(_grpc(server, pki)) as client:
        client.start_stream(lambda result, error: answers.append(error or result))
        for _ in range(8):
            client.async_stream_infer("fp32", [triton.tensor(triton_grpc, "INPUT0", "FP32", ARRAY)])
        client.stop_stream()
    assert len(answers) == 8
    for answer in answers:
        np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), ARRAY)


def test_who_does_not_trust_the_server_leaves(tls, pki):
    """A root that has not signed the server's certificate."""
    server = tls()
    with pytest.raises(ssl.SSLCertVerificationError):
        _ready(server, _context(pki, root="stranger"))
    with contextlib.closing(_grpc(server, pki, root="stranger")) as client:
        with pytest.raises(InferenceServerException, match="UNAVAILABLE"):
            client.is_server_live()
    assert _ready(server, _context(pki))


@pytest.mark.parametrize("client", [None, "strange client"], ids=["no certificate", "another root's"])
def test_a_client_without_a_certificate_is_refused(tls, pki, client):
    """As is one whose certificate another root has signed."""
    server = tls(mutual=True)
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
        _ready(server, _context(pki, client))
    with contextlib.closing(_grpc(server, pki, client)) as refused:
        with pytest.raises(InferenceServerException, match="UNAVAILABLE"):
            refused.is_server_live()
    assert _ready(server, _context(pki, "client"))


@pytest.mark.parametrize("port", ["http_port", "grpc_port"])
def test_plain_text_gets_no_answer(tls, pki, port):
    """Nor does it harm the others."""
    server = tls()
    with socket.create_connection(("127.0.0.1", getattr(server, port)), timeout=10) as raw:
        raw.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: a\r\n\r\n")
        got = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := raw.recv(1000):
                got += piece
    assert b"HTTP" not in got and len(got) < 50
    with pytest.raises(grpc.FutureTimeoutError):
        channel = grpc.insecure_channel(server.grpc_address)
        with contextlib.closing(channel):
            grpc.channel_ready_future(channel).result(timeout=1)
    assert _ready(server, _context(pki))


every_protocol = pytest.mark.parametrize("protocol", ["http", "grpc"])


@every_protocol
@pytest.mark.parametrize("mutual", [False, True], ids=["server only", "mutual"])
def test_a_changed_certificate_is_taken_up(tls, pki, protocol, mutual):
    """Connections that are open stay; a half-written file changes nothing."""
    root = pki["root"]
    certificate, key = root.sign("before", into="changing")
    server = tls(mutual, identity=(certificate, key))
    context = _context(pki, "client" if mutual else None)

    def name() -> str:
        return _name(server, protocol, context)

    assert name() == "before"
    with _kept(server, protocol, context) as asks:
        certificate.write_text("-----BEGIN CERTIFICATE-----\nMII")
        time.sleep(1.2)
        assert name() == "before"
        root.sign("after", into="changing")
        _eventually(lambda: name() == "after", server)
        assert asks()
    assert _is_served(server, pki, protocol, "client" if mutual else None)
    assert "the former certificate stays in use" in server.log.read_text()


@every_protocol
def test_changed_roots_of_clients_are_taken_up(tls, pki, protocol, tmp_path):
    """Who was signed by the former one is refused from then on, and stays where the connection is open."""
    roots = tmp_path / "roots.crt"
    roots.write_bytes(pki["root"].certificate.read_bytes())
    server = tls(mutual=True, roots=roots)
    assert _is_served(server, pki, protocol, "client")
    assert not _is_served(server, pki, protocol, "strange client")
    with _kept(server, protocol, _context(pki, "client")) as asks:
        roots.write_bytes(pki["stranger"].certificate.read_bytes())
        _eventually(lambda: _is_served(server, pki, protocol, "strange client"), server)
        assert not _is_served(server, pki, protocol, "client")
        assert asks()


def _eventually(holds, server) -> None:
    deadline = time.monotonic() + RELOAD_SECONDS_MAX
    while not holds():
        assert time.monotonic() < deadline, server.log_tail()
        time.sleep(0.1)


@contextlib.contextmanager
def _kept(server, protocol: str, context: ssl.SSLContext):
    """A connection that is opened now; what is given asks over it, and tells whether it was answered."""
    if protocol == "grpc":
        with wire.Connection(server, tls=context) as connection:
            yield lambda: connection.answer(connection.call("ServerLive", wire.message(b""))).grpc_status == 0
        return
    connection = http.client.HTTPSConnection("127.0.0.1", server.http_port, context=context, timeout=5)
    with contextlib.closing(connection):
        connection.connect()
        opened = connection.sock

        def asks() -> bool:
            connection.request("GET", "/v2/health/ready")
            return connection.sock is opened and connection.getresponse().status == 200

        yield asks


def _is_served(server, pki, protocol: str, client: str | None) -> bool:
    """Whether a client that comes now gets an answer."""
    if protocol == "http":
        with contextlib.suppress(ssl.SSLError, ConnectionError, http.client.RemoteDisconnected):
            return _ready(server, _context(pki, client))
        return False
    with contextlib.closing(_grpc(server, pki, client)) as connection:
        with contextlib.suppress(InferenceServerException):
            return connection.is_server_live()
    return False


def _name(server, protocol: str, context: ssl.SSLContext) -> str:
    """The common name in the certificate that the server shows."""
    with socket.create_connection(("127.0.0.1", getattr(server, f"{protocol}_port")), timeout=5) as raw:
        with context.wrap_socket(raw, server_hostname="127.0.0.1") as wrapped:
            subject = dict(pair for part in wrapped.getpeercert()["subject"] for pair in part)
    return subject["commonName"]


def test_open_connections_do_not_delay_the_end(tls, pki):
    """Neither idle ones nor those that have not shaken hands."""
    server = tls()
    kept = http.client.HTTPSConnection("127.0.0.1", server.http_port, context=_context(pki), timeout=5)
    kept.connect()
    silent = socket.create_connection(("127.0.0.1", server.grpc_port))
    with contextlib.closing(_grpc(server, pki)) as client, contextlib.closing(kept), silent:
        assert client.is_server_live()
        server.stop()
    assert server.stop_seconds < STOP_SECONDS_MAX and server.process.returncode == 0
