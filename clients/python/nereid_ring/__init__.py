"""Requests to a Nereid server on the same host, by memory shared with it.

    from nereid_ring import Ring

    with Ring("/run/nereid.ring") as ring:
        image = ring.empty((1, 3, 224, 224), np.float32)  # lies where the server reads it
        image[:] = ...
        answer = ring.infer("classifier", {"image": image})
        print(answer["scores"])                           # lies where the server wrote it

`AsyncRing` is the same for asyncio. A ring is for one thread; open one for each.
"""

from ._library import RingError
from .aio import AsyncRing
from .ring import Answer, Ring

__all__ = ["Answer", "AsyncRing", "Ring", "RingError"]
