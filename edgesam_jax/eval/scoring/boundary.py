"""Boundary IoU (Cheng et al., CVPR 2021, https://arxiv.org/abs/2103.16562): overlap of the outlines of two masks.

A mask's boundary is the part of it that lies within ``d`` pixels of its outside, where ``d`` is 2 % of the photo's
diagonal; the overlap of two boundaries is their IoU.  What lies outside the photo counts as outside the mask.
"""

from __future__ import annotations

import math

import numpy as np

from edgesam_jax.data.mask_window import Window, crop

RATIO = 0.02  # of the photo's diagonal


def boundary_width(height: int, width: int, ratio: float = RATIO) -> int:
    """Pixels that a boundary is wide in a photo of this size, at least 1."""
    return max(1, round(ratio * math.sqrt(height**2 + width**2)))


def boundary(mask: np.ndarray, d: int) -> np.ndarray:
    """Boundary of width ``d`` pixels of a mask (h w) bool -> (h w) bool.

    It is the mask without its erosion by a square of 2d+1 pixels, with zeros around the picture; which is the erosion
    by a square of 3 pixels, ``d`` times.
    """
    side = 2 * d + 1
    if min(mask.shape) < side:  # the square fits nowhere
        return mask.copy()
    found = mask.copy()
    found[d : mask.shape[0] - d, d : mask.shape[1] - d] &= ~_runs_of_ones(_runs_of_ones(mask, side).T, side).T
    return found


def boundary_iou(prediction: np.ndarray, truth: np.ndarray | Window, ratio: float = RATIO) -> np.ndarray:
    """IoU of the boundaries of predictions (... h w) bool and of the truth (h w) bool or its window -> (...) float64.

    NaN where both are empty.  The work is done inside the windows that the masks fill, around which they are zero.
    """
    height, width = prediction.shape[-2:]
    d = boundary_width(height, width, ratio)
    true = _outline(truth if isinstance(truth, Window) else crop(truth), d)
    size = np.count_nonzero(true.pixels)
    ious = np.full(prediction.shape[:-2], np.nan)
    for index in np.ndindex(ious.shape):
        own = _outline(crop(prediction[index]), d)
        both = _common(own, true)
        union = np.count_nonzero(own.pixels) + size - both
        if union:
            ious[index] = both / union
    return ious


def _outline(mask: Window, d: int) -> Window:
    """The boundary of a mask, in the mask's window."""
    return Window(boundary(mask.pixels, d), mask.top, mask.left)


def _common(a: Window, b: Window) -> int:
    """Pixels that are set in both."""
    top, left = max(a.top, b.top), max(a.left, b.left)
    bottom = min(a.top + a.pixels.shape[0], b.top + b.pixels.shape[0])
    right = min(a.left + a.pixels.shape[1], b.left + b.pixels.shape[1])
    if top >= bottom or left >= right:
        return 0
    ours, theirs = (w.pixels[top - w.top : bottom - w.top, left - w.left : right - w.left] for w in (a, b))
    return int(np.count_nonzero(ours & theirs))


def _runs_of_ones(mask: np.ndarray, length: int) -> np.ndarray:
    """Where ``length`` pixels on end are set, from each pixel down: (h w) -> (h-length+1 w).

    Runs are found by doubling: two runs of n that touch, or overlap, make one of up to 2n.  For the lengths at hand
    that is several times as fast as a running minimum or running sums.
    """
    known = 1
    while known < length:
        step = min(known, length - known)
        mask = mask[:-step] & mask[step:]
        known += step
    return mask
