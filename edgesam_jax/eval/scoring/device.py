"""The compiled functions of the evaluation.  Masks leave the device as packed bits.

Each function takes the prompts of one photo in a buffer of fixed size and processes the valid ones, a chunk at a time,
in a loop with a dynamic trip count: one program serves any number of instances.  These programs don't depend on the
number of photos in flight or of devices, and neither do their results.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from edgesam_jax.config import SamConfig
from edgesam_jax.eval.scoring.protocol import Select
from edgesam_jax.models.kernels import platforms
from edgesam_jax.models.sam import Sam
from edgesam_jax.portable.frame import Frame
from edgesam_jax.portable.postprocess import MASK_THRESHOLD, STABILITY_OFFSET, axis_matrix
from edgesam_jax.types import MaskPrediction, Prompts

PROMPTS = 32  # per call
CELLS = 4096  # embedding cells decoded at a time on a CPU, over all prompts: one prompt of a 64x64 embedding


def chunk_of(grid: int) -> int:
    """Prompts decoded at a time: few enough for a CPU's cache (docs/performance.md), or more on an accelerator."""
    cells = CELLS if platforms.on_cpu() else 8 * CELLS
    return min(PROMPTS, max(1, cells // grid**2))


@functools.lru_cache(maxsize=16)
def decoder(config: SamConfig, num_masks: int, select: Select) -> Callable[..., tuple[Array, Array]]:
    """Compiled ``(variables, embedding, coords, labels, valid, count) -> (logits, low)``.

    ``embedding`` (g g c) is one photo's; prompts come in buffers of P = ``PROMPTS`` rows, of which the first ``count``
    are valid.  ``logits`` (P k s s) float32 are those of the selected mask (k = 1), or of all masks for ``oracle``;
    ``low`` (P k s s/8) uint8 has the bits of ``logits > 0`` along the last axis.
    """
    chunk = chunk_of(config.grid)
    kept = num_masks if select == "oracle" else 1
    side = config.mask_size

    @jax.jit
    def run(
        variables: Any, embedding: Array, coords: Array, labels: Array, valid: Array, count: Array
    ) -> tuple[Array, Array]:
        prompts = Prompts(coords, labels, valid)

        def decode_chunk(i: Array, out: Array) -> Array:
            piece = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk)[None], prompts)
            prediction = Sam(config).apply(
                variables, embedding[None], piece, num_masks=num_masks, method="decode_masks"
            )  # fmt: skip
            selected = select_masks(cast(MaskPrediction, prediction), select)
            return jax.lax.dynamic_update_slice_in_dim(out, selected, i * chunk, 0)

        blank = jnp.zeros((PROMPTS, kept, side, side), jnp.float32)
        logits = jax.lax.fori_loop(0, (count + chunk - 1) // chunk, decode_chunk, blank)
        return logits, jnp.packbits(logits > MASK_THRESHOLD, axis=-1)

    return run


def select_masks(prediction: MaskPrediction, select: Select) -> Array:
    """Select among masks (1 p m s s) with predicted IoU (1 p m): logits (p k s s), k = 1, or m for ``oracle``.

    Args:
      select: ``first`` the first mask; ``score`` the highest predicted IoU; ``stability`` the highest stability score;
        ``area`` the most pixels; ``oracle`` all masks.  Ties go to the first.
    """
    logits, iou = prediction.logits[0], prediction.iou[0]
    if select == "oracle":
        return logits
    if select == "first":
        return logits[:, :1]
    if select == "score":
        scores = iou
    elif select == "area":
        scores = (logits > MASK_THRESHOLD).sum((-2, -1)).astype(jnp.float32)
    else:
        inner = (logits > MASK_THRESHOLD + STABILITY_OFFSET).sum((-2, -1))
        scores = inner / jnp.maximum((logits > MASK_THRESHOLD - STABILITY_OFFSET).sum((-2, -1)), 1)
    best = jnp.argmax(scores, axis=1)
    return jnp.take_along_axis(logits, best[:, None, None, None], axis=1)


# ------------------------------------------------------------------------------------------------- the photo's own size


def bucket(pixels: int) -> int:
    """The length to which a side is padded so that few programs serve all photos; a multiple of 8."""
    step = 128 if pixels <= 1024 else 512 if pixels <= 4096 else 2048
    return -(-pixels // step) * step


@functools.lru_cache(maxsize=256)
def resize_matrix(low: int, frame: int, filled: int, original: int, kind: Frame = "pad") -> np.ndarray:
    """One axis of the resizing from low resolution to the frame, cropped, to the photo: (bucket low) float32.

    Args:
      low, frame: sides of the low-resolution mask and of the frame.
      filled: pixels of the frame that the photo fills along this axis.
      original: pixels of the photo along this axis; the rows after it are zero.
      kind: how photos are placed in the frame.
    """
    out = np.zeros((bucket(original), low), np.float32)
    out[:original] = axis_matrix(low, frame, filled, original, kind)
    return out


@jax.jit
def upscale(logits: Array, rows: Array, columns: Array, count: Array) -> Array:
    """Masks of logits (P k s s) at the photo's size, as bits: (P k w h/8) uint8, column-major like run-length codes.

    ``rows`` (h s) and ``columns`` (w s) come from ``resize_matrix``, which combines SAM's two resizing steps into one
    product per axis.  Only the first ``count`` prompts are computed; the others are zero.
    """
    p, k = logits.shape[:2]

    def one(i: Array, out: Array) -> Array:
        mask = jax.lax.dynamic_index_in_dim(logits.reshape(p * k, *logits.shape[2:]), i, keepdims=False)
        # "highest": with fewer bits, as accelerators use by default, pixels near the threshold would flip.
        tall = jnp.matmul(rows, mask, precision="highest")
        full = jnp.matmul(columns, tall.T, precision="highest")
        bits = jnp.packbits(full > MASK_THRESHOLD, axis=-1)
        return jax.lax.dynamic_update_index_in_dim(out, bits, i, 0)

    blank = jnp.zeros((p * k, columns.shape[0], rows.shape[0] // 8), jnp.uint8)
    return jax.lax.fori_loop(0, count * k, one, blank).reshape(p, k, *blank.shape[1:])


class Bits:
    """One mask as returned by ``upscale``, (w h/8) uint8, of a photo of ``size`` (rows, columns)."""

    def __init__(self, packed: np.ndarray, size: tuple[int, int]) -> None:
        self._packed, self._size = packed, size

    @property
    def area(self) -> int:
        """Number of set pixels."""
        return int(np.bitwise_count(self._packed).sum())

    def inside(self, top: int, left: int, rows: int, columns: int) -> np.ndarray:
        """The mask (rows columns) bool within a window of the photo."""
        first, last = top // 8, -(-(top + rows) // 8)
        strip = np.unpackbits(self._packed[left : left + columns, first:last], axis=1)
        return strip[:, top - 8 * first :][:, :rows].T.view(bool)

    @property
    def mask(self) -> np.ndarray:
        """The complete mask (h w) bool, column-major in memory."""
        return self.inside(0, 0, *self._size)

    def overlap(self, other: Bits) -> float:
        """Intersection over union with another mask of the same photo; NaN if both are empty."""
        union = int(np.bitwise_count(self._packed | other._packed).sum())
        return int(np.bitwise_count(self._packed & other._packed).sum()) / union if union else float("nan")


def pack(mask: np.ndarray) -> np.ndarray:
    """Pack a mask (h w) bool in the format of ``upscale``: (bucket of w, bucket of h / 8) uint8."""
    height, width = mask.shape
    out = np.zeros((bucket(width), bucket(height) // 8), np.uint8)
    bits = np.packbits(mask.T, axis=1)
    out[:width, : bits.shape[1]] = bits
    return out
