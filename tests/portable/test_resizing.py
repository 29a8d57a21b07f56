"""Resizing against torch's ``interpolate``, and against frozen values of it where torch isn't installed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgesam_jax.portable.frame import into_frame, resize_longest_side
from edgesam_jax.portable.resizing import antialiased, bilinear_taps, nearest_taps

sides = st.one_of(st.integers(1, 12), st.integers(1, 300))


def noise(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def interpolate(image: np.ndarray, size: tuple[int, int], **how: object) -> np.ndarray:
    """torch's resizing of (h w c) to at least two columns; in a single one torch 2.13 repeats the first pixel."""
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(image.astype(np.float32).transpose(2, 0, 1)[None].copy())
    return torch.nn.functional.interpolate(x, size, **how)[0].permute(1, 2, 0).numpy()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), sides, sides, sides, st.integers(2, 300))
def test_antialiased_resizing_is_torchs(seed: int, height: int, width: int, rows: int, columns: int) -> None:
    image = noise(seed, height, width)
    expected = interpolate(image, (rows, columns), mode="bilinear", antialias=True, align_corners=False)
    found = antialiased(image, rows, columns)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=255e-6)


@pytest.mark.parametrize("size", [(480, 640), (427, 640), (640, 427), (1500, 2250), (90, 2000), (1024, 700), (1, 7)])
def test_photos_reach_the_frame_as_torch_resizes_them(size: tuple[int, int]) -> None:
    image = noise(0, *size)
    frame, filled = into_frame(image, 1024, resize="torch")
    expected = interpolate(image, filled, mode="bilinear", antialias=True, align_corners=False)
    assert frame.shape == (1024, 1024, 3) and frame.dtype == np.float32
    np.testing.assert_allclose(frame[: filled[0], : filled[1]], expected, rtol=1e-5, atol=255e-6)
    assert not frame[filled[0] :].any() and not frame[:, filled[1] :].any()


# A ramp of 5 x 7 pixels, ``(37 row + 101 column) % 256``, resized by torch 2.13 on a CPU.
FROZEN = {
    (3, 4): [
        [68.7619, 154.2572, 133.8343, 131.8367],
        [117.4233, 108.8622, 133.1378, 124.5767],
        [172.8571, 137.4229, 87.7428, 173.2381],
    ],
    (2, 9): [
        [37.0, 104.3333, 151.8586, 150.2525, 84.0, 153.5051, 138.9697, 117.9697, 131.0],
        [111.0, 178.3333, 148.2828, 88.4949, 158.0, 91.7475, 90.1414, 137.6667, 205.0],
    ],
    (8, 3): [
        [86.5714, 122.2941, 172.0],
        [102.7589, 131.8934, 140.1875],
        [122.4553, 142.7831, 101.5982],
        [111.2946, 128.261, 124.7232],
        [117.2768, 113.739, 130.7054],
        [140.4018, 99.2169, 119.5446],
        [163.5268, 118.5772, 139.2411],
        [179.7143, 134.7647, 155.4286],
    ],
}


@pytest.mark.parametrize("size", FROZEN)
def test_antialiased_resizing_gives_torchs_stored_values(size: tuple[int, int]) -> None:
    rows, columns = np.mgrid[:5, :7]
    found = antialiased(((37 * rows + 101 * columns) % 256).astype(np.uint8)[..., None], *size)
    np.testing.assert_allclose(found[..., 0], FROZEN[size], rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), sides, sides, sides, sides)
def test_resizing_keeps_the_range_and_the_photo_of_the_same_size(
    seed: int, height: int, width: int, rows: int, columns: int
) -> None:
    image = noise(seed, height, width)
    found = antialiased(image, rows, columns)
    assert found.min() >= image.min() - 1e-3 and found.max() <= image.max() + 1e-3
    np.testing.assert_array_equal(antialiased(image, height, width), image)
    np.testing.assert_allclose(antialiased(np.full_like(image, 90), rows, columns), 90, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), sides, sides, st.integers(8, 200))
def test_the_two_ways_differ_by_rounding_alone(seed: int, height: int, width: int, size: int) -> None:
    photo = Image.fromarray(noise(seed, height, width))
    (rounded, filled), (exact, same) = (resize_longest_side(photo, size, how) for how in ("pillow", "torch"))
    assert filled == same == exact.shape[:2] == rounded.shape[:2]
    assert (rounded.dtype, exact.dtype) == (np.uint8, np.float32)
    assert np.abs(rounded - exact).max() <= 1.2  # Pillow rounds twice, once for each axis


# ------------------------------------------------------------------------------------------- which pixels are read


def reads(old: int, new: int, mode: str) -> np.ndarray:
    """Which source pixels torch reads for each target pixel: (new old) bool."""
    torch = pytest.importorskip("torch")
    masks = torch.eye(old)[:, None, :, None].expand(-1, -1, -1, 2).contiguous()  # a mask for each source pixel
    how = {} if mode == "nearest" else {"align_corners": False}
    return (torch.nn.functional.interpolate(masks, (new, 2), mode=mode, **how)[:, 0, :, 0] > 0).T.numpy()


def taken(old: int, *taps: np.ndarray) -> np.ndarray:
    found = np.zeros((len(taps[0]), old), bool)
    for tap in taps:
        found[np.flatnonzero(tap >= 0), tap[tap >= 0]] = True
    return found


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400))
def test_pixels_are_read_where_torch_reads_them(old: int, new: int) -> None:
    np.testing.assert_array_equal(taken(old, nearest_taps(old, new)), reads(old, new, "nearest"))
    np.testing.assert_array_equal(taken(old, *bilinear_taps(old, new)), reads(old, new, "bilinear"))


@pytest.mark.parametrize(("old", "new", "row"), [(1024, 110, 55), (768, 123, 41), (640, 148, 111)])
def test_rows_of_nearest_that_float32_decides(old: int, new: int, row: int) -> None:
    exact = row * old // new
    assert row * old == exact * new and nearest_taps(old, new)[row] == exact - 1  # stored from torch 2.13


def test_a_row_of_bilinear_that_float32_decides() -> None:
    """(319 + 1/2) 682 / 426 - 1/2 is 511, and 510.99997 in float32."""
    assert tuple(int(tap[319]) for tap in bilinear_taps(682, 426)) == (510, 511)
