import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from whole_masks import low_res_masks

from edgesam_jax.config import UsageError
from edgesam_jax.data.transforms import center_point, interior_point, jitter_boxes
from edgesam_jax.portable.frame import pad_to_square, resize_longest_side, scale_coords, target_size

SIDES = st.integers(1, 90)


def ramp(height=24, width=32) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 7 % 256, y * 9 % 256, (x + y) * 3 % 256], -1).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "expected"), [((480, 640), (768, 1024)), ((427, 640), (683, 1024)), ((640, 427), (1024, 683))]
)
def test_sides_are_rounded_half_up(size, expected):
    assert target_size(*size, 1024) == expected
    assert target_size(1, 400, 32) == (1, 32)  # never empty


@settings(deadline=None)
@given(height=SIDES, width=SIDES, size=st.integers(8, 64))
def test_resize_and_pad_fill_the_top_left(height, width, size):
    image = np.full((height, width, 3), 200, np.uint8)
    resized, (rows, columns) = resize_longest_side(image, size)
    assert resized.shape == (rows, columns, 3) and max(rows, columns) == size
    padded = pad_to_square(resized, size)
    assert padded.shape == (size, size, 3)
    assert (padded[:rows, :columns] == 200).all()
    assert padded[rows:].sum() == 0 and padded[:, columns:].sum() == 0


def test_resize_is_pillows_bilinear():
    expected = np.asarray(Image.fromarray(ramp()).resize((64, 48), Image.Resampling.BILINEAR))
    assert (resize_longest_side(ramp(), 64)[0] == expected).all()


def test_coordinates_scale_by_each_axis():
    # 427 rows become 683, not 683.2.
    scaled = scale_coords(np.array([[10, 20, 640, 427]], np.float32), (427, 640), (683, 1024))
    assert scaled == pytest.approx(np.array([[16, 20 * 683 / 427, 1024, 683]]))
    assert scale_coords(np.zeros((0, 2), np.float32), (3, 4), (6, 8)).shape == (0, 2)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_low_res_masks_are_area_averages(data):
    height, width = data.draw(SIDES), data.draw(SIDES)
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    mask = rng.random((1, height, width)) < data.draw(st.sampled_from([0.1, 0.5, 0.9]))
    image_size, mask_size = 60, 15
    new_hw = target_size(height, width, image_size)
    low = low_res_masks(mask, new_hw, image_size, mask_size)[0]
    # Brute force: many sample points per cell, each read from the photo's pixel under it.
    fine = 40
    at = (np.arange(mask_size * fine) + 0.5) * (image_size / mask_size / fine)
    row, column = at * height / new_hw[0], at * width / new_hw[1]
    inside = (row < height)[:, None] & (column < width)[None]
    rows, columns = np.minimum(row.astype(int), height - 1), np.minimum(column.astype(int), width - 1)
    sampled = mask[0][rows][:, columns] & inside
    share = sampled.reshape(mask_size, fine, mask_size, fine).mean((1, 3))
    threshold = min(0.5, share.max() / 2)
    clear = np.abs(share - threshold) > 0.06
    assert (low == (share > threshold))[clear].all()


def test_whole_frame_and_empty_masks_keep_to_the_photo():
    low = low_res_masks(np.stack([np.ones((30, 60), bool), np.zeros((30, 60), bool)]), (32, 64), 64, 16)
    assert low[0, :8].all() and not low[0, 8:].any() and not low[1].any()
    assert low_res_masks(np.zeros((0, 30, 60), bool), (32, 64), 64, 16).shape == (0, 16, 16)


def test_the_smallest_mask_does_not_vanish():
    mask = np.zeros((1, 480, 640), bool)
    mask[0, 100, 200] = True
    low = low_res_masks(mask, (768, 1024), 1024, 256)[0]
    assert low.sum() == 1 and low[40, 80]


@settings(max_examples=60)
@given(
    corners=st.lists(st.tuples(*[st.integers(0, 99)] * 4), min_size=1, max_size=5),
    std=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_jitter_keeps_boxes_in_the_photo_and_not_empty(corners, std, seed):
    boxes = np.array([(min(a, c), min(b, d), max(a, c) + 1, max(b, d) + 1) for a, b, c, d in corners], np.float32)
    noisy = jitter_boxes(np.random.default_rng(seed), boxes, (100, 100), std)
    assert (noisy >= 0).all() and (noisy <= 100).all()
    assert (noisy[:, 2:] - noisy[:, :2] >= 1).all()
    assert np.abs(noisy - boxes).max() <= 20
    if std == 0:
        assert (noisy == boxes).all()


def test_jitter_has_the_requested_spread():
    boxes = np.tile(np.array([[300, 300, 360, 420]], np.float32), (4000, 1))
    noise = jitter_boxes(np.random.default_rng(0), boxes, (1000, 1000), 0.1) - boxes
    assert noise.std(0) == pytest.approx([6, 11.5, 6, 11.5], rel=0.06)  # 12 px, clipped at 20


MASKS = st.builds(
    lambda seed, height, width, share: np.random.default_rng(seed).random((height, width)) < share,
    st.integers(0, 999),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.2, 0.9, 1.0]),
)


@settings(max_examples=80, deadline=None)
@given(mask=MASKS, seed=st.integers(0, 9))
def test_points_lie_in_the_mask(mask, seed):
    for x, y in (
        interior_point(np.random.default_rng(seed), mask),
        center_point(mask),
        center_point(mask, "published"),
    ):
        assert mask[int(y), int(x)] if mask.any() else (x, y) == (0, 0)


def test_interior_points_of_large_masks():
    mask = np.zeros((900, 900), bool)
    mask[100:800, 450] = True  # a line that a coarse grid may miss
    x, y = interior_point(np.random.default_rng(0), mask)
    assert mask[int(y), int(x)]
    mask[100:400, 100:400] = True
    points = {interior_point(np.random.default_rng(i), mask) for i in range(20)}
    assert len(points) > 5 and all(150 < x < 350 and 150 < y < 350 for x, y in points)


def _published_by_rings(mask: np.ndarray) -> tuple[float, float]:
    """The transform of the published evaluation, written out: fill ring after ring from the background."""
    padded = np.pad(mask, 1)
    filled, value, i = ~padded, np.zeros(padded.shape, np.float32), 0
    while not filled.all():
        around = np.pad(filled, 1, mode="edge")
        total = np.zeros(padded.shape, np.float32)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                shifted = around[1 + dy : 1 + dy + padded.shape[0], 1 + dx : 1 + dx + padded.shape[1]]
                total += shifted * np.float32(np.exp(-np.hypot(dx, dy) / 0.35))
        new = ~filled & (total > 0)
        value[new] = np.floor(1.5 * i) - 0.35 * np.log(total[new])
        filled, i = filled | new, i + 1
    row, column = np.unravel_index(int(np.argmax(value)), value.shape)
    return float(column - 1), float(row - 1)


@settings(max_examples=80, deadline=None)
@given(mask=MASKS)
def test_published_centre_follows_the_rings(mask):
    if mask.any():
        assert center_point(mask, "published") == _published_by_rings(mask)


def test_exact_centre_of_known_shapes():
    mask = np.zeros((40, 60), bool)
    mask[5:26, 10:31] = True
    assert center_point(mask) == (20, 15)
    y, x = np.mgrid[:80, :80]
    assert center_point((x - 33) ** 2 + (y - 41) ** 2 < 400) == (33, 41)
    assert center_point(np.ones((11, 11), bool)) == (5, 5)  # the border counts as background
    with pytest.raises(UsageError, match="exact or published"):
        center_point(mask, "kornia")
