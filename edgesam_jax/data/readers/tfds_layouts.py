"""Layouts of the records written by ``edgesam_jax.prepare`` and of TFDS's own data sets.

prepared             photo, instances with run-length codes and points
segment_anything     the same, with boxes as fractions of the sides
coco                 2014 and 2017: boxes only, crowds marked
coco/2017_panoptic   a PNG whose colours identify segments; things are instances, stuff (sky, grass) is ignored
lvis                 a PNG per instance, drawn by TFDS with corners truncated to integer pixels
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from edgesam_jax.data.photo import stored_size
from edgesam_jax.data.readers.annotations import CROWD, DAMAGED, EMPTY, is_number_list
from edgesam_jax.data.readers.records import Record, check_annotated
from edgesam_jax.data.source import SkippedRow

THINGS = 80  # number of thing classes, the first of the panoptic labels; the others are stuff
Annotation = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """How to read the records of a data set.

    ``undecoded`` lists the feature paths of its pictures, which are read as bytes.  ``name`` returns a photo's file
    name.  ``record`` converts what TFDS returns, given the record's name for error messages.
    """

    undecoded: tuple[str, ...]
    true_masks: bool
    name: Callable[[Mapping[str, Any]], str]
    record: Callable[[Mapping[str, Any], str], Record]


def layout_of(features: Any) -> Layout | None:
    """Return the layout that matches a ``tfds.features.FeaturesDict``; None if none does."""
    names = set(features)
    if {"image", "annotations"} <= names:
        return INSTANCES
    if {"image", "image/id", "panoptic_image", "panoptic_objects"} <= names:
        return PANOPTIC
    if {"image", "image/id", "objects"} <= names:
        inner = set(features["objects"].feature)
        if {"id", "area", "bbox"} <= inner:
            return LVIS if "segmentation" in inner else BOXES
    return None


def decoders(layout: Layout, tfds: Any) -> dict[str, Any]:
    """Return TFDS's nested ``decoders`` that leave a layout's pictures as bytes."""

    class Undecoded(tfds.decode.SkipDecoding):  # type: ignore[misc, name-defined]
        """TFDS's class lacks a method for the elements of a sequence."""

        def decode_batch_example_np(self, serialized_example: Any) -> Any:
            return serialized_example

    nested: dict[str, Any] = {}
    for path in layout.undecoded:
        *outer, last = path.split(".")
        level = nested
        for name in outer:
            level = level.setdefault(name, {})
        level[last] = Undecoded()
    return nested


def rows(columns: Any, count: int) -> list[Any]:
    """Convert a sequence of features, stored as columns, to one dict per element."""
    if isinstance(columns, Mapping):
        inner = {name: rows(column, count) for name, column in columns.items()}
        return [{name: column[i] for name, column in inner.items()} for i in range(count)]
    return list(columns)


# ------------------------------------------------------------------------------------------ prepared, segment_anything


def _instances(stored: Mapping[str, Any], where: str) -> Record:
    image, columns = stored["image"], stored["annotations"]
    size = int(image["height"]), int(image["width"])
    annotations = [_instance(row, size) for row in rows(columns, len(columns["id"]))]
    stored_id = image["image_id"]
    image_id = json.loads(stored_id) if isinstance(stored_id, bytes) else int(stored_id)
    usable, skipped = _usable(annotations, where)
    return Record(bytes(image["content"]), where, image_id, usable, where, size, skipped)


def _instance(row: Mapping[str, Any], size: tuple[int, int]) -> Annotation:
    if "box" in row:
        x0, y0, x1, y1 = map(float, row["box"])
        bbox = [x0, y0, x1 - x0, y1 - y0]
    else:
        bbox = _bbox(row["bbox"], size)
    points = np.asarray(row["point_coords"], np.float64).reshape(-1, 2).tolist()
    annotation = {"id": int(row["id"]), "area": float(row["area"]), "bbox": bbox, "point_coords": points}
    counts = row["segmentation"]["counts"].decode()
    if counts:
        annotation["segmentation"] = {"counts": counts, "size": [int(v) for v in row["segmentation"]["size"]]}
    return annotation


def _bbox(fractions: Any, size: tuple[int, int]) -> list[float]:
    """Convert TFDS's ymin xmin ymax xmax, as fractions of the sides, to XYWH in pixels."""
    y0, x0, y1, x1 = (round(float(v) * side, 3) for v, side in zip(fractions, (*size, *size), strict=True))
    return [x0, y0, x1 - x0, y1 - y0]


def _usable(annotations: list[Annotation], where: str) -> tuple[list[Annotation], list[SkippedRow]]:
    """Separate the annotations that can be used, and make a row for each of the others."""
    usable, skipped = [], []
    for annotation in annotations:
        message = f"{where}, annotation {annotation['id']}"
        if not (is_number_list(annotation["bbox"], 4) and np.isfinite(annotation["area"])):
            skipped.append((DAMAGED, f"{message}: its box or area is not a number"))
        elif not (annotation["bbox"][2] > 0 and annotation["bbox"][3] > 0):
            skipped.append((EMPTY, f"{message}: its bbox has no area"))
        else:
            usable.append(annotation)
    return usable, skipped


# ---------------------------------------------------------------------------------------------------------- coco, lvis


def _boxes(stored: Mapping[str, Any], where: str) -> Record:
    photo = bytes(stored["image"])
    size = stored_size(photo, where)
    columns = stored["objects"]
    things, skipped = _things(rows(columns, len(columns["id"])), where)
    return _record(stored, where, size, [_box(row, size) for row in things], skipped)


def _panoptic(stored: Mapping[str, Any], where: str) -> Record:
    photo = bytes(stored["image"])
    size = stored_size(photo, where)
    colours = _picture(stored["panoptic_image"], photo, where, "RGB").astype(np.int64)
    segments = colours[..., 0] | colours[..., 1] << 8 | colours[..., 2] << 16
    columns = stored["panoptic_objects"]
    things, skipped = _things(rows(columns, len(columns["id"])), where, THINGS)
    return _record(stored, where, size, [_masked(row, size, segments == int(row["id"])) for row in things], skipped)


def _lvis(stored: Mapping[str, Any], where: str) -> Record:
    photo = bytes(stored["image"])
    size = stored_size(photo, where)
    columns = stored["objects"]
    annotations = [
        _masked(row, size, _picture(row["segmentation"], photo, where, "L") > 0)
        for row in rows(columns, len(columns["id"]))
    ]
    return _record(stored, where, size, annotations, [])


def _things(
    listed: list[Mapping[str, Any]], where: str, classes: int | None = None
) -> tuple[list[Mapping[str, Any]], list[SkippedRow]]:
    """Leave out crowds and, from label ``classes`` on, stuff; a photo's segments of stuff share a row."""
    things = [row for row in listed if not row["is_crowd"] and (classes is None or 0 <= int(row["label"]) < classes)]
    crowds = [row for row in listed if row["is_crowd"]]
    skipped = [(CROWD, f"{where}, annotation {int(row['id'])}: a crowd region") for row in crowds]
    stuff = len(listed) - len(things) - len(crowds)
    return things, [
        *skipped,
        ("stuff", f"{where}: {stuff} segments of stuff, which are no objects"),
    ] if stuff else skipped


def _record(
    stored: Mapping[str, Any],
    where: str,
    size: tuple[int, int],
    annotations: list[Annotation],
    skipped: list[SkippedRow],
) -> Record:
    usable, unusable = _usable(annotations, where)
    kept = [a for a in usable if a["area"] > 0]
    empty = [(EMPTY, f"{where}, annotation {a['id']}: its area is 0") for a in usable if not a["area"] > 0]
    rows_of_record = [*skipped, *unusable, *empty]
    return Record(bytes(stored["image"]), where, int(stored["image/id"]), kept, where, size, rows_of_record)


def _box(row: Mapping[str, Any], size: tuple[int, int]) -> Annotation:
    return {"id": int(row["id"]), "area": float(row["area"]), "bbox": _bbox(row["bbox"], size)}


def _masked(row: Mapping[str, Any], size: tuple[int, int], mask: np.ndarray) -> Annotation:
    code = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))
    segmentation = {"counts": code["counts"].decode(), "size": list(size)}
    return {**_box(row, size), "area": float(mask.sum()), "segmentation": segmentation}


def _picture(content: bytes, photo: bytes, where: str, mode: str) -> np.ndarray:
    """Decode a PNG and check that it has the photo's size; (h w) or (h w 3) uint8."""
    with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
        check_annotated((picture.height, picture.width), photo, where, f"a mask in {where}")
        return np.asarray(picture.convert(mode))


INSTANCES = Layout(("image.content",), True, lambda stored: stored["image"]["file_name"].decode(), _instances)
BOXES = Layout(("image",), False, lambda stored: stored["image/filename"].decode(), _boxes)
PANOPTIC = Layout(("image", "panoptic_image"), True, lambda stored: stored["image/filename"].decode(), _panoptic)
LVIS = Layout(("image", "objects.segmentation"), True, lambda stored: f"{int(stored['image/id']):012d}.jpg", _lvis)
