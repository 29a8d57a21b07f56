"""Masks stored as their tight bounding rectangle, since most instances cover a few percent of their photo."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Window:
    """A mask cropped to its tight bounding box.

    ``pixels`` (rows columns) bool; ``top`` and ``left`` are the position of its corner in the photo.  An empty mask has
    no pixels, and is falsy.
    """

    pixels: np.ndarray
    top: int = 0
    left: int = 0

    def __bool__(self) -> bool:
        return self.pixels.size > 0

    def paste(self, mask: np.ndarray) -> None:
        """Write the window into ``mask`` (h w), which must be zero there."""
        rows, columns = self.pixels.shape
        mask[self.top : self.top + rows, self.left : self.left + columns] = self.pixels


EMPTY_WINDOW = Window(np.zeros((0, 0), bool))


def crop(mask: np.ndarray) -> Window:
    """Return the window of a mask (h w) bool, as a view."""
    rows = np.flatnonzero(mask.any(1))
    if not len(rows):
        return EMPTY_WINDOW
    strip = mask[rows[0] : rows[-1] + 1]
    columns = np.flatnonzero(strip.any(0))
    return Window(strip[:, columns[0] : columns[-1] + 1], int(rows[0]), int(columns[0]))


def from_runs(runs: np.ndarray, height: int) -> Window:
    """Return the window of a run-length-encoded mask.

    ``runs`` are the lengths of the runs in column-major order; the first is background.  They must fill entire columns
    of ``height`` pixels, and none may be negative.
    """
    ends = np.cumsum(runs)
    stops = ends[1::2]
    starts = ends[: 2 * len(stops) : 2]
    filled = stops > starts
    starts, stops = starts[filled], stops[filled]
    if not len(starts):
        return EMPTY_WINDOW
    first, top = np.divmod(starts, height)
    last, bottom = np.divmod(stops - 1, height)
    left, columns = int(first[0]), int(last[-1] - first[0]) + 1
    if (first != last).any():  # a run continuing in the next column touches the photo's lower and upper edge
        low, rows = 0, height
    else:
        low = int(top.min())
        rows = int(bottom.max()) - low + 1
    # The same runs, counted along the window's columns.
    inner = (first - left) * rows + top - low
    edges = np.empty(2 * len(inner) + 1, np.int64)
    edges[:-1:2], edges[1::2], edges[-1] = inner, inner + (stops - starts), rows * columns
    inside = np.arange(len(edges)) % 2 == 1
    pixels = np.repeat(inside, np.diff(edges, prepend=0))  # as pycocotools' result, five times as fast
    return Window(pixels.reshape(columns, rows).T, low, left)
