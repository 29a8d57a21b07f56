"""Average precision is the official tools', to the last digit; what they can't take is made good first."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from edgesam_jax.config import UsageError
from edgesam_jax.evaluation.average_precision import average_precision, ground_truth
from edgesam_jax.evaluation.results import result

H, W = 120, 160


def rectangle(rng: np.random.Generator) -> np.ndarray:
    mask = np.zeros((H, W), bool)
    h, w = rng.integers(6, 110), rng.integers(6, 110)
    y, x = rng.integers(0, H - 5), rng.integers(0, W - 5)
    mask[y : y + h, x : x + w] = True
    return mask


def rle(mask: np.ndarray) -> dict:
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [H, W], "counts": code["counts"].decode()}


def annotation(number: int, image: int, category: int, mask: np.ndarray, crowd: int = 0) -> dict:
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [int(xs[0]), int(ys[0]), int(xs[-1] - xs[0] + 1), int(ys[-1] - ys[0] + 1)]
    return {
        "id": number, "image_id": image, "category_id": category, "bbox": box, "area": float(mask.sum()),
        "iscrowd": crowd, "segmentation": rle(mask),
    }  # fmt: skip


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> tuple[Path, list[dict]]:
    """Eight photos, one without instances, some crowds; predictions that are shifted, doubled, wrong or missing."""
    rng = np.random.default_rng(0)
    annotations, results = [], []
    for image in range(1, 9):
        for _ in range(0 if image == 3 else rng.integers(2, 6)):
            mask, category = rectangle(rng), int(rng.integers(1, 4))
            annotations.append(annotation(len(annotations) + 1, image, category, mask, int(rng.random() < 0.15)))
            for _ in range(rng.integers(0, 3)):
                moved = np.roll(mask, rng.integers(-4, 5, 2), (0, 1))
                results.append(result(image, category, float(rng.random()), moved))
        results.append(result(image, int(rng.integers(1, 4)), float(rng.random()), rectangle(rng)))
    content = {
        "info": {}, "images": [{"id": i, "height": H, "width": W} for i in range(1, 9)], "annotations": annotations,
        "categories": [{"id": i, "name": str(i), "frequency": "rcf"[i - 1]} for i in (1, 2, 3)],
    }  # fmt: skip
    for image in content["images"]:
        image |= {"neg_category_ids": [1, 2, 3], "not_exhaustive_category_ids": []}
    path = tmp_path_factory.mktemp("ap") / "truth.json"
    path.write_text(json.dumps(content))
    return path, results


def truth_as_results(path: Path) -> list[dict]:
    rows = json.loads(path.read_text())["annotations"]
    return [
        {"image_id": a["image_id"], "category_id": a["category_id"], "score": 0.5, "segmentation": a["segmentation"]}
        for a in rows
        if not a["iscrowd"]
    ]


@pytest.mark.parametrize("ids", [None, [1, 2, 3, 5]])
def test_coco_is_pycocotools_to_the_last_digit(scene, ids):
    path, results = scene
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        official = COCOeval(truth, truth.loadRes([dict(r) for r in results]), "segm")  # which changes them
        if ids:
            official.params.imgIds = ids
        official.evaluate()
        official.accumulate()
        official.summarize()
    found = average_precision(path, results, image_ids=ids)
    assert list(found) == ["AP", "AP50", "AP75", "APS", "APM", "APL"]
    assert list(found.values()) == [None if v == -1 else v for v in official.stats[:6]]
    assert 0 < found["AP"] < 1
    shuffled = [results[i] for i in np.random.default_rng(1).permutation(len(results))]
    assert average_precision(path, shuffled, image_ids=ids) == found


@pytest.mark.parametrize("style", ["coco", "lvis"])
@pytest.mark.parametrize("kind", ["segm", "boundary"])
def test_the_truth_scores_everything_and_nothing_scores_nothing(scene, style, kind):
    path, _ = scene
    perfect = average_precision(path, truth_as_results(path), style=style, kind=kind)
    assert all(value is None or value == pytest.approx(1.0) for value in perfect.values()) and perfect["AP"] is not None
    assert ("APr" in perfect) == (style == "lvis")
    assert average_precision(path, [], style=style, kind=kind)["AP"] == 0.0


def test_boundary_ap_punishes_what_mask_ap_forgives(scene):
    path, _ = scene
    moved = []
    for entry in truth_as_results(path):
        mask = np.roll(coco_mask.decode(entry["segmentation"]), 3, 1).astype(bool)
        moved.append({**entry, "segmentation": rle(mask)})
    segm, boundary = (average_precision(path, moved, kind=kind)["AP"] for kind in ("segm", "boundary"))
    assert boundary < segm - 0.05


def test_the_size_of_a_result_is_its_masks_not_its_boxs(scene):
    """Facts on formats, section 5: with a box beside the mask, the tools sort by the box."""
    path, results = scene
    boxed = [{**r, "bbox": [0, 0, W, H]} for r in results]
    assert average_precision(path, boxed) == average_precision(path, results)


def test_lvis_counts_three_hundred_results_of_a_photo(scene):
    path, _ = scene
    good = [{**r, "score": 0.1} for r in truth_as_results(path) if r["image_id"] == 1]
    noise = [result(1, 1, 0.9, rectangle(np.random.default_rng(i))) for i in range(300)]
    crowded = average_precision(path, [*good, *noise], style="lvis", image_ids=[1])
    free = average_precision(path, [*good, *noise[:100]], style="lvis", image_ids=[1])
    assert free["AP"] > crowded["AP"]  # the good ones were beyond the three hundred


def test_files_that_lack_what_the_tools_want(tmp_path, scene):
    """Own data sets: no info, no area, no iscrowd, ids from 0, damaged entries, no categories."""
    path, _ = scene
    content = json.loads(path.read_text())
    rows = [a for a in content["annotations"] if not a["iscrowd"]]
    for number, a in enumerate(rows):
        a["id"] = number
        del a["area"], a["iscrowd"]
    bare = {
        "images": content["images"],
        "annotations": [*rows, {"id": 99}, "x", {**rows[0], "id": 98, "image_id": 55}, {**rows[0], "bbox": None}],
    }
    own = tmp_path / "own.json"
    own.write_text(json.dumps(bare))
    truth = ground_truth(own)
    assert len(truth["annotations"]) == len(rows) and all(a["id"] > 0 for a in truth["annotations"])
    assert [a["area"] for a in truth["annotations"]] == [coco_mask.decode(a["segmentation"]).sum() for a in rows]
    assert average_precision(own, truth_as_results(path))["AP"] == pytest.approx(1.0)
    with pytest.raises(UsageError, match=r"own.json: not LVIS's: its categories have no frequency"):
        average_precision(own, [], style="lvis")
    with pytest.raises(UsageError, match="image ids that are whole numbers"):
        average_precision(own, [], image_ids=["a"])
