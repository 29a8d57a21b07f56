"""Which annotations can be used, and why the others can't: the reasons that all readers and commands give.

Every field is checked by type and range, in ``fault_of``, before anything computes with it.  The masks themselves are
checked where they are decoded, in ``segmentations``.  Annotations follow COCO: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import reprlib
from typing import Any

import numpy as np

REACH = 1e7  # px; larger numbers can't be coordinates and would overflow their stored types
# Kinds of annotations that are not used.
DAMAGED, EMPTY, CROWD, UNKNOWN_PHOTO = "annotation damaged", "annotation empty", "crowd", "photo unknown"

FLAT = "its segmentation is a flat list of numbers; write each polygon as a list of its own: [[x, y, x, y, ...]]"
NESTED = "its polygons are lists of points; write each polygon as one list of numbers: [[x, y, x, y, ...]]"
BYTES = "its counts are the text of Python bytes (b'...'); decode them before saving: counts.decode()"

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxstring, _SHORT.maxother = 3, 8, 6, 40, 40


def shown(value: Any) -> str:
    """Return a value from a JSON file as it appears in messages: one line of at most 80 characters."""
    return _SHORT.repr(value)[:80]


def fault_of(annotation: Any, needs_box: bool = True) -> tuple[str, str] | None:
    """Return the kind and the description of an annotation's fault; None if its fields have none.

    A mask without a single pixel may still be found when it is decoded.

    Args:
      annotation: an entry as parsed from JSON, with ``bbox`` XYWH and ``segmentation``; ``id``, ``category_id``,
        ``iscrowd``, ``area`` and ``point_coords`` are optional.
      needs_box: whether a box without area makes the annotation useless.
    """
    if not isinstance(annotation, dict):
        return DAMAGED, "not an object"
    fault = _field_fault(annotation)
    if fault:
        return DAMAGED, fault
    shape, box = annotation["segmentation"], annotation["bbox"]
    fault = form_fault(shape)
    if fault:
        return DAMAGED, fault
    if isinstance(shape, list) and not any(len(polygon) >= 6 for polygon in shape):
        return EMPTY, "its segmentation has no polygon of three or more corners"
    if needs_box and not (box[2] > 0 and box[3] > 0):
        return EMPTY, "its bbox has no area"
    return None


def _field_fault(annotation: dict[str, Any]) -> str:
    """Describe the first field that is missing or of a wrong type or range; empty if there is none."""
    get = annotation.get
    for name in ("bbox", "segmentation"):
        if name not in annotation:
            return f"no {name!r}"
    if not is_integer(get("id", 0)):
        return "its id is not an integer"
    if not is_integer(get("category_id", 0)):
        return "its category_id is not an integer"
    if get("iscrowd", 0) not in (0, 1, None):
        return "its iscrowd is neither 0 nor 1"
    area = get("area")
    if area is not None and not (_is_number(area) and 0 <= area < REACH**2):
        return "its area is not a number of at least 0"
    if not is_number_list(annotation["bbox"], 4):
        return "its bbox is not four numbers"
    points = get("point_coords")
    if points and not (isinstance(points, list) and is_number_list(points[0], 2)):
        return "its point_coords are not pairs of numbers"
    return ""


def form_fault(segmentation: Any) -> str:
    """Describe what is wrong with the form of a segmentation; empty for polygons and both run-length codes.

    Coordinates, runs and sizes are checked when the mask is decoded.
    """
    if isinstance(segmentation, dict):
        for name in ("size", "counts"):
            if name not in segmentation:
                return f"its run-length code has no {name!r}"
        counts = segmentation["counts"]
        if isinstance(counts, str) and counts.startswith(("b'", 'b"')):
            return BYTES
        return "" if isinstance(counts, str | bytes | list) else "its counts are neither a text nor a list of integers"
    if not isinstance(segmentation, list):
        return "its segmentation is neither polygons nor run-length code"
    for polygon in segmentation:
        if not isinstance(polygon, list):
            return FLAT if _is_number(polygon) else "a polygon is not a list of numbers"
        if polygon and isinstance(polygon[0], list | dict):
            return NESTED
        if len(polygon) % 2:
            return "a polygon has an odd number of coordinates"
    if len(segmentation) >= 3 and all(len(polygon) == 2 for polygon in segmentation):
        return NESTED
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_integer(value: Any) -> bool:
    """Whether a value is an integer that fits int64; floats like 7.0, as some tools export, count too."""
    if isinstance(value, float):
        return value.is_integer() and abs(value) < 1 << 53
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def is_number_list(value: Any, length: int) -> bool:
    """Whether a value is a list of ``length`` finite numbers, none of them beyond ``REACH``."""
    if not (isinstance(value, list) and len(value) == length):
        return False
    return all(_is_number(v) and -REACH < v < REACH for v in value)


def area_of(annotation: dict[str, Any]) -> float:
    """Return an annotation's area in pixels of the photo, or its box's if it has none.

    Rounded to float32, the precision of prepared data.
    """
    area, box = annotation.get("area"), annotation["bbox"]
    return float(np.float32(box[2] * box[3] if area is None else area))


def annotated_point(annotation: dict[str, Any], height: int, width: int) -> list[float] | None:
    """Return the first point of an annotation; None if it has none or the point lies outside the photo."""
    points = annotation.get("point_coords")
    if not points:
        return None
    x, y = points[0]
    return points[0] if 0 <= x <= width and 0 <= y <= height else None


def box_of(bbox: list[float]) -> np.ndarray:
    """Convert a COCO box XYWH to XYXY (4) float32."""
    x, y, w, h = bbox
    return np.array([x, y, x + w, y + h], np.float32)


def is_outside(bbox: list[float], height: int, width: int) -> bool:
    """Whether a box XYWH lies outside a photo of (height width) pixels."""
    x, y, w, h = bbox
    return x >= width or y >= height or x + w <= 0 or y + h <= 0
