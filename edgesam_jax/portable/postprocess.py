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
    masks = np.empty((*logits.shape[:-2], *original_size), bool)
    for index in np.ndindex(*logits.shape[:-2]):
        masks[index] = upscale_logits(logits[index], frame, input_size, original_size, kind) > MASK_THRESHOLD
    return masks


def stability_score(logits: np.ndarray) -> np.ndarray:
    """Return the fraction of a mask's pixels that remain when the threshold rises from -1 to 1.

    Maps logits (... s s) to scores (...) float32 in 0..1. The published code gives NaN for a mask without any logit
    above -1, and its arg-max then picks that mask (docs/published_code.md, B5); an empty mask scores 0 here.
    """
    sure = np.count_nonzero(logits > MASK_THRESHOLD + STABILITY_OFFSET, axis=(-2, -1))
    possible = np.count_nonzero(logits > MASK_THRESHOLD - STABILITY_OFFSET, axis=(-2, -1))
    return np.asarray(sure / np.maximum(possible, 1), np.float32)
