"""Your own annotations: labelme JSON files, and PNGs whose values identify instances."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from edgesam_jax.data.photo import stored_size
from edgesam_jax.data.readers.records import Record, check_annotated, encode_polygons, is_number_list, read_file
from edgesam_jax.data.schema import BadExample, boxes_of

CORNERS = 64  # of the polygon that approximates a circle
AREAS = ("polygon", "rectangle", "oriented_rectangle", "circle", "mask")


def labelme_record(photo: bytes, name: str, content: dict[str, Any], where: str) -> Record:
    """Make a record of a photo's file and the parsed content of its labelme JSON file.

    Shapes with the same label and group form one instance.  Points and lines have no area and are ignored, as are
    polygons of fewer than three corners.  ``imagePath`` is not followed: the photo is the one next to the file.

    Raises:
      BadExample: the content is not in labelme's format, or its size is not the photo's.
    """
    try:
        height, width = content.get("imageHeight"), content.get("imageWidth")
        if not (isinstance(height, int) and isinstance(width, int)):
            height, width = stored_size(photo, name)
        check_annotated((height, width), photo, name, where)
        groups: dict[Any, list[Any]] = {}
        for number, shape in enumerate(content["shapes"]):
            if shape.get("shape_type", "polygon") in AREAS:
                group = shape.get("group_id")
                key = number if group is None else (shape["label"], group)
                code = _shape(shape, height, width)
                if code is not None:
                    groups.setdefault(key, []).append(code)
        annotations = [
            _annotation(i, coco_mask.merge(codes), (height, width)) for i, codes in enumerate(groups.values())
        ]
    except BadExample:
        raise
    except Exception as error:  # pycocotools raises bare Exceptions too
        raise BadExample(
            "annotations damaged", f"{where}: not labelme's format ({type(error).__name__}: {error}); fix or remove it"
        ) from None
    return Record(photo, name, Path(name).stem, [a for a in annotations if a["area"]], where, (height, width))


def _shape(shape: dict[str, Any], height: int, width: int) -> Any:
    """Return the run-length code of one labelme shape; None if it has fewer than three corners."""
    kind, points = shape.get("shape_type", "polygon"), shape["points"]
    if not all(is_number_list(list(p), 2) for p in points):
        raise ValueError("a corner is not two numbers")
    (x0, y0), (x1, y1) = points[0], points[1] if len(points) > 1 else points[0]
    if kind == "mask":  # a crop between two corners, both included
        top, left = int(y0), int(x0)
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"])), formats=("PNG",)) as picture:
            if top < 0 or left < 0 or top + picture.height > height or left + picture.width > width:
                raise ValueError("a mask extends beyond the photo")
            crop = np.asarray(picture) > 0
        mask = np.zeros((height, width), np.uint8)
        mask[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
        return coco_mask.encode(np.asfortranarray(mask))
    if kind == "rectangle":
        corners = [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
    elif kind == "circle":
        angles = np.arange(CORNERS) * (2 * np.pi / CORNERS)
        radius = np.hypot(x1 - x0, y1 - y0)
        corners = np.stack([x0 + radius * np.cos(angles), y0 + radius * np.sin(angles)], -1).tolist()
    else:
        corners = points
    if len(corners) < 3:
        return None
    return encode_polygons([np.ravel(corners).tolist()], height, width)


def png_record(photo: bytes, name: str, masks: Path) -> Record:
    """Make a record of a photo's file and its instance masks.

    ``masks`` is one PNG of the photo's size whose values (or colours) identify instances, with 0 or black as
    background; or a folder with one PNG per instance, in which values above 0 are inside.

    Raises:
      BadExample: a PNG can't be read or doesn't have the photo's size, or the masks differ in size.
    """
    if masks.is_dir():
        instances = [_values(path, photo, name) > 0 for path in sorted(masks.glob("*.png"))]
        if len({mask.shape for mask in instances}) > 1:
            raise BadExample("annotations damaged", f"{masks}: its masks differ in size; fix or remove them")
        ids: Sequence[int] = range(len(instances))
    else:
        values = _values(masks, photo, name)
        ids = [int(v) for v in np.unique(values) if v]
        instances = [values == v for v in ids]
    if not instances:
        return Record(photo, name, Path(name).stem, [], str(masks))
    height, width = instances[0].shape
    codes = [coco_mask.encode(np.asfortranarray(mask.view(np.uint8))) for mask in instances]
    annotations = [_annotation(i, code, (height, width)) for i, code in zip(ids, codes, strict=True)]
    return Record(photo, name, Path(name).stem, [a for a in annotations if a["area"]], str(masks), (height, width))


def _values(path: Path, photo: bytes, name: str) -> np.ndarray:
    """Read the values (h w) of a mask PNG: grey levels, palette indices, or RGB colours as 24-bit integers."""
    try:
        with Image.open(io.BytesIO(read_file(path)), formats=("PNG",)) as picture:
            check_annotated((picture.height, picture.width), photo, name, str(path))
            values = np.asarray(picture if picture.mode in ("1", "L", "P", "I;16", "I") else picture.convert("RGB"))
    except BadExample:
        raise
    except Exception as error:  # each decoder raises its own
        raise BadExample("annotations damaged", f"{path}: damaged picture ({error}); fix or remove it") from None
    if values.ndim == 3:
        red, green, blue = (values[..., k].astype(np.int32) for k in range(3))
        return (red << 16) | (green << 8) | blue
    return values


def _annotation(number: int, code: Any, size: tuple[int, int]) -> dict[str, Any]:
    mask = coco_mask.decode(code)
    x0, y0, x1, y1 = boxes_of(mask[None] > 0)[0].tolist()
    return {
        "id": number,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": float(coco_mask.area(code)),
        "segmentation": {"counts": code["counts"].decode(), "size": list(size)},
    }
