"""The process of a Python model's instance: `run` is called by the server's bootstrap."""

from __future__ import annotations

import gc
import socket
import sys

NUMPY_MISSING = "the Python environment {} ({}) has no NumPy, which models of the back end 'python' need: {}"


def run(inbound: int, outbound: int, memory: int, size: int) -> None:
    """Serves the server, which is at the other ends of two sockets, with `size` bytes of shared memory."""
    try:
        import numpy  # noqa: F401
    except ImportError as error:
        print(NUMPY_MISSING.format(sys.executable, sys.version.split()[0], error), file=sys.stderr, flush=True)
        raise SystemExit(3) from None

    from . import arena, channel, host

    # What is loaded by now stays; the collector need not look at it again and again.
    gc.freeze()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)
    host.ignore_signals()
    sockets = (socket.socket(fileno=file) for file in (inbound, outbound))
    host.Host(channel.Channel(*sockets, arena.Arena(memory, size))).run()
