"""What else the server does for a model: its log, its metrics, its models."""

from __future__ import annotations

import base64
import enum
import json
import sys

from . import requests, wire
from .errors import TritonModelException

INFO, WARNING, ERROR, VERBOSE = range(4)


def log(message, level: int = INFO, depth: int = 1) -> None:
    """Writes a line into the server's log, with the place that it comes from."""
    frame = sys._getframe(depth)
    writer = wire.Writer()
    writer.begin(wire.LOG)
    writer.pack(wire.FLAG, int(level))
    writer.pack(wire.COUNT, frame.f_lineno)
    writer.text(frame.f_code.co_filename)
    writer.text(str(message))
    writer.end()
    requests.channel.send(writer)


class Logger:
    """The server's log."""

    INFO, WARNING, ERROR, VERBOSE = INFO, WARNING, ERROR, VERBOSE

    class LogLevel:
        """What a line is about."""

        INFO, WARNING, ERROR, VERBOSE = INFO, WARNING, ERROR, VERBOSE

    @staticmethod
    def log(message, level: int = INFO) -> None:
        """Writes a line."""
        log(message, level, 2)

    @staticmethod
    def log_info(message) -> None:
        """Writes what is good to know."""
        log(message, INFO, 2)

    @staticmethod
    def log_warn(message) -> None:
        """Writes a warning."""
        log(message, WARNING, 2)

    @staticmethod
    def log_error(message) -> None:
        """Writes an error."""
        log(message, ERROR, 2)

    @staticmethod
    def log_verbose(message) -> None:
        """Writes what only a search for a fault needs."""
        log(message, VERBOSE, 2)


class MetricKind(enum.IntEnum):
    """How the values of metrics move."""

    COUNTER, GAUGE, HISTOGRAM = range(3)


class MetricFamily:
    """Metrics of one name, on the server's page of metrics."""

    MetricKind = MetricKind
    COUNTER, GAUGE, HISTOGRAM = MetricKind

    def __init__(self, name: str, description: str, kind: int):
        self._name = name
        self._kind = kind
        self._number = _ask("Error when creating MetricFamily: ", wire.NEW_FAMILY, (kind,), (), (name, description))

    def Metric(self, labels=None, buckets=None):
        """A metric of this family."""
        return Metric(self, labels, buckets)

    def __del__(self):
        if getattr(self, "_number", None) is not None:
            requests.channel.gone.append(wire.FAMILIES_GONE, self._number, requests.AT_ONCE)


class Metric:
    """One metric."""

    def __init__(self, family: MetricFamily, labels=None, buckets=None):
        if labels is not None and not isinstance(labels, dict):
            raise TritonModelException("Failed to create metric. Labels must be a dictionary.")
        if family._kind == MetricFamily.HISTOGRAM:
            if buckets is None:
                raise TritonModelException("Failed to create metric. Missing required buckets.")
            if not isinstance(buckets, list):
                raise TritonModelException("Failed to create metric. Buckets must be a list.")
        elif buckets is not None:
            raise TritonModelException("Failed to create metric. Unexpected buckets found.")
        # The family lives as long as its metrics.
        self._family = family
        text = json.dumps({str(key): str(value) for key, value in (labels or {}).items()})
        self._number = _ask(
            "Error when creating Metric: ", wire.NEW_METRIC, (family._number,), buckets or (), (text,)
        )

    def increment(self, value: float) -> None:
        """Adds to a counter or gauge."""
        _ask("Failed to increment metric value: ", wire.METRIC_INCREMENT, (self._number,), (value,))

    def set(self, value: float) -> None:
        """Sets a gauge."""
        _ask("Failed to set metric value: ", wire.METRIC_SET, (self._number,), (value,))

    def observe(self, value: float) -> None:
        """Adds an observation to a histogram."""
        _ask("Failed to observe metric value: ", wire.METRIC_OBSERVE, (self._number,), (value,))

    def value(self) -> float:
        """The value of a counter or gauge."""
        reader = _asked("Failed to get metric value: ", wire.METRIC_VALUE, (self._number,))
        return reader.unpack(wire.VALUE)[0]

    def __del__(self):
        if getattr(self, "_number", None) is not None:
            requests.channel.gone.append(wire.METRICS_GONE, self._number, requests.AT_ONCE)


def _asked(words: str, what: int, numbers=(), values=(), texts=()):
    try:
        return requests.channel.ask(what, numbers, values, texts)
    except TritonModelException as error:
        raise TritonModelException(f"{words}{error}") from None


def _ask(words: str, what: int, numbers=(), values=(), texts=()) -> int:
    return _asked(words, what, numbers, values, texts).unpack(wire.NUMBER)[0]


def load_model(model_name: str, config: str = "", files=None) -> None:
    """Loads a model, or loads it again; with a configuration in JSON and files of its own if wanted."""
    texts = [model_name, config]
    for path, content in (files or {}).items():
        texts += [path, base64.b64encode(content).decode()]
    requests.channel.ask(wire.LOAD_MODEL, texts=texts)


def unload_model(model_name: str, unload_dependents: bool = False) -> None:
    """Unloads a model."""
    requests.channel.ask(wire.UNLOAD_MODEL, (int(unload_dependents),), texts=(model_name,))


def is_model_ready(model_name: str, model_version: str = "") -> bool:
    """Whether a model, or a version of it, can be called."""
    reader = requests.channel.ask(wire.IS_MODEL_READY, texts=(model_name, str(model_version)))
    return bool(reader.unpack(wire.NUMBER)[0])


class SharedMemory:
    """The memory that this process shares with the server."""

    @staticmethod
    def free_memory() -> int:
        """So many bytes of the half that this process gives out are free."""
        return requests.channel.arena.free_bytes()
