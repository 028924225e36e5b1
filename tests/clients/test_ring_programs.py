"""The examples of the ring's clients in C, Rust and Python, and `nereid bench` through the ring."""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from . import conftest, test_ring_layout

sys.path.insert(0, str(conftest.ROOT / "clients" / "python"))

from nereid_ring import _library  # noqa: E402  (the path to it is only known here)

NUMBERS = [str(number) for number in range(16)]
CLIENTS = conftest.ROOT / "clients"
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]


@pytest.fixture(scope="module")
def program(request, binary, tmp_path_factory) -> tuple[list, dict]:
    """How to start the example in a language, and the environment that it needs."""
    libraries = binary.parent
    if request.param == "rust":
        built = libraries / "examples" / "identity"
        if not built.is_file():
            pytest.fail(f"{built} is not there: cargo build --package nereid-ring-client --examples")
        return [built], {}
    if request.param == "python":
        environment = {"PYTHONPATH": str(CLIENTS / "python"), "NEREID_RING_LIBRARY": str(libraries / "libnereid_ring_c.so")}
        return [sys.executable, CLIENTS / "python" / "examples" / "identity.py"], environment
    built = tmp_path_factory.mktemp("c") / "identity"
    command = [os.environ.get("CC", "cc"), "-std=c11", *WARNINGS, f"-I{CLIENTS / 'c' / 'include'}"]
    command += [CLIENTS / "c" / "examples" / "identity.c", f"-L{libraries}", "-lnereid_ring_c", "-o", built]
    subprocess.run(command, check=True)
    return [built], {"LD_LIBRARY_PATH": str(libraries)}


every_language = pytest.mark.parametrize("program", ["c", "rust", "python"], indirect=True)


def _run(program: tuple[list, dict], *arguments) -> subprocess.CompletedProcess:
    command, environment = program
    environment = {**os.environ, **environment}
    return subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=30, check=False)


@every_language
def test_an_example_prints_what_it_gets(with_ring, program):
    done = _run(program, with_ring[1], "fp32")
    assert done.returncode == 0, done.stderr
    first = done.stdout.partition("OUTPUT0")[2].partition("OUTPUT0")[0]
    numbers = first.rpartition(":")[2].replace("[", " ").replace("]", " ").replace(",", " ").split()
    assert [number.removesuffix(".0").removesuffix(".") for number in numbers] == NUMBERS, done.stdout


@every_language
def test_an_example_says_what_is_wrong(with_ring, program):
    for arguments, words in [
        ((with_ring[1], "absent"), "'absent' is not found"),
        ((with_ring[1].with_name("nobody"), "fp32"), "nobody"),
        ((), "usage: identity"),
    ]:
        done = _run(program, *arguments)
        assert done.returncode != 0 and words in done.stderr, done.stderr


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="there is no C++ compiler")
def test_the_header_is_one_of_cpp_too(tmp_path: pathlib.Path):
    source = tmp_path / "header.cpp"
    source.write_text('#include "nereid_ring.h"\nint main() { return nrd_error() == nullptr; }\n')
    command = [os.environ.get("CXX", "c++"), "-std=c++17", *WARNINGS, f"-I{CLIENTS / 'c' / 'include'}", "-fsyntax-only", source]
    subprocess.run(command, check=True)


STRUCTS = {
    "nrd_options": _library.Options,
    "nrd_tensor": _library.Tensor,
    "nrd_wanted": _library.Wanted,
    "nrd_parameter": _library.Parameter,
    "nrd_request": _library.Request,
    "nrd_completion": _library.Completion,
}


def test_the_header_is_that_of_the_library(binary, tmp_path: pathlib.Path):
    """Sizes and places are those by which the client in Python is served; types and functions are there."""
    header = re.sub(r"/\*.*?\*/", "", (CLIENTS / "c" / "include" / "nereid_ring.h").read_text(), flags=re.S)
    places = [(name, field) for name, struct in STRUCTS.items() for field, _ in struct._fields_]
    constants = [f"NRD_{name}" for name in test_ring_layout.TYPES]
    printed = [f"sizeof({name})" for name in STRUCTS] + constants
    printed += [f"offsetof({name}, {field})" for name, field in places]
    printed += [f"sizeof((({name} *)0)->{field})" for name, field in places]
    lines = "".join(f'printf("%zu\\n", (size_t)({each}));' for each in printed)
    (tmp_path / "layout.c").write_text(f'#include <stdio.h>\n#include "nereid_ring.h"\nint main(void) {{ {lines} }}\n')
    command = [os.environ.get("CC", "cc"), "-std=c11", *WARNINGS, f"-I{CLIENTS / 'c' / 'include'}"]
    subprocess.run([*command, tmp_path / "layout.c", "-o", tmp_path / "layout"], check=True)
    told = subprocess.run([tmp_path / "layout"], capture_output=True, text=True, check=True).stdout.split()
    expected = [*(ctypes.sizeof(struct) for struct in STRUCTS.values()), *range(1, len(constants) + 1)]
    fields = [getattr(STRUCTS[name], field) for name, field in places]
    expected += [each.offset for each in fields] + [each.size for each in fields]
    assert dict(zip(printed, map(int, told), strict=True)) == dict(zip(printed, expected, strict=True))
    named = {name: set(re.findall(r"(\w+);", body)) for body, name in re.findall(r"typedef struct \{(.*?)\} (nrd_\w+);", header, re.S)}
    assert named == {name: {field for field, _ in struct._fields_} for name, struct in STRUCTS.items()}
    library = ctypes.CDLL(str(binary.parent / _library.NAME))
    functions = set(re.findall(r"(nrd_\w+)\(", header))
    assert functions >= set(_library._FUNCTIONS) and all(hasattr(library, name) for name in functions)


def test_nereid_bench_uses_the_ring(with_ring, binary, tmp_path):
    server, path = with_ring
    before = server.requests_done("fp32_batched")
    report = tmp_path / "report.json"
    command = [binary, "bench", "--via", "ring", f"--ring-socket={path}", "-u", server.grpc_address, "-m", "fp32_batched", "--shape", "INPUT0:16"]
    command += ["--concurrency-range", "1:4:3", "-p", "200", "-s", "999", "-r", "10", "--json", report]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(report.read_text())
    assert told["protocol"] == "ring" and len(told["results"]) == 2
    assert server.requests_done("fp32_batched") > before
    command[command.index(f"--ring-socket={path}")] = f"--ring-socket={path}-nobody"
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode != 0 and "nobody" in refused.stderr
