"""Softmax attention in the form for accelerators: channels in rows, tokens in columns.

On a TPU a product of large matrices is cheap, and copies between layouts are not.  Here a head is a matrix (d tokens).
The heads of a photo are then consecutive rows of one product with the weights, and no copy separates them.  The softmax
runs down the columns, element by element.  The logits are written once: their maximum is taken while they are computed,
and the exponential is an operand of the product with the values.

Decomposed relative positions add b(i - j) to the logit of a query in row i and a key in row j, where b is the product
of the query with a table of offsets; columns likewise.  Taking the entries i - j from b is a different shift for every
row of queries.  Instead b is written as a sum of cosines and sines.  Turned by the angle of the query's position, its
amplitudes are the factors of the key's cosines and sines, and the sum over frequencies is a product of matrices.  The
constant frequency adds the same to all logits of a query and is left out, because a softmax ignores it.

Measurements: docs/accelerators.md.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental.layout import Layout, with_layout_constraint

TILE_ROWS = 8  # of a TPU's tile of float32 numbers
MANY_KEYS = 1024  # from here on the sum of the exponentials is a row of the product with the values


def row_major(x: Array) -> Array:
    """``x`` with its last axis along a tile's columns; XLA's own choice costs copies elsewhere."""
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


# ---------------------------------------------------------------------------------------------- relative positions


class Waves(NamedTuple):
    """Cosines and sines of the positions of tokens along an axis, for queries and for keys.

    Attributes:
      cosines, sines: (... w queries), by which a query's amplitudes are turned.
      keys: (... w keys).
    """

    cosines: np.ndarray
    sines: np.ndarray
    keys: np.ndarray


def _sampled(size: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines (... f n) of positions (... n) at the frequencies of 2 size - 1 offsets, from the second.

    ``f`` is filled up with zeros to whole tiles.
    """
    frequencies = np.arange(1, size)[:, None]
    angles = 2 * np.pi / (2 * size - 1) * frequencies * positions[..., None, :]
    fill = [(0, 0)] * (angles.ndim - 2) + [(0, -(size - 1) % TILE_ROWS), (0, 0)]
    cosines, sines = (np.pad(function(angles), fill).astype(np.float32) for function in (np.cos, np.sin))
    return cosines, sines


def waves(size: int, queries: np.ndarray, keys: np.ndarray) -> Waves:
    """``Waves`` along an axis with positions 0 to ``size`` - 1, of the positions (... n) of queries and of keys."""
    cosines, sines = _sampled(size, queries)
    return Waves(
        np.concatenate([cosines, -cosines], axis=-2),
        np.concatenate([sines, sines], axis=-2),
        np.concatenate(_sampled(size, keys), axis=-2),
    )


class Amplitudes(NamedTuple):
    """Amplitudes (... d w) of a table's cosines and sines, and the same with cosines and sines exchanged."""

    plain: Array
    exchanged: Array


def amplitudes(table: Array, scale: float) -> Amplitudes:
    """``Amplitudes`` of relative positions (... 2 size - 1 d), for queries that are scaled by ``scale``.

    Offset i - j is in row i - j + size - 1.
    """
    size = (table.shape[-2] + 1) // 2
    cosines, sines = _sampled(size, np.arange(1 - size, size))
    factor = np.float32(2 / (2 * size - 1) / scale)
    by_channel = table.astype(jnp.float32).swapaxes(-1, -2)
    plain, exchanged = (
        jnp.matmul(by_channel, factor * np.concatenate(pair).T, precision="highest")
        for pair in ((cosines, sines), (sines, cosines))
    )
    return Amplitudes(plain, exchanged)


def turn(q: Array, amplitude: Amplitudes, wave: Waves) -> Array:
    """Factors (... w q) of the keys' waves for queries (... d q), in the dtype of ``q``."""
    plain, exchanged = (products(x.astype(q.dtype), q) for x in amplitude)
    plain, exchanged = lax.optimization_barrier((plain, exchanged))
    return (plain * wave.cosines + exchanged * wave.sines).astype(q.dtype)


# --------------------------------------------------------------------------------------------------------- softmax


def products(k: Array, q: Array) -> Array:
    """Products (... k q), in float32, of all columns of ``k`` (... d k) with all columns of ``q`` (... d q)."""
    return jnp.einsum("...dk,...dq->...kq", k, q, preferred_element_type=jnp.float32)


def _mix(values: Array, logits: Array, largest: Array) -> Array:
    weights = jnp.exp(logits - largest).astype(values.dtype)
    return jnp.einsum("...dk,...kq->...dq", values, weights, preferred_element_type=jnp.float32)


def softmax_mix(logits: Array, v: Array) -> Array:
    """Mix values ``v`` (... d k) by the softmax over keys of float32 logits (... k q): (... d q) in the dtype of v."""
    # The barrier keeps the maximum in the pass that computes the logits; the exponential can't be in it.
    logits, largest = lax.optimization_barrier((logits, logits.max(-2, keepdims=True)))
    largest = lax.stop_gradient(largest)
    ones = jnp.ones((*v.shape[:-2], TILE_ROWS, v.shape[-1]), v.dtype)
    if v.shape[-1] >= MANY_KEYS:
        mixed = lax.optimization_barrier(_mix(jnp.concatenate([v, ones], axis=-2), logits, largest))
        d = v.shape[-2]
        return (mixed[..., :d, :] / mixed[..., d : d + 1, :]).astype(v.dtype)
    # With few keys, computing the exponentials twice is cheaper than a pass that only divides.
    total = _mix(ones, logits, largest)[..., :1, :]
    logits, largest, total = lax.optimization_barrier((logits, largest, total))
    return (_mix(v, logits, largest) / total).astype(v.dtype)
