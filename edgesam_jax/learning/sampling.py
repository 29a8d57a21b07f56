"""Sampling of new points where student and teacher disagree (EdgeSAM appendix D)."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array


def draw_pixels(key: Array, area: Array, count: int = 1) -> tuple[Array, Array]:
    """Draw ``count`` different pixels uniformly from ``area`` (h w) bool.

    Returns row-major indices (count,), and validity (count,): False once ``area`` has no pixels left.  Pure, without
    host callbacks: the k-th set pixel is found from the running sums of rows and of the pixels of its row.
    """
    in_rows = jnp.sum(area, axis=1, dtype=jnp.int32)
    above = jnp.cumsum(in_rows) - in_rows  # set pixels in the rows above
    total = above[-1] + in_rows[-1]
    uniform = jax.random.uniform(key, (count,))
    ranks: list[Array] = []
    for i in range(count):
        left = total - i
        rank = jnp.minimum((uniform[i] * left).astype(jnp.int32), left - 1)
        for earlier in jnp.sort(jnp.stack(ranks)) if ranks else ():
            rank = rank + (rank >= earlier)  # step over the ranks that are already taken
        ranks.append(rank)
    chosen = jnp.stack(ranks)
    # The row of a rank is the last one with no more set pixels above it; rows without set pixels are passed over.
    y = jnp.sum(above <= chosen[:, None], axis=1) - 1
    row = jnp.arange(len(area)) == y[:, None]
    pixels = jnp.any(area & row[..., None], axis=1)
    running = jnp.cumsum(pixels, axis=1, dtype=jnp.int32) + jnp.sum(above * row, axis=1)[:, None]
    x = jnp.sum(running <= chosen[:, None], axis=1)
    there = jnp.arange(count) < total
    return jnp.where(there, y * area.shape[1] + x, 0), there


@jax.named_scope("sampling")
def sample_disagreement(
    keys: Array,
    student: Array,
    teacher: Array,
    valid: Array,
    *,
    cell: float,
    count: int = 1,
    min_disagreement: int = 10,
    law: Literal["uniform", "side", "interior"] = "uniform",
) -> tuple[Array, Array, Array]:
    """New points where the student's masks differ from the teacher's (EdgeSAM appendix D).

    A point is drawn uniformly, without replacement, from the pixels that are valid and differ; its label is the
    teacher's value there.  Nothing is drawn for a prompt with fewer than ``min_disagreement * count`` such pixels.

    Args:
      keys: (b) random keys, one per image, so that the points don't depend on how images are distributed over devices.
      student, teacher: (b p h w) bool.  valid: (b h w) bool.
      cell: pixels of the input frame per mask pixel.
      law: ``uniform`` over the entire disagreement (the published code); ``side``: a fair coin between missed and
        surplus pixels where both exist (the paper's wording); ``interior``: only pixels whose entire 3x3
        neighbourhood differs, if there are ``count`` of them.

    Returns:
      coords (b p count 2) of pixel centres in the input frame, labels (b p count) int32, valid (b p count) bool.
    """
    width = student.shape[-1]

    def one(key: Array, s: Array, t: Array, v: Array) -> tuple[Array, Array, Array]:
        area = (s != t) & v
        enough = area.sum() >= min_disagreement * count
        side_key, pixel_key = jax.random.split(key)
        if law == "side":
            missed, surplus = area & t, area & ~t
            pick_missed = jnp.where(missed.any() & surplus.any(), jax.random.bernoulli(side_key), missed.any())
            area = jnp.where(pick_missed, missed, surplus)
        elif law == "interior":
            thick = _erode(area)
            area = jnp.where(thick.sum() >= count, thick, area)
        index, there = draw_pixels(pixel_key, area, count)
        y, x = index // width, index % width
        coords = (jnp.stack([x, y], axis=-1) + 0.5) * cell - 0.5
        return coords, t[y, x].astype(jnp.int32), there & enough

    def image(key: Array, s: Array, t: Array, v: Array) -> tuple[Array, Array, Array]:
        return jax.vmap(one, in_axes=(0, 0, 0, None))(jax.random.split(key, len(s)), s, t, v)

    return jax.vmap(image)(keys, student, teacher, valid)


def _erode(area: Array) -> Array:
    """Pixels whose entire 3x3 neighbourhood is set."""
    h, w = area.shape
    padded = jnp.pad(area, 1)
    shifts = [padded[i : i + h, j : j + w] for i in range(3) for j in range(3)]
    return jnp.stack(shifts).all(axis=0)
