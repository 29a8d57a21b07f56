"""Conversion of masks, boxes and points to the model's square frame (``portable/frame.py``)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgesam_jax.config import UsageError
from edgesam_jax.data.mask_window import Window

if TYPE_CHECKING:  # scipy is imported where it is used: predict starts half a second sooner without it
    from scipy import sparse


@functools.lru_cache(maxsize=64)
def _area_weights(old: int, new: int, frame: int, cells: int) -> sparse.csr_array:
    """Return weights (cells old): the fraction of each cell of the padded frame that each pixel of the photo covers."""
    from scipy import sparse

    edges = np.arange(cells + 1) * (frame / cells) * (old / new)
    rows, columns, values = [], [], []
    for cell in range(cells):
        low, high = edges[cell], edges[cell + 1]
        pixels = np.arange(int(low), min(int(np.ceil(high)), old))
        overlap = np.minimum(pixels + 1, high) - np.maximum(pixels, low)
        rows.append(np.full(len(pixels), cell))
        columns.append(pixels)
        values.append(overlap / (high - low))
    entries = (np.concatenate(values).astype(np.float32), (np.concatenate(rows), np.concatenate(columns)))
    return sparse.csr_array(entries, shape=(cells, old))


def _touched(weights: sparse.csr_array, start: int, length: int) -> tuple[int, slice, sparse.csr_array]:
    """Restrict ``weights`` to the cells that overlap ``length`` pixels from ``start`` on.

    Returns:
      The first pixel of these cells, the slice of cells, and their weights.
    """
    from scipy import sparse

    pixels = weights.indices
    places = weights.indptr[
        : np.searchsorted(weights.indptr, len(pixels)) + 1
    ]  # cells beyond the photo have no entries
    first = np.searchsorted(pixels[places[1:] - 1], start)
    last = np.searchsorted(pixels[places[:-1]], start + length)
    low, high = places[first], places[last]
    begin, end = int(pixels[low]), int(pixels[high - 1]) + 1
    entries = weights.data[low:high], pixels[low:high] - begin, places[first : last + 1] - low
    return begin, slice(first, last), sparse.csr_array(entries, shape=(last - first, end - begin))


def low_res_windows(
    masks: Sequence[Window], hw: tuple[int, int], new_hw: tuple[int, int], image_size: int, mask_size: int
) -> np.ndarray:
    """Resize masks to training targets in the padded square frame: (n mask_size mask_size) bool.

    A cell is set if the mask covers more than half of its area.  A mask too small to cover half of any cell sets the
    cells that it covers more than half as much as its fullest cell, so that no instance vanishes.

    Args:
      masks: masks of a photo.
      hw, new_hw: (rows, columns) of the photo, and of the part of the frame that it fills.
      image_size, mask_size: sides of the frame in pixels and of the targets in cells.
    """
    out = np.zeros((len(masks), mask_size, mask_size), bool)
    down = _area_weights(hw[0], new_hw[0], image_size, mask_size)
    across = _area_weights(hw[1], new_hw[1], image_size, mask_size)
    for target, mask in zip(out, masks, strict=True):
        if not mask:
            continue
        # The cells that the window touches, with all of their pixels, give the same sums as the full-size mask.
        rows, columns = mask.pixels.shape
        y, y_cells, y_weights = _touched(down, mask.top, rows)
        x, x_cells, x_weights = _touched(across, mask.left, columns)
        pixels = np.zeros((y_weights.shape[1], x_weights.shape[1]), np.float32)
        pixels[mask.top - y :, mask.left - x :][:rows, :columns] = mask.pixels
        covered = (x_weights @ (y_weights @ pixels).T).T
        target[y_cells, x_cells] = covered > min(0.5, float(covered.max()) / 2)
    return out


def suppress_masks(masks: np.ndarray, share: float) -> np.ndarray:
    """Return the sorted indices of the masks (n h w) that are not covered by larger ones.

    Masks are visited from large to small; one is dropped if more than the fraction ``share`` of it is covered by masks
    already kept.  Source: the published training option MASK_NMS.
    """
    areas = masks.sum((1, 2))
    covered = np.zeros(masks.shape[1:], bool)
    kept = []
    for i in np.argsort(-areas, kind="stable"):
        if areas[i] and (masks[i] & covered).sum() <= share * areas[i]:
            kept.append(i)
            covered |= masks[i]
    return np.array(sorted(kept), np.int64)


def jitter_boxes(rng: np.random.Generator, boxes: np.ndarray, hw: tuple[int, int], std: float) -> np.ndarray:
    """Add noise N(0, std * side), clipped to 20 px, to every coordinate of boxes (n 4) XYXY.

    Boxes are clipped to the photo of ``hw`` pixels; one that would become less than a pixel wide or high stays as it
    was.  Source: the published training option BOX_JITTER (std 0.1), applied to the photo before resizing.
    """
    side = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    noisy = boxes + np.clip(rng.standard_normal(boxes.shape) * std * side, -20, 20)
    noisy = np.clip(noisy, 0, np.tile([hw[1], hw[0]], 2))
    kept = (noisy[:, 2:] - noisy[:, :2] >= 1).all(1, keepdims=True)
    return np.where(kept, noisy, boxes).astype(np.float32)


def interior_point(rng: np.random.Generator, mask: np.ndarray) -> tuple[float, float]:
    """Draw a random pixel (x, y) well inside a mask (h w) bool; (0, 0) if the mask is empty.

    The pixel is at least 0.6 times as far from the background as the deepest one.
    """
    from scipy import ndimage

    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(rows):
        return 0.0, 0.0
    x0, y0 = columns[0], rows[0]
    window = mask[y0 : rows[-1] + 1, x0 : columns[-1] + 1]
    step = -(-max(window.shape) // 256)  # a coarse distance is enough for large masks
    if step > 1 and window[::step, ::step].any():
        window = window[::step, ::step]
    else:
        step = 1
    framed = np.zeros((window.shape[0] + 2, window.shape[1] + 2), bool)  # np.pad is slow on small arrays
    framed[1:-1, 1:-1] = window
    depth = ndimage.distance_transform_edt(framed)[1:-1, 1:-1]
    thick = np.argwhere(depth >= 0.6 * depth.max())
    row, column = thick[rng.integers(len(thick))]
    return float(x0 + step * column), float(y0 + step * row)


def center_point(mask: np.ndarray, protocol: str = "exact") -> tuple[float, float]:
    """Return the pixel (x, y) deepest inside a mask (h w) bool; (0, 0) if the mask is empty.

    "exact" uses the Euclidean distance from the background; beyond the photo's border everything is background.
    "published" follows the approximate transform of the published evaluation (kornia's, kernel 3, h 0.35): rings of
    8-neighbours are filled from outside, and within the last ring the pixel with the fewest and farthest filled
    neighbours is taken.  Ties go to the first pixel in row-major order.

    Raises:
      UsageError: an unknown ``protocol``.
    """
    if not mask.any():
        return 0.0, 0.0
    from scipy import ndimage

    padded = np.pad(mask, 1)
    if protocol == "exact":
        depth = ndimage.distance_transform_edt(padded)
    elif protocol == "published":
        ring = ndimage.distance_transform_cdt(padded, metric="chessboard")
        # Rings grow by floor(1.5 i) and a pixel's own term is below 1.5, so the maximum always lies in the last ring.
        rows, columns = np.nonzero(ring == ring.max())
        total = np.zeros(len(rows), np.float32)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                filled = ring[rows + dy, columns + dx] < ring[rows, columns]
                total += np.where(filled, np.float32(np.exp(-np.hypot(dx, dy) / 0.35)), np.float32(0))
        best = int(np.argmax(-np.log(total)))
        return float(columns[best] - 1), float(rows[best] - 1)
    else:
        raise UsageError(f"--protocol {protocol}: use exact or published")
    row, column = np.unravel_index(int(np.argmax(depth)), depth.shape)
    return float(column - 1), float(row - 1)
