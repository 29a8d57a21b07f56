"""Aggregate instances into the numbers of a report: means by size, category and photo, and number of clicks.

An instance is a row of a report's ``instances``: ``{"image_id", "annotation_id", "category_id" (optional), "area" in
pixels, "iou": [first prompt, +1 point, ...] as fractions, "boundary_iou": [...] (optional)}``.  A value of None (both
prediction and annotation are empty: 0/0) is skipped in every mean, as in the published evaluation
(docs/published_code.md, "Evaluation").

Sums are exactly rounded (``math.fsum``), so results don't depend on the order of the instances.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

Instance = Mapping[str, Any]

# COCO's three sizes, by the annotation's area in pixels (cocodataset.org, detection evaluation).  The official tool
# counts an object of exactly 32^2 or 96^2 pixels in both sizes; here it belongs to the larger size only.
SMALL, LARGE = 32**2, 96**2
CLICK_THRESHOLDS = (0.8, 0.85, 0.9)  # IoU to reach


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None, independent of their order; None if there are no such values."""
    defined = [float(value) for value in values if value is not None]
    return math.fsum(defined) / len(defined) if defined else None


def column_means(rows: Sequence[Sequence[float | None]]) -> list[float | None]:
    """The ``mean`` of each column of rows of equal length.

    Raises:
      ValueError: the rows have different lengths.
    """
    return [mean(column) for column in zip(*rows, strict=True)]


def size_of(area: float) -> str:
    """COCO's size class of an object by its area in pixels: ``small``, ``medium`` or ``large``."""
    return "small" if area < SMALL else "medium" if area < LARGE else "large"


def summarise(instances: Sequence[Instance], categories: Mapping[int, str]) -> dict[str, Any]:
    """Compute the aggregates of a report, as fractions in full precision.

    Args:
      instances: rows as described above, with ``iou`` of equal length.
      categories: id to name; other categories are called "category ID", and categories with equal names are merged.

    Returns:
      ``miou`` and, if the instances have it, ``boundary_iou``: means over all instances, one value per round;
      ``miou_by_size`` and ``miou_by_category``: ``{name: {"count": n, "miou": [...]}}`` for groups with instances, the
      latter only if an instance has a category; ``miou_over_photos``: the mean over photos of each photo's mean.  The
      mean of no values is None.

    Raises:
      ValueError: the instances have different numbers of rounds.
    """
    result: dict[str, Any] = {"miou": column_means([row["iou"] for row in instances])}
    if instances and "boundary_iou" in instances[0]:
        result["boundary_iou"] = column_means([row["boundary_iou"] for row in instances])
    sizes = _grouped(instances, lambda row: size_of(row["area"]))
    result["miou_by_size"] = {name: _group(sizes[name]) for name in ("small", "medium", "large") if name in sizes}
    labelled = [row for row in instances if row.get("category_id") is not None]
    if labelled:
        named = _grouped(labelled, lambda row: categories.get(row["category_id"], f"category {row['category_id']}"))
        result["miou_by_category"] = {name: _group(named[name]) for name in sorted(named)}
    photos = _grouped(instances, lambda row: row["image_id"])
    result["miou_over_photos"] = column_means([column_means([r["iou"] for r in rows]) for rows in photos.values()])
    return result


def _grouped(rows: Iterable[Instance], key: Callable[[Instance], Any]) -> dict[Any, list[Instance]]:
    groups: dict[Hashable, list[Instance]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def _group(rows: Sequence[Instance]) -> dict[str, Any]:
    return {"count": len(rows), "miou": column_means([row["iou"] for row in rows])}


def clicks(instances: Sequence[Instance], max_clicks: int) -> dict[str, Any]:
    """The "number of clicks" (NoC) of interactive segmentation: mean number of prompts needed to reach an IoU.

    The first prompt counts as the first click even if it is a box.  An instance that doesn't reach the threshold within
    ``max_clicks`` counts as ``max_clicks`` (as usual in the field: Xu et al., Deep Interactive Object Selection, CVPR
    2016); the fraction of these instances is ``failed``.  An instance with None among its first ``max_clicks`` values
    is skipped, because its annotation is empty.

    Args:
      max_clicks: prompts per instance that are considered.

    Returns:
      ``{"80": mean clicks, "85": ..., "90": ..., "max_clicks": n, "failed": {"80": fraction, ...}}``, with None if no
      instances remain.

    Raises:
      ValueError: ``max_clicks`` is less than 1 or more than the number of rounds.
    """
    rows = [row["iou"][:max_clicks] for row in instances]
    if max_clicks < 1 or any(len(row) < max_clicks for row in rows):
        raise ValueError(f"max_clicks={max_clicks}: must be from 1 to the number of rounds")
    rows = [row for row in rows if None not in row]
    result: dict[str, Any] = {}
    failed: dict[str, float | None] = {}
    for threshold in CLICK_THRESHOLDS:
        name = f"{100 * threshold:g}"
        needed = [next((i for i, iou in enumerate(row, 1) if iou >= threshold), None) for row in rows]
        result[name] = mean(max_clicks if n is None else n for n in needed)
        failed[name] = mean(float(n is None) for n in needed)
    return {**result, "max_clicks": max_clicks, "failed": failed}
