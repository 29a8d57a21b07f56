"""The mask decoder's operations between image tokens and prompt tokens, as accelerators compute them.

Image tokens are (q c s): channels, then the s pixels of the grid.  q is the number of images as long as the tokens are
the same for every prompt, then n, the number of prompts of all images.  An accelerator's memory has tiles of 8 by 128
numbers, which thousands of pixels fill; heads of 16 channels, seven tokens or the four pixels of a cell in the last
axis would leave it mostly empty, and every change of layout is a pass over memory.  So pixels are the last axis of
everything here.  Tokens and heads share the axis of ``rows``, (t h).

A TPU's compiler fuses what comes before or after a product into it, but only what no other product needs: a value with
several consumers is stored.  Here every product computes its operands anew (``_own``), and normalised image tokens are
never stored, only what they are made of (``Parts``).  The backward passes are written by hand to the same end.
``kernels/image_tokens.py`` has the same operations for a CPU.  Measurements: docs/accelerators.md.
"""

from __future__ import annotations

import functools
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from edgesam_jax.models.kernels import ops, platforms

WIDE = jnp.float32


class Parts(NamedTuple):
    """What normalised image tokens (n c s) are made of.

    ``total`` (n c s), before the norm; ``mean`` and ``inverse``, 1 / standard deviation, (n 1 s); ``scale`` and
    ``bias`` (c).
    """

    total: Array
    mean: Array
    inverse: Array
    scale: Array
    bias: Array


class Image(NamedTuple):
    """Image tokens (q c s) in float32.

    If ``parts`` are given, ``value`` only carries the gradient: no operation reads it, and it is never computed.
    """

    value: Array
    parts: Parts | None = None


def _own(tree: Any, use: str) -> Any:
    """``tree``, for one product alone: what is computed from it is fused into that product.

    ``use`` tells it from other uses of the same arrays, which XLA would join.
    """
    if not platforms.on_tpu():
        return tree
    return lax.optimization_barrier((tree, jnp.int32(zlib.crc32(use.encode()) % 2**31)))[0]


def _tokens(value: Array, parts: Parts | None, use: str) -> Array:
    if parts is None:
        return value
    total, mean, inverse, scale, bias = _own(parts, use)
    return (total - mean) * inverse * scale[:, None] + bias[:, None]


# ------------------------------------------------------------------------------------------------------ the products


def _product(spec: str, a: Array, b: Array) -> Array:
    return jnp.einsum(spec, a, b, preferred_element_type=WIDE)


def _by_pixel(rows: Array, image: Array) -> Array:
    """(n r c), (q c s) -> (n r s)."""
    return _products("rc,cs->rs", rows, image.astype(rows.dtype))


def _over_pixels(weights: Array, image: Array) -> Array:
    """(n r s), (q c s) -> (n r c)."""
    return _products("rs,cs->rc", weights, image.astype(weights.dtype))


def _products(spec: str, a: Array, b: Array) -> Array:
    """A product for each of n prompts, with b of n prompts or of q images.  Axes of size 1 would hinder fusion."""
    left, rest = spec.split(",")
    right, out = rest.split("->")
    if len(a) == len(b):
        return _product(f"n{left},n{right}->n{out}", a, b)
    if len(b) == 1:
        return _product(f"n{left},{right}->n{out}", a, b[0])
    result = _product(f"bn{left},b{right}->bn{out}", a.reshape(len(b), -1, *a.shape[1:]), b)
    return result.reshape(len(a), *result.shape[2:])


def _over_rows(weights: Array, rows: Array, images: int) -> Array:
    """(n r s), (n r c) -> (q c s): summed over the prompts of each image, if there are fewer images than prompts."""
    if images == len(rows):
        return _product("nrs,nrc->ncs", weights, rows)
    if images == 1:
        return _product("nrs,nrc->cs", weights, rows)[None]
    weights, rows = (x.reshape(images, -1, *x.shape[1:]) for x in (weights, rows))
    return _product("bnrs,bnrc->bcs", weights, rows)


def _sum_over_pixels(x: Array) -> Array:
    """(... s) -> (...), as a product with ones: a plain sum would be a pass of its own."""
    return _product("...s,so->...o", x, jnp.ones((x.shape[-1], 8), x.dtype))[..., 0]


# --------------------------------------------------------------------------------------------------------- attention


def scores(image: Image, positions: Array, rows: Array) -> Array:
    """Products (n r s), in float32, of rows (n r c) with image tokens plus their ``positions`` (c s)."""
    return _scores(image.value, lax.stop_gradient(image.parts), lax.stop_gradient(positions), rows)


@jax.custom_vjp
def _scores(value: Array, parts: Parts | None, positions: Array, rows: Array) -> Array:
    return _by_pixel(rows, _tokens(value, parts, "scores") + positions)


def _scores_forward(value: Array, parts: Parts | None, positions: Array, rows: Array) -> tuple[Array, Any]:
    return _scores(value, parts, positions, rows), (_kept(value, parts), parts, positions, rows)


def _scores_backward(saved: Any, g: Array) -> tuple[Array, None, None, Array]:
    value, parts, positions, rows = saved
    narrow, tokens = g.astype(rows.dtype), _tokens(value, parts, "gradient of scores")
    drows = _over_pixels(narrow, tokens + positions).astype(rows.dtype)
    return _over_rows(narrow, rows, len(tokens)), None, None, drows


def _kept(value: Array, parts: Parts | None) -> Array | None:
    return value if parts is None else None


_scores.defvjp(_scores_forward, _scores_backward)


def mix(weights: Array, image: Image) -> Array:
    """Sums (n r c) of image tokens with weights (n r s), in the dtype of the weights."""
    return _mix(weights, image.value, lax.stop_gradient(image.parts))


@jax.custom_vjp
def _mix(weights: Array, value: Array, parts: Parts | None) -> Array:
    return _over_pixels(weights, _tokens(value, parts, "mix")).astype(weights.dtype)


def _mix_forward(weights: Array, value: Array, parts: Parts | None) -> tuple[Array, Any]:
    return _mix(weights, value, parts), (weights, _kept(value, parts), parts)


def _mix_backward(saved: Any, g: Array) -> tuple[Array, Array, None]:
    weights, value, parts = saved
    tokens = _tokens(value, parts, "gradient of mix")
    return _by_pixel(g, tokens).astype(weights.dtype), _over_rows(weights, g, len(tokens)), None


_mix.defvjp(_mix_forward, _mix_backward)


def spread_norm(weights: Array, rows: Array, image: Image, scale: Array, bias: Array, epsilon: float) -> Image:
    """Layer norm of image tokens plus sums of rows (n r c) with weights (n r s).

    The variance is E[x^2] - E[x]^2 in float32: what is summed has a mean below its deviation, as it comes from norms.
    """
    parts = lax.stop_gradient(image.parts)
    value, new = _spread_norm(weights, rows, image.value, parts, scale, bias, epsilon)
    return Image(value, lax.stop_gradient(new))


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _spread_norm(
    weights: Array, rows: Array, value: Array, parts: Parts | None, scale: Array, bias: Array, epsilon: float
) -> tuple[Array, Parts]:
    return _spread_norm_forward(weights, rows, value, parts, scale, bias, epsilon)[0]


def _spread_norm_forward(
    weights: Array, rows: Array, value: Array, parts: Parts | None, scale: Array, bias: Array, epsilon: float
) -> tuple[tuple[Array, Parts], Any]:
    tokens = _tokens(value, parts, "residual")
    images = len(tokens)
    if 1 < images < len(rows):
        tokens = jnp.repeat(tokens, len(rows) // images, axis=0)
    total = _over_rows(weights, rows, len(rows)) + tokens
    mean, square = total.mean(axis=1, keepdims=True), (total * total).mean(axis=1, keepdims=True)
    inverse = lax.rsqrt(jnp.maximum(square - mean * mean, 0) + epsilon)
    new = Parts(total, mean, inverse, scale, bias)
    return (_tokens(total, new, "value"), new), (weights, rows, images, new)


def _spread_norm_backward(epsilon: float, saved: Any, cotangents: tuple[Array, Any]) -> Any:
    del epsilon
    weights, rows, images, (total, mean, inverse, scale, _) = saved
    g, dtype = cotangents[0], rows.dtype
    scaled = g * scale[:, None]
    along = jnp.mean(scaled * (total - mean) * inverse, axis=1, keepdims=True)
    given = g, total, scaled.mean(axis=1, keepdims=True), along

    def through(use: str) -> Array:
        g, total, level, along = _own(given, use)
        return (g * scale[:, None] - level - (total - mean) * inverse * along) * inverse

    g, total = _own((g, total), "scale")
    dscale = _sum_over_pixels((g * (total - mean) * inverse).astype(dtype)).sum(0)
    dbias = _sum_over_pixels(_own(g, "bias").astype(dtype)).sum(0)
    drows, dweights = _over_pixels(weights, through("rows")), _by_pixel(rows, through("weights"))
    dvalue = through("value")
    if images < len(rows):
        dvalue = dvalue.reshape(images, -1, *dvalue.shape[1:]).sum(axis=1)
    return dweights.astype(weights.dtype), drows.astype(dtype), dvalue, None, dscale, dbias


_spread_norm.defvjp(_spread_norm_forward, _spread_norm_backward)


# --------------------------------------------------------------------------------------------------------- upscaling


class Upscaling(NamedTuple):
    """Parameters of the decoder's two transposed convolutions.

    ``first`` (c 4*d) and ``second`` (d 4*e) are their kernels, by pixel of a cell, ``first_bias`` (d), ``second_bias``
    (e); ``scale`` and ``bias`` (d) of the norm between them.  The mean of ``first`` and ``first_bias`` over d is 0.
    """

    first: Array
    first_bias: Array
    scale: Array
    bias: Array
    second: Array
    second_bias: Array


def upscaled_masks(image: Image, parameters: Upscaling, query: Array, epsilon: float) -> tuple[Array, Array]:
    """Mask logits (n m 16 s), by pixel of a cell, of the queries (n m e), and the upscaled image (n 16 e s).

    gelu(convolution(gelu(norm(convolution of the image)))), times the queries.  ``place`` puts the pixels of cells into
    rows and columns.
    """
    logits, upscaled = _upscaled(image.value, lax.stop_gradient(image.parts), parameters, query, epsilon)
    return logits.reshape(*query.shape[:2], 16, -1), upscaled.reshape(len(query), 16, query.shape[-1], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _upscaled(
    value: Array, parts: Parts | None, parameters: Upscaling, query: Array, epsilon: float
) -> tuple[Array, Array]:
    narrow = query.dtype
    normed, _, _ = _first(value, parts, parameters, narrow, epsilon)
    upscaled = ops.gelu(_second(ops.gelu(normed).astype(narrow), parameters)).astype(narrow)
    return _logits(query, upscaled), upscaled


def _first(
    value: Array, parts: Parts | None, parameters: Upscaling, narrow: Any, epsilon: float
) -> tuple[Array, Array, Array]:
    """The norm of the first convolution (n 4 d s), what goes into the norm, and 1 / its deviation (n 4 1 s)."""
    tokens = _tokens(value, parts, "upscaling").astype(narrow)
    total = _product("cf,ncs->nfs", _own(parameters.first.astype(narrow), "first kernel"), tokens)
    total = total + jnp.tile(parameters.first_bias, 4)[:, None]
    total = total.reshape(len(total), 4, -1, total.shape[-1])
    inverse = lax.rsqrt(jnp.mean(total * total, axis=2, keepdims=True) + epsilon)
    return total * inverse * parameters.scale[:, None] + parameters.bias[:, None], total, inverse


def _second(hidden: Array, parameters: Upscaling) -> Array:
    """The second convolution (n 4 4*e s) of (n 4 d s)."""
    # A layout for the kernel's small axes would spread to everything that follows.
    kernel = _own(parameters.second.astype(hidden.dtype), "second kernel")
    return _product("df,nkds->nkfs", kernel, hidden) + jnp.tile(parameters.second_bias, 4)[:, None]


def _logits(query: Array, upscaled: Array) -> Array:
    """Products (n m 4 4 s) of the queries with the upscaled image (n 4 4*e s)."""
    n, m, _ = query.shape
    logits = _product("nrf,nkfs->nkrs", _for_each_pixel(query), upscaled).astype(query.dtype)
    return logits.reshape(n, 4, 4, m, -1).transpose(0, 3, 1, 2, 4)


def _for_each_pixel(query: Array) -> Array:
    """Queries (n m e) as rows (n 4*m 4*e) of which each reads one of four pixels: the pixels needn't be separated."""
    n, m, e = query.shape
    return jnp.einsum("lk,nme->nlmke", jnp.eye(4, dtype=query.dtype), query).reshape(n, 4 * m, 4 * e)


def _gelu_and_slope(x: Array, narrow: Any) -> tuple[Array, Array]:
    """GELU and its derivative, stored: erf and exp would otherwise be computed again in the backward pass."""
    cdf = ops.normal_cdf(x)
    pair = (x * cdf).astype(narrow), ops.gelu_slope(x, cdf).astype(narrow)
    return lax.optimization_barrier(pair)


def _upscaled_forward(
    value: Array, parts: Parts | None, parameters: Upscaling, query: Array, epsilon: float
) -> tuple[tuple[Array, Array], Any]:
    narrow = query.dtype
    normed, total, inverse = _first(value, parts, parameters, narrow, epsilon)
    hidden, hidden_slope = _gelu_and_slope(normed, narrow)
    upscaled, slope = _gelu_and_slope(_second(hidden, parameters), narrow)
    saved = _kept(value, parts), parts, parameters, query, total, inverse, hidden, hidden_slope, upscaled, slope
    return (_logits(query, upscaled), upscaled), saved


def _upscaled_backward(epsilon: float, saved: Any, cotangents: tuple[Array, Array]) -> Any:
    del epsilon
    value, parts, parameters, query, total, inverse, hidden, hidden_slope, upscaled, slope = saved
    g, g_upscaled = cotangents
    narrow, (n, m, e), (d, _) = query.dtype, query.shape, parameters.second.shape
    g = g.transpose(0, 2, 3, 1, 4).reshape(n, 4, 4 * m, -1)
    dquery = _product("nkrs,nkfs->nrf", g, upscaled).reshape(n, 4, m, 4, e)
    dquery = jnp.einsum("nlmle->nme", dquery).astype(narrow)
    dsecond_in = _product("nrf,nkrs->nkfs", _for_each_pixel(query), g) + g_upscaled.astype(WIDE)
    dsecond_in = (dsecond_in * slope.astype(WIDE)).astype(narrow)
    dsecond_bias = _sum_over_pixels(dsecond_in).reshape(-1, e).sum(0)
    dsecond = _product("nkds,nkfs->df", hidden, dsecond_in)
    dnormed = _product("df,nkfs->nkds", _own(parameters.second.astype(narrow), "second kernel"), dsecond_in)
    dnormed = dnormed * hidden_slope.astype(WIDE)
    dbias, dscale = dnormed.sum((0, 1, 3)), (dnormed * (total * inverse)).sum((0, 1, 3))
    along = jnp.mean(dnormed * parameters.scale[:, None] * (total * inverse), axis=2, keepdims=True)
    given = dnormed, total, inverse, along

    def through(use: str) -> Array:
        dnormed, total, inverse, along = _own(given, use)
        return ((dnormed * parameters.scale[:, None] - total * inverse * along) * inverse).astype(narrow)

    first = _own(parameters.first.astype(narrow), "first kernel").reshape(-1, 4, d)
    tokens = _tokens(value, parts, "gradient of upscaling").astype(narrow)
    dfirst = _product("ncs,nkds->ckd", tokens, through("kernel")).reshape(parameters.first.shape)
    dvalue = _product("ckd,nkds->ncs", first, through("value"))
    dfirst_bias = _sum_over_pixels(through("bias")).sum((0, 1))
    return dvalue, None, Upscaling(dfirst, dfirst_bias, dscale, dbias, dsecond, dsecond_bias), dquery


_upscaled.defvjp(_upscaled_forward, _upscaled_backward)


# -------------------------------------------------------------------------------------- the pixels of cells, in place


def place(cells: Array, grid: int) -> Array:
    """Put the pixels of cells (... 16 grid*grid) into rows and columns: (... 4*grid 4*grid), in the same dtype.

    Two products with ones and zeros, which are exact; transposes of so small axes would take twenty times as long.
    """
    lead, places, exact = cells.shape[:-2], *_places(cells, grid)
    x = cells.astype(places.dtype).reshape(*lead, 2, 2, 2, 2, grid, grid)  # a b e f i j: rows a, e, i; columns b, f, j
    x = jnp.einsum("...abefij,bfjx->...aeix", x, places, precision=exact)
    x = jnp.einsum("...aeix,aeiy->...yx", x, places, precision=exact)
    return x > 0.5 if cells.dtype == bool else x.astype(cells.dtype)


def arrange(pixels: Array, grid: int) -> Array:
    """Undo ``place``."""
    lead, places, exact = pixels.shape[:-2], *_places(pixels, grid)
    x = jnp.einsum("...yx,aeiy->...aeix", pixels.astype(places.dtype), places, precision=exact)
    x = jnp.einsum("...aeix,bfjx->...abefij", x, places, precision=exact)
    x = x.reshape(*lead, 16, grid * grid)
    return x > 0.5 if pixels.dtype == bool else x.astype(pixels.dtype)


def _places(x: Array, grid: int) -> tuple[Array, Any]:
    """1 where pixel 4 i + 2 a + e is (a e i), of shape (2 2 grid 4*grid), and the precision that keeps ``x``."""
    dtype = jnp.bfloat16 if x.dtype == bool else x.dtype
    a, e, i = jnp.arange(2)[:, None, None, None], jnp.arange(2)[:, None, None], jnp.arange(grid)[:, None]
    places = (4 * i + 2 * a + e == jnp.arange(4 * grid)).astype(dtype)
    return places, lax.Precision.HIGHEST if dtype == WIDE else lax.Precision.DEFAULT
