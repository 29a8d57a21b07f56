"""Which of many masks are good enough, at the photo's size but without keeping any mask there. Needs numpy only.

A mask is resized in strips of rows. Counts, extent and bits of each strip are kept, and its logits are overwritten by
those of the next strip, so no mask exists at the photo's size in floats.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgesam_jax.portable.frame import Frame
from edgesam_jax.portable.postprocess import MASK_THRESHOLD, axis_matrix

STRIP = 1 << 17  # pixels of a strip, about: 512 KiB of logits stay in the cache


@dataclass(frozen=True)
class Limits:
    """What a mask must reach; 0 switches a limit off.

    Attributes:
      score: scores must be larger.
      stability: stability scores, from the photo's pixels, must be at least this.
      offset: the stability score compares the mask at the thresholds ``-offset`` and ``offset``.
      memory: bytes for the masks that are measured at once.
    """

    score: float
    stability: float
    offset: float
    memory: int

    def passes_score(self, scores: np.ndarray) -> np.ndarray:
        """Return which scores are large enough."""
        return scores > self.score if self.score > 0 else np.ones(scores.shape, bool)

    def passes_stability(self, stability: np.ndarray) -> np.ndarray:
        """Return which stability scores are large enough."""
        return stability >= self.stability if self.stability > 0 else np.ones(stability.shape, bool)


@dataclass(frozen=True, eq=False)
class Measured:
    """One mask of a photo (h w) that passed all limits.

    ``point``: index of the point that it was decoded from; ``box`` (4): x0, y0, x1, y1 of its outermost pixels, all 0
    if it is empty; ``bits`` (h ceil(w / 8)) uint8: its pixels, packed along the rows.
    """

    point: int
    score: float
    stability: float
    area: int
    box: np.ndarray
    bits: np.ndarray

    def window(self) -> np.ndarray:
        """Return the mask's pixels inside its box."""
        x0, y0, x1, y1 = self.box.tolist()
        rows = np.unpackbits(self.bits[y0 : y1 + 1, x0 // 8 : x1 // 8 + 1], axis=1)
        return rows[:, x0 % 8 : x0 % 8 + x1 - x0 + 1].view(bool)


@dataclass(frozen=True, eq=False)
class Bands:
    """A matrix (n low) of resizing in strips of r rows, each with the k columns that it needs.

    ``weights`` (strips r k) float32, zero beyond the last row; ``first`` (strips) int32: the first of the k columns.
    """

    weights: np.ndarray
    first: np.ndarray


def bands(matrix: np.ndarray, rows: int, multiple: int = 1) -> Bands:
    """Cut the matrix (n low) of a resizing into strips of ``rows`` rows; k is a ``multiple`` if ``low`` allows it."""
    strips = -(-len(matrix) // rows)
    padded = np.zeros((strips * rows, matrix.shape[1]), np.float32)
    padded[: len(matrix)] = matrix
    parts = padded.reshape(strips, rows, -1)
    used = (parts != 0).any(1)
    first = used.argmax(1)
    last = used.shape[1] - 1 - used[:, ::-1].argmax(1)
    width = min(-(-int((last - first).max() + 1) // multiple) * multiple, matrix.shape[1])
    first = np.minimum(first, matrix.shape[1] - width)
    weights = np.stack([part[:, start : start + width] for part, start in zip(parts, first, strict=True)])
    return Bands(weights, first.astype(np.int32))


def strip_rows(columns: int) -> int:
    """Return the number of rows of a strip with so many columns."""
    return max(8, STRIP // columns)


def scan(
    logits: np.ndarray,
    scores: np.ndarray,
    limits: Limits,
    image_size: int,
    input_size: tuple[int, int],
    original_size: tuple[int, int],
    frame: Frame = "pad",
) -> list[Measured]:
    """Return the masks that pass the limits, in their order.

    Args:
      logits, scores: (p m s s) and (p m) float32, m masks of each of p points.
      limits: see ``Limits``.
      image_size: side of the model's frame.
      input_size, original_size: rows and columns of the frame that the photo fills, and of the photo.
      frame: kind of frame.
    """
    by_row, by_column = (
        axis_matrix(logits.shape[-1], image_size, valid, original, frame)
        for valid, original in zip(input_size, original_size, strict=True)
    )
    strips = bands(by_row, strip_rows(original_size[1]))
    found = []
    for point, mask in np.argwhere(limits.passes_score(scores)).tolist():
        stability, area, box, bits = _measure(logits[point, mask], strips, by_column, original_size[0], limits.offset)
        if limits.passes_stability(np.array(stability)):
            found.append(Measured(point, float(scores[point, mask]), stability, area, box, bits))
    return found


def _measure(
    logits: np.ndarray, strips: Bands, by_column: np.ndarray, rows: int, offset: float
) -> tuple[float, int, np.ndarray, np.ndarray]:
    """Return stability score, area, box and bits of a mask (s s)."""
    wide = logits @ by_column.T
    columns = len(by_column)
    bits = np.empty((rows, -(-columns // 8)), np.uint8)
    sure = possible = area = 0
    in_column, in_row = np.zeros(columns, bool), np.zeros(rows, bool)
    per_strip, taps = strips.weights.shape[1:]
    for number, (weights, first) in enumerate(zip(strips.weights, strips.first, strict=True)):
        start, stop = number * per_strip, min(rows, (number + 1) * per_strip)
        strip = weights[: stop - start] @ wide[first : first + taps]
        sure += int(np.count_nonzero(strip > MASK_THRESHOLD + offset))
        possible += int(np.count_nonzero(strip > MASK_THRESHOLD - offset))
        mask = strip > MASK_THRESHOLD
        area += int(np.count_nonzero(mask))
        in_column |= mask.any(0)
        in_row[start:stop] = mask.any(1)
        bits[start:stop] = np.packbits(mask, axis=1)
    return sure / max(possible, 1), area, box_of(in_row, in_column), bits


def box_of(in_row: np.ndarray, in_column: np.ndarray) -> np.ndarray:
    """Return x0, y0, x1, y1 of the outermost rows and columns that have a pixel; zeros if none has."""
    if not in_row.any():
        return np.zeros(4, np.int64)
    y0, x0 = in_row.argmax(), in_column.argmax()
    y1, x1 = len(in_row) - 1 - in_row[::-1].argmax(), len(in_column) - 1 - in_column[::-1].argmax()
    return np.array([x0, y0, x1, y1], np.int64)
