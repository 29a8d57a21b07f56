"""COCO results files: boxes of a detector, or masks of any system.

A JSON list of {image_id, category_id, score, bbox XYWH in pixels, segmentation}, with ``bbox``, ``segmentation`` or
both.  https://cocodataset.org/#format-results; Detectron2 and MMDetection use the same format for LVIS.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_mask

from edgesam_jax.config import UsageError
from edgesam_jax.data.readers.annotations import form_fault, is_integer, is_number_list, is_outside, shown
from edgesam_jax.data.readers.segmentations import REMEDY, decode_window, encode_polygons, size_fault
from edgesam_jax.data.schema import BadExample
from edgesam_jax.data.source import SkippedRow
from edgesam_jax.files import read_json

BINARY = (".pth", ".pkl")
PICKLED = "; pass the JSON: Detectron2 writes coco_instances_results.json, MMDetection .bbox.json and .segm.json"


def read_results(path: Path, flag: str) -> list[dict[str, Any]]:
    """Read the entries of a results file without checking them (see ``check_results``).

    Args:
      flag: the option that named the file, for error messages.

    Raises:
      UsageError: the file doesn't exist, is not JSON, or is not a list of objects.
    """
    where = f"{flag} {path}"
    try:
        content = read_json(path, flag)
    except UsageError as error:
        raise UsageError(f"{error}{PICKLED if path.suffix in BINARY and path.is_file() else ''}") from None
    if isinstance(content, dict) and "annotations" in content:
        raise UsageError(f"{where}: these are a data set's annotations; pass results, a list of entries with scores")
    if not isinstance(content, list) or (content and not any(isinstance(entry, dict) for entry in content)):
        raise UsageError(f"{where}: not COCO results: expected a list of {{image_id, category_id, score, ...}}")
    return content


def check_results(
    results: Sequence[Any],
    image_sizes: Mapping[int | str, tuple[int, int]],
    category_ids: Collection[int] | None,
    need: Literal["bbox", "segmentation"],
) -> tuple[list[dict[str, Any]], list[SkippedRow]]:
    """Separate the entries that can be used from those that can't.

    Args:
      results: entries as parsed from JSON.
      image_sizes: (rows, columns) of each photo by image id.
      category_ids: the data set's categories; None if categories don't matter and may be missing.
      need: the field to be used; the other one is not checked.

    Returns:
      The usable entries, unchanged except that ids written as 7.0 become integers; and (kind of fault, message
      with the entry's index) for each of the others.
    """
    kept: list[dict[str, Any]] = []
    rows: list[SkippedRow] = []
    for number, entry in enumerate(results):
        fault = _fault(entry, image_sizes, category_ids, need)
        if fault is not None:
            kind, reason = fault
            rows.append((kind, f"results[{number}]: {reason}: {shown(entry)}"))
            continue
        ids = {k: int(entry[k]) for k in ("image_id", "category_id") if isinstance(entry.get(k), float)}
        kept.append({**entry, **ids} if ids else entry)
    return kept, rows


def _fault(
    entry: Any,
    image_sizes: Mapping[int | str, tuple[int, int]],
    category_ids: Collection[int] | None,
    need: Literal["bbox", "segmentation"],
) -> tuple[str, str] | None:
    """Kind and description of an entry's fault; None if it can be used."""
    if not isinstance(entry, dict):
        return "result damaged", "not a JSON object"
    image_id: Any = entry.get("image_id")
    category, score = entry.get("category_id"), entry.get("score")
    if not (is_integer(image_id) or isinstance(image_id, str)):
        return "result damaged", "its image_id is missing, or neither an integer nor a string"
    if image_id not in image_sizes:
        return "photo unknown", f"no photo has the id {shown(image_id)}{_hint(image_id, image_sizes)}"
    if category_ids is not None and not is_integer(category):
        return "result damaged", "its category_id is missing or not an integer"
    if category_ids is not None and category not in category_ids:
        return "category unknown", f"no category has the id {category!r}; the data set's are {_some(category_ids)}"
    if not (is_integer(score) or (isinstance(score, float) and math.isfinite(score))):
        return "score missing", "its score is missing or not a finite number"
    check = _box_fault if need == "bbox" else _mask_fault
    return check(entry.get(need), *image_sizes[image_id])


def _hint(image_id: int | str, image_sizes: Mapping[int | str, tuple[int, int]]) -> str:
    """Say what ids should look like, if this one is of another type than the data set's."""
    if not image_sizes or type(image_id) in {type(known) for known in image_sizes}:
        return ""
    kind = "integers" if isinstance(image_id, str) else "texts"
    return f"; the data set's ids are {kind}, such as {_some(image_sizes)}"


def _some(ids: Collection[Any]) -> str:
    """List the first three of some ids."""
    first = [shown(i) for i, _ in zip(ids, range(3), strict=False)]
    return ", ".join(first) + (", ..." if len(ids) > 3 else "")


def _box_fault(box: Any, height: int, width: int) -> tuple[str, str] | None:
    if not is_number_list(box, 4):
        return "box damaged", "its bbox is not four finite numbers"
    if not (box[2] > 0 and box[3] > 0):
        return "box without area", "its bbox has no area"
    if is_outside(box, height, width):
        return "box outside the photo", f"its bbox lies outside the photo of {width}x{height} pixels"
    return None


def _mask_fault(segmentation: Any, height: int, width: int) -> tuple[str, str] | None:
    if not isinstance(segmentation, list | dict) or not segmentation:
        return "mask missing", "its segmentation is missing or not polygons or run-length code"
    if isinstance(segmentation, dict) and (fault := size_fault(segmentation.get("size"), height, width)):
        return "mask of another size", f"its mask doesn't have the photo's {height} rows and {width} columns: {fault}"
    try:
        compressed(segmentation, height, width, "its mask")
    except BadExample as error:
        return "mask damaged", str(error)
    return None


def top_per_image(results: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The ``count`` highest-scoring results of each photo, over all categories (LVIS counts 300).

    The order of ``results`` is kept; of equal scores, the first are kept.
    """
    by_photo: dict[Any, list[int]] = {}
    for place, entry in enumerate(results):
        by_photo.setdefault(entry["image_id"], []).append(place)
    # sorted() is stable: equal scores stay in order.
    best = [sorted(places, key=lambda place: -results[place]["score"])[:count] for places in by_photo.values()]
    return [results[place] for place in sorted(place for places in best for place in places)]


def result(image_id: int | str, category_id: int, score: float, mask: np.ndarray) -> dict[str, Any]:
    """Make an entry of a results file from a mask (h w) bool.

    The entry has no ``bbox``: with one, evaluation tools derive an object's size class (small, medium or large) from
    the box instead of the mask.
    """
    code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"image_id": image_id, "category_id": category_id, "score": float(score), "segmentation": _json_rle(code)}


def compressed(segmentation: Any, height: int, width: int, where: str) -> dict[str, Any]:
    """Convert polygons or run-length code of either form to compressed run-length code with string ``counts``.

    Raises:
      BadExample: see ``decode_window``.  It rejects runs that don't add up to the mask's size, which pycocotools
        doesn't check.
    """
    if not isinstance(segmentation, list):
        decode_window(segmentation, height, width, where)
        listed = isinstance(segmentation["counts"], list)
        return _json_rle(coco_mask.frPyObjects(segmentation, height, width) if listed else segmentation)
    try:
        fault = form_fault(segmentation)
        if fault:
            raise ValueError(fault)
        polygons = [p for p in segmentation if len(p) >= 6]  # fewer than three corners enclose no area
        empty = {"size": [height, width], "counts": [height * width]}
        return _json_rle(
            encode_polygons(polygons, height, width) if polygons else coco_mask.frPyObjects(empty, height, width)
        )
    except Exception as error:  # pycocotools raises bare Exceptions too
        raise BadExample("segmentation damaged", f"{where}: damaged segmentation ({error}){REMEDY}") from None


def _json_rle(code: Mapping[str, Any]) -> dict[str, Any]:
    """A run-length code with JSON-serialisable values."""
    counts = code["counts"]
    size = [int(side) for side in code["size"]]
    return {"size": size, "counts": counts.decode() if isinstance(counts, bytes) else counts}
