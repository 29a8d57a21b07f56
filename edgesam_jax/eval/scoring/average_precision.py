"""Average precision of masks, by the tools whose numbers are the official ones.

COCO's comes from pycocotools, LVIS's and boundary AP (Cheng et al., CVPR 2021) from faster-coco-eval, which equals
LVIS's and the boundary authors' own tools.  An object's size is its mask's: ``bbox`` of results is not looked at.
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
from edgesam_jax.data.readers.records import is_integer
from edgesam_jax.eval.scoring.boundary import RATIO
from edgesam_jax.eval.scoring.ground_truth import GroundTruth, read_ground_truth
from edgesam_jax.eval.scoring.results import compressed, top_per_image

Style = Literal["coco", "lvis"]
Scores = dict[str, float | None]
LVIS_RESULTS = 300  # that LVIS counts of a photo, over all categories
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
      annotations: a COCO-format file, or what ``read_ground_truth`` made of it, to read it once only.
      results: entries with a ``segmentation`` of any form, in any order, that ``check_results`` let pass.  Entries of
        photos and categories that are not evaluated do not count.
      style: ``coco``: the best 100 results of a photo and category count; ``lvis``: the best 300 of a photo, and only
        where the annotations say whether the category is there.
      image_ids: the photos to evaluate; None for all.

    Returns:
      AP (mean over IoU .50 to .95), AP50, AP75, APS, APM, APL (objects below 32x32, up to 96x96 and above, in pixels of
      the photo) and for LVIS APr, APc, APf (rare, common, frequent categories), as fractions in full precision; None
      where there is no such instance.

    Raises:
      UsageError: see ``read_ground_truth``; a mask that can't be decoded; or annotations without what LVIS's way needs.
    """
    truth, images, given = _prepare(annotations, results, style, image_ids)
    if style == "lvis":
        return _faster(truth, images, given, style, "segm", RATIO)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints as it goes
        evaluation = COCOeval(_indexed(COCO(), truth, truth.annotations), _indexed(COCO(), truth, given), "segm")
        evaluation.params.imgIds = images
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return _named(COCO_NAMES, evaluation.stats)


def boundary_average_precision(
    annotations: Path | GroundTruth,
    results: Sequence[dict[str, Any]],
    *,
    style: Style,
    image_ids: Sequence[int | str] | None = None,
    ratio: float = RATIO,
) -> Scores:
    """Boundary AP: as ``average_precision``, with the lesser of mask IoU and boundary IoU for a match.

    Crowd regions keep the mask IoU.  ``ratio`` is the width of a boundary as a share of the photo's diagonal.
    """
    truth, images, given = _prepare(annotations, results, style, image_ids)
    return _faster(truth, images, given, style, "boundary", ratio)


def _prepare(
    annotations: Path | GroundTruth,
    results: Sequence[dict[str, Any]],
    style: Style,
    image_ids: Sequence[int | str] | None,
) -> tuple[GroundTruth, list[int], list[dict[str, Any]]]:
    """The annotations, the photos to evaluate, and their results as the tools take them, numbered from 1."""
    truth = annotations if isinstance(annotations, GroundTruth) else read_ground_truth(annotations, image_ids)
    truth.require(image_ids or ())
    if style == "lvis":
        _require_lvis(truth)
        results = top_per_image(results, LVIS_RESULTS)
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth.images}
    images = list(sizes) if image_ids is None else [int(i) for i in image_ids]
    wanted, categories = set(images), {category["id"] for category in truth.categories}
    told = _told_by_lvis(truth) if style == "lvis" else None
    given: list[dict[str, Any]] = []
    for entry in results:
        image, category = entry["image_id"], entry["category_id"]
        if image not in wanted or category not in categories or (told is not None and (image, category) not in told):
            continue
        code = compressed(entry["segmentation"], *sizes[image], f"results of image {image}")
        plain = {"image_id": int(image), "category_id": int(category), "score": float(entry["score"])}
        given.append(
            {**plain, "id": len(given) + 1, "iscrowd": 0, "segmentation": code, "area": float(coco_mask.area(code))}
        )
    return truth, images, given


def _require_lvis(truth: GroundTruth) -> None:
    """Refuse annotations that do not say what LVIS's evaluation has to know."""
    mend = "give LVIS's annotations, or evaluate these as COCO's"
    for category in truth.categories:
        if category.get("frequency") not in FREQUENCIES:
            raise UsageError(f"annotations {truth.path}: category {category['id']} has no frequency r, c or f; {mend}")
    for image in truth.images:
        for name in ("neg_category_ids", "not_exhaustive_category_ids"):
            ids = image.get(name)
            if not (isinstance(ids, list) and all(is_integer(i) for i in ids)):
                where = f"annotations {truth.path}: image {image['id']}"
                raise UsageError(f"{where} has no {name!r} that are whole numbers; {mend}")


def _told_by_lvis(truth: GroundTruth) -> set[tuple[int, int]]:
    """Photos and categories of which LVIS says whether there are any; results of others do not count.

    faster-coco-eval leaves those out too, but fails over them on photos without annotations.
    """
    told = {(image["id"], category) for image in truth.images for category in image["neg_category_ids"]}
    return told | {(a["image_id"], a["category_id"]) for a in truth.annotations}


def _faster(
    truth: GroundTruth, images: list[int], given: list[dict[str, Any]], style: Style, kind: str, ratio: float
) -> Scores:
    import faster_coco_eval as faster

    evaluation = faster.COCOeval_faster(
        _indexed(faster.COCO(), truth, truth.annotations),
        _indexed(faster.COCO(), truth, given),
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
    found = evaluation.stats_as_dict
    theirs = ("AP_all", "AP_50", "AP_75", "AP_small", "AP_medium", "AP_large", "APr", "APc", "APf")
    names = LVIS_NAMES if style == "lvis" else COCO_NAMES
    return _named(names, [found[name] for name in theirs[: len(names)]])


def _indexed(data: Any, truth: GroundTruth, annotations: Sequence[dict[str, Any]]) -> Any:
    """A tool's data set of these annotations; of copies, for the tools write into what they are given."""
    data.dataset = {
        "info": {},
        "images": [dict(image) for image in truth.images],
        "categories": [dict(category) for category in truth.categories],
        "annotations": [dict(annotation) for annotation in annotations],
    }
    data.createIndex()
    return data


def _named(names: Sequence[str], values: Sequence[float]) -> Scores:
    """The tools say -1 where there is nothing to find."""
    return {name: None if value == -1 else float(value) for name, value in zip(names, values, strict=False)}
