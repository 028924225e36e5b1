"""Asks the real Triton every question of the differential tests and writes down what it answers.

    build/venv/bin/python -m tests.differential.record

The file it writes is committed: with it the tests run where the real server is not installed.
"""

from __future__ import annotations

import json
import pathlib
import re
import struct
import subprocess
import sys

FOLDER = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[1] / "benches" / "peer"))

import servers  # noqa: E402

from . import cache_cases, grpc_cases, http_cases, http_infer_cases, repository, restricted_cases  # noqa: E402

GOLDEN = FOLDER / "triton-2.51.json"
# Every flag, and the form of its value.
FLAGS = FOLDER / "triton-2.51-flags.txt"
# Why a model's configuration was refused goes to the real server's log only.
POLL_FAILURES = FOLDER / "triton-2.51-poll-failures.json"

# What a set-up starts a server with, besides the repository.
SETUPS: dict[str, tuple[str, ...]] = {
    "default": ("--model-control-mode=none", "--allow-http=true"),
    "explicit": ("--model-control-mode=explicit", "--load-model=identity"),
    "shared_memory": (),
    "restricted": restricted_cases.FLAGS,
    "cache": (*cache_cases.FLAGS, f"--cache-directory={servers.TRITON.parents[1] / 'caches'}"),
}
# The release that was recorded has no such flag: it lets every client register memory.
NEREID_FLAGS = ("--allow-client-shm=true", "--exit-on-error=false", "--strict-readiness=false")
SHARED_FILES = [pathlib.Path("/dev/shm" + key) for key in grpc_cases.SHARED_KEYS]


def all_cases() -> list:
    """Every case, in order; names are unique."""
    found = [
        *http_cases.cases(),
        *grpc_cases.cases(),
        *http_cases.closing(),
        *http_infer_cases.killers(),
        *grpc_cases.killers(),
        *grpc_cases.loading(),
        *grpc_cases.shared_memory(),
        *restricted_cases.cases(),
        *cache_cases.cases(),
    ]
    names = [each.name for each in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"cases with the same name: {', '.join(twice)}")
    return found


def ask(name: str, binary: pathlib.Path, cases: list, flags: tuple[str, ...] = ()) -> dict[str, dict]:
    """Every case's answer from a fresh server per set-up.

    A server that a case has ended is started anew for the next one.
    """
    answers: dict[str, dict] = {}
    for setup, setup_flags in SETUPS.items():
        chosen = [each for each in cases if each.setup == setup]
        if not chosen:
            continue
        folder = servers.ROOT / "build" / "differential" / f"{name}-{setup}"
        repository.write(folder, broken=setup == "explicit", cached=setup == "cache")
        server = None
        floats = range(grpc_cases.SHARED_BYTES // 4)
        for file in SHARED_FILES:
            file.write_bytes(struct.pack(f"<{len(floats)}f", *floats))
        try:
            for case in chosen:
                if server is None:
                    log = folder.with_name(f"{name}.log")
                    server = servers.Server(name, binary, folder, (*setup_flags, *flags), log)
                    server.wait_ready()
                answers[case.name] = case.send(server)
                if "broken" in answers[case.name] and _has_ended(server):
                    answers[case.name]["server"] = "ended"
                    server = None
        finally:
            for file in SHARED_FILES:
                file.unlink(missing_ok=True)
            if server is not None:
                server.stop()
    return as_recorded(answers)


def as_recorded(value):
    """With the names of shared-memory objects as they are the same for all."""
    return json.loads(json.dumps(value).replace(f"nereid_differential_{grpc_cases.OWN}", "nereid_differential_"))


def _has_ended(server: servers.Server) -> bool:
    try:
        server.process.wait(3)
    except subprocess.TimeoutExpired:
        return False
    return True


def flags(help_text: str) -> str:
    """What the real server's help says of its flags: one a line, with the form of its value."""
    found = re.findall(r"^  --([a-z0-9-]+)(?: <(.*)>)?$", help_text, re.MULTILINE)
    return "".join(f"{name} {form}".rstrip() + "\n" for name, form in found)


def ask_for_flags() -> str:
    """The flags of the real server that is installed."""
    told = subprocess.run(
        [servers.TRITON, "--help"], capture_output=True, text=True, env=servers.environment(servers.TRITON)
    )
    return flags(told.stdout + told.stderr)


def written(golden: dict) -> str:
    """The recorded file's text: a line for each request and one for each answer."""
    lines = (
        f"{json.dumps(name)}: {{\n"
        f' "request": {json.dumps(each["request"], ensure_ascii=False)},\n'
        f' "answer": {json.dumps(each["answer"], ensure_ascii=False)}\n}}'
        for name, each in golden.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> None:
    """Records the real server's answers."""
    cases = all_cases()
    log = servers.ROOT / "build" / "differential" / "triton.log"
    log.unlink(missing_ok=True)
    answers = ask("triton", servers.TRITON, cases)
    golden = {case.name: {"request": as_recorded(case.request()), "answer": answers[case.name]} for case in cases}
    GOLDEN.write_text(written(golden))
    FLAGS.write_text(ask_for_flags())
    failures = re.findall(
        r"\"Poll failed for model directory '(.*?)': (.*)\"$", log.read_text(), re.MULTILINE
    )
    folder = str(log.parent / "triton-explicit")
    texts = [{"model": model, "reason": reason.replace(folder, "REPOSITORY")} for model, reason in failures]
    POLL_FAILURES.write_text(json.dumps(texts, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(golden)} answers written to {GOLDEN.relative_to(servers.ROOT)}")


if __name__ == "__main__":
    main()
