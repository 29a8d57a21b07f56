"""The compiled pieces of the evaluation.  Masks leave the device as bits.

Each piece takes the prompts of one photo in a buffer of fixed size and works through those that are real, a few at a
time, in a loop whose trips are counted at run time: one program for any number of instances.  How many photos or
devices are at work changes nothing in these programs, so it changes nothing in their results either.
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
from edgesam_jax.models.sam import Sam
from edgesam_jax.portable.frame import Frame
from edgesam_jax.portable.postprocess import MASK_THRESHOLD, STABILITY_OFFSET, axis_matrix
from edgesam_jax.types import MaskPrediction, Prompts

PROMPTS = 32  # of one call
CELLS = 4096  # embedding cells of the prompts decoded at a time on a CPU: one prompt of a 64x64 embedding


def chunk_of(grid: int) -> int:
    """Prompts decoded at a time: what fits a CPU's cache (docs/performance.md), or keeps an accelerator busy."""
    cells = CELLS if jax.default_backend() == "cpu" else 8 * CELLS
    return min(PROMPTS, max(1, cells // grid**2))


@functools.lru_cache(maxsize=16)
def decoder(config: SamConfig, num_masks: int, select: Select) -> Callable[..., tuple[Array, Array]]:
    """Compiled ``(variables, embedding, coords, labels, valid, count) -> (logits, low)``.

    ``embedding`` (g g c) of one photo, prompts in buffers of ``PROMPTS`` rows of which ``count`` are real.  ``logits``
    (P k s s) float32 of the masks selected, k = 1, or all of them for ``oracle``; ``low`` (P k s s/8) uint8, the bits
    of ``logits > 0`` along the last axis.
    """
    chunk = chunk_of(config.grid)
    kept = num_masks if select == "oracle" else 1
    side = config.mask_size

    @jax.jit
    def run(
        variables: Any, embedding: Array, coords: Array, labels: Array, valid: Array, count: Array
    ) -> tuple[Array, Array]:
        prompts = Prompts(coords, labels, valid)

        def some(i: Array, out: Array) -> Array:
            piece = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk)[None], prompts)
            found = Sam(config).apply(
                variables, embedding[None], piece, num_masks=num_masks, method="decode_masks"
            )  # fmt: skip
            chosen = choose(cast(MaskPrediction, found), select)
            return jax.lax.dynamic_update_slice_in_dim(out, chosen, i * chunk, 0)

        blank = jnp.zeros((PROMPTS, kept, side, side), jnp.float32)
        logits = jax.lax.fori_loop(0, (count + chunk - 1) // chunk, some, blank)
        return logits, jnp.packbits(logits > MASK_THRESHOLD, axis=-1)

    return run


def choose(found: MaskPrediction, select: Select) -> Array:
    """Masks (1 p m s s) with predicted IoU (1 p m) -> those selected (p k s s).

    ``first`` the only or first one; ``score`` of the highest predicted IoU; ``stability`` of the highest stability
    score; ``area`` with the most pixels; ``oracle`` all.  Ties go to the first.
    """
    logits, iou = found.logits[0], found.iou[0]
    if select == "oracle":
        return logits
    if select == "first":
        return logits[:, :1]
    if select == "score":
        rate = iou
    elif select == "area":
        rate = (logits > MASK_THRESHOLD).sum((-2, -1)).astype(jnp.float32)
    else:
        sure = (logits > MASK_THRESHOLD + STABILITY_OFFSET).sum((-2, -1))
        rate = sure / jnp.maximum((logits > MASK_THRESHOLD - STABILITY_OFFSET).sum((-2, -1)), 1)
    best = jnp.argmax(rate, axis=1)
    return jnp.take_along_axis(logits, best[:, None, None, None], axis=1)


# ------------------------------------------------------------------------------------------------- the photo's own size


def bucket(pixels: int) -> int:
    """The size up to which a side is filled, so that few programs serve all photos; a multiple of 8."""
    step = 128 if pixels <= 1024 else 512 if pixels <= 4096 else 2048
    return -(-pixels // step) * step


@functools.lru_cache(maxsize=256)
def resize_matrix(low: int, frame: int, filled: int, original: int, kind: Frame = "pad") -> np.ndarray:
    """(bucket low) float32: low resolution -> frame, cropped to the photo -> the photo's own pixels, then zeros."""
    out = np.zeros((bucket(original), low), np.float32)
    out[:original] = axis_matrix(low, frame, filled, original, kind)
    return out


@jax.jit
def upscale(logits: Array, rows: Array, columns: Array, count: Array) -> Array:
    """Logits (P k s s) at the photo's own size, as bits: (P k w h/8) uint8, column after column as run-length codes go.

    ``rows`` (h s) and ``columns`` (w s) are ``resize_matrix``'s.  SAM's two resizing steps in one product per axis.
    """
    p, k = logits.shape[:2]

    def one(i: Array, out: Array) -> Array:
        mask = jax.lax.dynamic_index_in_dim(logits.reshape(p * k, *logits.shape[2:]), i, keepdims=False)
        # "highest": accelerators would round to fewer bits, and pixels near the threshold would flip.
        tall = jnp.matmul(rows, mask, precision="highest")
        full = jnp.matmul(columns, tall.T, precision="highest")
        bits = jnp.packbits(full > MASK_THRESHOLD, axis=-1)
        return jax.lax.dynamic_update_index_in_dim(out, bits, i, 0)

    blank = jnp.zeros((p * k, columns.shape[0], rows.shape[0] // 8), jnp.uint8)
    return jax.lax.fori_loop(0, count * k, one, blank).reshape(p, k, *blank.shape[1:])


class Bits:
    """One mask as ``upscale`` gives it: (w h/8) uint8, of a photo of (rows, columns)."""

    def __init__(self, packed: np.ndarray, size: tuple[int, int]) -> None:
        self._packed, self._size = packed, size

    @property
    def area(self) -> int:
        """Pixels of the mask."""
        return int(np.bitwise_count(self._packed).sum())

    def inside(self, top: int, left: int, rows: int, columns: int) -> np.ndarray:
        """The mask's pixels (rows columns) bool of a window of the photo."""
        first, last = top // 8, -(-(top + rows) // 8)
        strip = np.unpackbits(self._packed[left : left + columns, first:last], axis=1)
        return strip[:, top - 8 * first :][:, :rows].T.view(bool)

    @property
    def mask(self) -> np.ndarray:
        """The whole mask (h w) bool, column after column in memory."""
        return self.inside(0, 0, *self._size)

    def overlap(self, other: Bits) -> float:
        """Intersection over union with another mask of the same photo; NaN where both are empty."""
        union = int(np.bitwise_count(self._packed | other._packed).sum())
        return int(np.bitwise_count(self._packed & other._packed).sum()) / union if union else float("nan")


def pack(mask: np.ndarray) -> np.ndarray:
    """A mask (h w) bool as ``upscale`` gives it: (bucket of w, bucket of h / 8) uint8."""
    height, width = mask.shape
    out = np.zeros((bucket(width), bucket(height) // 8), np.uint8)
    bits = np.packbits(mask.T, axis=1)
    out[:width, : bits.shape[1]] = bits
    return out
