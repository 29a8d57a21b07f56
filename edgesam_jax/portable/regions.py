"""Connected regions of a mask: fill small holes, drop small islands. Needs numpy only.

Pixels are neighbours along sides and corners (8-connectivity). ``fill_holes`` and ``drop_islands`` follow the meaning
of ``min_mask_region_area`` in SAM's automatic mask generator (SAM, appendix B, "Postprocessing").

A mask is treated as its runs, the horizontal stretches of set pixels, of which there are far fewer than pixels. Runs
of adjacent rows that touch are joined by a union-find whose steps are array operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgesam_jax.portable.errors import UsageError, type_text


@dataclass(frozen=True, eq=False)
class Regions:
    """The connected regions of a mask.

    ``starts`` and ``ends`` (n): the first pixel of each run and the one after its last, counted row by row over rows of
    ``width + 2`` pixels, because each row is framed by an empty pixel on both sides. ``region`` (n): the region of each
    run, numbered by their first pixels. ``areas`` (r): the regions' pixels.
    """

    starts: np.ndarray
    ends: np.ndarray
    region: np.ndarray
    areas: np.ndarray

    def paint(self, chosen: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Return a mask of the given shape with the regions that ``chosen`` (r) bool selects."""
        height, width = shape
        runs = chosen[self.region]
        change = np.zeros(height * (width + 2), np.int8)
        change[self.starts[runs]], change[self.ends[runs]] = 1, -1  # runs never touch in a row, so no index repeats
        return np.cumsum(change, dtype=np.int8).view(bool).reshape(height, width + 2)[:, 1:-1]


def find_regions(mask: np.ndarray) -> Regions:
    """Find the 8-connected regions of a mask (h w) bool."""
    height, width = mask.shape
    framed = np.zeros((height, width + 2), bool)
    framed[:, 1:-1] = mask
    flat = framed.reshape(-1)
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts, ends = edges[::2], edges[1::2]
    # Of the row above, the runs that end at or after this run's start and start at or before its end touch this run.
    stride = width + 2
    first = np.searchsorted(ends, starts - stride, "left")
    counts = np.searchsorted(starts, ends - stride, "right") - first
    below = np.repeat(np.arange(len(starts)), counts)
    above = np.arange(len(below)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
    roots = _join(len(starts), below, above)
    is_root = roots == np.arange(len(roots))
    region = (np.cumsum(is_root) - 1)[roots]
    areas = np.bincount(region, ends - starts, minlength=int(is_root.sum())).astype(np.int64)
    return Regions(starts, ends, region, areas)


def _join(count: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return for each of ``count`` items the lowest item that the pairs (a, b) connect it with.

    In each round the root of every tree is hung under the lowest root that it has a pair with. Of two neighbouring
    roots at most one stays a root, so the number of trees at least halves, and few rounds are needed.
    """
    root = np.arange(count)
    while len(a):
        low, high = np.minimum(root[a], root[b]), np.maximum(root[a], root[b])
        apart = low != high
        a, b, low, high = a[apart], b[apart], low[apart], high[apart]
        np.minimum.at(root, high, low)
        while not np.array_equal(parents := root[root], root):
            root = parents
    return root


def fill_holes(mask: np.ndarray, below: int) -> np.ndarray:
    """Set the regions of unset pixels with fewer than ``below`` pixels; those at the photo's border count as well."""
    if below <= 1:
        return mask
    holes = find_regions(~mask)
    small = holes.areas < min(below, mask.size + 1)
    return mask | holes.paint(small, mask.shape) if small.any() else mask  # type: ignore[arg-type]


def drop_islands(mask: np.ndarray, below: int) -> np.ndarray:
    """Clear the regions with fewer than ``below`` pixels; if all are as small as that, the largest one stays."""
    if below <= 1:
        return mask
    islands = find_regions(mask)
    kept = islands.areas >= min(below, mask.size + 1)
    if kept.all():  # also of an empty mask
        return mask
    if not kept.any():
        kept[np.argmax(islands.areas)] = True
    return islands.paint(kept, mask.shape)  # type: ignore[arg-type]


def clean(masks: np.ndarray, holes: int, islands: int) -> np.ndarray:
    """Fill the holes and then drop the islands of masks (... h w) bool; 0 leaves either as it is."""
    if not (holes or islands):
        return masks
    cleaned = np.empty_like(masks)
    for index in np.ndindex(*masks.shape[:-2]):
        cleaned[index] = drop_islands(fill_holes(masks[index], holes), islands)
    return cleaned


def check_areas(holes: Any, islands: Any) -> None:
    """Check the areas that ``clean`` takes.

    Raises:
      UsageError: an area that is not a whole number of pixels, at least 0.
    """
    for name, area in (("fill_holes", holes), ("drop_islands", islands)):
        whole = isinstance(area, int | np.integer) and not isinstance(area, bool)
        if not whole or area < 0:
            kind = "a negative one" if whole else type_text(area)
            raise UsageError(f"{name}: expected a whole number of pixels, at least 0, got {kind}")
