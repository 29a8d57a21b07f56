"""Masks as COCO stores them, decoded and encoded: polygons, and run-length code in its two forms.

Format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from edgesam_jax.data import mask_window
from edgesam_jax.data.mask_window import Window
from edgesam_jax.data.readers.annotations import form_fault, shown
from edgesam_jax.data.schema import BadExample

REMEDY = "; fix or remove it"  # the end of messages
MAX_OUTLINE = 1 << 22  # px, length of an object's outlines together; pycocotools uses about 40 bytes for each


def decode_window(segmentation: Any, height: int, width: int, where: str) -> Window:
    """Decode polygons, uncompressed RLE or compressed RLE as a mask of a photo of (height width) pixels.

    Args:
      where: name of the annotation in error messages.

    Raises:
      BadExample: ``segmentation`` is in none of these formats, or its size is not the photo's.
    """
    try:
        fault = form_fault(segmentation)
        if fault:
            raise ValueError(fault)
        if isinstance(segmentation, list):
            polygons = [p for p in segmentation if len(p) >= 6]  # fewer than three corners enclose nothing
            if not polygons:
                return mask_window.EMPTY_WINDOW
            return mask_window.from_runs(_runs(encode_polygons(polygons, height, width)["counts"]), height)
        fault = size_fault(segmentation["size"], height, width)
        if fault:
            raise ValueError(fault)
        # pycocotools trusts the runs, and writes past the end of the mask where they are too long.
        runs = _runs(segmentation["counts"])
        # Single runs are checked too, because sums of very long ones could overflow int64.
        if (runs < 0).any() or (runs > height * width).any() or runs.sum() != height * width:
            raise ValueError(f"runs of {runs.sum()} pixels instead of {height * width}")
        return mask_window.from_runs(runs, height)
    except Exception as error:  # pycocotools raises bare Exceptions too
        raise BadExample("segmentation damaged", f"{where}: damaged segmentation ({error}){REMEDY}") from None


def size_fault(size: Any, height: int, width: int) -> str:
    """Describe how the ``size`` of a run-length code differs from its photo's; empty if it doesn't."""
    if isinstance(size, list | tuple) and len(size) == 2 and all(size[k] == (height, width)[k] for k in (0, 1)):
        return ""
    if isinstance(size, list) and size == [width, height]:
        return f"size {size} is [width, height]; COCO's is [height, width], {[height, width]} here"
    return f"size {shown(size)} instead of {[height, width]}"


def encode_polygons(polygons: list[list[float]], height: int, width: int) -> Any:
    """Encode the union of polygons, each x y x y ..., as a run-length code of a photo's size.

    Raises:
      ValueError: a corner is not a finite number or lies so far outside the photo that it must be a mistake, or the
        outlines are longer than ``MAX_OUTLINE``, since pycocotools allocates memory for every pixel of an outline.
    """
    arrays = [np.asarray(polygon) for polygon in polygons]
    if any(array.ndim != 1 or array.dtype.kind not in "iuf" for array in arrays):
        raise ValueError("a corner is not a number")
    corners = np.concatenate(arrays).astype(np.float64)
    if not np.isfinite(corners).all():
        raise ValueError("a corner is not a number")
    if (np.abs(corners) > 4 * max(height, width)).any():
        raise ValueError("a corner is far outside the photo")
    lines = [np.diff(array.astype(np.float64).reshape(-1, 2), axis=0) for array in arrays]
    if sum(float(np.abs(line).max(1).sum()) for line in lines) > MAX_OUTLINE:
        raise ValueError("its outlines are too long for an object")
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))


def _runs(counts: list[int] | str | bytes) -> np.ndarray:
    """Return the lengths of the runs, int64, of either run-length code.

    Format of a compressed count: a little-endian number of 5-bit digits, one per character, with "0" as zero.  Bit 32
    marks that more digits follow; bit 16 of the last digit, a negative number.  From the fourth count on, each is
    stored as the difference to the count two before it.
    """
    if isinstance(counts, list):
        listed = np.asarray(counts)
        integers = listed.ndim == 1 and listed.dtype.kind in "iuf" and not (listed != np.floor(listed)).any()
        if not integers or (np.abs(listed.astype(np.float64)) >= 1 << 62).any():
            raise ValueError("its counts are not integers")
        return listed.astype(np.int64)
    digits = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8).astype(np.int64) - 48
    last = (digits & 32) == 0
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or not last[-1]:
        raise ValueError("unknown or missing characters in its counts")
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    places = np.arange(len(digits)) - np.repeat(starts, np.diff([*starts, len(digits)]))
    if places.max() > 6:
        raise ValueError("a count has too many digits")
    values = np.add.reduceat((digits & 31) << (5 * places), starts)
    negative = (digits[last] & 16) != 0
    values -= np.where(negative, np.int64(1) << (5 * (places[last] + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
