"""Cases whose feature the server under test does not have yet, by that feature.

Each must differ: one that answers alike is reported, and then it goes from here. Patterns are those of
`fnmatch`.
"""

from __future__ import annotations

import fnmatch

_WHERE = {
    "all extensions of the protocol": "http/server/metadata grpc/server/metadata",
}

# Models of the test's repository that need such a feature to be loaded.
MODELS: tuple[str, ...] = ()


def feature(case: str) -> str | None:
    """What the case waits for."""
    for name, patterns in _WHERE.items():
        if any(fnmatch.fnmatchcase(case, pattern) for pattern in patterns.split()):
            return name
    return None
