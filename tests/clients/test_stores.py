"""Model repositories in an object store: a server that speaks S3 (moto), whose objects come and go."""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import subprocess
import sys
import time

import boto3
import numpy as np
import pytest
import servers
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from . import models, onnx_file, triton

BUCKET, PREFIX = "models", "some/where"
EXPLICIT = "--model-control-mode=explicit"
SECONDS_MAX = 60
ARRAY = np.ones((1, 4), dtype=np.float32)
IDENTITY = models.Model(models.identity())


@pytest.fixture(scope="module")
def store():
    """The address of an S3 server."""
    (port,) = servers.free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        yield f"127.0.0.1:{port}"
        process.terminate()


@pytest.fixture
def bucket(store, monkeypatch):
    """A bucket of a test's own, and credentials in the environment of what it starts."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    resource = boto3.resource("s3", endpoint_url=f"http://{store}")
    bucket = resource.Bucket(BUCKET)
    _eventually(lambda: bucket.create() is not None)
    yield bucket
    bucket.objects.all().delete()


@pytest.fixture
def url(store):
    """The repository as an operator names it."""
    return f"s3://http://{store}/{BUCKET}/{PREFIX}"


def _eventually(check) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while True:
        with contextlib.suppress(Exception):
            if check():
                return
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def _upload(bucket, tmp_path: pathlib.Path, written: dict[str, models.Model]) -> None:
    """Puts models into the bucket; an empty folder becomes an empty object, as tools do it."""
    folder = models.write(tmp_path / "uploaded", written)
    for path in sorted(folder.rglob("*")):
        key = f"{PREFIX}/{path.relative_to(folder)}"
        if path.is_file():
            bucket.put_object(Key=key, Body=path.read_bytes())
        elif not any(path.iterdir()):
            bucket.put_object(Key=key + "/", Body=b"")


def _infer(server, model: str):
    return triton.infer("grpc", server, model, ARRAY[0]).as_numpy("OUTPUT0")


@contextlib.contextmanager
def _client(server):
    with contextlib.closing(triton_grpc.InferenceServerClient(server.grpc_address)) as client:
        yield client


def test_models_of_a_bucket_are_served_and_loaded_anew(start, bucket, url, tmp_path):
    """By explicit control: what has changed since is fetched again, what is gone is not found."""
    written = {"one": IDENTITY, "two": IDENTITY}
    if models.has_onnxruntime():
        written["mlp"] = models.Model(None, {1: onnx_file.mlp(1)})
    _upload(bucket, tmp_path, written)
    server = start(url, EXPLICIT, "--load-model=one")
    with _client(server) as client:
        np.testing.assert_array_equal(_infer(server, "one"), ARRAY[0])
        index = {each.name: each.state for each in client.get_model_repository_index().models}
        assert set(index) == set(written) and index["one"] == "READY"
        for name in written:
            client.load_model(name)
            assert client.is_model_ready(name)
        bucket.Object(f"{PREFIX}/one/2/").put(Body=b"")
        client.load_model("one")
        assert client.is_model_ready("one", "2") and not client.is_model_ready("one", "1")
        bucket.objects.filter(Prefix=f"{PREFIX}/two/").delete()
        with pytest.raises(InferenceServerException, match="failed to load 'two', failed to poll"):
            client.load_model("two")
        bucket.Object(f"{PREFIX}/bad/config.pbtxt").put(Body=b"no_such_field: 1")
        with pytest.raises(InferenceServerException, match=r"bad/config\.pbtxt:1:1: .*no_such_field"):
            client.load_model("bad")


def test_changes_of_a_bucket_are_taken_up(start, bucket, url, tmp_path):
    """By polling."""
    _upload(bucket, tmp_path, {"one": IDENTITY})
    server = start(url, "--model-control-mode=poll", "--repository-poll-secs=1")
    with _client(server) as client:
        assert client.is_model_ready("one")
        _upload(bucket, tmp_path, {"two": IDENTITY})
        _eventually(lambda: client.is_model_ready("two"))
        np.testing.assert_array_equal(_infer(server, "two"), ARRAY[0])
        bucket.objects.filter(Prefix=f"{PREFIX}/one/").delete()
        _eventually(lambda: not client.is_model_ready("one"))


def test_copies_outlive_the_server_where_a_folder_is_named(start, bucket, url, tmp_path, monkeypatch):
    """The next start fetches what has changed only, and mends what was tampered with."""
    mount = tmp_path / "mount"
    mount.mkdir()
    monkeypatch.setenv("TRITON_AWS_MOUNT_DIRECTORY", str(mount))
    _upload(bucket, tmp_path, {"one": IDENTITY, "two": IDENTITY})
    server = start(url)
    server.stop()
    (one,) = mount.glob("*/models/one/config.pbtxt")
    (two,) = mount.glob("*/models/two/config.pbtxt")
    before = one.stat().st_ino
    two.write_text("tampered with")
    server = start(url)
    assert one.stat().st_ino == before
    np.testing.assert_array_equal(_infer(server, "two"), ARRAY[0])


def test_credentials_come_from_a_file_too(start, bucket, url, tmp_path, monkeypatch):
    """Those of the longest beginning of the URL; a file that is malformed is named, its secrets are not."""
    _upload(bucket, tmp_path, {"one": IDENTITY})
    file = tmp_path / "credentials.json"
    key = {"key_id": "testing", "secret_key": "s3cr3t", "region": "us-east-1"}
    file.write_text(json.dumps({"s3": {"": {"profile": "no"}, url: key}}))
    monkeypatch.setenv("TRITON_CLOUD_CREDENTIAL_PATH", str(file))
    server = start(url)
    np.testing.assert_array_equal(_infer(server, "one"), ARRAY[0])
    for content, words in [('{"s3": {"": {"secret_key": "s3cr3t"', "is malformed at line 1"), ("{}", "")]:
        file.write_text(content)
        checked = subprocess.run(
            [server.process.args[0], "check", url], capture_output=True, text=True, timeout=SECONDS_MAX
        )
        assert words in checked.stdout and "s3cr3t" not in checked.stdout + checked.stderr
        assert checked.returncode == (1 if words else 0), checked.stdout


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("s3://http://127.0.0.1:9/models/m", "cannot read 's3://http://127.0.0.1:9/models/m'"),
        ("{store}/no_such_bucket", "cannot read '{store}/no_such_bucket'.*NoSuchBucket"),
        ("s3://http://", "model repository 's3://http://' is malformed: expected s3://bucket/path"),
        ("as://account", "expected as://account/container/path"),
    ],
)
def test_a_store_that_cannot_be_read_ends_the_start(binary, bucket, store, location, words):
    """With the URL, and why."""
    address = f"s3://http://{store}"
    ports = [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), servers.free_ports(3))]
    addresses = [f"--{name}-address=127.0.0.1" for name in ("http", "grpc", "metrics")]
    command = [str(binary), "--model-repository=" + location.format(store=address), *ports, *addresses]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert re.search(words.format(store=re.escape(address)), ended.stderr), ended.stderr
