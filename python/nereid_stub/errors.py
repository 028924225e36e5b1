"""Errors of models and of this package."""

from __future__ import annotations

import enum
import traceback


class TritonModelException(Exception):
    """What this package raises, and models may."""


class ErrorCode(enum.IntEnum):
    """What kind of failure it was. Its text is that of Triton's native module."""

    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7

    def __str__(self) -> str:
        return f"__ErrorCode.{self.name}"


class TritonError:
    """Why a request failed, as a response says it."""

    UNKNOWN = ErrorCode.UNKNOWN
    INTERNAL = ErrorCode.INTERNAL
    NOT_FOUND = ErrorCode.NOT_FOUND
    INVALID_ARG = ErrorCode.INVALID_ARG
    UNAVAILABLE = ErrorCode.UNAVAILABLE
    UNSUPPORTED = ErrorCode.UNSUPPORTED
    ALREADY_EXISTS = ErrorCode.ALREADY_EXISTS
    CANCELLED = ErrorCode.CANCELLED
    __slots__ = ("_message", "_code")

    def __init__(self, message: str, code: int = ErrorCode.INTERNAL):
        self._message = str(message)
        self._code = ErrorCode(code)

    def message(self) -> str:
        """What the client reads."""
        return self._message

    def code(self) -> int:
        """One of the eight codes."""
        return self._code


def told(error: BaseException) -> str:
    """An exception and where it was raised, in the form that Triton's users know: the innermost call first,
    this package's own left out."""
    frames = traceback.extract_tb(error.__traceback__)
    calls = [
        f"  {frame.filename}({frame.lineno}): {frame.name}\n"
        for frame in reversed(frames)
        if not frame.filename.startswith("<nereid_stub/")
    ]
    text = f"{type(error).__name__}: {error}"
    return f"{text}\n\nAt:\n{''.join(calls)}" if calls else text
