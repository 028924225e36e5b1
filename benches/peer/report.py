"""The goals, and the tables that say how far each measurement is from its goal."""

from __future__ import annotations

import dataclasses
import statistics

from bench import Finding
from load import LARGE, SMALL, Sample, Work

READY_MS_MAX = 50.0
MEMORY_MIB_MAX = 20.0
STOP_SECONDS_MAX = 1.0
COPY_FACTOR_MAX = 1.3
# Shares of the peer's, where models are written in Python: its processes' CPU time is counted with the server's.
PYTHON_CPU_MAX = 1 / 3
PYTHON_P50_MAX = 0.8
PYTHON_CALL_MAX = 1 / 5
PYTHON_READY_MAX = 1 / 3


def cpu_goal(work: Work, driver: str) -> float | None:
    """The largest share of the peer's CPU time per request that a line may cost."""
    if work.is_python:
        return None if work.times > 1 else PYTHON_CPU_MAX
    if work.elements > SMALL:
        return 1 / 2
    if work.concurrency == 1:
        return 1 / 3 if driver == "epoll" and work.protocol == "grpc" else 0.4
    if work.concurrency == 64:
        return 1 / 5 if work.protocol == "grpc" else 1 / 4
    return None


def p50_goal(work: Work) -> float | None:
    """The largest share of the peer's median latency that a line may have."""
    if work.is_python and work.concurrency == 1:
        return PYTHON_CALL_MAX if work.times > 1 else PYTHON_P50_MAX
    alone = not work.is_python and work.protocol == "grpc" and work.elements == SMALL and work.concurrency == 1
    return 0.6 if alone else None


def medians(samples: list[Sample]) -> Sample:
    """Each figure's median over the rounds."""
    return Sample(
        *(
            statistics.median(getattr(each, field.name) for each in samples)
            for field in dataclasses.fields(Sample)
        )
    )


def spread(samples: list[Sample]) -> float:
    """How far apart the rounds' CPU figures are: (largest − smallest) ÷ median."""
    values = [each.cpu_us for each in samples]
    return (max(values) - min(values)) / statistics.median(values)


def ratio(peer: list[Sample], subject: list[Sample], figure: str) -> float:
    """The subject's figure over the peer's: the median of the rounds' own ratios.

    The two samples of a round were taken one right after the other, so what the machine did besides
    weighs on both and leaves their ratio alone.
    """
    return statistics.median(
        getattr(mine, figure) / getattr(theirs, figure) for theirs, mine in zip(peer, subject)
    )


def findings(work: Work, peer: list[Sample], subject: list[Sample], driver: str) -> list[Finding]:
    """What a line says of its goals."""
    found = []
    if (goal := cpu_goal(work, driver)) is not None:
        found.append(Finding(f"{work.name}: server CPU", ratio(peer, subject, "cpu_us"), goal))
    if (goal := p50_goal(work)) is not None:
        found.append(Finding(f"{work.name}: p50", ratio(peer, subject, "p50_us"), goal))
    return found


def copy_findings(rows: list[tuple[Work, list[Sample], list[Sample]]], copy_us: float) -> list[Finding]:
    """What tensors in shared memory may cost: a small request, and 1.3 times the one copy that is made."""
    small = {work.concurrency: mine for work, _, mine in rows if work == Work("grpc", SMALL, work.concurrency)}
    found = []
    for work, _, mine in rows:
        if work == Work("grpc", LARGE, work.concurrency, shared=True) and work.concurrency in small:
            least = medians(small[work.concurrency]).cpu_us + COPY_FACTOR_MAX * copy_us
            name = f"{work.name}: server CPU beside a small request and {COPY_FACTOR_MAX} copies"
            found.append(Finding(name, medians(mine).cpu_us / least, 1.0))
    return found


def table(rows: list[tuple[Work, list[Sample], list[Sample]]], names: tuple[str, str], driver: str) -> str:
    """The Markdown table of all lines, both servers side by side.

    What the kernel takes of the subject's CPU time (sockets, sleeping, waking the client) bounds what
    the server's own code can still gain.
    """
    peer_name, subject_name = names
    lines = [
        f"| work | {peer_name} CPU µs | {subject_name} CPU µs | of it kernel | ratio | goal | infer/s | p50 µs | p99 µs | spread |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for work, peer_samples, subject_samples in rows:
        peer, subject = medians(peer_samples), medians(subject_samples)
        goal = cpu_goal(work, driver)
        apart = max(spread(peer_samples), spread(subject_samples))
        lines.append(
            f"| {work.name} | {peer.cpu_us:.1f} | {subject.cpu_us:.1f} | {subject.kernel_us:.1f} "
            f"| {ratio(peer_samples, subject_samples, 'cpu_us'):.2f} | {'' if goal is None else f'{goal:.2f}'} "
            f"| {peer.throughput:,.0f} → {subject.throughput:,.0f} "
            f"| {peer.p50_us:,.0f} → {subject.p50_us:,.0f} "
            f"| {peer.p99_us:,.0f} → {subject.p99_us:,.0f} | {apart:.0%} |"
        )
    return "\n".join(lines)


def lifecycle_table(names: tuple[str, str], lives: dict[str, dict[str, float | None]]) -> str:
    """The Markdown table of what an empty server costs to start, keep and stop."""
    labels = {
        "ready_ms": ("ready after start, no models, ms", "{:.0f}"),
        "memory_mib": ("resident memory, no models, MiB", "{:.1f}"),
        "threads": ("threads, no models", "{:.0f}"),
        "stop_s": ("stop with an idle keep-alive connection, s", "{:.2f}"),
    }
    lines = [f"| | {names[0]} | {names[1]} | ratio |", "|---|---|---|---|"]
    for key, (label, shape) in labels.items():
        peer, subject = (lives[name].get(key) for name in names)
        cells = ["" if each is None else shape.format(each) for each in (peer, subject)]
        ratio = f"{subject / peer:.2f}" if peer and subject is not None else ""
        lines.append(f"| {label} | {cells[0]} | {cells[1]} | {ratio} |")
    return "\n".join(lines)


def python_ready_findings(ready: dict[str, list[float]], names: tuple[str, str]) -> list[Finding]:
    """How long a server takes until one Python model is ready, beside the peer in the same minute."""
    share = statistics.median(mine / theirs for theirs, mine in zip(*(ready[name] for name in names)))
    return [Finding("python, ready with one model", share, PYTHON_READY_MAX)]


def python_ready_table(ready: dict[str, list[float]], names: tuple[str, str]) -> str:
    """The Markdown table of that."""
    peer, subject = (statistics.median(ready[name]) for name in names)
    return (
        f"| | {names[0]} | {names[1]} | ratio |\n|---|---|---|---|\n"
        f"| ready after start, one Python model, ms | {peer:.0f} | {subject:.0f} | {subject / peer:.2f} |"
    )


def lifecycle_findings(life: dict[str, float | None]) -> list[Finding]:
    """What starting, keeping and stopping an empty server says of its goals."""
    goals = (
        ("ready_ms", "ready after start, ms", READY_MS_MAX),
        ("memory_mib", "resident memory without models, MiB", MEMORY_MIB_MAX),
        ("stop_s", "stop with an idle keep-alive connection, s", STOP_SECONDS_MAX),
    )
    return [Finding(name, life[key], goal) for key, name, goal in goals if life.get(key) is not None]
