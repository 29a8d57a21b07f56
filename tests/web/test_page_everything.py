"""Everything mode in the browser finds Python's masks."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgesam_jax.data.scenes.scene import held_out_seed, scene
from edgesam_jax.portable import run_lengths
from edgesam_jax.portable.crops import crop_boxes, point_grid

PHOTO = scene(held_out_seed(3), 2, 160).image[:, :150]
# The bundled teacher's scores are low, so the limits are; otherwise few masks would remain to compare.
LOW = {"points_per_side": 6, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.5}
NAMES = {
    "points_per_side": "pointsPerSide", "pred_iou_thresh": "scoreThreshold",
    "stability_score_thresh": "stabilityThreshold", "stability_score_offset": "stabilityOffset",
    "box_nms_thresh": "boxNms", "crop_n_layers": "cropLayers", "crop_nms_thresh": "cropNms",
    "crop_overlap_ratio": "cropOverlap", "crop_n_points_downscale_factor": "cropPointsDownscale",
    "min_mask_region_area": "minRegionArea", "coarse_to_fine": "coarseToFine", "min_area": "minArea",
    "max_masks": "maxMasks",
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "strict": {"pred_iou_thresh": 0.7, "stability_score_thresh": 0.72, "box_nms_thresh": 0.5},
    "another offset": {"stability_score_offset": 0.5},
    "one layer of crops": {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2},
    "two layers of crops": {"points_per_side": 4, "crop_n_layers": 2, "crop_n_points_downscale_factor": 1.5},
    "small regions": {"min_mask_region_area": 60},
    "coarse to fine": {"coarse_to_fine": True, "points_per_side": 8},
    "large and few": {"min_area": 500, "max_masks": 5},
}


@pytest.fixture(scope="module")
def predictor(site):
    from edgesam_jax.portable.onnx_predictor import OnnxPredictor

    return OnnxPredictor(*(site / "model" / f"tiny_teacher_{part}.onnx" for part in ("encoder", "decoder")))


@pytest.fixture(scope="module")
def encoded(engine):
    """The photo in the browser, as ``edge.embedding``; it stays open, because crops are read from it."""
    file = io.BytesIO()
    Image.fromarray(PHOTO).save(file, "PNG")
    engine.run(
        "edge.shown = await edge.open(x); edge.embedding = await edge.model.encode(edge.shown);",
        base64.b64encode(file.getvalue()).decode(),
    )
    return engine


def found_in_browser(engine, options: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, int]]]:
    """Return the masks, and what was reported on the way."""
    found = engine.run(
        "const said = [];"
        "const masks = await edge.model.everything(edge.embedding, x, { onProgress: (p) => said.push({ ...p }) });"
        "return { said, masks: masks.map((mask) => ({ ...mask, counts: Array.from(mask.counts) })) };",
        {NAMES[name]: value for name, value in options.items()},
    )
    return found["masks"], found["said"]


@pytest.mark.parametrize("name", OPTIONS)
def test_the_masks_are_pythons(encoded, predictor, name):
    from edgesam_jax.portable.everything import EverythingGenerator

    options = LOW | OPTIONS[name]
    right = EverythingGenerator(predictor, **options).generate(PHOTO)
    masks, said = found_in_browser(encoded, options)
    assert len(masks) == len(right) > 3
    assert said[-1]["done"] == said[-1]["total"] and all(0 <= p["done"] <= p["total"] for p in said)
    for one, record in zip(masks, right, strict=True):
        mask, expected = run_lengths.mask_of(np.array(one["counts"]), PHOTO.shape[:2]), record["segmentation"]
        assert (mask & expected).sum() >= 0.99 * (mask | expected).sum()
        x0, y0, width, height = record["bbox"]
        assert np.abs(np.array(one["box"]) - [x0, y0, width + 1, height + 1]).max() <= 1
        assert one["area"] == mask.sum() and one["point"] == pytest.approx(record["point_coords"][0])
        assert one["score"] == pytest.approx(record["predicted_iou"], abs=1e-3)
        assert one["stability"] == pytest.approx(record["stability_score"], abs=1e-2)


def test_the_options_change_the_masks(encoded):
    """Otherwise the comparison above would prove little."""
    counts = {name: len(found_in_browser(encoded, LOW | OPTIONS[name])[0]) for name in ("plain", "strict")}
    crops = found_in_browser(encoded, LOW | OPTIONS["one layer of crops"])[0]
    assert counts["strict"] < counts["plain"] != len(crops)


def test_it_stops_when_told_and_a_click_gets_through(encoded):
    found = encoded.run(
        "const stop = new AbortController();"
        "let said = 0;"
        "const all = edge.model.everything(edge.embedding, { pointsPerSide: 200, scoreThreshold: 0.99 },"
        "  { signal: stop.signal, onProgress: () => said++ });"
        "const click = await edge.model.predict(edge.embedding, { points: [[50, 50, 1]], box: null });"
        "const before = performance.now();"
        "stop.abort();"
        "const name = await all.then(() => 'finished', (error) => error.name);"
        "return { name, masks: click.logits.length, ms: performance.now() - before };"
    )
    assert found["name"] == "AbortError" and found["masks"] > 0 and found["ms"] < 5000
    assert found_in_browser(encoded, LOW)[0], "the model works afterwards"


@pytest.mark.parametrize(
    "options",
    [{"pointsPerSide": 0}, {"pointsPerSide": 2.5}, {"boxNms": 2}, {"cropLayers": 1, "cropPointsDownscale": 99}],
)
def test_an_option_out_of_range_is_refused(encoded, options):
    body = "return edge.model.everything(edge.embedding, x).then(() => 'taken', (error) => error.message);"
    said = encoded.run(body, options)
    assert next(iter(options)) in said or "cropPointsDownscale" in said


def test_crops_and_grids_are_pythons(engine):
    for size in ((600, 800), (37, 41), (3, 2), (1, 1), (1000, 30)):
        for layers, overlap in ((0, 0.3), (1, 512 / 1500), (3, 0.1)):
            found = engine.run(
                "return edge.crops.cropBoxes(x.width, x.height, x.layers, x.overlap);",
                {"width": size[1], "height": size[0], "layers": layers, "overlap": overlap},
            )
            boxes, layer_of = crop_boxes(size, layers, overlap)
            assert [c["box"] for c in found] == boxes.tolist() and [c["layer"] for c in found] == layer_of.tolist()
    for per_side in (1, 2, 3, 7, 32):
        assert engine.run("return edge.crops.pointGrid(x);", per_side) == point_grid(per_side).tolist()
