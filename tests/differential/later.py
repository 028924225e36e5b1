"""Cases whose feature the server under test does not have yet, by that feature.

Each must differ: one that answers alike is reported, and then it goes from here. Patterns are those of
`fnmatch`.
"""

from __future__ import annotations

import fnmatch

_WHERE = {
    "ensembles": """
        http/model/*_ensemble grpc/model/*_ensemble http/stats/ensemble http/stats/identity_batched
        http/infer/good_ensemble http/infer/ensemble_batch_too_large http/infer/classification_ensemble
        grpc/infer/good_ensemble
        http/index/all http/index/ready http/index/ready_false http/index/named
        grpc/index/all grpc/index/ready
        explicit/grpc/load_ensemble explicit/grpc/load_bad_ensemble_*
    """,
    "all extensions of the protocol": "http/server/metadata grpc/server/metadata",
}

# Models of the test's repository that need such a feature to be loaded.
MODELS = ("ensemble",)


def feature(case: str) -> str | None:
    """What the case waits for."""
    for name, patterns in _WHERE.items():
        if any(fnmatch.fnmatchcase(case, pattern) for pattern in patterns.split()):
            return name
    return None
