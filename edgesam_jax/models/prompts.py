"""The fixed-size prompt buffer.

Slots 0 and 1 of a prompt hold the corners of its box.  In a prompt without a box, slot 0 holds the learned padding
token that SAM adds to such prompts, and slot 1 is empty.  Points follow from slot 2.  The decoder does not depend on
the order of the slots.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from edgesam_jax.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NOT_A_POINT, Prompts

BOX_SLOTS = 2


def from_boxes(boxes: Array, slots: int = 0) -> Prompts:
    """Make a buffer from boxes (b p 4) XYXY, with ``slots`` empty point slots."""
    b, p, _ = boxes.shape
    labels = jnp.broadcast_to(jnp.array([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT], jnp.int32), (b, p, 2))
    return _with_slots(boxes.reshape(b, p, 2, 2).astype(jnp.float32), labels, jnp.ones((b, p, 2), bool), slots)


def from_points(coords: Array, labels: Array, slots: int | None = None) -> Prompts:
    """Make a buffer from points (b p n 2) with labels (b p n) 1 or 0, in ``slots`` point slots.

    A point with label -1 leaves its slot empty.
    """
    b, p, n, _ = coords.shape
    head_labels = jnp.broadcast_to(jnp.array([NOT_A_POINT, NOT_A_POINT], jnp.int32), (b, p, 2))
    head_valid = jnp.broadcast_to(jnp.array([True, False]), (b, p, 2))
    head = Prompts(jnp.zeros((b, p, 2, 2)), head_labels, head_valid)
    return _join_points(head, coords, labels, n if slots is None else slots)


def from_boxes_and_points(boxes: Array, coords: Array, labels: Array, slots: int | None = None) -> Prompts:
    """Make a buffer from the boxes (b p 4), points (b p n 2) and labels (b p n), as in ``from_points``, of prompts."""
    return _join_points(from_boxes(boxes), coords, labels, coords.shape[2] if slots is None else slots)


def append(prompts: Prompts, slot: Array | int, coords: Array, labels: Array, valid: Array) -> Prompts:
    """Write points (b p k 2), labels (b p k) and valid (b p k) to the k slots from ``slot``; ``slot`` may be traced.

    The range is not checked: if it passes the end of the buffer, JAX writes to the last k slots.
    """
    update = jax.lax.dynamic_update_slice_in_dim
    return Prompts(
        update(prompts.coords, coords.astype(prompts.coords.dtype), slot, axis=2),
        update(prompts.labels, labels.astype(prompts.labels.dtype), slot, axis=2),
        update(prompts.valid, valid, slot, axis=2),
    )


def choose(condition: Array, a: Prompts, b: Prompts) -> Prompts:
    """Select per prompt: ``a`` where ``condition`` (b p) is True, else ``b``."""
    return jax.tree.map(lambda x, y: jnp.where(condition.reshape(*condition.shape, *(1,) * (x.ndim - 2)), x, y), a, b)


def _join_points(head: Prompts, coords: Array, labels: Array, slots: int) -> Prompts:
    points = Prompts(coords.astype(jnp.float32), labels.astype(jnp.int32), labels != NOT_A_POINT)
    joined = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=2), head, points)
    return _with_slots(joined.coords, joined.labels, joined.valid, slots - coords.shape[2])


def _with_slots(coords: Array, labels: Array, valid: Array, slots: int) -> Prompts:
    pad = ((0, 0), (0, 0), (0, slots))
    return Prompts(
        jnp.pad(coords, (*pad, (0, 0))),
        jnp.pad(labels, pad, constant_values=NOT_A_POINT),
        jnp.pad(valid, pad),
    )
