"""Maps of few channels on a TPU: vertical strips of the map, side by side in its channels.

A TPU stores and computes 128 channels at a time, so that a map of 48 would take as long as one of 128.  Cut into q
strips, (b h w c) becomes (b h w/q q*c); 8 strips of 48 channels fill the lanes.  Whatever treats all pixels alike is
the same as before with its parameters repeated for every strip.  A convolution also needs the columns beside each
strip: those of its neighbours are added to the first and last columns of the result.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from edgesam_jax.models.kernels import bands, ops, platforms

LANES = 128  # channels that a TPU keeps together
NARROWEST = 4  # columns of a strip


def number(channels: int, columns: int) -> int:
    """Number of strips for a map: the fewest that fill the lanes, a power of two; 1 on other platforms than a TPU."""
    if not platforms.on_tpu() or channels >= LANES:
        return 1
    strips = 1
    while strips * channels % LANES and columns % (2 * strips * NARROWEST) == 0:
        strips *= 2
    return strips


def regroup(x: Array, strips: int, new: int) -> Array:
    """Join neighbouring strips, or cut them: a map of ``strips`` strips as one of ``new``; one divides the other."""
    if strips == new:
        return x
    b, h, w, c = x.shape
    c //= strips
    if new < strips:
        x = x.reshape(b, h, w, new, strips // new, c).transpose(0, 1, 4, 2, 3, 5)
    else:
        x = x.reshape(b, h, new // strips, w * strips // new, strips, c).transpose(0, 1, 3, 4, 2, 5)
    return x.reshape(b, h, w * strips // new, new * c)


def widen(kernel: Array, strips: int) -> Array:
    """The kernel (... c d) of a dense convolution for a map of strips, (... q*c q*d): each strip by itself."""
    if strips == 1:
        return kernel
    *window, c, d = kernel.shape
    apart = jnp.eye(strips, dtype=kernel.dtype)[:, None, :, None] * kernel[..., None, :, None, :]
    return ops.apart(apart.reshape(*window, strips * c, strips * d))


def narrow(gradient: Array, strips: int) -> Array:
    """The gradient (... c d) of a kernel, from that of ``widen(kernel, strips)``."""
    if strips == 1:
        return gradient
    *window, c, d = gradient.shape
    return jnp.einsum("...qcqd->...cd", gradient.reshape(*window, strips, c // strips, strips, d // strips))


# ------------------------------------------------------------------------------------------------------ convolutions

Correlation = Callable[[Array, Array, int, tuple[int, int], tuple[int, int]], Array]  # x, kernel, stride, padding


def beside(columns: Array, strips: int, step: int) -> Array:
    """Columns (b h n q*c) of each strip at the place of the strip ``step`` further right; zeros enter at the edge."""
    b, h, n, c = columns.shape
    apart = columns.reshape(b, h, n, strips, c // strips)
    before, after = max(step, 0), max(-step, 0)
    apart = jnp.pad(apart, ((0, 0), (0, 0), (0, 0), (before, after), (0, 0)))
    return lax.slice_in_dim(apart, after, after + strips, axis=3).reshape(b, h, n, c)


def from_neighbours(
    correlate: Correlation, edges: tuple[Array, Array], kernel: Array, stride: int, strips: int, above: int
) -> tuple[Array, Array]:
    """What the neighbours of each strip add to the first and to the last columns of a convolution, in float32.

    ``edges`` are the first and last ``k // 2`` columns of the map, which is padded with ``above`` rows on either side.
    """
    k = kernel.shape[0]
    pad = k // 2
    first, last = (edge.astype(jnp.float32) for edge in edges)
    kernel = kernel.astype(jnp.float32)
    left_columns = -(-pad // stride)
    room = (left_columns - 1) * stride + k - pad
    left = correlate(beside(last, strips, 1), kernel, stride, (above, above), (0, room))
    reach = pad - stride + 1  # columns right of a strip that its last window covers
    if reach <= 0:
        return left, jnp.zeros((*left.shape[:2], 0, left.shape[3]), jnp.float32)
    right = correlate(beside(first, strips, -1)[:, :, :reach], kernel, stride, (above, above), (k - 1, 0))
    return left, right


def add_to_edges(y: Array, left: Array, right: Array) -> Array:
    """Add ``left`` to the first columns of y, and ``right`` to its last."""
    if left.shape[2]:
        y = y.at[:, :, : left.shape[2]].add(left.astype(y.dtype))
    if right.shape[2]:
        y = y.at[:, :, y.shape[2] - right.shape[2] :].add(right.astype(y.dtype))
    return y


def _edges(x: Array, kernel: Array) -> tuple[Array, Array]:
    pad = kernel.shape[0] // 2
    return x[:, :, :pad], x[:, :, x.shape[2] - pad :]


class Cut(NamedTuple):
    """How a map is cut: into ``strips``, and into ``bands`` (``bands.py``)."""

    strips: int = 1
    bands: int = 1


WHOLE = Cut()


def _extended(x: Array, kernel: Array, cut: Cut) -> tuple[Array, int]:
    """x with the rows that the neighbours of its bands have, and the rows of padding that are still to be added."""
    pad = kernel.shape[0] // 2
    return (x, pad) if cut.bands == 1 else (bands.extend(x, pad, cut.bands), 0)


def convolve(x: Array, kernel: Array, stride: int, cut: Cut) -> tuple[Array, Array, Array]:
    """Depthwise convolution of a cut map with a (k k 1 c) kernel, each strip by itself.

    Also returns what ``add_to_edges`` must add, so that the caller can fuse other operations with the convolution.
    """
    pad = kernel.shape[0] // 2
    x, above = _extended(x, kernel, cut)
    if cut.strips == 1:
        y = ops.correlate(x, kernel, stride, (above, above), (pad, pad))
        return y, y[:, :, :0], y[:, :, :0]
    kernel = ops.apart(ops.tiled(kernel, cut.strips))
    y = ops.correlate(x, kernel, stride, (above, above), (pad, pad))
    return y, *from_neighbours(ops.correlate, _edges(x, kernel), kernel, stride, cut.strips, above)


def gradients(x: Array, kernel: Array, g: Array, stride: int, cut: Cut) -> tuple[Array, tuple[Array, Array], Array]:
    """Gradients of x, without and with what ``add_to_edges`` must add, and of kernel; see ``convolve``."""
    pad, strips = kernel.shape[0] // 2, cut.strips
    x, above = _extended(x, kernel, cut)
    fold = functools.partial(bands.fold, rows=pad - above, bands=cut.bands)
    wide = ops.apart(ops.tiled(kernel, strips)) if strips > 1 else kernel
    dx, dk = ops.depthwise_gradients(x, wide, g, stride, (above, pad))
    if strips == 1:
        dx = fold(dx)
        return dx, (dx[:, :, :0], dx[:, :, :0]), dk.astype(kernel.dtype)
    sides, pull = jax.vjp(
        lambda edges, kernel: from_neighbours(ops.correlate, edges, kernel, stride, strips, above),
        _edges(x, wide),
        wide,
    )
    left, right = (side.shape[2] for side in sides)
    outer = g[:, :, :left].astype(jnp.float32), g[:, :, g.shape[2] - right :].astype(jnp.float32)
    (first, last), more = pull(outer)
    return fold(dx), (fold(first), fold(last)), ops.gathered(dk + more.astype(jnp.float32), strips).astype(kernel.dtype)


def depthwise_conv(x: Array, kernel: Array, bias: Array | None, stride: int, cut: Cut) -> Array:
    """Depthwise convolution of a cut map with an odd (k k 1 c) kernel, padded by k // 2 on every side.

    ``bias`` (q*c) is a part of the convolution.
    """
    if bias is None:
        return _depthwise_conv(x, kernel, stride, cut)
    return biased(x, kernel, bias, stride, cut)[0]


def biased(x: Array, kernel: Array, bias: Array, stride: int, cut: Cut) -> tuple[Array, Array]:
    """Depthwise convolution with a bias (q*c), and the mean of each photo's or band's result, (b 1 1 c).

    The mean is a part of the convolution too; it would be another pass over the map once the edges are added.
    """
    y, left, right = convolve(x, kernel, stride, cut)
    y = y + bias
    total: Any = sum(part.sum((1, 2), keepdims=True, dtype=jnp.float32) for part in (y, left, right))
    mean = ops.gathered(total, cut.strips) / (y.shape[1] * y.shape[2] * cut.strips)
    return add_to_edges(y, left, right), mean.astype(y.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise_conv(x: Array, kernel: Array, stride: int, cut: Cut) -> Array:
    return add_to_edges(*convolve(x, kernel, stride, cut))


def _forward(x: Array, kernel: Array, stride: int, cut: Cut) -> tuple[Array, tuple[Array, Array]]:
    return _depthwise_conv(x, kernel, stride, cut), (x, kernel)


def _backward(stride: int, cut: Cut, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    dx, edges, dk = gradients(*saved, g, stride, cut)
    return add_to_edges(dx, *edges), dk


_depthwise_conv.defvjp(_forward, _backward)
