"""The two halves of a RepViT block in training, each with a single backward pass.

A chain of separate convolutions, norms and GELUs keeps the result of every step for the backward pass.  Most results
can be recomputed from another kept result in one pass over memory.  Here a block keeps six maps of its width instead of
fourteen, and reads and writes less in both directions (docs/performance.md, "Training steps at full size").
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax

from edgesam_jax.models.kernels import ops, platforms
from edgesam_jax.models.kernels.ops import stored
from edgesam_jax.models.kernels.strips import WHOLE, Cut, add_to_edges, convolve, gradients, narrow, widen

Moments = tuple[Array, Array]  # mean and biased variance (c)
Norm = tuple[Array, Array]  # scale and bias (c)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def depthwise_unit(
    x: Array,
    kernel: Array,
    point: Array,
    norm: Norm,
    point_norm: Norm,
    epsilon: float,
    axis_name: str | None,
    cut: Cut = WHOLE,
) -> tuple[Array, Moments, Moments]:
    """RepViT's token mixer: norm(3x3 depthwise) + norm(1x1 depthwise) + x, of x (b h w c), which may be ``cut``.

    ``kernel`` is (k k 1 c), ``point`` (c).  Returns the sum in the dtype of x, and the moments of the results of both
    convolutions, through which no gradient flows.  The 1x1 convolution only scales channels, and its result is never
    formed.
    """
    return _unit_forward(x, kernel, point, norm, point_norm, epsilon, axis_name, cut)[0]


def _unit_forward(
    x: Array,
    kernel: Array,
    point: Array,
    norm: Norm,
    point_norm: Norm,
    epsilon: float,
    axis_name: str | None,
    cut: Cut = WHOLE,
) -> tuple[tuple[Array, Moments, Moments], tuple[object, ...]]:
    y, (mean, var) = _convolved(x, kernel, axis_name, cut)
    x_mean, x_var = ops.moments(x, axis_name, cut.strips)
    point = point.astype(jnp.float32)
    point_mean, point_var = point * x_mean, point * point * x_var
    inverse, point_inverse = lax.rsqrt(var + epsilon), lax.rsqrt(point_var + epsilon)
    factor, point_factor = norm[0] * inverse, point_norm[0] * point_inverse
    shift = norm[1] - mean * factor + point_norm[1] - point_mean * point_factor
    wide, y_wide = x.astype(jnp.float32), y.astype(jnp.float32)
    factor, gain, shift = (ops.tiled(v, cut.strips) for v in (factor, point_factor * point + 1.0, shift))
    out = (y_wide * factor + wide * gain + shift).astype(x.dtype)
    saved = x, y, kernel, point, norm[0], point_norm[0], mean, inverse, x_mean, point_inverse
    return (out, (mean, var), (point_mean, point_var)), saved


def _convolved(x: Array, kernel: Array, axis_name: str | None, cut: Cut) -> tuple[Array, Moments]:
    """The depthwise convolution of x, and its moments.

    The sums over a map of strips are taken before the neighbours' columns are added, as a part of the convolution, and
    then corrected.
    """
    if cut == WHOLE:
        y = stored(ops.depthwise_conv(x, kernel))
        return y, ops.moments(y, axis_name)
    apart, left, right = convolve(x, kernel, 1, cut)
    if cut.strips == 1:
        return apart, ops.moments(apart, axis_name)
    y = add_to_edges(apart, left, right)

    def sums(map: Array) -> Array:
        wide = map.astype(jnp.float32)
        return ops.gathered(jnp.stack([v.sum((0, 1, 2)) for v in (wide, wide * wide)]), cut.strips)

    total = sums(apart)
    for columns in (slice(0, left.shape[2]), slice(y.shape[2] - right.shape[2], y.shape[2])):
        total = total + sums(y[:, :, columns]) - sums(apart[:, :, columns])
    mean, square = total / (y.size // len(kernel[0, 0, 0]))
    return y, ops.shared_moments(mean, square, axis_name)


def _unit_backward(
    epsilon: float,
    axis_name: str | None,
    cut: Cut,
    saved: tuple[Array, ...],
    cotangents: tuple[Array, Moments, Moments],
) -> tuple[Array, Array, Array, Norm, Norm]:
    x, y, kernel, point, scale, point_scale, mean, inverse, x_mean, point_inverse = saved
    g = stored(cotangents[0])
    g_rows, x_rows, y_rows = (ops.rows(v).astype(jnp.float32) for v in (g, x, y))
    n, axes = x.size // len(point), ops.pixels(g_rows)
    total, along_y, along_x = (
        ops.gathered(v.sum(axis=axes), cut.strips) for v in (g_rows, g_rows * y_rows, g_rows * x_rows)
    )
    dscale = (along_y - mean * total) * inverse
    along_x = along_x - x_mean * total
    dpoint_scale = along_x * (point * point_inverse)
    # Gradients through the statistics are averaged over all devices; a parameter's gradient is this device's part.
    shared = total, dscale, along_x
    if axis_name is not None:
        shared = lax.pmean(shared, axis_name)
    mean_total, mean_scale, mean_point = shared[0] / n, shared[1] / n, shared[2] * point * point_inverse / n
    # The norm cancels the scale of the 1x1 convolution up to epsilon: summing over pixels would leave rounding errors.
    dpoint = shared[2] * point_scale * point_inverse**3 * epsilon

    tiled = functools.partial(ops.tiled, copies=cut.strips)
    centre = tiled(mean_total)
    dy = (g_rows - centre - (y_rows - tiled(mean)) * tiled(inverse * mean_scale)) * tiled(scale * inverse)
    dy = stored(dy.reshape(x.shape).astype(x.dtype))
    # d loss / d (1x1 convolution's result) = (g - mean_total - (x - x_mean) slope) gain
    gain, slope = point_scale * point_inverse, point * point_inverse * mean_point
    dx = g_rows + (g_rows - centre - (x_rows - tiled(x_mean)) * tiled(slope)) * tiled(gain * point)
    edges = None
    if platforms.on_tpu():
        through, edges, dkernel = gradients(x, kernel, dy, 1, cut)
    else:
        through, dkernel = ops.same_size_gradients(x, kernel, dy)
    dx = (ops.rows(stored(through)).astype(jnp.float32) + dx).reshape(x.shape).astype(x.dtype)
    dx = stored(dx) if edges is None else add_to_edges(dx, *edges)
    return dx, dkernel, dpoint.astype(kernel.dtype), (dscale, total), (dpoint_scale, total)


depthwise_unit.defvjp(_unit_forward, _unit_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def norm_gelu_pointwise(
    x: Array, norm: Norm, kernel: Array, epsilon: float, axis_name: str | None, strips: int = 1
) -> tuple[Array, Moments]:
    """The inside of RepViT's channel mixer: 1x1 convolution of gelu(batch norm of x (b h w c)) with ``kernel`` (c d).

    Returns (b h w d) and the moments of x, through which no gradient flows.  The backward pass recomputes the input of
    the convolution.  With ``strips``, c and d are those of a strip.
    """
    return _mixer_forward(x, norm, kernel, epsilon, axis_name, strips)[0]


def _mixer_forward(
    x: Array, norm: Norm, kernel: Array, epsilon: float, axis_name: str | None, strips: int = 1
) -> tuple[tuple[Array, Moments], tuple[object, ...]]:
    mean, var = ops.moments(x, axis_name, strips)
    inverse = lax.rsqrt(var + epsilon)
    hidden = stored(ops.gelu(_normed(x, norm, mean, inverse, strips)).astype(x.dtype))
    return (ops.mix_channels(hidden, widen(kernel, strips)), (mean, var)), (x, norm, kernel, mean, inverse)


def _normed(x: Array, norm: Norm, mean: Array, inverse: Array, strips: int) -> Array:
    factor = norm[0] * inverse
    return x.astype(jnp.float32) * ops.tiled(factor, strips) + ops.tiled(norm[1] - mean * factor, strips)


def _mixer_backward(
    epsilon: float,
    axis_name: str | None,
    strips: int,
    saved: tuple[Array, Norm, Array, Array, Array],
    cotangents: tuple[Array, Moments],
) -> tuple[Array, Norm, Array]:
    x, norm, kernel, mean, inverse = saved
    g = stored(cotangents[0])
    normed = _normed(x, norm, mean, inverse, strips)
    cdf = stored(ops.normal_cdf(normed).astype(x.dtype))
    hidden = stored((normed * cdf).astype(x.dtype))
    dkernel = narrow(ops.contract_rows(hidden, g), strips).astype(kernel.dtype)
    dnormed = (ops.mix_channels(g, widen(kernel, strips).T) * ops.gelu_slope(normed, cdf)).astype(x.dtype)
    dx, dscale, dbias = ops.norm_gradient(x, mean, inverse, norm[0], dnormed, axis_name, strips)
    return dx, (dscale, dbias), dkernel


norm_gelu_pointwise.defvjp(_mixer_forward, _mixer_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def scale_gelu(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """gelu(layer norm) of (... c) whose last axis has mean 0 already: the upscaled map of the mask decoder."""
    return _scale_gelu_forward(x, scale, bias, epsilon)[0]


def _scale_gelu_forward(
    x: Array, scale: Array, bias: Array, epsilon: float
) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    wide = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    inverse = lax.rsqrt(jnp.mean(wide * wide, -1) + epsilon)
    normed = stored((wide * inverse[:, None]).astype(x.dtype))
    y = stored(ops.gelu(normed.astype(jnp.float32) * scale + bias).astype(x.dtype))
    return y.reshape(x.shape), (normed, inverse, scale, bias)


def _scale_gelu_backward(
    epsilon: float, saved: tuple[Array, Array, Array, Array], g: Array
) -> tuple[Array, Array, Array]:
    kept, inverse, scale, bias = saved
    normed = kept.astype(jnp.float32)
    out = normed * scale + bias
    slope = stored(g.reshape(normed.shape) * ops.gelu_slope(out, ops.normal_cdf(out)))
    along = stored(slope * normed)
    # A product with a vector: before a sum along the last axis, XLA would write out the scale for every row.
    shared = along @ (scale / len(scale))
    dx = (slope * scale - normed * shared[:, None]) * inverse[:, None]
    return dx.reshape(g.shape).astype(kept.dtype), along.sum(0), slope.sum(0)


scale_gelu.defvjp(_scale_gelu_forward, _scale_gelu_backward)
