"""Files in COCO's results format: what can't be used is named by kind, and nothing else is lost."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from edgesam_jax.config import UsageError
from edgesam_jax.evaluation.results import check_results, read_results, result, top_per_image

SIZES = {1: (20, 30), "a": (5, 5)}
BOX = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}


def test_good_entries_are_kept_as_they_are():
    mask = np.zeros((20, 30), bool)
    mask[2:6, 1:4] = True
    masked = result(1, 3, 0.25, mask)
    assert "bbox" not in masked and (coco_mask.decode(masked["segmentation"]) == mask).all()
    polygon = {**BOX, "segmentation": [[1, 1, 9, 1, 9, 9]]}
    runs = {**BOX, "segmentation": {"size": [20, 30], "counts": [600]}}
    partly = {**BOX, "bbox": [-5.5, -3, 10, 10]}
    assert check_results([BOX, partly], SIZES, {3}, "bbox") == ([BOX, partly], [])
    assert check_results([masked, polygon, runs], SIZES, None, "segmentation") == ([masked, polygon, runs], [])
    json.dumps(masked)


@pytest.mark.parametrize(
    ("change", "need", "kind", "said"),
    [
        ({"image_id": 7}, "bbox", "result of an unknown photo", "image_id 7"),
        ({"image_id": [1]}, "bbox", "result damaged", "image_id"),
        ({"category_id": 4}, "bbox", "result of an unknown category", "category_id 4"),
        ({"category_id": "cat"}, "bbox", "result damaged", "category_id"),
        ({"score": float("nan")}, "bbox", "result damaged", "score"),
        ({"score": None}, "bbox", "result damaged", "score"),
        ({"bbox": [1, 2, 3]}, "bbox", "result damaged", "bbox of four numbers"),
        ({"bbox": [1, 2, float("inf"), 3]}, "bbox", "result damaged", "bbox of four numbers"),
        ({"bbox": [1, 2, 0, 3]}, "bbox", "result without an inside", "covers nothing"),
        ({"bbox": [31, 2, 3, 3]}, "bbox", "result without an inside", "covers nothing of the photo of 30x20"),
        ({}, "segmentation", "result damaged", "no segmentation"),
        ({"segmentation": {"size": [30, 20], "counts": [600]}}, "segmentation", "result damaged", "size"),
        ({"segmentation": {"size": [20, 30], "counts": [900]}}, "segmentation", "result damaged", "runs of 900"),
        ({"segmentation": {"size": [20, 30], "counts": "nonsense~"}}, "segmentation", "result damaged", "damaged"),
        ({"segmentation": [[1e9, 1, 2, 3, 4, 5]]}, "segmentation", "result damaged", "far outside"),
    ],
)
def test_what_can_not_be_used_is_listed(change, need, kind, said):
    kept, [row] = check_results([{**BOX, **change}], SIZES, {3}, need)
    assert not kept and row[0] == kind and said in row[1] and row[1].startswith("entry 0: ")


def test_other_things_than_entries_are_listed():
    kept, rows = check_results([7, None, "x", BOX], SIZES, None, "bbox")
    assert kept == [BOX] and [kind for kind, _ in rows] == ["result damaged"] * 3


def test_the_best_of_a_photo_over_all_categories():
    entries = [
        {**BOX, "image_id": i % 2, "category_id": i, "score": s} for i, s in enumerate([0.1, 0.9, 0.9, 0.5, 0.9])
    ]
    assert [e["category_id"] for e in top_per_image(entries, 2)] == [1, 2, 3, 4]
    assert [e["category_id"] for e in top_per_image(entries, 1)] == [1, 2]  # ties go to the first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ('{"images": [], "annotations": []}', "a data set's annotations"),
        ('"x"', "not COCO's results format"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    file = tmp_path / "r.json"
    file.write_text(text)
    with pytest.raises(UsageError, match=f"--detections .*r.json: {message}"):
        read_results(file, "--detections")
    with pytest.raises(UsageError, match=r"--predictions .*none.json: no such file"):
        read_results(tmp_path / "none.json", "--predictions")
