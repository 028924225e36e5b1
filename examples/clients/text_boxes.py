"""Turns a map of text probabilities into boxes, with numpy alone.

The steps are those of differentiable binarization (https://arxiv.org/abs/1911.08947): threshold,
connected areas, mean probability as score, then grow each box, since the model was trained to mark
the shrunk core of a line only.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

PIXEL_THRESHOLD = 0.3
BOX_THRESHOLD = 0.5
SIDE_MIN = 3
GROWTH = 1.6


class Box(NamedTuple):
    """A rectangle in pixels; right and bottom are just outside."""

    left: int
    top: int
    right: int
    bottom: int

    def grown(self) -> Box:
        width, height = self.right - self.left, self.bottom - self.top
        margin = math.ceil(width * height * GROWTH / (2 * (width + height)))
        return Box(self.left - margin, self.top - margin, self.right + margin, self.bottom + margin)

    def scaled(self, horizontal: float, vertical: float, size: tuple[int, int]) -> Box:
        """The same box in a picture of `size`, cut off at its edges."""
        return Box(
            max(0, math.floor(self.left * horizontal)),
            max(0, math.floor(self.top * vertical)),
            min(size[0], math.ceil(self.right * horizontal)),
            min(size[1], math.ceil(self.bottom * vertical)),
        )


def find_boxes(probabilities: np.ndarray) -> list[Box]:
    boxes = []
    for area in connected_areas(probabilities > PIXEL_THRESHOLD):
        if min(area.right - area.left, area.bottom - area.top) < SIDE_MIN:
            continue
        if probabilities[area.top : area.bottom, area.left : area.right].mean() >= BOX_THRESHOLD:
            boxes.append(area.grown())
    return boxes


def in_reading_order(boxes: list[Box]) -> list[Box]:
    """Row by row from left to right; a box whose middle is above the bottom of a row belongs to it."""
    rows: list[list[Box]] = []
    for box in sorted(boxes, key=lambda box: box.top):
        if rows and (box.top + box.bottom) / 2 < rows[-1][0].bottom:
            rows[-1].append(box)
        else:
            rows.append([box])
    return [box for row in rows for box in sorted(row)]


def connected_areas(mask: np.ndarray) -> list[Box]:
    """The bounding boxes of the areas of True pixels that touch, also by a corner.

    Goes over the rows once; what joins areas is a run of True pixels that touches a run above it.
    """
    runs: list[Box] = []
    parents: list[int] = []
    above = range(0)
    for row, pixels in enumerate(mask):
        edges = np.flatnonzero(np.diff(pixels, prepend=False, append=False))
        first = len(runs)
        for left, right in edges.reshape(-1, 2).tolist():
            parents.append(len(runs))
            for other in above:
                if runs[other].left <= right and left <= runs[other].right:
                    parents[root(parents, other)] = root(parents, len(runs))
            runs.append(Box(left, row, right, row + 1))
        above = range(first, len(runs))

    areas: dict[int, Box] = {}
    for number, run in enumerate(runs):
        area = areas.get(root(parents, number), run)
        areas[root(parents, number)] = Box(
            min(area.left, run.left), min(area.top, run.top), max(area.right, run.right), max(area.bottom, run.bottom)
        )
    return list(areas.values())


def root(parents: list[int], number: int) -> int:
    while parents[number] != number:
        parents[number] = parents[parents[number]]
        number = parents[number]
    return number
