"""Resizing equal to torch's ``interpolate(align_corners=False)``. Needs numpy only.

torch computes positions in float32. Where a position chooses a pixel (``nearest_taps``, ``bilinear_taps``) and where
1e-5 counts (``antialiased``), positions are float32 here too: row 319 of 682 to 426 is at (319 + 1/2) 682 / 426 - 1/2,
which is 511, and 510.99997 in float32. ``resize_matrix`` is float64.
"""

from __future__ import annotations

import numpy as np


def resize_matrix(size_in: int, size_out: int, method: str) -> np.ndarray:
    """Return the matrix (size_out size_in) float64: half-pixel centres, no antialiasing, borders repeated.

    ``bicubic`` is the Keys kernel with a = -0.75; ``jax.image.resize`` uses a = -0.5.

    Raises:
      ValueError: ``method`` is neither ``bilinear`` nor ``bicubic``.
    """
    scale = size_in / size_out
    centre = (np.arange(size_out) + 0.5) * scale - 0.5
    matrix = np.zeros((size_out, size_in))
    if method == "bilinear":
        centre = np.maximum(centre, 0.0)
        taps = np.array([0, 1])
    elif method == "bicubic":
        taps = np.array([-1, 0, 1, 2])
    else:
        raise ValueError(f"unknown method {method!r}")
    low = np.floor(centre).astype(int)
    fraction = centre - low
    for tap in taps:
        distance = np.abs(fraction - tap)
        if method == "bilinear":
            weight = np.maximum(0.0, 1.0 - distance)
        else:
            a = -0.75
            near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
            far = a * (((distance - 5) * distance + 8) * distance - 4)
            weight = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
        np.add.at(matrix, (np.arange(size_out), np.clip(low + tap, 0, size_in - 1)), weight)
    return matrix


def antialiased(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Resize (h w c) to (rows columns c) float32: bilinear with antialiasing, not rounded (``antialias=True``).

    Each target pixel is the mean of the source pixels under a triangle as wide as two pixels, of the source or of the
    target, whichever are larger.
    """
    out = image
    for axis, new in enumerate((rows, columns)):
        pixels, weights = _triangle(image.shape[axis], new)
        total = np.zeros((*out.shape[:axis], new, *out.shape[axis + 1 :]), np.float32)
        for tap, weight in zip(pixels, weights, strict=True):
            total += np.take(out, tap, axis) * weight.reshape(-1, *(1,) * (2 - axis))
        out = total
    return out


def _triangle(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Source pixels (taps new) int64 of each target pixel, and their weights (taps new) float32."""
    half = np.float32(0.5)
    scale = np.float32(old) / np.float32(new)
    support = np.maximum(scale, np.float32(1))
    centre = (np.arange(new, dtype=np.float32) + half) * scale
    first = np.maximum((centre - support + half).astype(np.int64), 0)
    last = np.minimum((centre + support + half).astype(np.int64), old)
    pixels = first + np.arange((last - first).max())[:, None]
    weights = np.maximum(1 - np.abs(pixels + 0.5 - centre) / support, 0) * (pixels < last)
    return np.minimum(pixels, old - 1), (weights / weights.sum(axis=0)).astype(np.float32)


def nearest_taps(old: int, new: int) -> np.ndarray:
    """Return the source pixel (new) of each target pixel with ``mode="nearest"``: ``floor(i * old / new)``."""
    scale = np.float32(old) / np.float32(new)
    return np.minimum((np.arange(new, dtype=np.float32) * scale).astype(np.int64), old - 1)


def bilinear_taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the one or two source pixels (new) that each target pixel weights above 0 without antialiasing.

    The second is -1 where there is none.
    """
    scale = np.float64(np.float32(old) / np.float32(new))
    # A fused multiply-add, as compilers emit it: exact in float64, rounded to float32 once.
    source = np.maximum(((np.arange(new) + 0.5) * scale - 0.5).astype(np.float32), 0)
    low = np.minimum(source.astype(np.int64), old - 1)
    return low, np.where((source > low) & (low + 1 < old), low + 1, -1)
