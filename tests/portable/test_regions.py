"""Regions of masks: the same as SciPy's labelling, and SAM's meaning of small holes and islands."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from edgesam_jax.portable.errors import UsageError
from edgesam_jax.portable.regions import check_areas, clean, drop_islands, fill_holes, find_regions

EIGHT = np.ones((3, 3), int)
MASKS = arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=24))


def labels_of(mask: np.ndarray) -> np.ndarray:
    """Number the pixels of each region from 1, in the regions' order."""
    found = find_regions(mask)
    out = np.zeros(mask.shape, int)
    for region in range(len(found.areas)):
        painted = found.paint(np.arange(len(found.areas)) == region, mask.shape)
        assert painted.sum() == found.areas[region] and not out[painted].any()
        out[painted] = region + 1
    return out


@settings(max_examples=200, deadline=None)
@given(mask=MASKS)
def test_regions_are_scipys(mask):
    np.testing.assert_array_equal(labels_of(mask), ndimage.label(mask, EIGHT)[0])


@pytest.mark.parametrize("density", [0.3, 0.42, 0.6])
def test_winding_regions_are_scipys(density):
    """Near the percolation threshold regions wind through the picture, and many runs join late."""
    mask = np.random.default_rng(0).random((300, 211)) < density
    expected, count = ndimage.label(mask, EIGHT)
    found = find_regions(mask)
    assert len(found.areas) == count
    np.testing.assert_array_equal(np.sort(found.areas), np.sort(np.bincount(expected.ravel())[1:]))


def test_a_spiral_is_one_region():
    mask = np.zeros((101, 101), bool)
    y = x = 50
    for turn in range(1, 98):
        dy, dx = ((0, 1), (1, 0), (0, -1), (-1, 0))[turn % 4]
        length = turn // 2 * 2
        for _ in range(length):
            y, x = y + dy, x + dx
            if not (0 <= y < 101 and 0 <= x < 101):
                break
            mask[y, x] = True
        else:
            continue
        break
    assert len(find_regions(mask).areas) == ndimage.label(mask, EIGHT)[1]


def slowly(mask: np.ndarray, below: int, holes: bool) -> np.ndarray:
    """SAM's rule by definition, region by region."""
    labels, count = ndimage.label(~mask if holes else mask, EIGHT)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    small = areas < below
    if not small.any():
        return mask
    if holes:
        return mask | np.isin(labels, np.flatnonzero(small) + 1)
    kept = np.flatnonzero(~small) if not small.all() else [int(np.argmax(areas))]
    return np.isin(labels, np.asarray(kept) + 1)


@settings(max_examples=200, deadline=None)
@given(mask=MASKS, below=st.integers(0, 60))
def test_small_holes_and_islands_follow_the_definition(mask, below):
    before = mask.copy()
    np.testing.assert_array_equal(fill_holes(mask, below), slowly(mask, below, holes=True))
    np.testing.assert_array_equal(drop_islands(mask, below), slowly(mask, below, holes=False))
    np.testing.assert_array_equal(mask, before)


def test_a_case_by_hand():
    mask = np.array([[int(c) for c in row] for row in (
        "111100000",
        "101100010",
        "111100000",
        "111100100",
        "000000010",
    )], bool)  # fmt: skip
    filled = fill_holes(mask, 2)
    assert filled[1, 1] and filled.sum() == mask.sum() + 1  # a hole of one pixel; the background is larger
    assert fill_holes(mask, 1).sum() == mask.sum()
    left = drop_islands(mask, 2)
    assert (
        not left[1, 7] and left[3, 6] and left[4, 7] and left[:4, :4].sum() == 15
    )  # neighbours at a corner hold together
    alone = drop_islands(mask, 100)
    assert alone.sum() == 15 and alone[0, 0]
    both = clean(np.stack([mask, ~mask])[None], 2, 100)
    assert both.shape == (1, 2, 5, 9) and both[0, 0].sum() == 16


def test_nothing_and_everything():
    nothing, everything = np.zeros((4, 5), bool), np.ones((4, 5), bool)
    for mask in (nothing, everything):
        for below in (0, 1, 20, 10**30):
            np.testing.assert_array_equal(drop_islands(mask, below), mask)
    np.testing.assert_array_equal(fill_holes(everything, 99), everything)
    assert not fill_holes(nothing, 20).any() and fill_holes(nothing, 21).all()  # the border's region counts too
    masks = np.zeros((2, 3, 4), bool)
    assert clean(masks, 0, 0) is masks


@pytest.mark.parametrize("area", [-1, 1.0, "5", None, True, np.nan, [3]])
def test_areas_are_whole_numbers(area):
    with pytest.raises(UsageError, match="fill_holes: expected a whole number of pixels"):
        check_areas(area, 0)
    with pytest.raises(UsageError, match="drop_islands: expected a whole number of pixels"):
        check_areas(0, area)
    check_areas(np.int64(3), 10**400)


def test_a_mask_of_twelve_megapixels_takes_a_moment():
    """Smooth blobs with specks and pinholes, as masks of photos have."""
    rng = np.random.default_rng(0)
    coarse = ndimage.gaussian_filter(rng.standard_normal((300, 400)), 6)
    mask = np.kron(coarse > 0, np.ones((10, 10), bool))
    mask ^= rng.random(mask.shape) < 1e-4
    began = time.perf_counter()
    cleaned = drop_islands(fill_holes(mask, 50), 50)
    assert time.perf_counter() - began < 5  # 0.12 s on an idle core
    assert (cleaned != mask).sum() > 1000
