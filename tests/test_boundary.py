"""Boundary IoU is its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesam_jax.data.windows import crop
from edgesam_jax.evaluation.boundary import boundary, boundary_iou, boundary_width


def by_definition(mask: np.ndarray, depth: int) -> np.ndarray:
    """The mask less ``depth`` erosions by 3x3 ones, zeros outside the picture."""
    eroded = mask.copy()
    h, w = mask.shape
    for _ in range(depth):
        padded = np.pad(eroded, 1)
        eroded = np.stack([padded[i : i + h, j : j + w] for i in range(3) for j in range(3)]).all(0)
    return mask & ~eroded


def blobs(seed: int, size: tuple[int, int]) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mask = np.zeros(size, bool)
    for _ in range(rng.integers(0, 4)):
        y, x = rng.integers(0, size[0]), rng.integers(0, size[1])
        mask[y : y + rng.integers(1, size[0] + 1), x : x + rng.integers(1, size[1] + 1)] = True
    mask[rng.random(size) < 0.02] ^= True
    return mask


@pytest.mark.parametrize(
    ("size", "depth"), [((480, 640), 16), ((1, 1), 1), ((10, 10), 1), ((100, 100), 3), ((1500, 2250), 54)]
)
def test_the_width_is_two_percent_of_the_diagonal(size, depth):
    assert boundary_width(*size) == depth


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 60), st.integers(1, 9))
def test_the_boundary_is_the_mask_less_its_erosion(seed, height, width, depth):
    mask = blobs(seed, (height, width))
    assert (boundary(mask, depth) == by_definition(mask, depth)).all()


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 60), st.floats(0.01, 0.2))
def test_boundary_iou_is_the_overlap_of_boundaries(seed, height, width, ratio):
    a, b = blobs(seed, (height, width)), blobs(seed + 1, (height, width))
    depth = boundary_width(height, width, ratio)
    x, y = by_definition(a, depth), by_definition(b, depth)
    expected = (x & y).sum() / (x | y).sum() if (x | y).any() else math.nan
    np.testing.assert_equal(boundary_iou(a, crop(b), ratio), expected)


def test_a_shifted_square_scores_what_arithmetic_says():
    a, b = np.zeros((2, 480, 640), bool)
    a[100:200, 100:200], b[100:200, 110:210] = True, True
    ring = 100**2 - (100 - 32) ** 2  # 16 pixels deep
    common = by_definition(a, 16) & by_definition(b, 16)
    # Two rings, ten pixels apart: the strips above and below share 90 columns, the sides 6 of 16 columns each.
    assert common.sum() == 2 * 16 * 90 + 2 * 6 * 68
    assert boundary_iou(a, crop(b)) == common.sum() / (2 * ring - common.sum())
    assert boundary_iou(a, crop(a)) == 1.0
    assert boundary_iou(a, crop(np.zeros_like(a))) == 0.0
