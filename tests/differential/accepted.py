"""Where the server under test may answer otherwise than the real Triton, case by case, and why.

Everything here is a difference that we want and that `docs/differences.md` tells the user of. A case that is
listed and yet answers alike is reported too, so that the list cannot outlive its reasons.
"""

from __future__ import annotations

CRASH = "the real server ends at this request; ours refuses it and lives on"
OVERFLOW = "the real server multiplies the shape without a check for overflow; ours refuses it"

ACCEPTED: dict[str, str] = {
    "http/infer/classification_bytes": CRASH,
    "http/infer/shape_huge": CRASH,
    "http/infer/shape_max_int64": CRASH,
    "http/infer/shape_overflow": OVERFLOW,
    "http/infer/shape_huge_binary": OVERFLOW,
    "http/infer/shape_wraps_to_zero": OVERFLOW,
    "http/infer/shape_wraps_to_match": OVERFLOW,
    "grpc/infer/shape_huge": OVERFLOW,
    "grpc/infer/shape_huge_contents": OVERFLOW,
    "grpc/infer/shape_overflow": OVERFLOW,
    "grpc/infer/shape_max_int64": OVERFLOW,
    "grpc/infer/shape_wraps_to_zero": OVERFLOW,
    "grpc/infer/shape_wraps_to_match": OVERFLOW,
}
