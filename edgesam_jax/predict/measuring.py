"""Masks measured at the photo's size on the device: ``portable.scanning`` for many masks, compiled for few shapes.

Rows and columns are padded with zeros to full strips and to multiples of ``COLUMNS``, and masks are measured ``CHUNKS``
at a time, so that photos of all sizes share programs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from edgesam_jax.models.kernels import platforms
from edgesam_jax.portable.frame import Frame
from edgesam_jax.portable.postprocess import MASK_THRESHOLD, axis_matrix
from edgesam_jax.portable.scanning import Limits, Measured, bands, box_of, strip_rows

COLUMNS, TAPS = 128, 16  # columns of a photo and of a strip's matrix are padded to multiples of these
CHUNKS = (64, 8)  # masks measured in a call


def point_tile() -> int:
    """Return the largest number of clicks to decode in a call; on a CPU no more are faster, and the last is padded."""
    return 16 if platforms.on_cpu() else 256


@dataclass(frozen=True, eq=False)
class Resizing:
    """The resizing of low-resolution logits (s s) to a photo, in strips of rows.

    ``weights`` (strips r k), ``first`` (strips): see ``portable.scanning.Bands``; ``by_column`` (s w): w is the number
    of columns with padding; ``size``: rows and columns of the photo.
    """

    weights: Array
    first: Array
    by_column: Array
    size: tuple[int, int]

    @property
    def pixels(self) -> int:
        """The number of pixels including padding."""
        strips, rows, _ = self.weights.shape
        return int(strips * rows * self.by_column.shape[1])


@functools.lru_cache(maxsize=8)
def resizing_of(
    mask_size: int, image_size: int, input_size: tuple[int, int], original_size: tuple[int, int], frame: Frame
) -> Resizing:
    """Return the resizing of masks to a photo; see ``portable.postprocess.axis_matrix``."""
    rows, columns = (
        axis_matrix(mask_size, image_size, valid, original, frame)
        for valid, original in zip(input_size, original_size, strict=True)
    )
    width = -(-original_size[1] // COLUMNS) * COLUMNS
    strips = bands(rows, strip_rows(width), TAPS)
    padded = np.zeros((width, mask_size), np.float32)
    padded[: original_size[1]] = columns
    weights, first, by_column = jax.device_put((strips.weights, strips.first, padded.T))
    return Resizing(weights, first, by_column, original_size)


@jax.jit
def _measure(logits: Array, chosen: Array, weights: Array, first: Array, by_column: Array, offset: Array) -> Any:
    """Measure the masks ``chosen`` (c) of logits (n s s).

    Returns:
      Numbers (c) of pixels above ``offset``, above ``-offset`` and set; rows (c h) and columns (c w) bool that have a
      set pixel; bits (c h w/8) uint8. All with padding, whose logits are 0.
    """
    taps, columns = weights.shape[-1], by_column.shape[1]

    def one(index: Array) -> Any:
        wide = jnp.matmul(logits[index], by_column, precision="highest")

        def strip(in_column: Array, inputs: tuple[Array, Array]) -> Any:
            matrix, start = inputs
            part = jax.lax.dynamic_slice(wide, (start, 0), (taps, columns))
            x = jnp.matmul(matrix, part, precision="highest")
            mask = x > MASK_THRESHOLD
            counts = [(x > MASK_THRESHOLD + offset).sum(), (x > MASK_THRESHOLD - offset).sum(), mask.sum()]
            return in_column | mask.any(0), (*counts, mask.any(1), jnp.packbits(mask, axis=1))

        in_column, (*counts, in_row, bits) = jax.lax.scan(strip, jnp.zeros(columns, bool), (weights, first))
        return [c.sum() for c in counts], in_row.reshape(-1), in_column, bits.reshape(-1, columns // 8)

    return jax.lax.map(one, chosen)


def measure(logits: Array, scores: np.ndarray, limits: Limits, resizing: Resizing, first: int = 0) -> list[Measured]:
    """Return the masks that pass the limits, in their order.

    Args:
      logits: (p m s s) on the device, m masks of each point; p may be padded.
      scores: (p m), not padded.
      limits: see ``Limits``; ``memory`` bounds the masks in a call.
      resizing: from ``resizing_of``.
      first: index of the first point.
    """
    rows, columns = resizing.size
    padding = resizing.pixels - rows * columns if limits.offset > 0 else 0  # a logit of 0 is above -offset
    flat = logits.reshape(-1, *logits.shape[2:])
    chosen = np.flatnonzero(limits.passes_score(scores))
    found: list[Measured] = []
    for some, size in _chunks(chosen, limits.memory // (resizing.pixels // 8)):
        padded = np.resize(some, size).astype(np.int32)
        counts, *masks = _measure(
            flat, padded, resizing.weights, resizing.first, resizing.by_column, np.float32(limits.offset)
        )
        sure, possible, areas = (np.asarray(count)[: len(some)].astype(np.int64) for count in counts)
        stability = sure / np.maximum(possible - padding, 1)
        passing = np.flatnonzero(limits.passes_stability(stability))
        if not len(passing):
            continue
        in_row, in_column, bits = (np.asarray(x) for x in masks)
        for i in passing.tolist():
            point, mask = divmod(int(some[i]), scores.shape[1])
            box = box_of(in_row[i, :rows], in_column[i, :columns])
            found.append(
                Measured(
                    first + point, float(scores[point, mask]), float(stability[i]), int(areas[i]), box,
                    bits[i, :rows, : -(-columns // 8)].copy(),
                )
            )  # fmt: skip
    return found


def _chunks(chosen: np.ndarray, most: int) -> list[tuple[np.ndarray, int]]:
    """Split indices into parts; return each with the number of masks, at most ``most``, to pad it to."""
    sizes = [size for size in CHUNKS if size <= most] or [1]
    parts, start = [], 0
    while start < len(chosen):
        size = next((size for size in sizes if size <= len(chosen) - start), sizes[-1])
        parts.append((chosen[start : start + size], size))
        start += size
    return parts
