"""Files in COCO's results format: a detector's boxes, or masks of any system.

A list of {image_id, category_id, bbox XYWH, score, segmentation}: https://cocodataset.org/#format-results.  Detectron2
and MMDetection write it (facts on formats, section 5).
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
from edgesam_jax.data.records import decode_window, numbers, whole
from edgesam_jax.data.schema import BadExample

Result = dict[str, Any]


def read_results(path: Path, flag: str) -> list[Any]:
    """The entries of a file, unchecked.

    Raises:
      UsageError: no such file, no JSON, or no list; ``flag`` is what named it.
    """
    if not path.is_file():
        raise UsageError(f"{flag} {path}: no such file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{flag} {path}: not valid JSON ({error})") from None
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        raise UsageError(f"{flag} {path}: a data set's annotations; give results, a list of entries with scores")
    if not isinstance(content, list):
        raise UsageError(f"{flag} {path}: not COCO's results format, a list of {{image_id, category_id, score, ...}}")
    return content


def check_results(
    results: Sequence[Any],
    sizes: Mapping[int | str, tuple[int, int]],
    categories: Collection[int] | None,
    need: Literal["bbox", "segmentation"],
) -> tuple[list[Result], list[tuple[str, str]]]:
    """The entries that can be used, and a row (kind, message) for each of the others.

    Args:
      sizes: rows and columns of every photo of the data set.
      categories: the ids there are; None to take any.
      need: what entries must have.  A mask is decoded once to see that it can be.
    """
    kept: list[Result] = []
    rows: list[tuple[str, str]] = []
    for number, entry in enumerate(results):
        kind, fault = _fault(entry, sizes, categories, need)
        if kind:
            rows.append((kind, f"entry {number}: {fault}: {str(entry)[:80]}"))
        else:
            kept.append(entry)
    return kept, rows


def _fault(
    entry: Any, sizes: Mapping[int | str, tuple[int, int]], categories: Collection[int] | None, need: str
) -> tuple[str, str]:
    """What is wrong with an entry: its kind and how to say it; empty if nothing is."""
    damaged = "result damaged"
    if not isinstance(entry, dict):
        return damaged, "not an object with fields"
    if not (whole(entry.get("image_id")) or isinstance(entry.get("image_id"), str)):
        return damaged, "no image_id that is a whole number or a text"
    if not whole(entry.get("category_id")):
        return damaged, "no category_id that is a whole number"
    score = entry.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        return damaged, "no score that is a number"
    if entry["image_id"] not in sizes:
        return "result of an unknown photo", f"image_id {entry['image_id']} is not in the annotations"
    if categories is not None and entry["category_id"] not in categories:
        return "result of an unknown category", f"category_id {entry['category_id']} is not in the annotations"
    height, width = sizes[entry["image_id"]]
    if need == "segmentation":
        if not isinstance(entry.get("segmentation"), dict | list):
            return damaged, "no segmentation"
        try:
            decode_window(entry["segmentation"], height, width, "its segmentation")
        except BadExample as error:
            return damaged, str(error)
    else:
        if not numbers(entry.get("bbox"), 4):
            return damaged, "no bbox of four numbers"
        x, y, w, h = entry["bbox"]
        if not (w > 0 and h > 0 and x < width and y < height and x + w > 0 and y + h > 0):
            return "result without an inside", f"its bbox covers nothing of the photo of {width}x{height} pixels"
    return "", ""


def top_per_image(results: Sequence[Result], most: int) -> list[Result]:
    """The ``most`` results of highest score of each photo over all categories, in the file's order; ties to the first.

    LVIS counts 300 of a photo (facts on formats, section 6), where COCO counts 100 of a photo and category.
    """
    by_photo: dict[Any, list[int]] = {}
    for number, entry in enumerate(results):
        by_photo.setdefault(entry["image_id"], []).append(number)
    kept = [n for own in by_photo.values() for n in sorted(own, key=lambda n: -results[n]["score"])[:most]]
    return [results[n] for n in sorted(kept)]


def result(image_id: int | str, category_id: int, score: float, mask: np.ndarray) -> Result:
    """An entry with a mask (h w) bool.

    It has no ``bbox``: with both, every evaluator would take small, medium and large from the box (facts on formats,
    section 5).
    """
    code = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))
    segmentation = {"size": [int(v) for v in code["size"]], "counts": code["counts"].decode()}
    return {"image_id": image_id, "category_id": category_id, "score": score, "segmentation": segmentation}
