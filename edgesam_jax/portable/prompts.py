"""Check a user's prompts and bring them into the model's frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgesam_jax.portable.errors import UsageError
from edgesam_jax.portable.frame import scale_coords

Size = tuple[int, int]


def check_prompts(
    boxes: Any, coords: Any, labels: Any, size: Size, frame: Size
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Check boxes (p 4) and points (p n 2) with labels (p n), each or None, on a photo of ``size`` (rows, columns).

    Returns:
      The same in the model's frame, where the photo fills ``frame`` (rows, columns): float32, labels int32.

    Raises:
      UsageError: no prompt, wrong shapes, or a prompt that is not on the photo.
    """
    if (coords is None) != (labels is None):
        raise UsageError("points: point_coords and point_labels go together; pass both")
    if coords is not None and not np.size(coords):
        coords = labels = None
    if boxes is None and coords is None:
        raise UsageError("no prompt: pass a box or points")
    if boxes is not None:
        boxes = np.asarray(boxes, np.float64)
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes):
            raise UsageError(f"box: expected x0, y0, x1, y1, got an array of shape {boxes.shape}")
        for box in boxes:
            check_box(box, size)
        boxes = scale_coords(boxes, size, frame)
    if coords is not None:
        coords, labels = np.asarray(coords, np.float64), np.asarray(labels)
        if coords.ndim != 3 or coords.shape[2] != 2 or labels.shape != coords.shape[:2]:
            raise UsageError(f"points: expected x, y with one label each, got shapes {coords.shape} and {labels.shape}")
        for point, label in zip(coords.reshape(-1, 2), labels.reshape(-1), strict=True):
            check_point(point, label, size)
        coords, labels = scale_coords(coords, size, frame), labels.astype(np.int32)
        if boxes is not None and len(boxes) != len(coords):
            raise UsageError(f"prompts: {len(boxes)} boxes but {len(coords)} sets of points")
    return boxes, coords, labels


def check_masks(masks: np.ndarray | None, count: int, side: int) -> np.ndarray | None:
    """Check the logits (count side side) of earlier masks; return them as float32, or None.

    Raises:
      UsageError: a wrong shape, or values that are not finite.
    """
    if masks is None:
        return None
    if np.shape(masks) != (count, side, side) or not np.isfinite(masks).all():
        raise UsageError(f"mask_input: expected finite logits ({count} {side} {side}), got shape {np.shape(masks)}")
    return np.asarray(masks, np.float32)


def check_box(box: Sequence[float] | np.ndarray, size: Size, name: str = "box") -> None:
    """Check that a box x0, y0, x1, y1 is not empty and lies on the photo of ``size`` (rows, columns).

    Raises:
      UsageError: it isn't or doesn't; the message begins with ``name``.
    """
    x0, y0, x1, y1 = box
    text = f"{name} {','.join(f'{v:g}' for v in box)}"
    if not np.isfinite(box).all():
        raise UsageError(f"{text}: expected four finite numbers")
    if x1 <= x0 or y1 <= y0:
        raise UsageError(f"{text}: expected x0 < x1 and y0 < y1")
    if x0 < 0 or y0 < 0 or x1 > size[1] or y1 > size[0]:
        raise UsageError(f"{text}: not within the photo, which is {size[1]} x {size[0]} pixels (width x height)")


def check_point(point: Sequence[float] | np.ndarray, label: Any, size: Size, name: str = "point") -> None:
    """Check that a point x, y lies on the photo and that its label is 1 or 0.

    Raises:
      UsageError: a check failed; the message begins with ``name``.
    """
    x, y = point
    text = f"{name} {x:g},{y:g},{label}"
    if label not in (0, 1):
        raise UsageError(f"{text}: the label must be 1 (inside the object) or 0 (outside)")
    if not (0 <= x <= size[1] and 0 <= y <= size[0]):  # also refuses NaN
        raise UsageError(f"{text}: not on the photo, which is {size[1]} x {size[0]} pixels (width x height)")
