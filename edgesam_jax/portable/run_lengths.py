"""Masks as COCO's run-length codes. Needs numpy only; compressed codes need pycocotools.

Runs are counted down the columns, from left to right: unset, set, unset, and so on. The first run may be empty.
https://github.com/cocodataset/cocoapi (``maskApi``)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgesam_jax.portable.errors import UsageError

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 of a mask's outermost pixels, all of which belong to the mask: one pixel is (x, y, x, y)."""


def runs_of(window: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Return the runs (n) int32 of a mask that has no pixel outside a window. Only the first run may be empty.

    Args:
      window: (h w) bool.
      corner: x and y of the window's first pixel.
      size: rows and columns of the mask.
    """
    height, width = size
    columns = np.zeros((window.shape[1], height), bool)
    columns[:, corner[1] : corner[1] + window.shape[0]] = window.T
    flat = columns.reshape(-1)
    edges = np.flatnonzero(np.diff(flat, prepend=False, append=False))  # starts and ends of set runs, in turn
    if not len(edges):
        return np.array([height * width], np.int32)
    edges += corner[0] * height
    last = [height * width] if edges[-1] < height * width else edges[:0]
    return np.diff(np.concatenate([[0], edges, last])).astype(np.int32)


def mask_of(runs: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the mask (h w) bool of runs."""
    height, width = size
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def area_of(runs: np.ndarray) -> int:
    """Return the number of set pixels."""
    return int(runs[1::2].sum())


def uncompressed(runs: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    """Return the code as COCO's uncompressed RLE: ``size`` [h, w] and ``counts``, a list of integers."""
    return {"size": list(size), "counts": runs.tolist()}


def compressed(runs: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    """Return the code as COCO's compressed RLE, whose ``counts`` is a text.

    Raises:
      UsageError: pycocotools is not installed.
    """
    code = _coco().frPyObjects(uncompressed(runs, size), *size)
    return {"size": list(size), "counts": code["counts"].decode()}


def mask_of_code(code: dict[str, Any]) -> np.ndarray:
    """Return the mask (h w) bool of a code that ``compressed`` has made.

    Raises:
      UsageError: pycocotools is not installed.
    """
    mask: np.ndarray = _coco().decode(code).astype(bool)
    return mask


def _coco() -> Any:
    try:
        from pycocotools import mask
    except ImportError:
        raise UsageError("COCO's compressed run-length code needs pycocotools: pip install pycocotools") from None
    return mask
