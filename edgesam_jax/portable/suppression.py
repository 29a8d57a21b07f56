"""Non-maximum suppression of boxes. Needs numpy only."""

from __future__ import annotations

import numpy as np


def suppress(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Return the indices of the boxes that remain, by falling score; equal scores keep their order.

    A box is dropped if its IoU with a remaining box of higher score is larger than ``threshold``.

    Args:
      boxes: (n 4) x0, y0, x1, y1; a box without area overlaps no other.
      scores: (n).
    """
    boxes = np.asarray(boxes, np.float32)
    order = np.argsort(-np.asarray(scores), kind="stable")
    x0, y0, x1, y1 = boxes[order].T
    areas = (x1 - x0) * (y1 - y0)
    alive, kept = np.ones(len(order), bool), []
    for i in range(len(order)):
        if not alive[i]:
            continue
        kept.append(i)
        width = np.minimum(x1[i], x1[i + 1 :]) - np.maximum(x0[i], x0[i + 1 :])
        height = np.minimum(y1[i], y1[i + 1 :]) - np.maximum(y0[i], y0[i + 1 :])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        union = areas[i] + areas[i + 1 :] - shared
        alive[i + 1 :] &= ~(shared > threshold * union)
    return order[kept]
