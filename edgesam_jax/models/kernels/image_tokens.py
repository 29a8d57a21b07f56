"""Operations between the thousands of tokens of an image and the few of its prompts: products, softmax, sharing.

The backward passes are written by hand.  JAX would derive products that transpose the image; ``image_scores``,
``image_mix`` and ``image_spread`` are each other's derivatives and transpose the small operand only.  Both operands
have the same leading axes.  Measurements: docs/performance.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def softmax(x: Array, axis: int) -> Array:
    """Softmax of (... r s) over the last axis (``axis`` -1) or over its few rows (``axis`` -2).

    Rows are added one by one; XLA would reduce them with a stride.
    """
    return _softmax_forward(x, axis)[0]


def _softmax_forward(x: Array, axis: int) -> tuple[Array, Array]:
    if axis == -1:
        probs = jax.nn.softmax(x)
    else:
        powers = jnp.exp(x - _over_rows(jnp.maximum, x))
        probs = powers / _over_rows(jnp.add, powers)
    return probs, probs


def _softmax_backward(axis: int, probs: Array, g: Array) -> tuple[Array]:
    products = probs * g
    total = jnp.sum(products, axis=-1, keepdims=True) if axis == -1 else _over_rows(jnp.add, products)
    return (probs * (g - total),)


def _over_rows(f: Callable[[Array, Array], Array], x: Array) -> Array:
    """Reduce (... r s) over its rows with ``f``: (... 1 s)."""
    return functools.reduce(f, [x[..., i : i + 1, :] for i in range(x.shape[-2])])


softmax.defvjp(_softmax_forward, _softmax_backward)


@jax.custom_vjp
def image_scores(image: Array, rows: Array) -> Array:
    """Products of image tokens (... s c) with rows (... r c): (... r s)."""
    return jnp.einsum("...sc,...rc->...sr", image, rows).swapaxes(-1, -2)


@jax.custom_vjp
def image_mix(weights: Array, image: Array) -> Array:
    """Sums of image tokens (... s c) with weights (... r s): (... r c)."""
    return jnp.einsum("...rs,...sc->...rc", weights, image)


@jax.custom_vjp
def image_spread(weights: Array, rows: Array) -> Array:
    """Sums of rows (... r c) for each image token, with weights (... r s): (... s c)."""
    return jnp.einsum("...sr,...rc->...sc", weights.swapaxes(-1, -2), rows)


image_scores.defvjp(
    lambda image, rows: (image_scores(image, rows), (image, rows)),
    lambda saved, g: (image_spread(g, saved[1]), image_mix(g, saved[0])),
)
image_mix.defvjp(
    lambda weights, image: (image_mix(weights, image), (weights, image)),
    lambda saved, g: (image_scores(saved[1], g), image_spread(saved[0], g)),
)
image_spread.defvjp(
    lambda weights, rows: (image_spread(weights, rows), (weights, rows)),
    lambda saved, g: (image_scores(g, saved[1]), image_mix(saved[0], g)),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def share(image: Array, prompts: int) -> Array:
    """Repeat an image (b 1 s c) for each of ``prompts``: (b p s c).

    The gradient is summed prompt by prompt; XLA would sum along a strided axis, fused into the products that follow.
    """
    return jnp.broadcast_to(image, (len(image), prompts, *image.shape[2:]))


share.defvjp(
    lambda image, prompts: (share(image, prompts), None),
    lambda prompts, _, g: (functools.reduce(jnp.add, [g[:, i : i + 1] for i in range(prompts)]),),
)
