"""Masks at the photo's size, compared with SAM's two-step resizing; the stability score."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesam_jax.portable.postprocess import bilinear_matrix, stability_score, upscale_logits, upscale_masks


def resize(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(jax.image.resize(x, (*x.shape[:-2], *size), "bilinear", antialias=False))


@pytest.mark.parametrize("original", [(97, 128), (256, 171), (30, 40), (1, 7)])
def test_masks_equal_the_two_steps_of_sam(original: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 3, 16, 16)).astype(np.float32)
    scale = 64 / max(original)
    valid = (max(1, int(original[0] * scale + 0.5)), max(1, int(original[1] * scale + 0.5)))
    expected = resize(resize(logits, (64, 64))[..., : valid[0], : valid[1]], original)
    found = upscale_logits(logits, 64, valid, original)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    sure = abs(expected) > 2e-5
    masks = upscale_masks(logits, 64, valid, original)
    assert masks.shape == (2, 3, *original)
    np.testing.assert_array_equal(masks[sure], (expected > 0)[sure])


@pytest.mark.parametrize("original", [(97, 128), (256, 171), (30, 40), (1, 7), (9, 1), (3, 3)])
@pytest.mark.parametrize("shift", [-30, -2.5, 0, 30])
def test_masks_are_upscaled_around_their_positive_logits(original: tuple[int, int], shift: float) -> None:
    scale = 64 / max(original)
    valid = (max(1, int(original[0] * scale + 0.5)), max(1, int(original[1] * scale + 0.5)))
    noise = np.random.default_rng(1).standard_normal((3, 16, 16)).astype(np.float32) + np.float32(shift)
    blob = 4 - np.hypot(*np.mgrid[-9:7, -2:14]).astype(np.float32)
    for logits in (*noise, blob, -blob, np.maximum(blob.T, 0)):
        expected = upscale_logits(logits, 64, valid, original)
        sure = abs(expected) > 1e-5
        np.testing.assert_array_equal(upscale_masks(logits, 64, valid, original)[sure], (expected > 0)[sure])


def test_resizing_agrees_with_torch() -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(1).standard_normal((1, 1, 32, 32)).astype(np.float32)
    for size in ((128, 128), (50, 77), (19, 23)):
        expected = torch.nn.functional.interpolate(torch.from_numpy(x), size, mode="bilinear", align_corners=False)
        found = bilinear_matrix(32, size[0]) @ x[0, 0] @ bilinear_matrix(32, size[1]).T
        np.testing.assert_allclose(found, expected[0, 0].numpy(), atol=1e-5)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60))
def test_every_row_of_the_matrix_is_a_weighted_mean(old: int, new: int) -> None:
    matrix = bilinear_matrix(old, new)
    assert (matrix >= 0).all() and np.count_nonzero(matrix, axis=1).max() <= 2
    np.testing.assert_allclose(matrix.sum(1), 1.0)
    np.testing.assert_array_equal(bilinear_matrix(old, old), np.eye(old))


def test_stability_counts_pixels_and_never_gives_nan() -> None:
    logits = np.full((4, 2, 2), -5.0, np.float32)
    logits[1] = 5.0
    logits[2] = [[3.0, 0.5], [-0.5, -3.0]]  # one above 1, three above -1
    logits[3] = 0.0  # all undecided
    np.testing.assert_allclose(stability_score(logits), [0.0, 1.0, 1 / 3, 0.0])
