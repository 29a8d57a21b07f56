"""Average precision of masks, computed by the official tools or by tools that reproduce them.

COCO AP comes from pycocotools; LVIS AP and boundary AP (Cheng et al., CVPR 2021) from faster-coco-eval, which equals
LVIS's tool and that of the boundary authors.  An object's size is that of its mask; ``bbox`` of results is ignored.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from edgesam_jax.config import UsageError
from edgesam_jax.data.readers.annotations import is_integer
from edgesam_jax.eval.scoring.boundary import RATIO
from edgesam_jax.eval.scoring.ground_truth import GroundTruth, read_ground_truth
from edgesam_jax.eval.scoring.results import compressed, top_per_image

Style = Literal["coco", "lvis"]
Scores = dict[str, float | None]
LVIS_RESULTS = 300  # results that LVIS counts per photo, over all categories
COCO_NAMES = ("AP", "AP50", "AP75", "APS", "APM", "APL")
LVIS_NAMES = (*COCO_NAMES, "APr", "APc", "APf")
FREQUENCIES = ("r", "c", "f")


def average_precision(
    annotations: Path | GroundTruth,
    results: Sequence[dict[str, Any]],
    *,
    style: Style,
    image_ids: Sequence[int | str] | None = None,
) -> Scores:
    """Mask AP.

    Args:
      annotations: a COCO-format file, or the result of ``read_ground_truth`` to avoid reading it again.
      results: entries accepted by ``check_results``, with a ``segmentation`` of any form, in any order.  Entries for
        photos and categories that are not evaluated are ignored.
      style: ``coco`` counts the best 100 results per photo and category; ``lvis`` the best 300 per photo, and only
        those of categories whose presence in the photo is annotated.
      image_ids: the photos to evaluate; None for all.

    Returns:
      AP (mean over IoU .50 to .95), AP50, AP75, APS, APM, APL (objects below 32x32, up to 96x96 and above, in pixels of
      the photo) and for LVIS APr, APc, APf (rare, common, frequent categories), as fractions in full precision; None
      for a group without instances.

    Raises:
      UsageError: see ``read_ground_truth``; or annotations without the fields that ``lvis`` needs.
      BadExample: a mask can't be decoded.
    """
    truth, images, entries = _prepare(annotations, results, style, image_ids)
    if style == "lvis":
        return _faster_coco_eval(truth, images, entries, style, "segm", RATIO)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints progress
        evaluation = COCOeval(_indexed(COCO(), truth, truth.annotations), _indexed(COCO(), truth, entries), "segm")
        evaluation.params.imgIds = images
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return _scores(COCO_NAMES, evaluation.stats)


def boundary_average_precision(
    annotations: Path | GroundTruth,
    results: Sequence[dict[str, Any]],
    *,
    style: Style,
    image_ids: Sequence[int | str] | None = None,
    ratio: float = RATIO,
) -> Scores:
    """Boundary AP: like ``average_precision``, but matching by the minimum of mask IoU and boundary IoU.

    Crowd regions are matched by mask IoU.  ``ratio`` is the boundary width as a fraction of the photo's diagonal.
    """
    truth, images, entries = _prepare(annotations, results, style, image_ids)
    return _faster_coco_eval(truth, images, entries, style, "boundary", ratio)


def _prepare(
    annotations: Path | GroundTruth,
    results: Sequence[dict[str, Any]],
    style: Style,
    image_ids: Sequence[int | str] | None,
) -> tuple[GroundTruth, list[int], list[dict[str, Any]]]:
    """The annotations, the ids of the photos to evaluate, and their results in the tools' format, numbered from 1."""
    truth = annotations if isinstance(annotations, GroundTruth) else read_ground_truth(annotations, image_ids)
    truth.require(image_ids or ())
    if style == "lvis":
        _require_lvis(truth)
        results = top_per_image(results, LVIS_RESULTS)
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth.images}
    images = list(sizes) if image_ids is None else [int(i) for i in image_ids]
    evaluated, categories = set(images), {category["id"] for category in truth.categories}
    annotated = _lvis_pairs(truth) if style == "lvis" else None
    entries: list[dict[str, Any]] = []
    for entry in results:
        image, category = entry["image_id"], entry["category_id"]
        if image not in evaluated or category not in categories:
            continue
        if annotated is not None and (image, category) not in annotated:
            continue
        code = compressed(entry["segmentation"], *sizes[image], f"results of image {image}")
        plain = {"image_id": int(image), "category_id": int(category), "score": float(entry["score"])}
        entries.append(
            {**plain, "id": len(entries) + 1, "iscrowd": 0, "segmentation": code, "area": float(coco_mask.area(code))}
        )
    return truth, images, entries


def _require_lvis(truth: GroundTruth) -> None:
    """Refuse annotations without the fields that LVIS's evaluation needs."""
    remedy = "pass LVIS annotations or use --dataset coco"
    for category in truth.categories:
        if category.get("frequency") not in FREQUENCIES:
            raise UsageError(
                f"annotations {truth.path}: category {category['id']} has no frequency r, c or f; {remedy}"
            )
    for image in truth.images:
        for name in ("neg_category_ids", "not_exhaustive_category_ids"):
            ids = image.get(name)
            if not (isinstance(ids, list) and all(is_integer(i) for i in ids)):
                where = f"annotations {truth.path}: image {image['id']}"
                raise UsageError(f"{where} has no {name!r} list of integers; {remedy}")


def _lvis_pairs(truth: GroundTruth) -> set[tuple[int, int]]:
    """(image id, category id) pairs with annotated presence or absence; results of other pairs don't count.

    faster-coco-eval drops those as well, but fails on them in photos without annotations.
    """
    absent = {(image["id"], category) for image in truth.images for category in image["neg_category_ids"]}
    return absent | {(a["image_id"], a["category_id"]) for a in truth.annotations}


def _faster_coco_eval(
    truth: GroundTruth, images: list[int], entries: list[dict[str, Any]], style: Style, kind: str, ratio: float
) -> Scores:
    import faster_coco_eval as faster

    evaluation = faster.COCOeval_faster(
        _indexed(faster.COCO(), truth, truth.annotations),
        _indexed(faster.COCO(), truth, entries),
        kind,
        lvis_style=style == "lvis",
        boundary_dilation_ratio=ratio,
    )
    evaluation.params.imgIds = images
    if style == "lvis":
        evaluation.params.maxDets = [LVIS_RESULTS]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    stats = evaluation.stats_as_dict
    keys = ("AP_all", "AP_50", "AP_75", "AP_small", "AP_medium", "AP_large", "APr", "APc", "APf")
    names = LVIS_NAMES if style == "lvis" else COCO_NAMES
    return _scores(names, [stats[key] for key in keys[: len(names)]])


def _indexed(data: Any, truth: GroundTruth, annotations: Sequence[dict[str, Any]]) -> Any:
    """Fill a tool's data set object with copies of these annotations, because the tools modify their input."""
    data.dataset = {
        "info": {},
        "images": [dict(image) for image in truth.images],
        "categories": [dict(category) for category in truth.categories],
        "annotations": [dict(annotation) for annotation in annotations],
    }
    data.createIndex()
    return data


def _scores(names: Sequence[str], values: Sequence[float]) -> Scores:
    """Scores by name; the tools' -1, for a group without instances, becomes None."""
    return {name: None if value == -1 else float(value) for name, value in zip(names, values, strict=False)}
