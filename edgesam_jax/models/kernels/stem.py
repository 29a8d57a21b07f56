"""The first two convolutions of an encoder, both 3x3 with stride 2, on a TPU: from a photo to a map of strips.

A photo's three colours would fill 3 of the 128 channels that a TPU keeps together, and XLA takes most of the model's
time to bring its columns, which memory holds side by side, apart.  Here a product with zeros and ones does that: it
puts the five columns that a cell of 4 x 4 pixels reads into the channels, strip by strip.  The first convolution then
yields the 2 x 2 pixels of a cell as channels, and the second one reads whole cells.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array, lax

from edgesam_jax.models.kernels import ops, platforms, strips
from edgesam_jax.models.kernels.fused import Moments, Norm

CELL = 4  # pixels per side of a cell, the stride of both convolutions together
PIECE = 8  # cells that a product gathers: its cost grows with them
READ = 5  # columns, and rows, that the first convolution reads for a cell: one before the cell and its own


def number(shape: tuple[int, ...], channels: int) -> int:
    """Number of strips for the photos' ``shape`` (b h w c) and the second convolution's channels; 0: doesn't apply."""
    _, height, width, colours = shape
    if not platforms.on_tpu() or height % CELL or width % CELL:
        return 0
    cut = strips.number(channels, width // CELL)
    return cut if cut * READ * colours <= strips.LANES else 0


def cells(x: Array, cut: int) -> Array:
    """Photos (b h w c) -> (b h w/(4*cut) 128): strip, column of the cell from -1 to 3, colour; the rest is 0."""
    b, height, width, colours = x.shape
    across = width // (CELL * cut)
    within = math.gcd(across, PIECE)
    pieces = x.reshape(b, height, cut, across // within, CELL * within, colours)
    shape = (cut, CELL * within, colours, within, strips.LANES)
    strip, at, colour, cell, lane = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in range(5))
    column, out = lane // colours % READ, lane % colours
    mine = (lane // (READ * colours) == strip) & (out == colour)
    chosen = (mine & (at == cell * CELL + column - 1)).astype(x.dtype)
    y = jnp.einsum("bhspwc,swcjl->bhpjl", pieces, chosen)
    # The column before a piece is the last of the piece before, and enters the first cell only.
    before = x[:, :, CELL * within - 1 :: CELL * within]
    before = jnp.pad(before, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1].reshape(b, height, cut, -1, colours)
    first = jnp.einsum("bhspc,scl->bhpl", before, (mine & (column == 0))[:, 0, :, 0].astype(x.dtype))
    return y.at[:, :, :, 0].add(first).reshape(b, height, across, strips.LANES)


def first_conv(x: Array, kernel: Array, cut: int) -> Array:
    """The first convolution of ``cells``, kernel (3 3 c d): (b h w l) -> (b h/4 w cut*4*d), pixels row by row."""
    k, _, colours, features = kernel.shape
    room = READ - k
    pixels = [
        jnp.pad(kernel, ((2 * i, room - 2 * i), (2 * j, room - 2 * j), (0, 0), (0, 0))) for i in (0, 1) for j in (0, 1)
    ]
    by_row = jnp.stack(pixels, axis=3).reshape(READ, 1, READ * colours, 4 * features)
    wide = strips.widen(by_row, cut)
    wide = jnp.pad(wide, ((0, 0), (0, 0), (0, x.shape[-1] - wide.shape[2]), (0, 0)))
    return lax.conv_general_dilated(x, wide, (CELL, 1), ((1, 0), (0, 0)), dimension_numbers=ops.DIMENSIONS)


def _of_cells(kernel: Array, cut: int) -> Array:
    """The second convolution's kernel (3 3 c d) for cells, (2 2 cut*4*c cut*d)."""
    channels, features = kernel.shape[2:]
    kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0))).reshape(2, 2, 2, 2, channels, features)
    return strips.widen(kernel.transpose(0, 2, 1, 3, 4, 5).reshape(2, 2, 4 * channels, features), cut)


def second_conv(x: Array, kernel: Array, bias: Array | None, cut: int) -> Array:
    """The second convolution, kernel (3 3 c d), bias (d): (b h w cut*4*c) -> (b h w cut*d)."""
    return _second(x, _of_cells(kernel, cut), None if bias is None else ops.tiled(bias, cut), cut)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _second(x: Array, kernel: Array, bias: Array | None, cut: int) -> Array:
    y = _within(x, kernel)
    y = y if bias is None else y + bias
    return y if cut == 1 else strips.add_to_edges(y, _across(x[:, :, -1:], kernel, cut), y[:, :, :0])


def _within(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), ((1, 0), (1, 0)), dimension_numbers=ops.DIMENSIONS)


def _across(last: Array, kernel: Array, cut: int) -> Array:
    """What the last column of each strip adds to the first column of the next."""
    before = strips.beside(last, cut, 1)
    return lax.conv_general_dilated(before, kernel[:, :1], (1, 1), ((1, 0), (0, 0)), dimension_numbers=ops.DIMENSIONS)


def _second_forward(
    x: Array, kernel: Array, bias: Array | None, cut: int
) -> tuple[Array, tuple[Array, Array, Array | None]]:
    return _second(x, kernel, bias, cut), (x, kernel, bias)


def _second_backward(cut: int, saved: tuple[Array, Array, Array | None], g: Array) -> tuple[Array, Array, Array | None]:
    x, kernel, bias = saved
    dx, dkernel = jax.vjp(_within, x, kernel)[1](g)
    if cut > 1:
        last, more = jax.vjp(lambda last, kernel: _across(last, kernel, cut), x[:, :, -1:], kernel)[1](g[:, :, :1])
        dx, dkernel = strips.add_to_edges(dx, dx[:, :, :0], last), dkernel + more
    return dx, dkernel, None if bias is None else g.astype(jnp.float32).sum((0, 1, 2)).astype(bias.dtype)


_second.defvjp(_second_forward, _second_backward)


def norm_gelu_conv(
    x: Array, norm: Norm, kernel: Array, epsilon: float, axis_name: str | None, cut: int
) -> tuple[Array, Moments]:
    """``second_conv`` of gelu(batch norm of x), and the moments of x, through which no gradient flows."""
    y, mean, var = ops.batch_norm(x, *norm, epsilon, axis_name, cut * 4)
    return second_conv(ops.gelu(y), kernel, None, cut), (mean, var)
