"""The stand-in for NVIDIA's driver library (`tests/cuda/driver`): how it is built, and what it tells of a process
that used it. It shows the order of calls and their accounts; it is no GPU."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
WAIT_SECONDS_MAX = 60
FLAGS = ["-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-pthread", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-Wl,-z,nodelete"]


def build(folder: pathlib.Path) -> pathlib.Path:
    """Compiles it, and that for NVRTC beside it, into a folder, which goes into LD_LIBRARY_PATH."""
    sources = sorted((ROOT / "tests" / "cuda" / "driver").glob("*.cpp"))
    kernels = [ROOT / "kernels" / "all.cu", ROOT / "kernels" / "shim" / "fibers.cpp"]
    compiler = os.environ.get("CXX", "c++")
    library = folder / "libcuda.so"
    soname = f"-Wl,-soname,{library.name}"
    subprocess.run([compiler, *FLAGS, soname, *sources, "-x", "c++", *kernels, "-o", library], check=True)
    compiled = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Werror", ROOT / "tests" / "cuda" / "nvrtc.cpp"]
    subprocess.run([compiler, *compiled, "-o", folder / "libnvrtc.so.13"], check=True)
    return library


class Accounts:
    """What the stand-in counts in one process."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def read(self) -> dict:
        """The accounts, no older than a few milliseconds."""
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while not self.path.exists():
            assert time.monotonic() < deadline, "the stand-in was not opened"
            time.sleep(0.01)
        time.sleep(0.03)
        return json.loads(self.path.read_text())

    def wait(self, is_so) -> dict:
        """The accounts once they are so."""
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while not is_so(accounts := self.read()):
            assert time.monotonic() < deadline, accounts
        return accounts
