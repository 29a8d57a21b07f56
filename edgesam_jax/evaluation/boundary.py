"""Boundary IoU (Cheng et al., CVPR 2021): the overlap of the pixels near the outlines of two masks."""

from __future__ import annotations

import math

import numpy as np

from edgesam_jax.data.windows import Window, crop

RATIO = 0.02  # of the photo's diagonal


def boundary_width(height: int, width: int, ratio: float = RATIO) -> int:
    """How deep a boundary reaches in a photo of this size, in pixels; at least 1."""
    return max(1, round(ratio * math.hypot(height, width)))


def boundary(mask: np.ndarray, depth: int) -> np.ndarray:
    """The pixels of a mask (h w) bool that are at most ``depth`` king's moves from one outside it, or from the edge.

    That is the mask less its erosion by ``depth`` squares of 3x3, with zeros around the picture.
    """
    from scipy import ndimage

    if min(mask.shape, default=0) <= 2 * depth:  # nothing survives so much erosion
        return mask.copy()
    pixels = mask.view(np.uint8)
    for axis in (0, 1):
        pixels = ndimage.minimum_filter1d(pixels, 2 * depth + 1, axis=axis, mode="constant")
    return mask & ~pixels.view(bool)


def boundary_iou(prediction: np.ndarray, truth: Window, ratio: float = RATIO) -> float:
    """Boundary IoU of a predicted mask (h w) bool with an annotation on the same photo; NaN where both are empty.

    Each mask is eroded inside the rectangle that it fills, around which there is nothing of it.
    """
    depth = boundary_width(prediction.shape[0], prediction.shape[1], ratio)
    mine = crop(prediction)
    if not mine and not truth:
        return float("nan")
    if not mine or not truth:
        return 0.0
    own, true = (boundary(np.ascontiguousarray(w.pixels), depth) for w in (mine, truth))
    top, left = max(mine.top, truth.top), max(mine.left, truth.left)
    bottom = min(mine.top + own.shape[0], truth.top + true.shape[0])
    right = min(mine.left + own.shape[1], truth.left + true.shape[1])
    common = 0
    if top < bottom and left < right:
        a = own[top - mine.top : bottom - mine.top, left - mine.left : right - mine.left]
        b = true[top - truth.top : bottom - truth.top, left - truth.left : right - truth.left]
        common = int(np.count_nonzero(a & b))
    return common / (int(np.count_nonzero(own)) + int(np.count_nonzero(true)) - common)
