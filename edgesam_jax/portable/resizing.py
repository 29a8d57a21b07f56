"""Resizing equal to torch's ``interpolate(align_corners=False)``. Needs numpy only."""

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
    scale = old / new
    support = max(scale, 1.0)
    centre = (np.arange(new) + 0.5) * scale
    pixels = np.floor(centre - support).astype(np.int64) + np.arange(int(np.ceil(2 * support)) + 1)[:, None]
    weights = np.maximum(1 - np.abs(pixels + 0.5 - centre) / support, 0) * ((pixels >= 0) & (pixels < old))
    used = weights.any(axis=1)
    return np.clip(pixels[used], 0, old - 1), (weights / weights.sum(axis=0)).astype(np.float32)[used]


# Where a source pixel is chosen, and not only weighted, torch's own arithmetic counts: it rounds the scale to float32,
# and 319.5 * 682 / 426 - 0.5 is then a little less than 511.


def nearest_taps(old: int, new: int) -> np.ndarray:
    """Return the source pixel (new) of each target pixel with ``mode="nearest"``: ``floor(i * old / new)`` in float32."""
    scale = np.float32(old) / np.float32(new)
    return np.minimum((np.arange(new, dtype=np.float32) * scale).astype(np.int64), old - 1)


def bilinear_taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the one or two source pixels (new) that each target pixel weights above 0 without antialiasing.

    The second is -1 where there is none.
    """
    scale = np.float32(old) / np.float32(new)
    half = np.float32(0.5)
    source = np.maximum((np.arange(new, dtype=np.float32) + half) * scale - half, np.float32(0))
    low = np.minimum(source.astype(np.int64), old - 1)
    return low, np.where((source > low) & (low + 1 < old), low + 1, -1)
