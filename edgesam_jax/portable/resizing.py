"""Matrices of 1-D interpolation, equal to torch's ``interpolate(align_corners=False)``. Needs numpy only."""

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
