"""Boundary IoU equals its definition, and hand-calculated values for simple masks."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesam_jax.data.mask_window import crop
from edgesam_jax.eval.scoring.boundary import boundary, boundary_iou, boundary_width


def eroded(mask: np.ndarray) -> np.ndarray:
    """Erosion by a square of 3 pixels, with zeros around the photo."""
    h, w = mask.shape
    framed = np.pad(mask, 1)
    return np.all([framed[y : y + h, x : x + w] for y in range(3) for x in range(3)], axis=0)


def boundary_by_definition(mask: np.ndarray, d: int) -> np.ndarray:
    inner = mask
    for _ in range(d):
        inner = eroded(inner)
    return mask & ~inner


def iou_by_definition(a: np.ndarray, b: np.ndarray, d: int) -> float:
    a, b = boundary_by_definition(a, d), boundary_by_definition(b, d)
    union = (a | b).sum()
    return (a & b).sum() / union if union else math.nan


def filled(shape: tuple[int, int], top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


@st.composite
def masks(draw, shape=None):
    """Rectangles with holes and specks, often at the photo's edge; sometimes empty or full."""
    h, w = shape or (draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    mask = np.zeros((h, w), bool)
    for value in draw(st.lists(st.booleans(), max_size=4)):
        y, x = np.sort(rng.integers(0, h + 1, 2)), np.sort(rng.integers(0, w + 1, 2))
        mask[y[0] : y[1], x[0] : x[1]] = value
    return mask ^ (rng.random((h, w)) < draw(st.sampled_from([0, 0, 0.01, 1])))


@given(st.integers(1, 4000), st.integers(1, 4000), st.floats(0.001, 0.1))
def test_width(height, width, ratio):
    assert boundary_width(height, width, ratio) == max(1, round(ratio * np.sqrt(height**2 + width**2)))


def test_width_of_known_photos():
    assert [boundary_width(*s) for s in ((480, 640), (640, 480), (1500, 2250), (20, 20), (1, 1))] == [16, 16, 54, 1, 1]


@settings(max_examples=200, deadline=None)
@given(masks(), st.integers(1, 9))
def test_boundary_is_the_definition(mask, d):
    before = mask.copy()
    found = boundary(mask, d)
    assert found.dtype == bool and (found == boundary_by_definition(mask, d)).all()
    assert (mask == before).all() and not np.shares_memory(found, mask)
    assert (boundary(np.asfortranarray(mask), d) == found).all() and (found == boundary(mask.T, d).T).all()


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(1, 30), st.integers(1, 30), st.sampled_from([0.02, 0.05, 0.1]))
def test_iou_is_the_definition(data, height, width, ratio):
    predictions = np.array([data.draw(masks((height, width))) for _ in range(3)])
    truth = data.draw(masks((height, width)))
    d = boundary_width(height, width, ratio)
    expected = [iou_by_definition(mask, truth, d) for mask in predictions]
    found = boundary_iou(predictions, truth, ratio)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(boundary_iou(predictions, crop(truth), ratio), expected)


def test_shapes_and_the_empty():
    truth = filled((40, 60), 5, 20, 5, 30)
    nothing = np.zeros((40, 60), bool)
    found = boundary_iou(np.array([[truth, nothing]] * 3), truth)
    assert found.shape == (3, 2) and (found == [1, 0]).all()
    assert boundary_iou(truth, truth).shape == () and float(boundary_iou(truth, truth)) == 1
    assert boundary_iou(truth, nothing) == 0 and np.isnan(boundary_iou(nothing, nothing))
    assert boundary_iou(np.zeros((0, 40, 60), bool), truth).shape == (0,)


@pytest.mark.parametrize("place", [(0, 0), (0, 59), (39, 0), (39, 59), (17, 23)])
def test_one_pixel(place):
    mask, other = np.zeros((2, 40, 60), bool)
    mask[place], other[20, 30] = True, True
    assert boundary(mask, 3).sum() == 1
    assert boundary_iou(mask, mask) == 1 and boundary_iou(mask, other) == 0


def test_the_photos_edge_is_outside():
    assert boundary(np.ones((20, 30), bool), 4).sum() == 20 * 30 - 12 * 22


@pytest.mark.parametrize("shift", [0, 1, 5, 15, 16, 40, 100, 200])
def test_shifted_squares(shift):
    """640x480, so 16 px: the boundaries of two 100-pixel squares, one shifted right, overlap as calculated."""
    s, d = 100, 16
    truth, moved = filled((480, 640), 200, 300, 100, 200), filled((480, 640), 200, 300, 100 + shift, 200 + shift)
    frame, inner = s * s - (s - 2 * d) ** 2, s - 2 * d

    def overlap(a: int, b: int) -> int:  # of two squares about the same row of centres
        return min(a, b) * max(0, min(a, b, (a + b) // 2 - shift))

    common = overlap(s, s) - 2 * overlap(s, inner) + overlap(inner, inner)
    assert boundary_iou(moved, truth) == common / (2 * frame - common)


@pytest.mark.parametrize("depth", [1, 8, 15])
def test_eroded_squares(depth):
    """A square without its outer ``depth`` pixels: its boundary lies that much further inside."""
    truth, smaller = filled((480, 640), 200, 300, 100, 200), filled((480, 640), 200, 300, 100, 200)
    for _ in range(depth):
        smaller = eroded(smaller)
    s, d = 100, 16
    common = (s - 2 * depth) ** 2 - (s - 2 * d) ** 2
    union = s**2 - (s - 2 * depth - 2 * d) ** 2
    assert boundary_iou(smaller, truth) == common / union
