"""The fixed-size prompt buffer, and where the loop's new points come from.

Slots 0 and 1 of a prompt hold the corners of its box; of a prompt without a box, slot 0 holds the one learned padding
token that SAM adds to such prompts and slot 1 is empty.  Points follow from slot 2.  The decoder does not see the
order.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from edgesam_jax.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NOT_A_POINT, Prompts

BOX_SLOTS = 2


def from_boxes(boxes: Array, slots: int = 0) -> Prompts:
    """Boxes (b p 4) XYXY -> a buffer with ``slots`` empty point slots."""
    b, p, _ = boxes.shape
    labels = jnp.broadcast_to(jnp.array([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT], jnp.int32), (b, p, 2))
    return _with_slots(boxes.reshape(b, p, 2, 2).astype(jnp.float32), labels, jnp.ones((b, p, 2), bool), slots)


def from_points(coords: Array, labels: Array, slots: int | None = None) -> Prompts:
    """Points (b p n 2) with labels (b p n) 1 or 0 -> a buffer with ``slots`` point slots, n of them used."""
    b, p, n, _ = coords.shape
    head_labels = jnp.broadcast_to(jnp.array([NOT_A_POINT, NOT_A_POINT], jnp.int32), (b, p, 2))
    head_valid = jnp.broadcast_to(jnp.array([True, False]), (b, p, 2))
    head = Prompts(jnp.zeros((b, p, 2, 2)), head_labels, head_valid)
    return _join_points(head, coords, labels, n if slots is None else slots)


def from_boxes_and_points(boxes: Array, coords: Array, labels: Array, slots: int | None = None) -> Prompts:
    """Boxes (b p 4) and points (b p n 2) with labels (b p n) of the same prompts."""
    return _join_points(from_boxes(boxes), coords, labels, coords.shape[2] if slots is None else slots)


def append(prompts: Prompts, slot: Array | int, coords: Array, labels: Array, valid: Array) -> Prompts:
    """Write points (b p k 2), labels (b p k), valid (b p k) into the slots from ``slot`` on; ``slot`` may be traced.

    A traced ``slot`` can't be checked: JAX moves one past the end back to the last k slots.
    """
    update = jax.lax.dynamic_update_slice_in_dim
    return Prompts(
        update(prompts.coords, coords.astype(prompts.coords.dtype), slot, axis=2),
        update(prompts.labels, labels.astype(prompts.labels.dtype), slot, axis=2),
        update(prompts.valid, valid, slot, axis=2),
    )


def choose(condition: Array, a: Prompts, b: Prompts) -> Prompts:
    """Per prompt (b p): ``a`` where the condition holds, else ``b``."""
    return jax.tree.map(lambda x, y: jnp.where(condition.reshape(*condition.shape, *(1,) * (x.ndim - 2)), x, y), a, b)


def _join_points(head: Prompts, coords: Array, labels: Array, slots: int) -> Prompts:
    points = Prompts(coords.astype(jnp.float32), labels.astype(jnp.int32), jnp.ones(labels.shape, bool))
    joined = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=2), head, points)
    return _with_slots(joined.coords, joined.labels, joined.valid, slots - coords.shape[2])


def _with_slots(coords: Array, labels: Array, valid: Array, slots: int) -> Prompts:
    pad = ((0, 0), (0, 0), (0, slots))
    return Prompts(
        jnp.pad(coords, (*pad, (0, 0))),
        jnp.pad(labels, pad, constant_values=NOT_A_POINT),
        jnp.pad(valid, pad),
    )


def draw_pixels(key: Array, area: Array, count: int = 1) -> tuple[Array, Array]:
    """Draw ``count`` different pixels uniformly from ``area`` (h w) bool.

    Returns row-major indices (count,) and whether each was there to be drawn (count,).  Pure and without host
    callbacks: the k-th set pixel is found from the running sum.
    """
    running = jnp.cumsum(area.reshape(-1), dtype=jnp.int32)
    total = running[-1]
    uniform = jax.random.uniform(key, (count,))
    ranks: list[Array] = []
    for i in range(count):
        left = total - i
        rank = jnp.minimum((uniform[i] * left).astype(jnp.int32), left - 1)
        for earlier in jnp.sort(jnp.stack(ranks)) if ranks else ():
            rank = rank + (rank >= earlier)  # step over the ranks that are already taken
        ranks.append(rank)
    chosen = jnp.stack(ranks)
    index = jnp.sum(running[None] <= chosen[:, None], axis=1)
    there = jnp.arange(count) < total
    return jnp.where(there, index, 0), there


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
    """New points where the student's masks differ from the teacher's (EdgeSAM appendix D; facts, section 6.1).

    A point is drawn uniformly, without replacement, from the pixels that are valid and differ; its label is the
    teacher's value there.  Nothing is drawn for a prompt with fewer than ``min_disagreement * count`` such pixels.

    Args:
      keys: (b) random keys, one per image, so that what is drawn does not depend on how images are spread over devices.
      student, teacher: (b p h w) bool.  valid: (b h w) bool.
      cell: pixels of the input frame per mask pixel.
      law: ``uniform`` over the whole disagreement (the published code); ``side``: a fair coin between missed and
        surplus pixels where both exist (the paper's wording); ``interior``: only pixels whose 3x3 neighbourhood differs
        too, where there are any.

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
    """Pixels whose whole 3x3 neighbourhood is set."""
    h, w = area.shape
    padded = jnp.pad(area, 1)
    shifts = [padded[i : i + h, j : j + w] for i in range(3) for j in range(3)]
    return jnp.stack(shifts).all(axis=0)
