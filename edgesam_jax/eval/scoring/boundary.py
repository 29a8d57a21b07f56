"""Boundary IoU (Cheng et al., CVPR 2021, https://arxiv.org/abs/2103.16562): IoU of the boundary regions of two masks.

A mask's boundary is the set of its pixels within ``d`` pixels of the background, where ``d`` is 2 % of the photo's
diagonal.  Everything outside the photo counts as background.
"""

from __future__ import annotations

import math

import numpy as np

from edgesam_jax.data.mask_window import Window, crop

RATIO = 0.02  # boundary width as a fraction of the photo's diagonal


def boundary_width(height: int, width: int, ratio: float = RATIO) -> int:
    """Width of a boundary in pixels for a photo of this size, at least 1."""
    return max(1, round(ratio * math.sqrt(height**2 + width**2)))


def boundary(mask: np.ndarray, d: int) -> np.ndarray:
    """Boundary of width ``d`` pixels of a mask (h w) bool -> (h w) bool.

    This is the mask minus its erosion by a square of 2d+1 pixels, with zeros around the photo.  That erosion equals
    ``d`` erosions by a square of 3 pixels.
    """
    side = 2 * d + 1
    if min(mask.shape) < side:  # the square fits nowhere, so the erosion is empty
        return mask.copy()
    outline = mask.copy()
    outline[d : mask.shape[0] - d, d : mask.shape[1] - d] &= ~_runs_of_ones(_runs_of_ones(mask, side).T, side).T
    return outline


def boundary_iou(prediction: np.ndarray, truth: np.ndarray | Window, ratio: float = RATIO) -> np.ndarray:
    """Boundary IoU of predictions (... h w) bool with one truth (h w) bool or its window -> (...) float64.

    NaN where both are empty.  Boundaries are computed within the masks' bounding windows.
    """
    height, width = prediction.shape[-2:]
    d = boundary_width(height, width, ratio)
    true = _outline(truth if isinstance(truth, Window) else crop(truth), d)
    size = np.count_nonzero(true.pixels)
    ious = np.full(prediction.shape[:-2], np.nan)
    for index in np.ndindex(ious.shape):
        predicted = _outline(crop(prediction[index]), d)
        intersection = _intersection(predicted, true)
        union = np.count_nonzero(predicted.pixels) + size - intersection
        if union:
            ious[index] = intersection / union
    return ious


def _outline(mask: Window, d: int) -> Window:
    """The boundary of a mask, within the mask's window."""
    return Window(boundary(mask.pixels, d), mask.top, mask.left)


def _intersection(a: Window, b: Window) -> int:
    """Number of pixels that are set in both windows."""
    top, left = max(a.top, b.top), max(a.left, b.left)
    bottom = min(a.top + a.pixels.shape[0], b.top + b.pixels.shape[0])
    right = min(a.left + a.pixels.shape[1], b.left + b.pixels.shape[1])
    if top >= bottom or left >= right:
        return 0
    first, second = (w.pixels[top - w.top : bottom - w.top, left - w.left : right - w.left] for w in (a, b))
    return int(np.count_nonzero(first & second))


def _runs_of_ones(mask: np.ndarray, length: int) -> np.ndarray:
    """Whether ``length`` consecutive pixels are set from each pixel down: (h w) -> (h-length+1 w).

    Runs are found by doubling: two adjacent or overlapping runs of n form one of up to 2n.  For typical lengths this
    is several times as fast as a running minimum or running sums.
    """
    reach = 1
    while reach < length:
        step = min(reach, length - reach)
        mask = mask[:-step] & mask[step:]
        reach += step
    return mask
