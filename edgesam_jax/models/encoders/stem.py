"""The first two convolutions of RepViT and TinyViT, 3x3 with stride, each with batch norm and a GELU between them."""

from __future__ import annotations

from typing import Any

from jax import Array

from edgesam_jax.models.kernels import ops, strips
from edgesam_jax.models.kernels import stem as cells
from edgesam_jax.models.layers import NORM_EPSILON, ConvBN, conv_bn, folded_conv, gelu, record


def stem(
    module: Any, names: tuple[str, str], widths: tuple[int, int], strides: tuple[int, int], x: Array, train: bool
) -> tuple[Array, int]:
    """Apply both convolutions, which become children of ``module`` called ``names``, to photos (b h w 3).

    ``module`` has a ``mode``.  Returns the map, (b h/s w/s c), and the number of strips that it is cut into
    (``kernels/strips.py``): more than one on a TPU only.
    """
    mode = module.mode
    first_name, last_name = names
    cut = cells.number(x.shape, widths[1]) if strides == (2, 2) else 0
    if not cut or module.is_initializing() or not (train or mode.folded):
        x = ConvBN(widths[0], 3, strides[0], mode=mode, name=first_name)(x, train)
        x = ConvBN(widths[1], 3, strides[1], mode=mode, name=last_name)(gelu(x), train)
        cut = strips.number(widths[1], x.shape[2])
        return strips.regroup(x, 1, cut), cut
    x = cells.cells(x.astype(mode.dtype), cut)
    if mode.folded:
        (first, bias), (last, last_bias) = (folded_conv(module, name) for name in names)
        x = gelu(cells.first_conv(x, first, cut) + ops.tiled(bias, 4 * cut))
        return cells.second_conv(x, last, last_bias, cut), cut
    (first, norm), (last, last_norm) = (conv_bn(module, name) for name in names)
    inner = cells.first_conv(x, first, cut)
    y, moments = cells.norm_gelu_conv(inner, norm, last, NORM_EPSILON, mode.axis_name, cut)
    out, mean, var = ops.batch_norm(y, *last_norm, NORM_EPSILON, mode.axis_name, cut)
    record(module, first_name, moments, inner)
    record(module, last_name, (mean, var), out)
    return out, cut
