"""First prompts, refinement points and the masks to compare with, in both protocols."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from whole_masks import low_res_masks

from edgesam_jax.data.mask_window import crop
from edgesam_jax.data.schema import Example, boxes_of
from edgesam_jax.data.transforms import center_point
from edgesam_jax.eval.metrics import mask_iou
from edgesam_jax.eval.scoring import protocol
from edgesam_jax.eval.scoring.photos import choose_instances, from_example
from edgesam_jax.eval.scoring.protocol import MIN_ERROR, Settings
from edgesam_jax.learning.losses import valid_weights
from edgesam_jax.portable.frame import target_size
from edgesam_jax.portable.resizing import bilinear_taps, nearest_taps
from edgesam_jax.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, IGNORED, NOT_A_POINT


def blobs(seed: int, size: tuple[int, int], share: float = 0.3) -> np.ndarray:
    """A mask of random rectangles and specks."""
    rng = np.random.default_rng(seed)
    mask = rng.random(size) < share * rng.random()
    for _ in range(rng.integers(0, 4)):
        y, x = rng.integers(0, size[0]), rng.integers(0, size[1])
        mask[y : y + rng.integers(1, size[0] + 1), x : x + rng.integers(1, size[1] + 1)] = True
    return mask


def whole(window, size):
    mask = np.zeros(size, bool)
    if window:
        window.paste(mask)
    return mask


def photo_of(masks: np.ndarray, image_id: int | str = 1):
    n = len(masks)
    image = np.zeros((*masks.shape[1:], 3), np.uint8)
    return from_example(
        Example(
            image, masks, boxes_of(masks), np.zeros((n, 2), np.float32), image_id, np.arange(n), np.zeros(n, np.int8)
        )
    )


sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), sizes)
def test_the_deepest_pixel_is_that_of_the_whole_mask(seed, size):
    mask = blobs(seed, size)
    point, depth = protocol.deepest(crop(mask))
    assert point == center_point(mask, "exact")
    assert (depth > 0) == mask.any()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), sizes, st.integers(8, 90))
def test_windows_reach_the_frame_as_whole_masks_do(seed, size, frame):
    mask, new = blobs(seed, size), target_size(*size, frame)
    rows, columns = (nearest_taps(old, n) for old, n in zip(size, new, strict=True))
    assert (whole(protocol.in_frame(crop(mask), size, new), new) == mask[rows][:, columns]).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), sizes, sizes)
def test_touched_is_bilinear_resizing_cut_at_zero(seed, old, new):
    mask = blobs(seed, old)
    resized = np.zeros(new, bool)
    for row in bilinear_taps(old[0], new[0]):
        for column in bilinear_taps(old[1], new[1]):
            resized |= mask[row][:, column] & (row >= 0)[:, None] & (column >= 0)
    assert (whole(protocol.resize_enlarged(crop(mask), old, new), new) == resized).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), sizes, st.integers(8, 300))
def test_the_published_truth_is_torchs(seed, size, frame):
    torch = pytest.importorskip("torch")
    mask, new = blobs(seed, size), target_size(*size, frame)
    there = torch.nn.functional.interpolate(torch.from_numpy(mask.astype(np.float32))[None, None], new, mode="nearest")
    back = torch.nn.functional.interpolate(there, size, mode="bilinear", align_corners=False)[0, 0].numpy() > 0
    truth = protocol.truth(photo_of(mask[None]), new, frame, frame // 4, "published")
    assert (whole(truth.full[0], size) == back).all()


def test_the_enlarged_truth_has_the_pixels_that_float32_adds():
    """Row 319 of 682 to 426 lies at 510.99997 in float32, and so reads row 510 too; in float64 it lies at 511."""
    mask = np.zeros((682, 8), bool)
    mask[500:511] = True
    enlarged = protocol.resize_enlarged(crop(mask), (682, 8), (426, 8))
    assert enlarged.top + enlarged.pixels.shape[0] == 320


def test_what_lies_between_the_pixels_that_are_read_vanishes():
    mask = np.zeros((64, 64), bool)
    mask[4:40, 8] = True  # resizing to a quarter reads columns 9 and 10 of each four
    assert not protocol.resize_enlarged(crop(mask), (64, 64), (16, 16))
    mask[4:40, 9] = True
    assert protocol.resize_enlarged(crop(mask), (64, 64), (16, 16)).left == 2


@pytest.mark.parametrize(("radius", "score"), [(8, 0.896), (16, 0.944), (50, 0.987), (150, 0.995)])
def test_the_published_truth_is_enlarged_as_much_as_the_published_codes(radius, score):
    """Defect B10 (docs/published_code.md): a perfect mask's score against the enlarged truth, discs in 640x480."""
    y, x = np.mgrid[:480, :640]
    mask = (x - 320) ** 2 + (y - 240) ** 2 <= radius**2
    enlarged = protocol.truth(photo_of(mask[None]), (768, 1024), 1024, 256, "published").full[0]
    found = float(mask_iou(mask, whole(enlarged, mask.shape)))
    assert found == pytest.approx(score, abs=0.006)
    exact = protocol.truth(photo_of(mask[None]), (768, 1024), 1024, 256, "exact")
    assert (whole(exact.full[0], mask.shape) == mask).all()
    assert (exact.low == low_res_masks(mask[None], (768, 1024), 1024, 256)).all()


@pytest.mark.parametrize(("image_size", "mask_size"), [(1024, 256), (128, 64)])
def test_points_lie_where_the_grid_holds_the_photo(image_size, mask_size):
    for side in range(1, image_size + 1, 1 if image_size < 200 else 7):
        weights = np.asarray(valid_weights(jnp.array([[side, image_size]]), mask_size, image_size))[0]
        for name, least in (("exact", 1.0), ("published", 1e-6)):
            rows, columns = protocol.photo_cells((side, image_size), image_size, mask_size, name)
            assert rows == (weights[:, 0] >= least).sum() and columns == mask_size, (side, name)


def test_a_random_point_is_wrong_and_labelled_by_the_truth():
    rng = np.random.default_rng(0)
    truth, prediction = rng.random((2, 64, 64)) < 0.5
    counts = np.zeros((64, 64), int)
    for seed in range(4000):
        x, y, label = protocol.random_point(prediction, truth, (40, 64), [seed], 4.0, "exact")
        column, row = (int((v - 1.5) / 4) for v in (x, y))
        assert (4 * column + 1.5, 4 * row + 1.5) == (x, y)
        assert truth[row, column] != prediction[row, column] and label == truth[row, column] and row < 40
        counts[row, column] += 1
    wrong = (truth != prediction)[:40]
    expected = 4000 / wrong.sum()  # uniform: chi-squared over some 1,280 pixels, five standard deviations
    statistic = ((counts[:40][wrong] - expected) ** 2 / expected).sum()
    assert abs(statistic - (wrong.sum() - 1)) < 5 * np.sqrt(2 * wrong.sum())
    again = protocol.random_point(prediction, truth, (40, 64), [7], 4.0, "exact")
    shifted = protocol.random_point(prediction, truth, (40, 64), [7], 4.0, "published")
    assert (again[0] - 1.5, again[1] - 1.5, again[2]) == shifted  # defect B11


def test_nothing_is_drawn_below_ten_wrong_pixels():
    truth = np.zeros((32, 32), bool)
    prediction = truth.copy()
    prediction[0, : MIN_ERROR - 1] = True
    assert protocol.random_point(prediction, truth, (32, 32), [0], 4.0, "exact") is None
    prediction[0, :MIN_ERROR] = True
    assert protocol.random_point(prediction, truth, (32, 32), [0], 4.0, "exact") is not None
    slots = protocol.start(photo_of(np.ones((1, 8, 8), bool)), (64, 64), Settings(refine=1))
    protocol.skip_point(slots, 0, 2, "exact")
    assert not slots.valid[0, 2]
    protocol.skip_point(slots, 0, 2, "published")  # a zero token there takes part
    assert slots.valid[0, 2] and slots.labels[0, 2] == IGNORED


def test_the_largest_error_is_clicked_at_its_centre():
    true = np.zeros((60, 80), bool)
    true[10:50, 10:60] = True
    prediction = true.copy()
    prediction[20:31, 30:41] = False  # a hole of 11 pixels
    prediction[52:57, 70:79] = True  # a smaller surplus
    assert protocol.largest_point(prediction, crop(true)) == (35.0, 25.0, 1)
    prediction[0:25, 62:80] = True  # now the surplus is deeper
    x, y, label = protocol.largest_point(prediction, crop(true))
    assert label == 0 and 62 <= x < 80 and y < 25
    assert protocol.largest_point(true, crop(true)) is None
    assert protocol.largest_point(np.zeros_like(true), crop(np.zeros_like(true))) is None


def test_prompts_start_as_sams_do():
    masks = np.zeros((2, 30, 40), bool)
    masks[0, 5:10, 6:20], masks[1, 20, 30] = True, True
    photo = photo_of(masks)
    box = protocol.start(photo, (48, 64), Settings("box", refine=2))
    np.testing.assert_allclose(box.coords[0, :2], np.array([[6, 5], [20, 10]]) * 1.6)
    assert box.labels[0, :2].tolist() == [BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]
    assert box.valid.tolist() == [[True, True, False, False]] * 2
    centre = protocol.start(photo, (48, 64), Settings("center", refine=1))
    np.testing.assert_allclose(centre.coords[1, 0], [30 * 1.6, 20 * 1.6], rtol=1e-6)
    assert centre.labels[1, :2].tolist() == [1, NOT_A_POINT] and centre.valid[1, :2].all()


def test_box_noise_belongs_to_the_instance():
    masks = np.zeros((3, 100, 120), bool)
    for i in range(3):
        masks[i, 20:60, 30:80] = True
    photo = photo_of(masks)
    noisy = Settings("box", box_noise=0.1)
    moved = protocol.start(photo, (100, 120), noisy).coords
    assert (moved[0] != moved[1]).any() and np.abs(moved[:, 0] - [30, 20]).max() <= 20
    few = protocol.start(choose_instances(photo, 2, seed=5), (100, 120), noisy)
    kept = choose_instances(photo, 2, seed=5).ids
    np.testing.assert_array_equal(few.coords, moved[kept])
    other = protocol.start(photo, (100, 120), Settings("box", box_noise=0.1, seed=1))
    assert (other.coords != moved).any()
