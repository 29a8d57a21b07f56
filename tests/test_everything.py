"""Everything mode from end to end: SAM's own generator, options, memory, coarse to fine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import UsageError
from edgesam_jax.data.scenes.scene import scene
from edgesam_jax.everything import EverythingGenerator
from edgesam_jax.portable import everything
from edgesam_jax.portable.predictor import BasePredictor
from edgesam_jax.predict import measuring
from edgesam_jax.predict.predictor import Predictor

LOOSE = {"points_per_side": 8, "pred_iou_thresh": 0.4, "stability_score_thresh": 0.6}


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("tiny_teacher")


@pytest.fixture(scope="module")
def predictor(model) -> Predictor:
    return Predictor(model)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.ascontiguousarray(scene(0, 3, 160).image[:120])


def assert_equal(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        differing = (a["segmentation"] != b["segmentation"]).sum()
        assert differing <= 1e-3 * b["area"]
        for name in ("bbox", "crop_box", "point_coords"):
            assert a[name] == b[name]
        assert a["predicted_iou"] == pytest.approx(b["predicted_iou"], abs=1e-5)
        assert a["stability_score"] == pytest.approx(b["stability_score"], abs=1e-4)
        assert set(a) == set(b)


@pytest.mark.parametrize(
    "options",
    [{}, {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2}, {"min_mask_region_area": 30}],
    ids=["grid", "crops", "small regions"],
)
def test_records_are_sams(predictor, model, photo, options):
    pytest.importorskip("torch")
    from benchmarks import sam_peer

    if not sam_peer.is_installed():
        pytest.skip("segment-anything is not installed")
    if "min_mask_region_area" in options:
        pytest.importorskip("cv2")
    theirs = sam_peer.generator_of(model, **LOOSE, **options).generate(photo)
    ours = EverythingGenerator(predictor, **LOOSE, **options).generate(photo)
    assert len(theirs) > 5
    assert_equal(ours, theirs)


def test_other_predictors_give_the_same(predictor, photo):
    class OnTheHost(Predictor):
        scan_points = BasePredictor.scan_points

    host = OnTheHost(predictor.model)
    assert_equal(
        EverythingGenerator(host, **LOOSE).generate(photo), EverythingGenerator(predictor, **LOOSE).generate(photo)
    )


def test_with_little_memory_masks_are_the_same(predictor, photo, monkeypatch):
    expected = EverythingGenerator(predictor, **LOOSE).generate(photo)
    sizes = []
    resizing = measuring.resizing_of(32, 128, (96, 128), (120, 160), "pad")
    monkeypatch.setattr(measuring, "CHUNKS", (64, 4))
    measure = measuring._measure
    monkeypatch.setattr(measuring, "_measure", lambda *args: sizes.append(len(args[1])) or measure(*args))
    tight = EverythingGenerator(predictor, **LOOSE, memory=1 << 20)
    tight.limits = everything.Limits(0.4, 0.6, 1.0, 5 * resizing.pixels // 8)
    assert_equal(tight.generate(photo), expected)
    assert set(sizes) == {4}


def test_forms_of_the_segmentation(predictor, photo):
    plain, runs, code = (
        EverythingGenerator(predictor, **LOOSE, output_mode=mode).generate(photo) for mode in everything.OUTPUT_MODES
    )
    for a, b, c in zip(plain, runs, code, strict=True):
        encoded = coco.encode(np.asfortranarray(a["segmentation"].astype(np.uint8)))
        assert c["segmentation"]["counts"] == encoded["counts"].decode()
        assert sum(b["segmentation"]["counts"][1::2]) == a["area"] == a["segmentation"].sum()
        assert b["segmentation"]["size"] == list(photo.shape[:2])


def test_scores_fall_and_limits_hold(predictor, photo):
    records = EverythingGenerator(predictor, **LOOSE).generate(photo)
    scores = [record["predicted_iou"] for record in records]
    assert scores == sorted(scores, reverse=True) and min(scores) > 0.4
    assert min(record["stability_score"] for record in records) >= 0.6
    best = EverythingGenerator(predictor, **LOOSE, max_masks=3, min_area=20).generate(photo)
    large = [record for record in records if record["area"] >= 20]
    assert [r["bbox"] for r in best] == [r["bbox"] for r in large[:3]]


def test_where_nothing_passes_there_is_no_record(predictor, photo):
    for options in ({}, {"crop_n_layers": 1}, {"min_mask_region_area": 50}):
        strict = {**LOOSE, "points_per_side": 2, "pred_iou_thresh": 1.0}
        assert EverythingGenerator(predictor, **strict, **options).generate(photo) == []


def test_coarse_to_fine_decodes_fewer_points(predictor, photo, monkeypatch):
    points = 0
    scan = Predictor.scan_points

    def counted(self: Predictor, image: Any, some: np.ndarray, *rest: Any) -> Any:
        nonlocal points
        points += len(some)
        return scan(self, image, some, *rest)

    monkeypatch.setattr(Predictor, "scan_points", counted)
    seen = []
    generator = EverythingGenerator(predictor, **LOOSE, coarse_to_fine=True)
    records = generator.generate(photo, lambda done, total, found: seen.append((done, total, found)))
    assert 4 <= points < 64 and records
    assert seen[-1][:2] == (64, 64) and [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    passes = everything._passes(64)
    assert sorted(np.concatenate(passes).tolist()) == list(range(64)) and [len(p) for p in passes] == [4, 16, 44]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points_per_side": 0}, "points_per_side: expected a whole number from 1 to 1024, got 0"),
        ({"points_per_side": 2.5}, "points_per_side: expected a whole number"),
        ({"points_per_side": None}, "pass either points_per_side or point_grids"),
        ({"point_grids": [np.zeros((1, 2))]}, "pass either points_per_side or point_grids"),
        ({"points_per_side": None, "point_grids": [[[0.5, 1.5]]]}, "number 0 has points outside"),
        ({"points_per_side": None, "point_grids": [[[0.5, 0.5]]], "crop_n_layers": 1}, "expected 2 arrays"),
        ({"points_per_side": None, "point_grids": 7}, "point_grids: expected 1 arrays"),
        ({"pred_iou_thresh": 1.5}, "pred_iou_thresh: expected a number from 0 to 1, got 1.5"),
        ({"stability_score_thresh": float("nan")}, "stability_score_thresh"),
        ({"stability_score_offset": -1}, "stability_score_offset: expected a number of at least 0"),
        ({"points_per_batch": "64"}, "points_per_batch: expected a whole number"),
        ({"output_mode": "png"}, "output_mode: must be one of"),
        ({"crop_n_layers": 2, "crop_n_points_downscale_factor": 9}, "leaves no point"),
        ({"memory": 10}, "memory: expected a whole number of at least"),
    ],
)
def test_options_out_of_range_are_refused(predictor, options, message):
    with pytest.raises(UsageError, match=message):
        EverythingGenerator(predictor, **options)


def test_anything_but_a_photo_is_refused(predictor, photo):
    generator = EverythingGenerator(predictor, **LOOSE)
    for image in (None, photo[..., 0], photo.astype(float), np.zeros((0, 4, 3), np.uint8), [[[1], [2, 3]]]):
        with pytest.raises(UsageError, match="image: expected RGB"):
            generator.generate(image)
    odd = EverythingGenerator(
        predictor, None, point_grids=[np.full((3, 2), 0.5)], coarse_to_fine=True, pred_iou_thresh=0.4
    )
    with pytest.raises(UsageError, match="needs square grids"):
        odd.generate(photo)


def test_a_generator_is_made_from_a_model_too(model, predictor, photo):
    assert_equal(
        EverythingGenerator(model, **LOOSE).generate(photo), EverythingGenerator(predictor, **LOOSE).generate(photo)
    )
