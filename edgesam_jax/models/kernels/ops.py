"""Operations whose training form is written by hand: GELU, norms, convolutions.

Their default form is slow on a CPU.  XLA copies an expensive producer (the erf polynomial, nine shifted products) into
every consumer instead of storing it once; it reduces shifted products over (b h w) one scalar at a time; it transposes
matrices for the gradient of a kernel; and its grouped convolution is 3 to 13 times slower than nine shifted
multiply-adds.  Here the backward passes are closed forms, and values with several consumers are stored once.
Measurements: docs/performance.md.

``platforms.py`` selects the form.  On other platforms than the CPU the forward pass is XLA's grouped convolution, and
XLA may fuse everything.  On a TPU all gradients are convolutions too, and maps never change their axes: XLA then keeps
them with the batch beside the channels, copies nothing, and fuses norms into the convolutions (docs/accelerators.md).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from edgesam_jax.models.kernels import platforms


def stored(x: Array) -> Array:
    """``x``, computed once and kept in memory on a CPU; XLA would recompute it for each of its consumers."""
    return lax.optimization_barrier(x) if platforms.on_cpu() else x


def apart(x: Array) -> Array:
    """``x``, an array of its own on a TPU, where XLA would compute it again within the convolutions that read it."""
    return lax.optimization_barrier(x) if platforms.on_tpu() else x


def after(x: Array, *others: Array) -> Array:
    """``x``, not to be used before ``others`` are computed.

    On a CPU XLA drops barriers before it orders a program; it would compute some values far too early, and keep them.
    There a zero that XLA can't simplify is made of each of ``others`` and added.  If one of them starts with NaN or
    infinity, ``x`` becomes NaN.
    """
    if not platforms.on_cpu():
        return lax.optimization_barrier((x, others))[0]
    return x + sum(0 * other.reshape(-1)[0].astype(x.dtype) for other in others)


def rows(x: Array) -> Array:
    """(... c) with all pixels along one axis on a CPU; elsewhere as it is.

    A TPU keeps the batch beside the channels, whatever the order of axes; to merge axes it would copy the map.
    """
    return x.reshape(-1, x.shape[-1]) if platforms.on_cpu() else x


def pixels(x: Array) -> tuple[int, ...]:
    """The axes of (... c) but the last."""
    return tuple(range(x.ndim - 1))


def tiled(v: Array, copies: int) -> Array:
    """``v`` repeated along its last axis: a parameter per channel for a map that holds each channel several times."""
    return v if copies == 1 else jnp.concatenate([v] * copies, axis=-1)


def gathered(v: Array, copies: int) -> Array:
    """The sum over the copies that ``tiled`` makes."""
    return v if copies == 1 else v.reshape(*v.shape[:-1], copies, -1).sum(-2)


# jax 0.10 removes the barriers of ``stored`` before it fuses.
BARRIERS_DO_NOT_HOLD = jax.__version_info__ < (0, 11)
DIMENSIONS = ("NHWC", "HWIO", "NHWC")
THIN = 8  # channels below which a dense convolution is too thin for matrix products


def _unfused(f: Callable[[Array], Array], x: Array, kernel: Array, shape: tuple[int, ...]) -> Array:
    """``f(x)``, of ``shape`` and the dtype of x, not fused with anything before or after; for the CPU only.

    Where barriers do not hold, ``f`` runs in a loop: XLA always stores the inputs and outputs of a loop.  The loop has
    one pass, or two with the same result if ``kernel`` starts with NaN: XLA can't predict the number, nor unroll.
    """
    if not BARRIERS_DO_NOT_HOLD:
        return f(x)
    first = kernel.reshape(-1)[0]
    passes = 1 + (first != first).astype(jnp.int32)
    carry = jnp.zeros((), jnp.int32), x, jnp.zeros(shape, x.dtype)
    return lax.while_loop(lambda c: c[0] < passes, lambda c: (c[0] + 1, c[1], f(c[1])), carry)[2]


def _taps(k: int, stride: int, out_shape: tuple[int, ...]) -> list[tuple[slice, slice, slice]]:
    """Index of the pixels of the padded input under each tap of a k x k kernel, row by row."""
    height, width = out_shape[1:3]
    down = [slice(i, i + (height - 1) * stride + 1, stride) for i in range(k)]
    across = [slice(j, j + (width - 1) * stride + 1, stride) for j in range(k)]
    return [(slice(None), i, j) for i in down for j in across]


def _spread(
    tap: Callable[[Array, int, int], Array], padded: Array, shape: tuple[int, ...], k: int, stride: int
) -> Array:
    """Gradient (b h w c) of the input of a strided convolution, from ``_pad_for_spread`` of its output's gradient.

    ``tap(x, i, j)`` applies the tap in row i and column j of the kernel to a piece of ``padded``.  Pixels at the same
    place in the stride use the same few taps; the zeros between pixels that a correlation needs are not inserted.
    """
    pad, (rows, columns) = k // 2, (-(-n // stride) for n in shape[1:3])
    low = (k - 1 - pad) // stride
    places = []
    for down in range(stride):
        for right in range(stride):
            total = jnp.zeros((), padded.dtype)
            for i in range((down + pad) % stride, k, stride):
                for j in range((right + pad) % stride, k, stride):
                    first, across = low + (down + pad - i) // stride, low + (right + pad - j) // stride
                    total = total + tap(padded[:, first : first + rows, across : across + columns], i, j)
            places.append(jnp.broadcast_to(total, (shape[0], rows, columns, shape[3])))
    x = jnp.stack(places, axis=3).reshape(shape[0], rows, columns, stride, stride, shape[3])
    x = x.swapaxes(2, 3).reshape(shape[0], rows * stride, columns * stride, shape[3])
    return x[:, : shape[1], : shape[2]]


def _pad_for_spread(g: Array, shape: tuple[int, ...], k: int, stride: int) -> Array:
    """Pad the gradient of the output with the zeros that ``_spread`` to an input of ``shape`` reads."""
    pad = k // 2
    low, high = (k - 1 - pad) // stride, (stride - 1 + pad) // stride
    sides = [(low, -(-full // stride) + high - small) for full, small in zip(shape[1:3], g.shape[1:3], strict=True)]
    return jnp.pad(g, ((0, 0), *sides, (0, 0)))


# -------------------------------------------------------------------------------------------------------------- GELU


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """Exact GELU, x Phi(x) with the erf; the tanh form differs from the published networks by 5e-4."""
    return (x * normal_cdf(x)).astype(x.dtype)


def normal_cdf(x: Array) -> Array:
    """Phi(x), the standard normal distribution function, in float32."""
    return 0.5 * (1.0 + lax.erf(x.astype(jnp.float32) * math.sqrt(0.5)))


def _gelu_forward(x: Array) -> tuple[Array, Array]:
    x = stored(x)
    return stored(gelu(x)), x


def _gelu_backward(x: Array, g: Array) -> tuple[Array]:
    wide = x.astype(jnp.float32)
    return (stored((g * gelu_slope(wide, normal_cdf(wide))).astype(x.dtype)),)


def gelu_slope(x: Array, cdf: Array) -> Array:
    """Derivative of GELU at x, from x and ``normal_cdf(x)``, all float32."""
    return cdf + x * jnp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))


gelu.defvjp(_gelu_forward, _gelu_backward)


# -------------------------------------------------------------------------------------------------------- layer norm


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """Layer norm of (... c) in float32, with the two-pass variance; E[x^2] - E[x]^2 would break parity."""
    return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(
    x: Array, scale: Array, bias: Array, epsilon: float
) -> tuple[Array, tuple[Array, Array, Array]]:
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    inverse = lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + epsilon)
    normed = centred * inverse
    return (normed * scale + bias).astype(x.dtype), (normed.astype(x.dtype), inverse, scale)


def _layer_norm_backward(epsilon: float, saved: tuple[Array, Array, Array], g: Array) -> tuple[Array, Array, Array]:
    normed, inverse, scale = saved
    wide, along = g.astype(jnp.float32), normed.astype(jnp.float32)
    rows = tuple(range(g.ndim - 1))
    dbias, dscale = wide.sum(rows), (wide * along).sum(rows)
    scaled = wide * scale
    dx = scaled - scaled.mean(-1, keepdims=True) - along * jnp.mean(scaled * along, -1, keepdims=True)
    return (dx * inverse).astype(g.dtype), dscale, dbias


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


# -------------------------------------------------------------------------------------------------------- batch norm


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def batch_norm(
    x: Array, scale: Array, bias: Array, epsilon: float, axis_name: str | None, copies: int = 1
) -> tuple[Array, Array, Array]:
    """Normalise (b h w c) with the statistics of the batch over all devices of ``axis_name``.

    Returns the result in the dtype of x, and the mean and biased variance (c), through which no gradient flows.  With
    ``copies`` x is (b h w copies*c): its last axis holds every channel several times, as ``tiled`` makes it.
    """
    return _batch_norm_forward(x, scale, bias, epsilon, axis_name, copies)[0]


def moments(x: Array, axis_name: str | None, copies: int = 1) -> tuple[Array, Array]:
    """Mean and biased variance (c) of (b h w copies*c) over the batch of all devices of ``axis_name``."""
    wide = rows(x).astype(jnp.float32)
    mean, square = jnp.mean(wide, axis=pixels(wide)), jnp.mean(wide * wide, axis=pixels(wide))
    return shared_moments(gathered(mean, copies) / copies, gathered(square, copies) / copies, axis_name)


def shared_moments(mean: Array, square: Array, axis_name: str | None) -> tuple[Array, Array]:
    """Mean and biased variance over all devices of ``axis_name``, from the means of x and of its square on each."""
    if axis_name is not None:
        mean, square = lax.pmean((mean, square), axis_name)
    return mean, jnp.maximum(square - mean * mean, 0.0)


def _batch_norm_forward(
    x: Array, scale: Array, bias: Array, epsilon: float, axis_name: str | None, copies: int = 1
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    mean, var = moments(x, axis_name, copies)
    inverse = lax.rsqrt(var + epsilon)
    factor = scale * inverse
    y = (x.astype(jnp.float32) * tiled(factor, copies) + tiled(bias - mean * factor, copies)).astype(x.dtype)
    return (y, mean, var), (x, mean, inverse, scale)


def _batch_norm_backward(
    epsilon: float,
    axis_name: str | None,
    copies: int,
    saved: tuple[Array, ...],
    cotangents: tuple[Array, Array, Array],
) -> tuple[Array, Array, Array]:
    x, mean, inverse, scale = saved
    return norm_gradient(x, mean, inverse, scale, cotangents[0], axis_name, copies)


def norm_gradient(
    x: Array, mean: Array, inverse: Array, scale: Array, g: Array, axis_name: str | None, copies: int = 1
) -> tuple[Array, Array, Array]:
    """Gradients of x (b h w copies*c), scale (c) and bias (c) of a batch norm, from its result's gradient ``g``."""
    g = stored(g)
    along, wide = rows(x).astype(jnp.float32), rows(g).astype(jnp.float32)
    dbias = gathered(wide.sum(axis=pixels(wide)), copies)
    dscale = (gathered((wide * along).sum(axis=pixels(wide)), copies) - mean * dbias) * inverse
    # Gradients through the statistics are averaged over all devices; a parameter's gradient is this device's part.
    shared = (dbias, dscale) if axis_name is None else lax.pmean((dbias, dscale), axis_name)
    along_mean, along_x = (v / (x.size // len(scale)) for v in shared)
    slope, centre, gain, mean = (tiled(v, copies) for v in (inverse * along_x, along_mean, scale * inverse, mean))
    dx = (wide - centre - (along - mean) * slope) * gain
    return dx.reshape(x.shape).astype(x.dtype), dscale, dbias


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


# --------------------------------------------------------------------------------------------- depthwise convolution


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_conv(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Depthwise convolution of (b h w c) with an odd (k k 1 c) kernel, padded by k // 2 on every side."""
    pad = kernel.shape[0] // 2
    return correlate(x, kernel, stride, (pad, pad), (pad, pad))


def correlate(x: Array, kernel: Array, stride: int, rows: tuple[int, int], columns: tuple[int, int]) -> Array:
    """Depthwise correlation with explicit padding: k*k shifted multiply-adds on a CPU, else a grouped convolution."""
    k, c = kernel.shape[0], x.shape[-1]
    if not platforms.on_cpu():
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), (rows, columns), dimension_numbers=DIMENSIONS, feature_group_count=c
        )
    padded = jnp.pad(x, ((0, 0), rows, columns, (0, 0)))
    height, width = ((n - k) // stride + 1 for n in padded.shape[1:3])
    shape, taps = (x.shape[0], height, width, c), kernel.reshape(k * k, c)

    def shifted_sum(padded: Array) -> Array:
        out = jnp.zeros(shape, x.dtype)
        for n, under in enumerate(_taps(k, stride, shape)):
            out = out + padded[under] * taps[n]
        return out

    return shifted_sum(padded) if k == 1 else _unfused(shifted_sum, padded, kernel, shape)


def _depthwise_forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    y = depthwise_conv(x, kernel, stride)
    return (stored(y) if kernel.shape[0] > 1 else y), (x, kernel)


def _depthwise_backward(stride: int, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    k = kernel.shape[0]
    if k == 1 and stride == 1:
        dk = jnp.sum(x.astype(jnp.float32) * g, axis=(0, 1, 2))
        return g * kernel[0, 0, 0], dk.astype(kernel.dtype).reshape(kernel.shape)
    if platforms.on_tpu():
        dx, dk = depthwise_gradients(x, kernel, g, stride)
        return dx, dk.astype(kernel.dtype)
    g = stored(g)
    if stride == 1:
        dx, dk = same_size_gradients(x, kernel, g)
        return stored(dx), dk
    taps = kernel[:, :, 0]

    def spread(padded: Array) -> Array:
        return _spread(lambda piece, i, j: piece * taps[i, j], padded, x.shape, k, stride)

    dx = _unfused(spread, stored(_pad_for_spread(g, x.shape, k, stride)), kernel, x.shape)
    pad = ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0))
    return stored(dx), _products_under_taps(jnp.pad(x, pad), g, k, stride).astype(kernel.dtype)


def same_size_gradients(x: Array, kernel: Array, g: Array) -> tuple[Array, Array]:
    """Gradients of x and kernel of a depthwise convolution with stride 1, from the gradient ``g`` of its result."""
    k = kernel.shape[0]
    padded = stored(jnp.pad(g, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0))))
    dx = correlate(padded, kernel[::-1, ::-1], 1, (0, 0), (0, 0))
    # x under the taps of g is g under the taps of x in reverse order: one padded image serves both gradients.
    return dx, _products_under_taps(padded, x, k, 1)[::-1, ::-1].astype(kernel.dtype)


def depthwise_gradients(
    x: Array, kernel: Array, g: Array, stride: int, pads: tuple[int, int] | None = None
) -> tuple[Array, Array]:
    """Gradients of x and, in float32, of the kernel of ``depthwise_conv``, as two convolutions.

    ``pads`` are the rows and columns of padding on either side; k // 2 by default.
    """
    k, c = kernel.shape[0], x.shape[-1]
    sizes = list(zip(x.shape[1:3], g.shape[1:3], pads or (k // 2, k // 2), strict=True))
    dx = lax.conv_general_dilated(
        g,
        kernel[::-1, ::-1],
        (1, 1),
        [(k - 1 - pad, full - 1 + pad - (small - 1) * stride) for full, small, pad in sizes],
        lhs_dilation=(stride, stride),
        dimension_numbers=DIMENSIONS,
        feature_group_count=c,
    )
    dk = lax.conv_general_dilated(  # the batch is summed over as channels are, and each channel is a batch of its own
        x,
        g,
        (1, 1),
        [(pad, (small - 1) * stride + k - full - pad) for full, small, pad in sizes],
        rhs_dilation=(stride, stride),
        dimension_numbers=lax.ConvDimensionNumbers((3, 0, 1, 2), (3, 0, 1, 2), (2, 3, 0, 1)),
        batch_group_count=c,
        preferred_element_type=jnp.float32,
    )
    return dx, dk


def _products_under_taps(x: Array, g: Array, k: int, stride: int) -> Array:
    """Sums over (b h w) of g times the padded x under each tap, in float32: (k k 1 c)."""
    b, height, width, c = g.shape
    if not platforms.on_cpu():
        taps = [jnp.sum(x[tap].astype(jnp.float32) * g, axis=(0, 1, 2)) for tap in _taps(k, stride, g.shape)]
        return jnp.stack(taps).reshape(k, k, 1, c)
    # Row by row, with k*k sums of the size of a row in the cache.  The columns of a row are sorted by their place in
    # the stride: the pixels under a tap are then one slice.
    across = -(-x.shape[2] // stride)
    if stride > 1:
        x = jnp.pad(x, ((0, 0), (0, 0), (0, across * stride - x.shape[2]), (0, 0)))
        x = x.reshape(b, -1, across, stride, c).swapaxes(2, 3).reshape(b, -1, stride * across, c)
    x, g = stored(x), stored(g)

    def add_row(n: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        image, row = n // height, n % height
        g_row = lax.dynamic_slice(g, (image, row, 0, 0), (1, 1, width, c))[0, 0].astype(jnp.float32)
        out = []
        for i in range(k):
            for j in range(k):
                first = (image, row * stride + i, j % stride * across + j // stride, 0)
                out.append(sums[i * k + j] + lax.dynamic_slice(x, first, (1, 1, width, c))[0, 0] * g_row)
        return tuple(out)

    sums = lax.fori_loop(0, b * height, add_row, (jnp.zeros((width, c), jnp.float32),) * (k * k))
    return jnp.stack(sums).sum(axis=1).reshape(k, k, 1, c)


depthwise_conv.defvjp(_depthwise_forward, _depthwise_backward)


# ------------------------------------------------------------------------------------------------- dense convolution


@jax.custom_vjp
def pointwise(x: Array, kernel: Array) -> Array:
    """1x1 convolution: (... c) @ (c d)."""
    return mix_channels(x, kernel)


def _pointwise_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return mix_channels(x, kernel), (x, kernel)


def _pointwise_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    g = stored(g)
    return mix_channels(g, kernel.T), contract_rows(x, g).astype(kernel.dtype)


def contract_rows(x: Array, g: Array) -> Array:
    """Product of (... c) and (... d), summed over all leading axes: (c d)."""
    x, g = rows(x), rows(g)
    return lax.dot_general(x, g, ((pixels(x), pixels(g)), ((), ())))


def mix_channels(x: Array, kernel: Array) -> Array:
    """``pointwise`` of (b h w c) without a written-out gradient; on a TPU a convolution, which fuses with others.

    As a matrix product the map would be copied into another layout and back.
    """
    if platforms.on_tpu() and x.ndim == 4:
        return lax.conv_general_dilated(x, kernel[None, None], (1, 1), "VALID", dimension_numbers=DIMENSIONS)
    return x @ kernel


pointwise.defvjp(_pointwise_forward, _pointwise_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolution of (b h w c) with an odd (k k c d) kernel, padded by k // 2 on every side."""
    pad = kernel.shape[0] // 2
    return _convolve(x, kernel, stride, (pad, pad), (pad, pad))


def _convolve(x: Array, kernel: Array, stride: int, rows: tuple[int, int], columns: tuple[int, int]) -> Array:
    k, thin, width = kernel.shape[0], x.shape[-1], kernel.shape[-1]
    if platforms.on_cpu() and BARRIERS_DO_NOT_HOLD and k > 1 and thin < THIN:
        # For the convolution of an RGB image, XLA before jax 0.11 is twelve times slower than these multiply-adds.
        padded = jnp.pad(x, ((0, 0), rows, columns, (0, 0)))
        shape = (x.shape[0], *((n - k) // stride + 1 for n in padded.shape[1:3]), width)
        taps = kernel.reshape(k * k, thin, width)

        def multiply_add(padded: Array) -> Array:
            out = jnp.zeros(shape, x.dtype)
            for n, under in enumerate(_taps(k, stride, shape)):
                for channel in range(thin):
                    out = out + padded[under][..., channel, None] * taps[n, channel]
            return out

        return _unfused(multiply_add, padded, kernel, shape)
    return lax.conv_general_dilated(x, kernel, (stride, stride), (rows, columns), dimension_numbers=DIMENSIONS)


def _conv_forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return conv(x, kernel, stride), (x, kernel)


def _conv_backward(stride: int, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    if not platforms.on_cpu():
        _, pullback = jax.vjp(lambda a, b: _convolve(a, b, stride, *((kernel.shape[0] // 2,) * 2,) * 2), x, kernel)
        return pullback(g)
    k = kernel.shape[0]
    g = stored(g)
    pad = k // 2
    if stride == 1:
        dx = _convolve(g, kernel[::-1, ::-1].swapaxes(2, 3), 1, (pad, pad), (pad, pad))
    else:
        padded = _pad_for_spread(g, x.shape, k, stride)
        through = stored(padded @ kernel.reshape(-1, kernel.shape[-1]).T)  # all taps at once: (... k*k*c)
        through = through.reshape(*padded.shape[:3], k, k, -1)
        dx = _spread(lambda piece, i, j: piece[..., i, j, :], through, x.shape, k, stride)
    x = stored(jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0))))
    if x.shape[-1] < THIN:
        dk = _thin_kernel_gradient(x, g, k, stride)
    else:
        dk = jnp.stack([contract_rows(x[tap], g) for tap in _taps(k, stride, g.shape)])
    return dx, dk.reshape(kernel.shape).astype(kernel.dtype)


def _thin_kernel_gradient(x: Array, g: Array, k: int, stride: int) -> Array:
    """Gradient (k, k*c, d) of a kernel with few input channels, from the padded x (b h w c).

    The pixels under a row of the kernel are laid side by side.  They are read in cells of ``stride`` pixels, in the
    order of memory.
    """
    b, height, width, _ = g.shape
    x = jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % stride), (0, 0)))
    cells = x.reshape(b, x.shape[1], -1, stride * x.shape[3])
    out = []
    for i in range(k):
        rows = cells[:, i : i + (height - 1) * stride + 1 : stride]
        under = [
            rows[:, :, j // stride : j // stride + width, : min(stride, k - j) * x.shape[3]]
            for j in range(0, k, stride)
        ]
        out.append(contract_rows(stored(jnp.concatenate(under, axis=-1)), g))
    return jnp.stack(out)


conv.defvjp(_conv_forward, _conv_backward)
