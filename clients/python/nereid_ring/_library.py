"""The C library behind the package: `clients/c/include/nereid_ring.h`."""

from __future__ import annotations

import ctypes
import functools
import os
import pathlib

NAME = "libnereid_ring_c.so"


class RingError(RuntimeError):
    """What the server says of a request, or what went wrong on the way to it."""

    def __init__(self, message: str, status: str = ""):
        super().__init__(message)
        self.status = status


class Options(ctypes.Structure):
    _fields_ = [("arena_bytes", ctypes.c_uint64), ("requests", ctypes.c_uint32), ("spin", ctypes.c_uint32)]


class Tensor(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("datatype", ctypes.c_uint32),
        ("rank", ctypes.c_uint32),
        ("dims", ctypes.POINTER(ctypes.c_int64)),
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
    ]


class Wanted(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("classes", ctypes.c_uint32),
        ("place", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
    ]


class Parameter(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("kind", ctypes.c_uint32),
        ("integer", ctypes.c_int64),
        ("number", ctypes.c_double),
        ("text", ctypes.c_char_p),
    ]


class Request(ctypes.Structure):
    _fields_ = [
        ("model", ctypes.c_char_p),
        ("version", ctypes.c_char_p),
        ("id", ctypes.c_char_p),
        ("sequence_name", ctypes.c_char_p),
        ("sequence", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("priority", ctypes.c_uint64),
        ("timeout_us", ctypes.c_uint64),
        ("deadline_us", ctypes.c_uint64),
        ("area", ctypes.c_void_p),
        ("area_bytes", ctypes.c_size_t),
        ("inputs", ctypes.POINTER(Tensor)),
        ("input_count", ctypes.c_size_t),
        ("outputs", ctypes.POINTER(Wanted)),
        ("output_count", ctypes.c_size_t),
        ("parameters", ctypes.POINTER(Parameter)),
        ("parameter_count", ctypes.c_size_t),
    ]


class Completion(ctypes.Structure):
    _fields_ = [
        ("token", ctypes.c_uint64),
        ("status", ctypes.c_uint32),
        ("is_final", ctypes.c_uint32),
        ("message", ctypes.c_char_p),
        ("model", ctypes.c_char_p),
        ("version", ctypes.c_int64),
        ("id", ctypes.c_char_p),
        ("outputs", ctypes.POINTER(Tensor)),
        ("output_count", ctypes.c_size_t),
        ("has_answer", ctypes.c_uint32),
    ]


_RING = ctypes.c_void_p
_FUNCTIONS = {
    "nrd_connect": (_RING, [ctypes.c_char_p, ctypes.POINTER(Options)]),
    "nrd_close": (None, [_RING]),
    "nrd_hang_up": (None, [_RING]),
    "nrd_error": (ctypes.c_char_p, []),
    "nrd_allocate": (ctypes.c_void_p, [_RING, ctypes.c_size_t]),
    "nrd_free": (None, [_RING, ctypes.c_void_p]),
    "nrd_submit": (ctypes.c_int, [_RING, ctypes.POINTER(Request), ctypes.POINTER(ctypes.c_uint64)]),
    "nrd_wake": (None, [_RING]),
    "nrd_cancel": (ctypes.c_int, [_RING, ctypes.c_uint64]),
    "nrd_next": (ctypes.c_int, [_RING, ctypes.c_int64, ctypes.POINTER(Completion)]),
    "nrd_descriptor": (ctypes.c_int, [_RING]),
    "nrd_arm": (ctypes.c_int, [_RING]),
    "nrd_hear": (ctypes.c_int, [_RING]),
}


@functools.cache
def library() -> ctypes.CDLL:
    """The library: that of $NEREID_RING_LIBRARY, beside this file, or built in this checkout."""
    here = pathlib.Path(__file__).resolve().parent
    named = os.environ.get("NEREID_RING_LIBRARY")
    built = [here.parents[2] / "target" / profile / NAME for profile in ("release", "debug")]
    places = [pathlib.Path(named)] if named else [here / NAME, *built]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        listed = ", ".join(map(str, places))
        raise RingError(f"{NAME} is at none of {listed}: `cargo build --release -p nereid-ring-c` makes it")
    loaded = ctypes.CDLL(str(found))
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


def failure() -> RingError:
    """What went wrong in the call before."""
    return RingError(library().nrd_error().decode("utf-8", "replace"))
