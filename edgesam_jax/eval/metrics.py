"""The overlap of masks, and masks of trivial baselines."""

from __future__ import annotations

import numpy as np


def mask_iou(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Intersection over union of masks (... h w) bool -> (...) float64; NaN where both are empty."""
    intersection = np.count_nonzero(prediction & truth, axis=(-2, -1))
    union = np.count_nonzero(prediction | truth, axis=(-2, -1))
    with np.errstate(invalid="ignore"):
        return np.asarray(intersection / np.asarray(union, np.float64))


def mean_iou(ious: np.ndarray) -> np.ndarray:
    """Mean over all instances, ignoring NaN, as published (docs/published_code.md, "Evaluation"): (n ...) -> (...)."""
    ious = np.asarray(ious, np.float64)
    defined = ~np.isnan(ious)
    count = defined.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.where(defined, ious, 0.0).sum(axis=0) / np.where(count, count, np.nan)


def filled_box(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Masks (... height width) bool of the pixels whose centres lie in the boxes (... 4) XYXY: a trivial baseline."""
    y, x = np.arange(height)[:, None] + 0.5, np.arange(width)[None] + 0.5
    x0, y0, x1, y1 = (boxes[..., k, None, None] for k in range(4))
    return np.asarray((x >= x0) & (x < x1) & (y >= y0) & (y < y1))


def inscribed_ellipse(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Masks (... height width) bool of the ellipses inscribed in the boxes (... 4) XYXY: a trivial baseline."""
    y, x = np.arange(height)[:, None] + 0.5, np.arange(width)[None] + 0.5
    x0, y0, x1, y1 = (boxes[..., k, None, None] for k in range(4))
    across = (x - (x0 + x1) / 2) / np.maximum((x1 - x0) / 2, 1e-6)
    down = (y - (y0 + y1) / 2) / np.maximum((y1 - y0) / 2, 1e-6)
    return np.asarray(across**2 + down**2 <= 1)
