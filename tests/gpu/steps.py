"""The steps of `tests/gpu/run.sh`: what a machine with a GPU is to show, each step by itself and in its time."""

from __future__ import annotations

import argparse
import json
import lzma
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from typing import Callable, NamedTuple

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "tests"), str(ROOT / "examples")]

import chain_models  # noqa: E402  (the paths to them are only known here)
import serving  # noqa: E402

MIB = 1 << 20
# What may come to lie on a GPU while 10,000 requests pass through: the driver's own, taken once.
GROWN_MIB_MAX = 32


class Figure(NamedTuple):
    """Something measured; a goal that is met, missed, or none."""

    name: str
    value: str
    goal: str = ""
    met: bool = True


class Skipped(Exception):
    """Something that a step needs is not here."""


class Late(Exception):
    """A step takes longer than it may, whatever it waits for."""


class Run:
    """What steps have in common."""

    def __init__(self, options: argparse.Namespace, folder: pathlib.Path):
        self.options, self.folder = options, folder
        self.host: bool = options.host
        self.device = "host" if options.host else "cuda"
        self.carried: pathlib.Path | None = options.carried
        given = options.binary or (self.carried and self.carried / "nereid")
        self.nereid = self.unpacked(given or ROOT / "target" / "release" / "nereid")
        self.deadline = time.monotonic() + options.seconds
        self.step_deadline = self.deadline

    def unpacked(self, path: pathlib.Path) -> pathlib.Path:
        """A program, out of its archive where it comes in one."""
        packed = path.with_name(path.name + ".xz")
        if path.is_file() or not packed.is_file():
            return path.resolve()
        made = self.folder / path.name
        with lzma.open(packed) as source, open(made, "wb") as target:
            shutil.copyfileobj(source, target)
        made.chmod(0o755)
        return made

    def companion(self, name: str) -> pathlib.Path:
        """Something that is carried along, or lies beside the binary."""
        folders = [folder for folder in (self.carried, pathlib.Path(self.options.binary or self.nereid).parent) if folder]
        for folder in folders:
            if (folder / name).exists() or (folder / f"{name}.xz").exists():
                return self.unpacked(folder / name)
        raise Skipped(f"{name} is not in {' or '.join(map(str, folders))}")

    def call(self, *command, **options) -> str:
        """Runs a command for as long as the step may take; its output goes on to ours and is given."""
        command = [str(part) for part in command]
        print("$", *command, flush=True)
        patience = max(1.0, self.step_deadline - time.monotonic())
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, start_new_session=True, **options
        )
        try:
            output, _ = process.communicate(timeout=patience)
        except BaseException:
            # Its time is over, or ours: with all that it has started.
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            print(output, end="", flush=True)
            raise
        print(output, end="", flush=True)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        return output

    def bench_gpu(self, *flags) -> list[dict]:
        """`nereid bench gpu` on the devices of this run."""
        figures = self.folder / "figures.json"
        self.call(self.nereid, "bench", "gpu", f"--device={self.device}", f"--json={figures}", *flags)
        return json.loads(figures.read_text())

    def server(self, repository: pathlib.Path, *flags) -> serving.Server:
        """A server on the devices of this run."""
        device = "host" if self.host else "gpu"
        return serving.Server(self.nereid, self.folder, repository, f"--device={device}", *flags)

    def gpu_mib(self) -> int | None:
        """The memory in use on all GPUs."""
        if self.host:
            return None
        text = subprocess.check_output(
            ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], text=True, timeout=20
        )
        return sum(int(line) for line in text.split())


def machine(run: Run) -> list[Figure]:
    """What this is."""
    run.call("uname", "-srm")
    figures = [Figure("program", run.call(run.nereid, "--version").strip())]
    if run.host:
        return figures
    query = "name,driver_version,memory.total,compute_cap"
    text = run.call("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")
    return figures + [Figure(f"GPU {number}", line) for number, line in enumerate(text.splitlines())]


def kernels(run: Run) -> list[Figure]:
    """All kernels on random shapes against a reference in float64."""
    text = run.call(run.companion("kernels-test"), "--test-threads=8", "--nocapture")
    if not run.host and "no GPU runs kernels here" in text:
        return [Figure("kernels", "no GPU was found", "right to 1e-6", met=False)]
    return [Figure("kernels", next(line for line in text.splitlines() if "test result" in line), "right to 1e-6")]


def copies(run: Run) -> list[Figure]:
    """Bandwidth of pinned and of pageable memory."""
    sizes = [65_536, 1 << 20] if run.host else [65_536, 1 << 20, 16 << 20, 64 << 20]
    figures = run.bench_gpu("--measure=copies", f"--bytes={','.join(map(str, sizes))}")
    rates = {(it["memory"], it["way"], it["bytes"]): it["bytes_per_second"] for it in figures}
    largest = sizes[-1]
    told = []
    for way in ("in", "out", "both"):
        pinned, pageable = (rates[memory, way, largest] for memory in ("pinned", "pageable"))
        # To a device of the host all memory is the same.
        met = run.host or pinned >= pageable
        value = f"{pinned / 1e9:.1f} GB/s pinned, {pageable / 1e9:.1f} pageable"
        told.append(Figure(f"copies of {largest} bytes, {way}", value, "pinned no slower", met))
    return told


def overlap(run: Run) -> list[Figure]:
    """Batches through lanes beside the busiest engine alone, for sizes, lanes and models."""
    if run.host:
        figures = run.bench_gpu("--batches=20", "--bytes=1048576", "--lanes=1,3", "--models=1", "--execute-us=2000")
    else:
        sizes = "--bytes=65536,1048576,16777216,67108864"
        flags = ["--batches=200", sizes, "--lanes=1,2,3,4", "--models=1,2,4"]
        figures = run.bench_gpu(*flags, "--link-bytes-per-second=25e9")
        # The model takes about as long as a copy each way: nothing hides anything.
        run.bench_gpu("--batches=200", sizes, "--lanes=3", "--models=1", "--link-bytes-per-second=55e9")
    return [
        Figure(
            f"overlap, {it['bytes']} bytes, {it['lanes']} lanes, {it['models']} models",
            f"{100 * it['achieved']:.1f} % of the bound",
            # The engines of a host share its processors with everything else.
            "" if run.host or it["bytes"] < 1 << 20 else "95 %",
            run.host or it["bytes"] < 1 << 20 or it["achieved"] >= 0.95,
        )
        for it in figures
        if it["lanes"] == 3
    ]


def devices(run: Run) -> list[Figure]:
    """All GPUs at once."""
    count = 2
    if not run.host:
        listed = run.call("nvidia-smi", "--query-gpu=index", "--format=csv,noheader")
        count = len(listed.splitlines())
    if count < 2:
        raise Skipped("there is one GPU")
    sizes = ["--bytes=65536", "--batches=20"] if run.host else ["--bytes=16777216", "--batches=200"]
    flags = [*sizes, "--lanes=3", "--models=1", f"--devices={count}", "--link-bytes-per-second=25e9"]
    return [
        Figure(f"overlap on {count} devices", f"{100 * it['achieved']:.1f} % of the bound", *goal(run, it["achieved"], 0.95))
        for it in run.bench_gpu(*flags)
    ]


def goal(run: Run, value: float, least: float) -> tuple[str, bool]:
    """A part that is to be reached, on GPUs."""
    return ("", True) if run.host else (f"{100 * least:.0f} %", value >= least)


def faster(run: Run, name: str, took: float, otherwise: str, took_otherwise: float, has_goal: bool) -> Figure:
    """The seconds of a way beside those of another, which it is to beat on GPUs if it has that goal."""
    has_goal = has_goal and not run.host
    value = f"{1e6 * took:.1f} µs, {otherwise} {1e6 * took_otherwise:.1f}"
    return Figure(name, value, "faster" if has_goal else "", not has_goal or took < took_otherwise)


def memory(run: Run) -> list[Figure]:
    """What 10,000 small batches leave taken of a device's memory."""
    batches = 1000 if run.host else 10_000
    flags = [f"--batches={batches}", "--bytes=65536", "--lanes=3", "--models=1", "--execute-us=20"]
    [measured] = run.bench_gpu(*flags)
    grown = measured["memory_grown_bytes"]
    # The driver takes its own memory in pieces of 2 MiB.
    most = 0 if run.host else 4 * MIB
    return [Figure(f"memory after {batches} batches", f"{grown} bytes more", f"≤ {most}", grown <= most)]


def gather(run: Run) -> list[Figure]:
    """Rows brought together by one launch, and by a copy each."""
    return [
        faster(
            run,
            f"gather, {it['rows']} rows of {it['bytes']} bytes",
            it["launch_s"],
            "by copies",
            it["copies_s"],
            it["rows"] >= 64,
        )
        for it in run.bench_gpu("--measure=gather")
    ]


def graphs(run: Run) -> list[Figure]:
    """Small launches one by one, and as a graph."""
    return [
        faster(run, f"graph of {it['launches']} launches", it["graph_s"], "one by one", it["single_s"], it["launches"] >= 8)
        for it in run.bench_gpu("--measure=graphs")
    ]


def served(run: Run) -> list[Figure]:
    """A chain of our own kernels, by gRPC, system shared memory and CUDA shared memory; memory after 10,000 requests."""
    repository = serving.softmax_repository(run.folder / "served")
    # A debug build on processors that have other work as well answers a few in a second.
    concurrency, seconds = (2, 2) if run.host else (16, 12)
    load = [f"--concurrency-range={concurrency}", f"--measurement-interval={1000 * seconds}", "-r", "1", "-s", "900"]
    told = []
    with run.server(repository, "--allow-client-shm=true") as server:
        used = None
        for way in ("grpc", "shm", "cuda-shm"):
            report = run.folder / f"{way}.json"
            flags = ["-i", way, *load]
            if way == "cuda-shm" and run.host:
                flags.append("--shared-memory-device=host")
            bench = [run.nereid, "bench", "-m", "softmax", "-u", server.grpc, f"--json={report}", *flags]
            run.call(*bench, f"--output-shared-memory-size={serving.ROW_BYTES}")
            # What the first requests have taken stays.
            used = run.gpu_mib() if used is None else used
            told.append(Figure(f"softmax by {way}", serving.rate(report)))
        while server.inferences("softmax") < (10 if run.host else 10_000):
            bench = [run.nereid, "bench", "-m", "softmax", "-u", server.grpc, "-i", "grpc", "--quiet"]
            run.call(*bench, *load)
        after, count = run.gpu_mib(), server.inferences("softmax")
    if used is not None and after is not None:
        grown = after - used
        told.append(
            Figure(f"GPU memory after {count} requests", f"{grown} MiB more", f"≤ {GROWN_MIB_MAX}", grown <= GROWN_MIB_MAX)
        )
    return told


def shared(run: Run) -> list[Figure]:
    """Right results in memory of a device that this process, which is another, shares with the server."""
    repository = serving.softmax_repository(run.folder / "shared")
    with run.server(repository, "--allow-client-shm=true") as server:
        checked = serving.check_shared_memory(server, host=run.host)
    return [Figure("CUDA shared memory", f"{checked} requests right", "all right")]


def pictures(run: Run) -> list[Figure]:
    """A chain that decodes files and does the rest on the device, beside the same on the processors."""
    repository = serving.picture_repository(run.folder / "pictures")
    with run.server(repository) as server:
        checked = serving.check_pictures(server)
    return [Figure("decode, then the device", f"{checked} pictures as on the processors", "to 1e-5")]


def chains(run: Run) -> list[Figure]:
    """Chains that gather, pad, suppress boxes and give pictures of several sizes, beside the same on the processors."""
    repository = chain_models.write(run.folder / "chains", delay_us=1000)
    with run.server(repository) as server:
        checked = chain_models.check(server)
    return [Figure("chains", f"{checked} requests as on the processors", "all right")]


def frameworks(run: Run) -> list[Figure]:
    """ONNX and TorchScript models end to end, with graphs and without."""
    backends = None
    if run.carried and (run.carried / "backends").is_dir():
        backends = run.carried / "backends"
    environment = {**os.environ, **({"NEREID_BACKEND_DIR": str(backends)} if backends else {})}
    device = "host" if run.host else "gpu"
    flags = [f"--device={device}", f"--seconds={1 if run.host else 4}"]
    text = run.call(sys.executable, HERE / "frameworks.py", run.nereid, *flags, env=environment)
    right = [line.removeprefix("== ") for line in text.splitlines() if line.startswith("== ")]
    if not right:
        raise Skipped("there is no back end of a framework (NEREID_BACKEND_DIR)")
    return [Figure("frameworks", line, "right") for line in right]


def torch(run: Run) -> list[Figure]:
    """TorchScript, with the torch that python3 has."""
    try:
        import torch as installed
    except ImportError as missing:
        raise Skipped("python3 has no torch") from missing
    library = run.companion("libnereid_pytorch.so")
    backends = run.folder / "backends"
    source = pathlib.Path(installed.__file__).parent
    run.call(run.nereid, "backend", "install", "pytorch", "--directory", backends, "--from", source)
    shutil.copy(library, backends / "pytorch" / "libnereid_pytorch.so")
    environment = {**os.environ, "NEREID_BACKEND_DIR": str(backends)}
    flags = [f"--device={'host' if run.host else 'gpu'}", f"--seconds={1 if run.host else 4}"]
    text = run.call(sys.executable, HERE / "frameworks.py", run.nereid, *flags, env=environment)
    right = [line.removeprefix("== ") for line in text.splitlines() if line.startswith("== pytorch")]
    return [Figure(f"torch {installed.__version__}", line, "right", "right" in line) for line in right or ["did not run"]]


def sanitizer(run: Run) -> list[Figure]:
    """compute-sanitizer over what our own code does on the device."""
    folders = [os.environ.get("PATH", ""), os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")]
    tool = shutil.which("compute-sanitizer", path=os.pathsep.join(folders))
    if run.host or not tool:
        raise Skipped("compute-sanitizer is not installed" if not run.host else "there is no GPU")
    bench = [run.nereid, "bench", "gpu", "--device=cuda", "--batches=20", "--bytes=65536", "--lanes=2", "--models=1"]
    programs = [("lanes", "memcheck", [*bench, "--measure=overlap,gather,graphs"])]
    try:
        tests = run.companion("kernels-test")
        programs.append(("kernels", "memcheck", [tests, "--test-threads=1"]))
        # Those whose threads share memory.
        programs.append(("kernels", "racecheck", [tests, "--test-threads=1", "softmax", "top_k", "nms", "take"]))
    except Skipped as missing:
        print(missing)
    told, ends = [], run.step_deadline
    for number, (name, which, program) in enumerate(programs):
        now = time.monotonic()
        run.step_deadline = now + (ends - now) / (len(programs) - number)
        value = "clean"
        try:
            run.call(tool, "--tool", which, "--error-exitcode", "9", *program)
        except subprocess.CalledProcessError as failed:
            value = f"ended with {failed.returncode}"
        except subprocess.TimeoutExpired as late:
            value = f"had not ended after {late.timeout:.0f} s"
        told.append(Figure(f"compute-sanitizer {which}, {name}", value, "clean", value == "clean"))
    return told


# What matters most comes first, with the seconds that each may take.
STEPS: list[tuple[Callable[[Run], list[Figure]], int]] = [
    (machine, 30),
    (copies, 60),
    (overlap, 150),
    (memory, 40),
    (gather, 40),
    (graphs, 40),
    (shared, 40),
    (served, 90),
    (pictures, 40),
    (chains, 40),
    (kernels, 90),
    (torch, 120),
    (frameworks, 150),
    (devices, 60),
    (sanitizer, 150),
]


def attempt(run: Run, step: Callable[[Run], list[Figure]], seconds_max: int) -> list[Figure]:
    """A step's figures, whatever becomes of it."""
    name, left = step.__name__, run.deadline - time.monotonic()
    if left < 10:
        return [Figure(name, "not run: no time is left", "to run", met=False)]
    patience = min(seconds_max, left)
    run.step_deadline = time.monotonic() + patience
    print(f"\n== {name}: {step.__doc__}", flush=True)
    began = time.monotonic()
    # Commands end by the deadline; what else may wait, for an answer or a server, is woken soon after.
    signal.signal(signal.SIGALRM, late)
    signal.alarm(int(patience) + 5)
    try:
        return step(run)
    except Skipped as why:
        return [Figure(name, f"skipped: {why}")]
    except (subprocess.TimeoutExpired, Late):
        return [Figure(name, f"had not ended after {time.monotonic() - began:.0f} s", "to end", met=False)]
    except Exception as error:  # A step must not stop the others, whatever is the matter with it.
        traceback.print_exc(file=sys.stdout)
        return [Figure(name, f"failed: {error}", "to run", met=False)]
    finally:
        signal.alarm(0)
        print(f"-- {name}: {time.monotonic() - began:.1f} s", flush=True)


def late(*_) -> None:
    """Ends what a step waits for."""
    raise Late


def main() -> int:
    """Runs the steps and prints what came of them."""
    names = [step.__name__ for step, _ in STEPS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", action="store_true", help="on devices of the host, short")
    parser.add_argument("--carried", type=pathlib.Path, help="a folder that tests/gpu/pack.sh has filled")
    parser.add_argument("--report", type=pathlib.Path, help="a file for the figures, as JSON")
    parser.add_argument("--seconds", type=int, default=540, help="for all steps together")
    parser.add_argument("binary", nargs="?", type=pathlib.Path, help="the server's")
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of {', '.join(names)}; all if none is named")
    options = parser.parse_args()
    if options.carried and options.binary and str(options.binary) in names:
        options.binary, options.steps = None, [str(options.binary), *options.steps]
    unknown = set(options.steps) - set(names)
    if unknown:
        parser.error(f"there is no step {', '.join(sorted(unknown))}")
    figures: list[Figure] = []
    # Whoever ends it early is told what there is by then.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with tempfile.TemporaryDirectory(prefix="nereid-gpu-", ignore_cleanup_errors=True) as folder:
            run = Run(options, pathlib.Path(folder))
            for step, seconds_max in STEPS:
                if step.__name__ in options.steps or not options.steps:
                    figures += attempt(run, step, seconds_max)
                    report(options.report, figures)
    finally:
        print("\n== figures")
        for figure in figures:
            mark = "missed" if not figure.met else "met" if figure.goal else ""
            print(f"{figure.name:48} {figure.value:56} {figure.goal:20} {mark}".rstrip(), flush=True)
    return 0 if all(figure.met for figure in figures) else 1


def report(path: pathlib.Path | None, figures: list[Figure]) -> None:
    """Writes what there is so far, for a machine that may be gone before the last step."""
    if path:
        path.write_text(json.dumps([figure._asdict() for figure in figures], indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
