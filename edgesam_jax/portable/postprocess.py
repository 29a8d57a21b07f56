"""From low-resolution logits to masks of the photo, and the stability score. Needs numpy only.

SAM resizes logits in two steps, first to the square input frame, then, cropped to the photo, to the photo's original
size. Both steps are bilinear with half-pixel centres and without antialiasing. They are linear and separable, so one
small matrix per axis does both, for every photo size and without compilation.
"""

from __future__ import annotations

import functools

import numpy as np

from edgesam_jax.portable.frame import Frame
from edgesam_jax.portable.resizing import resize_matrix

MASK_THRESHOLD = 0.0
STABILITY_OFFSET = 1.0


def bilinear_matrix(old: int, new: int) -> np.ndarray:
    """Return the matrix (new old) float64 that resizes a line bilinearly."""
    return resize_matrix(old, new, "bilinear")


@functools.lru_cache(maxsize=64)
def axis_matrix(low: int, frame: int, valid: int, original: int, kind: Frame = "pad") -> np.ndarray:
    """Return the matrix (original low) float32: low resolution -> frame, cropped to ``valid`` pixels -> original size.

    A photo fills a ``stretch`` frame completely, and EfficientSAM resizes to the photo's size in one bicubic step.
    """
    if kind == "stretch":
        return resize_matrix(low, original, "bicubic").astype(np.float32)
    to_frame = bilinear_matrix(low, frame)[:valid]
    return (bilinear_matrix(valid, original) @ to_frame).astype(np.float32)


def upscale_logits(
    logits: np.ndarray, frame: int, input_size: tuple[int, int], original_size: tuple[int, int], kind: Frame = "pad"
) -> np.ndarray:
    """Resize logits (... s s) of the square frame to logits (... h w) float32 at the photo's size.

    Args:
      frame: side of the model's input in pixels.
      input_size: rows and columns of the frame that the photo fills.
      original_size: rows and columns of the photo.
      kind: kind of frame.
    """
    rows = axis_matrix(logits.shape[-2], frame, input_size[0], original_size[0], kind)
    columns = axis_matrix(logits.shape[-1], frame, input_size[1], original_size[1], kind)
    return rows @ (np.asarray(logits, np.float32) @ columns.T)


def upscale_masks(
    logits: np.ndarray, frame: int, input_size: tuple[int, int], original_size: tuple[int, int], kind: Frame = "pad"
) -> np.ndarray:
    """Upscale logits (... s s) and threshold them to masks (... h w) bool, one mask at a time to save memory."""
    masks = np.zeros((*logits.shape[:-2], *original_size), bool)
    for index in np.ndindex(*logits.shape[:-2]):
        if kind == "pad":
            _fill_mask(masks[index], np.asarray(logits[index], np.float32), frame, input_size)
        else:
            masks[index] = upscale_logits(logits[index], frame, input_size, original_size, kind) > MASK_THRESHOLD
    return masks


@functools.lru_cache(maxsize=64)
def _taps(low: int, frame: int, valid: int, original: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``axis_matrix`` without its zeros: the first column used by each row (n), and k weights (n k)."""
    matrix = axis_matrix(low, frame, valid, original)
    used = matrix != 0
    first = used.argmax(1)
    k = int((low - used[:, ::-1].argmax(1) - first).max())
    first = np.minimum(first, low - k)
    return first, np.take_along_axis(matrix, first[:, None] + np.arange(k), axis=1)


def _fill_mask(mask: np.ndarray, logits: np.ndarray, frame: int, input_size: tuple[int, int]) -> None:
    """Set the pixels of an empty mask (h w) whose logit, upscaled from (s s), is above the threshold.

    Bilinear resizing doesn't exceed the largest logit it reads, so only the surroundings of positive logits are
    computed. A pixel reads three logits or fewer per axis. Summed one by one, they need no product of matrices, whose
    threads would wait for those of the decoder.
    """
    positive = logits > MASK_THRESHOLD
    parts = []
    for axis in (0, 1):
        first, weights = _taps(logits.shape[axis], frame, input_size[axis], mask.shape[axis])
        lines = np.flatnonzero(positive.any(1 - axis))
        if not len(lines):
            return
        start, end = np.searchsorted(first, [lines[0] - weights.shape[1] + 1, lines[-1] + 1])
        if start == end:
            return
        parts.append((start, end, first[start:end], weights[start:end]))
    (top, bottom, rows, row_weights), (left, right, columns, column_weights) = parts
    low, high = rows[0], rows[-1] + row_weights.shape[1]
    band = logits[low:high]
    wide = sum(band[:, columns + t] * column_weights[:, t] for t in range(column_weights.shape[1]))
    tall = sum(wide[rows - low + t] * row_weights[:, t, None] for t in range(row_weights.shape[1]))
    mask[top:bottom, left:right] = tall > MASK_THRESHOLD


def stability_score(logits: np.ndarray) -> np.ndarray:
    """Return the fraction of a mask's pixels that remain when the threshold rises from -1 to 1.

    Maps logits (... s s) to scores (...) float32 in 0..1. The published code gives NaN for a mask without any logit
    above -1, and its arg-max then picks that mask (docs/published_code.md, B5); an empty mask scores 0 here.
    """
    sure = np.count_nonzero(logits > MASK_THRESHOLD + STABILITY_OFFSET, axis=(-2, -1))
    possible = np.count_nonzero(logits > MASK_THRESHOLD - STABILITY_OFFSET, axis=(-2, -1))
    return np.asarray(sure / np.maximum(possible, 1), np.float32)
