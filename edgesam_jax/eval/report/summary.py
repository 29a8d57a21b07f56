"""From instances to the numbers of a report: means by size, category and photo, and clicks needed.

An instance is a row of a report's ``instances``: ``{"image_id", "annotation_id", "category_id" (maybe), "area" in
pixels, "iou": [initial prompt, +1 point, ...] as fractions, "boundary_iou": [...] (maybe)}``.  A value of None
(prediction and annotation are both empty: 0/0) is left out of every mean, as in the published evaluation (facts,
section 7).

Sums are exactly rounded (``math.fsum``), so no result depends on the order of the instances.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

Instance = Mapping[str, Any]

# COCO's three sizes by pixels of the annotation (cocodataset.org, detection evaluation); its official tool counts an
# object of exactly 32^2 or 96^2 pixels on both sides, here it belongs to the larger size alone.
SMALL, LARGE = 32**2, 96**2
CLICK_THRESHOLDS = (0.8, 0.85, 0.9)  # IoU to reach


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None, the same for every order; None where there is no such value."""
    known = [float(value) for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def column_means(rows: Sequence[Sequence[float | None]]) -> list[float | None]:
    """The ``mean`` of every column of n rows of the same length.

    Raises:
      ValueError: rows of different lengths.
    """
    return [mean(column) for column in zip(*rows, strict=True)]


def size_of(area: float) -> str:
    """COCO's ``small``, ``medium`` or ``large`` for an object of so many pixels."""
    return "small" if area < SMALL else "medium" if area < LARGE else "large"


def summarise(instances: Sequence[Instance], categories: Mapping[int, str]) -> dict[str, Any]:
    """The aggregates of a report, fractions in full precision.

    Args:
      instances: rows as described above; all ``iou`` of one length.
      categories: id to name; a category that it lacks is called "category ID", and equal names count as one.

    Returns:
      ``miou`` and (if the instances have it) ``boundary_iou``: means over all instances, one value a round;
      ``miou_by_size`` and ``miou_by_category``: ``{name: {"count": n, "miou": [...]}}`` for groups that have an
      instance, the latter absent if no instance has a category; ``miou_over_photos``: the mean over photos of each
      photo's mean.  A mean of nothing is None.

    Raises:
      ValueError: instances with different numbers of rounds.
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
    """The "number of clicks" of interactive segmentation: how many prompts an instance needs to reach an IoU.

    The initial prompt counts as the first click, also where it is a box.  An instance that never reaches the threshold
    within ``max_clicks`` counts as ``max_clicks`` (the field's custom: Xu et al., Deep Interactive Object Selection,
    CVPR 2016), and its share is given as ``failed``.  An instance with a None among the clicks looked at is left out:
    its annotation is empty, so there is nothing to reach.

    Returns:
      ``{"80": mean clicks, "85": ..., "90": ..., "max_clicks": n, "failed": {"80": share, ...}}``; None where no
      instance is left.

    Raises:
      ValueError: ``max_clicks`` below 1, or more than the rounds that were run: what happens there is not known.
    """
    rows = [row["iou"][:max_clicks] for row in instances]
    if max_clicks < 1 or any(len(row) < max_clicks for row in rows):
        raise ValueError(f"max_clicks={max_clicks}: must be from 1 to the number of prompts that were given")
    rows = [row for row in rows if None not in row]
    result: dict[str, Any] = {}
    failed: dict[str, float | None] = {}
    for threshold in CLICK_THRESHOLDS:
        name = f"{100 * threshold:g}"
        needed = [next((i for i, iou in enumerate(row, 1) if iou >= threshold), None) for row in rows]
        result[name] = mean(max_clicks if n is None else n for n in needed)
        failed[name] = mean(float(n is None) for n in needed)
    return {**result, "max_clicks": max_clicks, "failed": failed}
