"""Starts the servers that are compared, tells when they are ready and what they have cost.

Used by the peer bench (`run.py`) and by the differential tests. Both kinds of server take Triton's own
flags, so one way of starting serves the real Triton and Nereid alike. Every server listens on the
loopback interface only and is ended through the process that was started here.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PEER = ROOT / "build" / "peer"
TRITON = PEER / "pytriton" / "tritonserver" / "bin" / "tritonserver"
BACKENDS = PEER / "backends"
IDENTITY = BACKENDS / "identity" / "libtriton_identity.so"
PERF_ANALYZER = PEER / "bin" / "perf_analyzer"
NEREID = ROOT / "target" / "release" / "nereid"

READY_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 45.0
PR_SET_PDEATHSIG = 1
# With the complement of a process id above it, the number of the clock that counts that process's CPU
# time to the nanosecond (clock_getcpuclockid(3)).
CPUCLOCK_SCHED = 2


class ServerError(RuntimeError):
    """A server did not start, did not get ready or ended by itself."""


def peer_is_usable() -> bool:
    """Whether `scripts/setup_peer.sh` has put the real server and perf_analyzer into `build/peer`, and they
    start."""
    return (PEER / "usable").is_file()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listened on a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _stat(process: int) -> list[str]:
    # What stands behind the name, which may hold anything.
    return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def environment(binary: pathlib.Path) -> dict[str, str] | None:
    # The processes of the real server's Python models find their libraries by this.
    return {**os.environ, "LD_LIBRARY_PATH": str(PEER / "nvidia_pytriton.libs")} if binary == TRITON else None


class Server:
    """One running server on loopback ports of its own."""

    def __init__(
        self,
        name: str,
        binary: pathlib.Path,
        repository: pathlib.Path,
        flags: tuple[str, ...] = (),
        log: pathlib.Path | None = None,
        ready_seconds_max: float = READY_SECONDS_MAX,
    ):
        self.name = name
        self.ready_seconds_max = ready_seconds_max
        self.http_port, self.grpc_port, self.metrics_port = free_ports(3)
        self.log = log or ROOT / "build" / "bench" / f"{name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [
            str(binary),
            f"--model-repository={repository}",
            "--http-address=127.0.0.1",
            f"--http-port={self.http_port}",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={self.grpc_port}",
            "--metrics-address=127.0.0.1",
            f"--metrics-port={self.metrics_port}",
            *([f"--backend-directory={BACKENDS}"] if binary == TRITON else []),
            *flags,
        ]
        self._started = time.perf_counter()
        with open(self.log, "ab") as log_file:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                env=environment(binary),
                preexec_fn=end_with_parent,
            )
        self.ready_seconds = 0.0
        self.stop_seconds = 0.0

    def __enter__(self) -> Server:
        try:
            self.wait_ready(self.ready_seconds_max)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    @property
    def http_address(self) -> str:
        """`host:port` of the HTTP service."""
        return f"127.0.0.1:{self.http_port}"

    @property
    def grpc_address(self) -> str:
        """`host:port` of the gRPC service."""
        return f"127.0.0.1:{self.grpc_port}"

    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    def wait_ready(self, seconds_max: float = READY_SECONDS_MAX) -> None:
        """Returns at the first 200 of `/v2/health/ready` and keeps how long that took."""
        deadline = self._started + seconds_max
        while time.perf_counter() < deadline:
            if not self.is_running():
                raise ServerError(
                    f"{self.name} ended with {self.process.returncode} before it was ready: {self.log_tail()}"
                )
            if self._answers_ready():
                self.ready_seconds = time.perf_counter() - self._started
                return
            time.sleep(0.001)
        raise ServerError(f"{self.name} was not ready after {seconds_max} s: {self.log_tail()}")

    def _answers_ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.http_port), timeout=5) as probe:
                probe.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
                return probe.recv(64).split(b" ")[1:2] == [b"200"]
        except OSError:
            return False

    def stop(self) -> None:
        """Asks the server to end, waits for it and keeps how long that took."""
        if not self.is_running():
            return
        started = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.stop_seconds = time.perf_counter() - started

    def kill(self) -> None:
        """Ends the server at once."""
        self.process.kill()
        self.process.wait()

    def log_tail(self) -> str:
        """The last lines of what the server wrote."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    def get_json(self, path: str):
        """The JSON body of a GET, whatever its status."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=10)
        try:
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def requests_done(self, model: str) -> int:
        """Successful requests of a model since the start, by the server's own count."""
        stats = self.get_json(f"/v2/models/{model}/stats")["model_stats"]
        return sum(int(each["inference_stats"]["success"]["count"]) for each in stats)

    def processes(self) -> list[int]:
        """The server's process and all that it has started, such as those of Python models."""
        parents = {}
        for folder in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parents[int(folder.name)] = int(_stat(int(folder.name))[1])
        found = [self.process.pid]
        for process in found:
            found.extend(child for child, parent in parents.items() if parent == process)
        return found

    def cpu_ns(self) -> int:
        """CPU time of all its processes, of threads that have ended too, in nanoseconds."""
        return sum(time.clock_gettime_ns(~process << 3 | CPUCLOCK_SCHED) for process in self.processes())

    def ticks(self) -> tuple[int, int]:
        """CPU time of all its processes in user space and in the kernel, in the system's ticks."""
        stats = [_stat(process) for process in self.processes()]
        return sum(int(stat[11]) for stat in stats), sum(int(stat[12]) for stat in stats)

    def memory_bytes(self) -> int:
        """Resident memory of the process."""
        pages = int(pathlib.Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def forget_peak(self) -> None:
        """From now on `peak_bytes` is what comes."""
        # proc_pid_clear_refs(5): 5 resets the peak of the resident set.
        pathlib.Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        """The most memory that the process had resident."""
        lines = pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        (kib,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
        return int(kib) << 10

    def threads(self) -> int:
        """How many threads the process has."""
        return len(os.listdir(f"/proc/{self.process.pid}/task"))
