"""Granularity priors: the box that a click gets from the proposals around it (EdgeSAM, section 3.2). Needs numpy only.

``nearest``    the paper's rule: average the K proposals whose centres are nearest to the click, weighted by score.
``published``  the published evaluation's rule: of the proposals that strictly contain the click, take the K with the
               nearest centres, and of these the one with the highest score.

A click without proposals (for ``published``: without a proposal that contains it) gets no box and stays a plain click.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Rule = Literal["off", "nearest", "published"]
RULES = ("off", "nearest", "published")
NEAREST = 5


def suppress(boxes: np.ndarray, iou: float) -> np.ndarray:
    """Greedy non-maximum suppression of boxes (n 4), sorted by falling score; return the indices to keep."""
    kept: list[int] = []
    low, high = boxes[:, :2], boxes[:, 2:]
    areas = np.prod(high - low, axis=1)
    for i in range(len(boxes)):
        common = np.prod(np.maximum(np.minimum(high[i], high[kept]) - np.maximum(low[i], low[kept]), 0), axis=1)
        if not (common > iou * (areas[i] + areas[kept] - common)).any():
            kept.append(i)
    return np.asarray(kept, np.int64)


def select(
    boxes: np.ndarray, scores: np.ndarray, limit: tuple[int, int], min_score: float, before: int, iou: float, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Select the proposals among all anchors' boxes (n 4) and scores (n), as ``models.anchors.propose`` does.

    Args:
      limit: width and height of the photo in the frame.
      min_score: minimum score.
      before: number of best boxes to consider.
      iou: maximum IoU of two proposals; 1 skips the suppression.
      most: maximum number of proposals.
    """
    order = np.argsort(-scores, kind="stable")[:before]
    order = order[scores[order] >= min_score]
    boxes = np.clip(boxes[order].astype(np.float32), 0, np.array([*limit, *limit], np.float32))
    real = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
    boxes, scores = boxes[real], scores[order][real].astype(np.float32)
    kept = suppress(boxes, iou) if iou < 1 else np.arange(len(boxes))
    return boxes[kept[:most]], scores[kept[:most]]


def merge(points: np.ndarray, boxes: np.ndarray, scores: np.ndarray, rule: Rule, nearest: int = NEAREST) -> np.ndarray:
    """Return the boxes (p 4) of clicks (p 2); NaN for a click without a box.

    Args:
      points: x, y in the same frame as the boxes.
      boxes, scores: proposals (n 4) XYXY and (n); entries with a score of 0 are unused.
      rule: ``nearest`` or ``published``.
      nearest: K.
    """
    boxes, scores = np.asarray(boxes, np.float32)[scores > 0], np.asarray(scores, np.float32)[scores > 0]
    found = np.full((len(points), 4), np.nan, np.float32)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    for out, point in zip(found, np.asarray(points, np.float32), strict=True):
        candidates = np.arange(len(boxes))
        if rule == "published":
            candidates = candidates[np.all((boxes[:, :2] < point) & (point < boxes[:, 2:]), axis=1)]
        distances = np.linalg.norm(centres[candidates] - point, axis=1)
        chosen = candidates[np.argsort(distances, kind="stable")[:nearest]]
        if not len(chosen):
            continue
        if rule == "published":
            out[:] = boxes[chosen[np.argmax(scores[chosen])]]
        else:
            out[:] = np.average(boxes[chosen], axis=0, weights=scores[chosen])
    return found
