"""Annotations of labelme, and of programs that write its format with shapes of their own (X-AnyLabeling).

Format: https://github.com/wkentaro/labelme
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from edgesam_jax.data.photo import stored_size
from edgesam_jax.data.readers.annotations import DAMAGED, EMPTY, is_number_list, shown
from edgesam_jax.data.readers.mask_files import instance
from edgesam_jax.data.readers.records import Record, check_annotated
from edgesam_jax.data.readers.segmentations import encode_polygons
from edgesam_jax.data.schema import BadExample
from edgesam_jax.data.source import SkippedRow

CORNERS = 64  # of the polygon that approximates a circle
OUTLINES = ("polygon", "rotation", "oriented_rectangle", "quadrilateral")  # a list of three or more corners
AREAS = (*OUTLINES, "rectangle", "circle", "mask")
NOT_AN_AREA = "shape without area"  # kind of points, lines, and shapes that aren't known


class _Unusable(ValueError):
    """A shape that can't be used, with the kind of its row."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def labelme_record(photo: bytes, name: str, content: dict[str, Any], where: str) -> Record:
    """Make a record of a photo's file and the parsed content of its labelme JSON file.

    Shapes with the same label and group form one instance, which is left out if one of them is damaged.  Points and
    lines have no area.  ``imagePath`` is not followed: the photo is the one next to the file.

    Raises:
      BadExample: the content is not in labelme's format, or its size is not the photo's.
    """
    height, width = content.get("imageHeight"), content.get("imageWidth")
    if not (type(height) is int and type(width) is int):
        height, width = stored_size(photo, name)
    check_annotated((height, width), photo, name, where)
    if not isinstance(content["shapes"], list):
        raise BadExample(
            "annotations damaged", f"{where}: not labelme's format (its shapes are no list); fix or remove it"
        )
    groups: dict[Any, list[Any]] = {}
    broken: dict[Any, int] = {}  # groups by the number of their damaged shape
    rows: list[SkippedRow] = []
    for number, shape in enumerate(content["shapes"]):
        key: Any = number
        try:
            key = _group(shape, number)
            code = _shape(shape, height, width)
            groups.setdefault(key, []).append(code)
        except Exception as error:  # pycocotools raises bare Exceptions too
            kind = error.kind if isinstance(error, _Unusable) else DAMAGED
            rows.append((kind, f"{where}: shapes[{number}]: {error}: {shown(shape)}"))
            if kind == DAMAGED:
                broken[key] = number
    annotations = []
    for i, (key, codes) in enumerate(groups.items()):
        merged = instance(i, coco_mask.merge(codes))
        if key in broken:
            reason = f"the instance {shown(key)} is not complete without the damaged shapes[{broken[key]}]"
            rows.append((DAMAGED, f"{where}: {reason}"))
        elif merged is None:
            rows.append((EMPTY, f"{where}: the mask of shape or group {shown(key)} has no pixel in the photo"))
        else:
            annotations.append(merged)
    return Record(photo, name, Path(name).stem, annotations, where, (height, width), rows)


def _group(shape: Any, number: int) -> Any:
    """Return what shapes of one instance have in common: label and group, or the shape's number without a group."""
    if not isinstance(shape, dict):
        raise ValueError("not an object")
    label, group = shape.get("label"), shape.get("group_id")
    if group is None:
        return number
    if not (isinstance(label, str | int | None) and isinstance(group, str | int)):
        raise ValueError("its label or group_id is neither a text nor a number")
    return label, group


def _shape(shape: dict[str, Any], height: int, width: int) -> Any:
    """Return the run-length code of one shape.

    Raises:
      _Unusable: the shape has no area.
      Exception: it is damaged.
    """
    kind, points = shape.get("shape_type") or "polygon", shape.get("points")
    if kind not in AREAS:
        raise _Unusable(NOT_AN_AREA, f"a shape of type {shown(kind)}, which encloses no area; draw a polygon to use it")
    if not (isinstance(points, list) and points and all(is_number_list(p, 2) for p in points)):
        raise ValueError("its points are not a list of [x, y]")
    if kind == "mask":
        return _cropped_mask(shape.get("mask"), points[0], height, width)
    corners = points
    if kind == "rectangle" and len(points) == 2:  # opposite corners; X-AnyLabeling writes all four
        (x0, y0), (x1, y1) = points
        corners = [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
    elif kind == "rectangle" and len(points) != 4:
        raise ValueError(f"a rectangle of {len(points)} corners instead of 2 or 4")
    elif kind == "circle":
        if len(points) != 2:
            raise ValueError(f"a circle of {len(points)} points instead of its centre and one on its edge")
        (x0, y0), (x1, y1) = points
        angles = np.arange(CORNERS) * (2 * np.pi / CORNERS)
        radius = np.hypot(x1 - x0, y1 - y0)
        corners = np.stack([x0 + radius * np.cos(angles), y0 + radius * np.sin(angles)], -1).tolist()
    if len(corners) < 3:
        raise _Unusable(EMPTY, f"a polygon of {len(corners)} corners, which encloses no area")
    return encode_polygons([np.ravel(corners).tolist()], height, width)


def _cropped_mask(content: Any, corner: list[float], height: int, width: int) -> Any:
    """Return the run-length code of a mask that is stored as a PNG between two corners, both included."""
    if not isinstance(content, str):
        raise ValueError("its mask is not the text of a PNG")
    left, top = int(corner[0]), int(corner[1])
    with Image.open(io.BytesIO(base64.b64decode(content)), formats=("PNG",)) as picture:
        if top < 0 or left < 0 or top + picture.height > height or left + picture.width > width:
            raise ValueError("its mask extends beyond the photo")
        crop = np.asarray(picture) > 0
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    return coco_mask.encode(np.asfortranarray(mask))
