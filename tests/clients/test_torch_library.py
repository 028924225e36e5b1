"""The library that links libtorch, and torch itself, from stand-ins: what does not fit is refused, and what torch
holds of GPUs' memory is told."""

from __future__ import annotations

import pathlib
import subprocess
import urllib.request

import numpy as np
import pytest
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from . import torch_models, triton
from .python_server import wait_until

SOURCE = pathlib.Path(__file__).resolve().parents[1] / "torch" / "bridge.c"
TABLE_RS = SOURCE.parents[2] / "src" / "backend" / "pytorch" / "table.rs"
TORCH = (2, 11, 0)
X = np.array([1, -2, 3], dtype=np.float32)


def table_version() -> int:
    """That of the server."""
    line = next(line for line in TABLE_RS.read_text().splitlines() if line.startswith("pub const VERSION: u32"))
    return int(line.rpartition("=")[2].strip(" ;"))


def version(parts: tuple[int, int, int]) -> str:
    """As people write it."""
    return ".".join(map(str, parts))


@pytest.fixture
def serve(start, tmp_path, monkeypatch):
    """Starts a server with stand-ins of these versions, which loads models when told to."""

    def serve(table: int | None = None, built: tuple = TORCH, torch: tuple = TORCH):
        folder = tmp_path / "backends" / "pytorch"
        (folder / "lib").mkdir(parents=True)
        number = sum(part << shift for part, shift in zip(torch, (56, 48, 40)))
        macros = [f"-DTABLE={table or table_version()}", f'-DBUILT="{version(built)}"', f"-DTORCH={number}ull"]
        for library in ("libnereid_pytorch.so", "lib/libtorch_cpu.so"):
            command = ["cc", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", *macros]
            subprocess.run([*command, "-o", folder / library, SOURCE], check=True)
        monkeypatch.setenv("NEREID_BACKEND_DIR", str(folder.parent))
        models = {"m": torch_models.TorchModel(torch_models.config("x", "OUTPUT__0"), *torch_models.DOUBLE)}
        repository = torch_models.write(tmp_path / "repository", models)
        return start(repository, "--model-control-mode=explicit")

    return serve


@pytest.mark.parametrize(
    "versions, message",
    [
        ({"torch": (2, 10, 1)}, "libtorch_cpu.so: expected version 2.11.0, found version 2.10.1; run `nereid backend"),
        ({"built": (2, 12, 0)}, "expected it to be built for torch 2.11.0, not 2.12.0; run `make backend-pytorch`"),
        ({"table": 1}, f"expected version {table_version()} of its functions, found version 1; run `make backend"),
    ],
)
def test_libraries_that_do_not_fit_are_refused_with_both_versions(serve, versions, message):
    """Before anything of them is called; then the server lives."""
    server = serve(**versions)
    client = triton_http.InferenceServerClient(server.http_address)
    for _ in range(2):
        with pytest.raises(InferenceServerException) as error:
            client.load_model("m")
        assert message in error.value.message()
    assert client.is_server_live()


def gpu_lines(server) -> list[str]:
    """What the metrics tell of GPUs' memory."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10) as answer:
        return [line for line in answer.read().decode().splitlines() if line.startswith("nereid_gpu_memory")]


def test_what_torch_holds_of_gpus_shows_and_is_given_back(serve):
    """For each GPU, from when the library is open."""
    server = serve()
    client = triton_http.InferenceServerClient(server.http_address)
    assert gpu_lines(server) == []
    for reserved, change in ((1 << 20, client.load_model), (0, client.unload_model)):
        change("m")
        if reserved:
            np.testing.assert_array_equal(
                triton.infer("http", server, "m", X, input_name="x").as_numpy("OUTPUT__0"), X
            )
        expected = [
            f'nereid_gpu_memory_reserved_bytes{{backend="pytorch",gpu="0"}} {reserved}',
            'nereid_gpu_memory_reserved_bytes{backend="pytorch",gpu="1"} 0',
            f'nereid_gpu_memory_allocated_bytes{{backend="pytorch",gpu="0"}} {reserved // 2}',
            'nereid_gpu_memory_allocated_bytes{backend="pytorch",gpu="1"} 0',
        ]
        wait_until(lambda: gpu_lines(server) == expected)
