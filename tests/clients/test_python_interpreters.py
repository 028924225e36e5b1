"""What the process of a Python model loads besides Python, and interpreters that cannot be one."""

from __future__ import annotations

import shlex
import sys

import pytest

from . import python_cases as cases
from .python_server import ECHO, INTERPRETER, WAY, is_ready, write

EXPECTED = "expected CPython 3.9 or later with the global interpreter lock, got "
# What an interpreter pretends when it starts, and what is said of it.
PRETENDED = {
    "another": (
        "sys.implementation = types.SimpleNamespace(name='pypy', cache_tag=None); del sys.abiflags", f"{EXPECTED}pypy 3."
    ),
    "free-threaded": ("sys.abiflags = 't'", f"{EXPECTED}free-threaded cpython 3."),
    "old": ("sys.version, sys.version_info = '3.8.18 (main)', (3, 8, 18, 'final', 0)", f"{EXPECTED}cpython 3.8.18"),
    "with another libc": ("refused = 'nereid_stub.native'", "which does not load the server's module: no such libc"),
    "without NumPy": ("refused = 'numpy'", "has no NumPy, which models of the back end 'python' need: no such libc"),
}
CUSTOM = """
import importlib.machinery, sys, types

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name == refused:
            raise ImportError("no such libc")

refused = None
{}
# Before the finder that the server brings, which puts itself first.
class Path(list):
    def insert(self, at, finder):
        super().insert(at + 1, finder)
sys.meta_path = Path([Refusing(), *sys.meta_path])
"""


@pytest.mark.parametrize("kind", PRETENDED)
def test_an_interpreter_that_cannot_run_models_is_named(start, tmp_path, kind):
    pretence, told = PRETENDED[kind]
    environment = tmp_path / "environment"
    (environment / "bin").mkdir(parents=True)
    (environment / "sitecustomize.py").write_text(CUSTOM.format(pretence))
    program = environment / "bin" / "python3"
    variable = f"PYTHONPATH={shlex.quote(str(environment))}"
    program.write_text(f'#!/bin/sh\n{variable} exec {shlex.quote(sys.executable)} "$@"\n')
    program.chmod(0o755)
    config = WAY + f'parameters {{ key: "EXECUTION_ENV_PATH" value: {{ string_value: "{environment}" }} }}\n'
    write(tmp_path / "repository", "model", config, "class TritonPythonModel:\n    pass\n")
    server = start(tmp_path / "repository", INTERPRETER, "--exit-on-error=false", "--strict-readiness=false")
    assert not is_ready(server, "model")
    log = server.log.read_text()
    failures = [line for line in log.splitlines() if "failed to load 'model' version 1" in line]
    assert len(failures) == 1, log
    assert "'model_0' of model 'model' ended with exit status: 3: the Python " in failures[0]
    assert sys.executable in failures[0] and told in failures[0]
    assert "Traceback" not in log


def test_the_native_half_is_mapped_and_its_file_is_closed(start, tmp_path):
    source = ECHO + """
import os
from nereid_stub import native
class TritonPythonModel:
    def execute(self, requests):
        files = [os.path.realpath(f"/proc/self/fd/{file}") for file in os.listdir("/proc/self/fd")]
        maps = open("/proc/self/maps").read().splitlines()
        parts = [line.split()[1] for line in maps if "memfd:nereid-python-native" in line]
        is_open = any("nereid-python-native" in file for file in files)
        return [output(repr((native.__name__, "r-xp" in parts, "rwxp" in parts, is_open))) for _ in requests]
"""
    write(tmp_path / "repository", "model", WAY, source)
    server = start(tmp_path / "repository", INTERPRETER)
    answer = cases.way(server, "model", "x")
    assert "('nereid_stub.native', True, False, False)" in repr(answer)
