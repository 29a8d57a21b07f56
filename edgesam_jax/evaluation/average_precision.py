"""Average precision of masks by the official tools (EdgeSAM Table 4).

COCO's numbers are pycocotools'; boundary AP and LVIS's are faster-coco-eval's, which agrees with the authors' own
programs (facts on formats, section 6).
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgesam_jax.config import UsageError
from edgesam_jax.data.records import encode_polygons, fault_of, usable, whole
from edgesam_jax.evaluation.boundary import RATIO
from edgesam_jax.evaluation.results import Result, top_per_image

Style = Literal["coco", "lvis"]
Kind = Literal["segm", "boundary"]
LVIS_RESULTS = 300  # of a photo
COCO_NAMES = ("AP", "AP50", "AP75", "APS", "APM", "APL")
FASTER_NAMES = {
    "AP": "AP_all", "AP50": "AP_50", "AP75": "AP_75", "APS": "AP_small", "APM": "AP_medium", "APL": "AP_large",
    "APr": "APr", "APc": "APc", "APf": "APf",
}  # fmt: skip


def average_precision(
    annotations: Path,
    results: Sequence[Result],
    *,
    style: Style = "coco",
    image_ids: Sequence[int | str] | None = None,
    kind: Kind = "segm",
) -> dict[str, float | None]:
    """AP, AP50, AP75, APS, APM, APL and for LVIS APr, APc, APf, as fractions; None where there are no instances.

    Args:
      annotations: the data set's file.  Fields that the tools want and own data sets often lack (``iscrowd``, ``area``)
        are filled in; annotations that can't be used are left out, as they are in training.
      results: entries with masks; their ``bbox`` is ignored.
      image_ids: the photos to count; all of the file if None.
      kind: "boundary" matches by the smaller of mask IoU and boundary IoU.

    Raises:
      UsageError: ids of photos that are texts, or an LVIS file without the frequencies of its categories.
    """
    truth = ground_truth(annotations, style)
    ids = [image["id"] for image in truth["images"]] if image_ids is None else list(image_ids)
    if not all(whole(i) for i in ids):
        raise UsageError(f"{annotations}: average precision needs image ids that are whole numbers")
    given = [{k: v for k, v in entry.items() if k != "bbox"} for entry in results]
    if style == "lvis":
        given = top_per_image(given, LVIS_RESULTS)
    if not given:  # the tools take no empty list
        return dict.fromkeys(FASTER_NAMES if style == "lvis" else COCO_NAMES, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # they print as they go
        if style == "coco" and kind == "segm":
            stats = dict(zip(COCO_NAMES, _official(truth, given, ids), strict=False))
        else:
            stats = _faster(truth, given, ids, style, kind)
    return {name: None if value < 0 else float(value) for name, value in stats.items()}  # the tools say -1


def _official(truth: Mapping[str, Any], results: list[Result], ids: list[Any]) -> Sequence[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    data = COCO()
    data.dataset = truth
    data.createIndex()
    evaluation = COCOeval(data, data.loadRes(results), "segm")
    evaluation.params.imgIds = ids
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return np.asarray(evaluation.stats).tolist()


def _faster(
    truth: Mapping[str, Any], results: list[Result], ids: list[Any], style: Style, kind: Kind
) -> dict[str, float]:
    from faster_coco_eval import COCO, COCOeval_faster

    data = COCO(truth)
    evaluation = COCOeval_faster(
        data, data.loadRes(results), kind, print_function=lambda *unused: None, lvis_style=style == "lvis",
        boundary_dilation_ratio=RATIO,
    )  # fmt: skip
    evaluation.params.imgIds = ids
    if style == "lvis":
        evaluation.params.maxDets = [LVIS_RESULTS]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    stats = evaluation.stats_as_dict
    names = FASTER_NAMES if style == "lvis" else {name: FASTER_NAMES[name] for name in COCO_NAMES}
    return {name: float(stats[theirs]) for name, theirs in names.items()}


def ground_truth(annotations: Path, style: Style = "coco") -> dict[str, Any]:
    """A data set's file as the tools need it.

    Raises:
      UsageError: an LVIS file without what LVIS's evaluation needs.
    """
    content = json.loads(annotations.read_text(encoding="utf-8"))
    images = [i for i in content["images"] if isinstance(i, dict) and {"id", "height", "width"} <= set(i)]
    sizes = {i["id"]: (i["height"], i["width"]) for i in images if whole(i["id"]) or isinstance(i["id"], str)}
    found = []
    for number, annotation in enumerate(content["annotations"]):
        if fault_of(annotation) or not usable(annotation) or annotation.get("image_id") not in sizes:
            continue
        filled = {
            **annotation, "id": annotation.get("id", number), "iscrowd": int(annotation.get("iscrowd") or 0),
            "category_id": annotation.get("category_id", 0),
        }  # fmt: skip
        if "area" not in annotation:
            filled["area"] = _area(annotation["segmentation"], sizes[annotation["image_id"]])
        found.append(filled)
    # pycocotools matches an annotation of id 0 as if there were none.
    if any(a["id"] == 0 for a in found):
        for number, annotation in enumerate(found, 1):
            annotation["id"] = number
    categories = [c for c in content.get("categories") or [] if isinstance(c, dict) and whole(c.get("id"))]
    known = {c["id"] for c in categories}
    categories += [{"id": i, "name": str(i)} for i in sorted({a["category_id"] for a in found} - known)]
    if style == "lvis" and not all("frequency" in c for c in categories):
        raise UsageError(f"{annotations}: not LVIS's: its categories have no frequency; use --dataset coco")
    return {"info": {}, "images": images, "annotations": found, "categories": categories}


def _area(segmentation: Any, size: tuple[int, int]) -> float:
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, list):
        code = encode_polygons([p for p in segmentation if len(p) >= 6], *size)
    elif isinstance(segmentation["counts"], list):
        code = coco_mask.frPyObjects(segmentation, *size)
    else:
        code = segmentation
    return float(coco_mask.area(code))
