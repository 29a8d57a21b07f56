"""COCO results files: boxes of a detector, or masks of any system.

A JSON list of {image_id, category_id, score, bbox XYWH in pixels, segmentation}, of which a file has ``bbox``,
``segmentation`` or both.  https://cocodataset.org/#format-results; Detectron2 and MMDetection write the same for LVIS.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_mask

from edgesam_jax.config import UsageError
from edgesam_jax.data.readers.records import decode_window, encode_polygons, is_integer, is_number_list
from edgesam_jax.data.schema import BadExample

BINARY = (".pth", ".pkl")
PICKLED = "; Detectron2 writes coco_instances_results.json beside it, MMDetection .bbox.json and .segm.json: give that"


def read_results(path: Path, flag: str) -> list[dict[str, Any]]:
    """The entries of a results file, as they are: ``check_results`` sorts out what can't be used.

    Raises:
      UsageError: no such file, not JSON, or not a list of objects; it names ``flag``, the option that gave the file.
    """
    what = f"{flag} {path}"
    if not path.is_file():
        raise UsageError(f"{what}: no such file")
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{what}: not valid JSON ({error}){PICKLED if path.suffix in BINARY else ''}") from None
    if isinstance(content, dict) and "annotations" in content:
        raise UsageError(f"{what}: these are a data set's annotations; give results, a list of entries with scores")
    if not isinstance(content, list) or (content and not any(isinstance(entry, dict) for entry in content)):
        raise UsageError(f"{what}: not COCO results, which are a list of {{image_id, category_id, score, ...}}")
    return content


def check_results(
    results: Sequence[Any],
    image_sizes: Mapping[int | str, tuple[int, int]],
    category_ids: Collection[int] | None,
    need: Literal["bbox", "segmentation"],
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Sort out what can be used.

    Args:
      results: entries as they came out of a JSON.
      image_sizes: (rows, columns) of each photo that there is.
      category_ids: the categories that there are; None where categories do not matter, and may be missing.
      need: the field that is to be used; the other one may be anything.

    Returns:
      The entries that can be used, ids written as 7.0 as whole numbers and nothing else changed; and of each other one
      a row: what kind of fault it has, and a message that says which entry it is.
    """
    kept: list[dict[str, Any]] = []
    rows: list[tuple[str, str]] = []
    for number, entry in enumerate(results):
        fault = _fault(entry, image_sizes, category_ids, need)
        if fault is not None:
            kind, reason = fault
            rows.append((kind, f"results[{number}]: {reason}: {str(entry)[:80]}"))
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
    """Kind and description of what is wrong with an entry; None if it can be used."""
    if not isinstance(entry, dict):
        return "result damaged", "not an object with fields"
    image_id: Any = entry.get("image_id")
    category, score = entry.get("category_id"), entry.get("score")
    if not (is_integer(image_id) or isinstance(image_id, str)):
        return "result damaged", "no image_id that is a whole number or a text"
    if image_id not in image_sizes:
        return "photo unknown", f"no photo has the id {image_id!r}"
    if category_ids is not None and not is_integer(category):
        return "result damaged", "no category_id that is a whole number"
    if category_ids is not None and category not in category_ids:
        return "category unknown", f"no category has the id {category!r}"
    if not (is_integer(score) or (isinstance(score, float) and math.isfinite(score))):
        return "score missing", "no score that is a finite number"
    check = _box_fault if need == "bbox" else _mask_fault
    return check(entry.get(need), *image_sizes[image_id])


def _box_fault(box: Any, height: int, width: int) -> tuple[str, str] | None:
    if not is_number_list(box, 4):
        return "box damaged", "its bbox is not four finite numbers"
    x, y, w, h = box
    if not (w > 0 and h > 0):
        return "box without area", "its bbox has no inside"
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return "box outside the photo", f"its bbox lies outside the photo of {width}x{height} pixels"
    return None


def _mask_fault(segmentation: Any, height: int, width: int) -> tuple[str, str] | None:
    if not isinstance(segmentation, list | dict) or not segmentation:
        return "mask missing", "no segmentation that is polygons or run-length code"
    if isinstance(segmentation, dict) and segmentation.get("size") != [height, width]:
        return "mask of another size", f"its mask is not of the photo's {height} rows and {width} columns"
    try:
        compressed(segmentation, height, width, "its mask")
    except BadExample as error:
        return "mask damaged", str(error)
    return None


def top_per_image(results: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The ``count`` results of the highest scores of each photo, over all categories; LVIS counts 300.

    In their order in ``results``; of equal scores the first ones stay.
    """
    by_photo: dict[Any, list[int]] = {}
    for place, entry in enumerate(results):
        by_photo.setdefault(entry["image_id"], []).append(place)
    # sorted() keeps the order of equals.
    best = [sorted(places, key=lambda place: -results[place]["score"])[:count] for places in by_photo.values()]
    return [results[place] for place in sorted(place for places in best for place in places)]


def result(image_id: int | str, category_id: int, score: float, mask: np.ndarray) -> dict[str, Any]:
    """A mask (h w) bool as an entry of a results file.

    It has no ``bbox``: beside one, evaluation tools take an object's size, which is small, medium or large, from the
    box instead of the mask.
    """
    code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"image_id": image_id, "category_id": category_id, "score": float(score), "segmentation": _plain(code)}


def compressed(segmentation: Any, height: int, width: int, where: str) -> dict[str, Any]:
    """Polygons or either run-length code of a photo's size as compressed run-length code, with ``counts`` a text.

    Raises:
      BadExample: as ``decode_window``, which sees to it that pycocotools, which trusts what it is given, gets no runs
        that are too long or too few.
    """
    if not isinstance(segmentation, list):
        decode_window(segmentation, height, width, where)
        listed = isinstance(segmentation["counts"], list)
        return _plain(coco_mask.frPyObjects(segmentation, height, width) if listed else segmentation)
    try:
        polygons = [p for p in segmentation if len(p) >= 6]  # fewer than three corners enclose nothing
        nothing = {"size": [height, width], "counts": [height * width]}
        return _plain(
            encode_polygons(polygons, height, width) if polygons else coco_mask.frPyObjects(nothing, height, width)
        )
    except Exception as error:  # pycocotools raises bare Exceptions too
        raise BadExample(
            "segmentation damaged", f"{where}: damaged segmentation ({error}); mend or remove it"
        ) from None


def _plain(code: Mapping[str, Any]) -> dict[str, Any]:
    """A run-length code as JSON can hold it."""
    counts = code["counts"]
    size = [int(side) for side in code["size"]]
    return {"size": size, "counts": counts.decode() if isinstance(counts, bytes) else counts}
