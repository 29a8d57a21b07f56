"""The rules of everything mode: run lengths, crops, suppression, and masks measured in strips."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco

from edgesam_jax.portable import crops, run_lengths, scanning
from edgesam_jax.portable.frame import target_size
from edgesam_jax.portable.postprocess import axis_matrix, upscale_logits
from edgesam_jax.portable.suppression import suppress

MASKS = arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


@given(MASKS, st.integers(0, 4), st.integers(0, 4), st.integers(0, 3), st.integers(0, 3))
def test_runs_are_those_of_the_whole_mask(window, x, y, right, below):
    whole = np.pad(window, ((y, below), (x, right)))
    runs = run_lengths.runs_of(window, (x, y), whole.shape)
    np.testing.assert_array_equal(run_lengths.mask_of(runs, whole.shape), whole)
    assert run_lengths.area_of(runs) == whole.sum()
    code = coco.encode(np.asfortranarray(whole.astype(np.uint8)))
    assert run_lengths.compressed(runs, whole.shape) == {"size": list(whole.shape), "counts": code["counts"].decode()}
    assert run_lengths.uncompressed(runs, whole.shape)["counts"] == runs.tolist()


def test_the_grid_has_the_centres_of_its_cells():
    np.testing.assert_array_equal(crops.point_grid(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
    assert [len(grid) for grid in crops.point_grids(8, 2, 2)] == [64, 16, 4]


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(0, 3), st.floats(0, 0.9))
def test_crops_of_a_layer_cover_the_photo_and_stay_on_it(height, width, layers, overlap):
    boxes, layer_of = crops.crop_boxes((height, width), layers, overlap)
    assert boxes[0].tolist() == [0, 0, width, height] and (boxes[:, 2:] > boxes[:, :2]).all()
    assert min(height, width) < 100 or len(boxes) == sum(4**i for i in range(layers + 1))
    for layer in range(layers + 1):
        chosen = boxes[layer_of == layer]
        assert chosen.min() == 0 and chosen[:, 2].max() == width and chosen[:, 3].max() == height
        for low, high in ((0, 2), (1, 3)):  # no gap along either side
            reach = 0
            for start, end in sorted({(int(box[low]), int(box[high])) for box in chosen}):
                assert start <= reach
                reach = max(reach, end)


def test_crops_are_sams():
    pytest.importorskip("torch")
    peer = pytest.importorskip("benchmarks.sam_peer")
    if not peer.is_installed():
        pytest.skip("segment-anything is not installed")
    published = peer.package().utils.amg
    rng = np.random.default_rng(0)
    for _ in range(200):
        size, layers = tuple(rng.integers(16, 5000, 2).tolist()), int(rng.integers(0, 4))
        boxes, layer_of = published.generate_crop_boxes(size, layers, 512 / 1500)
        ours, ours_of = crops.crop_boxes(size, layers, 512 / 1500)
        assert ours.tolist() == boxes and ours_of.tolist() == layer_of
    for per_side in range(1, 65):
        np.testing.assert_array_equal(crops.point_grid(per_side), published.build_point_grid(per_side))


def test_masks_cut_by_a_crop_are_known_by_their_edge():
    crop, size = np.array([0, 100, 400, 300]), (600, 800)
    boxes = np.array([
        [0, 50, 100, 150],  # at the left, which is the photo's edge
        [50, 0, 100, 100],  # at the top of the crop
        [300, 50, 379, 150],
        [300, 50, 380, 150],  # 20 px from the right of the crop
    ])  # fmt: skip
    assert crops.is_cut(boxes, crop, size).tolist() == [False, True, False, True]


@given(st.integers(0, 12), st.integers(0, 1 << 30))
def test_suppression_is_greedy(count, seed):
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 10, (count, 2))
    boxes, scores = np.concatenate([low, low + rng.integers(0, 8, (count, 2))], 1), rng.integers(0, 4, count) / 4

    def iou(a: np.ndarray, b: np.ndarray) -> float:
        sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
        shared = max(sides[0], 0) * max(sides[1], 0)
        union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared
        return shared / union if union else 0.0

    kept: list[int] = []
    for i in sorted(range(count), key=lambda i: -scores[i]):
        if all(iou(boxes[i], boxes[j]) <= 0.3 for j in kept):
            kept.append(i)
    assert suppress(boxes, scores, 0.3).tolist() == kept


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from(["pad", "stretch"]), st.integers(0, 1 << 30))
def test_strips_give_what_the_whole_mask_gives(height, width, frame, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (2, 3, 16, 16)).astype(np.float32)
    logits[0, 0] = -9  # an empty mask
    filled = target_size(height, width, 64, frame)
    scores = rng.uniform(0, 1, (2, 3)).astype(np.float32)
    limits = scanning.Limits(0.3, 0.4, 0.5, 1 << 20)
    full = upscale_logits(logits, 64, filled, (height, width), frame)
    stability = (full > 0.5).sum((-2, -1)) / np.maximum((full > -0.5).sum((-2, -1)), 1)
    expected = np.argwhere((scores > 0.3) & (stability >= 0.4)).tolist()
    found = scanning.scan(logits, scores, limits, 64, filled, (height, width), frame)
    assert [m.point for m in found] == [point for point, _ in expected]
    for measured, (point, mask) in zip(found, expected, strict=True):
        truth = full[point, mask] > 0
        rows, columns = np.flatnonzero(truth.any(1)), np.flatnonzero(truth.any(0))
        assert measured.box.tolist() == [columns[0], rows[0], columns[-1], rows[-1]]
        np.testing.assert_array_equal(measured.window(), truth[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
        assert measured.area == truth.sum() and measured.score == scores[point, mask]
        assert measured.stability == pytest.approx(stability[point, mask])


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 40), st.sampled_from([1, 16]))
def test_bands_are_the_matrix(filled, original, rows, multiple):
    matrix = axis_matrix(64, 300, filled, original)
    strips = scanning.bands(matrix, rows, multiple)
    whole = np.zeros((len(strips.first) * rows, 64), np.float32)
    for number, (weights, first) in enumerate(zip(strips.weights, strips.first, strict=True)):
        whole[number * rows : (number + 1) * rows, first : first + weights.shape[1]] = weights
    np.testing.assert_array_equal(whole[:original], matrix)
    assert not whole[original:].any()
    assert strips.weights.shape[-1] % multiple == 0 or strips.weights.shape[-1] == 64
