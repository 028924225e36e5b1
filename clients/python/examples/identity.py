#!/usr/bin/env python3
"""Sends sixteen numbers to a model that gives them back, waiting for the answer and in asyncio.

    PYTHONPATH=clients/python clients/python/examples/identity.py /run/nereid.ring MODEL
"""

from __future__ import annotations

import asyncio
import sys

import numpy as np

from nereid_ring import AsyncRing, Ring, RingError


def main(path: str, model: str) -> None:
    with Ring(path) as ring:
        given, back = ring.empty(16, np.float32), ring.empty(16, np.float32)
        given[:] = np.arange(16)
        ring.infer(model, {"INPUT0": given}, {"OUTPUT0": back})
        print("OUTPUT0:", back)


async def many(path: str, model: str) -> None:
    """Four requests in flight at a time."""
    async with AsyncRing(path) as ring:
        requests = [ring.infer(model, {"INPUT0": np.full(4, number, np.float32)}) for number in range(4)]
        for answer in await asyncio.gather(*requests):
            print("OUTPUT0:", answer["OUTPUT0"])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: identity.py SOCKET MODEL")
    try:
        main(*sys.argv[1:])
        asyncio.run(many(*sys.argv[1:]))
    except RingError as error:
        sys.exit(f"error: {error}")
