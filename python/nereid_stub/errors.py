"""Errors of models and of this package."""

from __future__ import annotations

import traceback


class TritonModelException(Exception):
    """What this package raises, and models may."""


class TritonError:
    """Why a request failed, as a response says it."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)
    __slots__ = ("_message", "_code")

    def __init__(self, message: str, code: int = INTERNAL):
        self._message = str(message)
        self._code = code

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
