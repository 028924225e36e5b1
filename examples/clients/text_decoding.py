"""Turns probabilities of characters into text, with numpy alone (CTC, best path)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

CONFIDENCE_MIN = 0.5
BLANK = 0


def read_charset(path: Path) -> list[str]:
    """The characters, by their numbers."""
    return path.read_text("utf-8").rstrip("\n").split("\n")


def decode(steps: np.ndarray, charset: list[str]) -> tuple[str, float]:
    """Text and mean confidence of [step, character] probabilities.

    The same character in steps that touch counts once; a blank between keeps doubled letters.
    """
    best, confidence = steps.argmax(axis=1), steps.max(axis=1)
    kept = (best != BLANK) & (best != np.concatenate(([BLANK], best[:-1])))
    text = "".join(charset[character] for character in best[kept])
    return text.strip(), float(confidence[kept].mean()) if kept.any() else 0.0
