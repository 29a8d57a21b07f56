"""Building blocks with the published names and numbers, and the ``Mode`` in which a model is built.

Everything is NHWC.  The operations that are written by hand for speed are in ``kernels/ops.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from edgesam_jax.models.kernels import bands, ops, strips
from edgesam_jax.models.kernels.fused import Moments, Norm
from edgesam_jax.models.kernels.ops import gelu
from edgesam_jax.models.kernels.strips import WHOLE, Cut
from edgesam_jax.portable import resizing

__all__ = [
    "MLP",
    "BatchNorm",
    "Conv",
    "ConvBN",
    "LayerNorm",
    "Mode",
    "PatchConv",
    "SqueezeExcite",
    "gelu",
    "resize",
    "resize_matrix",
]

Dtype = Any


@dataclass(frozen=True)
class Mode:
    """How the modules of a model are built.

    ``folded``: the image encoder expects parameters from ``fold.py``, and has no batch norms.  ``dtype``: the dtype of
    activations; parameters stay float32.  ``axis_name``: the device axis over which batch statistics are averaged in
    training; None: each device uses its own.  ``cut``: how maps are cut (``kernels/strips.py``).
    """

    folded: bool = False
    dtype: Dtype = jnp.float32
    axis_name: str | None = None
    cut: Cut = WHOLE


def resize_matrix(size_in: int, size_out: int, method: str) -> np.ndarray:
    """``portable.resizing.resize_matrix`` in float32."""
    return resizing.resize_matrix(size_in, size_out, method).astype(np.float32)


def resize(x: Array, size: tuple[int, int], method: str) -> Array:
    """Resize (... h w c) to (... size c) exactly as torch's ``interpolate(align_corners=False)``."""
    rows = jnp.asarray(resize_matrix(x.shape[-3], size[0], method), x.dtype)
    columns = jnp.asarray(resize_matrix(x.shape[-2], size[1], method), x.dtype)
    x = jnp.einsum("Hh,...hwc->...Hwc", rows, x, precision="highest")
    return jnp.einsum("Ww,...hwc->...hWc", columns, x, precision="highest")


class Conv(nn.Module):
    """Convolution with torch's symmetric padding k // 2; 1x1 as a matrix product, depthwise as shifted sums."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    depthwise: bool = False
    use_bias: bool = False
    dtype: Dtype = jnp.float32
    cut: Cut = WHOLE  # how x is cut (``kernels/strips.py``); if it is, only 1x1 and depthwise convolutions

    @nn.compact
    def __call__(self, x: Array) -> Array:
        k, c = self.kernel_size, x.shape[-1] // self.cut.strips
        shape = (k, k, 1 if self.depthwise else c, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape).astype(self.dtype)
        x = x.astype(self.dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
            bias = ops.tiled(bias, self.cut.strips)
        if self.depthwise and self.cut != WHOLE:
            return strips.depthwise_conv(x, kernel, bias, self.stride, self.cut)
        if self.depthwise:
            y = ops.depthwise_conv(x, kernel, self.stride)
        elif k == 1 and self.stride == 1:
            y = ops.pointwise(x, strips.widen(kernel[0, 0], self.cut.strips))
        else:
            y = ops.conv(x, kernel, self.stride)
        return y if bias is None else y + bias


NORM_EPSILON = 1e-5
KEEP = 0.9  # fraction of the old running statistics kept: 1 - torch's momentum


def running_statistics(
    old: Mapping[str, Array], mean: Array, var: Array, count: int, keep: float = KEEP
) -> dict[str, Array]:
    """Running ``mean`` and ``var`` after a batch of ``count`` values with the given mean and biased variance."""
    return {
        "mean": keep * old["mean"] + (1 - keep) * mean,
        "var": keep * old["var"] + (1 - keep) * var * (count / max(count - 1, 1)),
    }


class BatchNorm(nn.Module):
    """Batch norm over (b h w) with torch's bookkeeping: momentum 0.1, and the unbiased variance is stored.

    In training the statistics are those of the entire global batch if ``mode.axis_name`` names the device axis.
    """

    zero_init: bool = False  # the scale starts at 0
    mode: Mode = Mode()
    epsilon: float = NORM_EPSILON
    keep: float = KEEP

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        copies, axis_name = self.mode.cut.strips, self.mode.axis_name
        c = x.shape[-1] // copies
        scale = self.param("scale", nn.initializers.zeros if self.zero_init else nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (c,))
        var = self.variable("batch_stats", "var", jnp.ones, (c,))
        if not train:
            factor = scale * jax.lax.rsqrt(var.value + self.epsilon)
            factor, shift = (ops.tiled(v, copies) for v in (factor, bias - mean.value * factor))
            return (x.astype(jnp.float32) * factor + shift).astype(self.mode.dtype)
        y, batch_mean, batch_var = ops.batch_norm(x, scale, bias, self.epsilon, axis_name, copies)
        if not self.is_initializing():
            count = x.size // c * (1 if axis_name is None else jax.lax.axis_size(axis_name))
            old = {"mean": mean.value, "var": var.value}
            new = running_statistics(old, batch_mean, batch_var, count, self.keep)
            mean.value, var.value = new["mean"], new["var"]
        return y.astype(self.mode.dtype)


class ConvBN(nn.Module):
    """Convolution without bias, then batch norm; a single biased convolution if ``mode.folded`` (see ``fold.py``)."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    depthwise: bool = False
    zero_init: bool = False  # the batch norm's scale starts at 0
    mode: Mode = Mode()

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        mode, shape = self.mode, (self.features, self.kernel_size, self.stride, self.depthwise)
        x = Conv(*shape, use_bias=mode.folded, dtype=mode.dtype, cut=mode.cut, name="c")(x)
        return x if mode.folded else BatchNorm(self.zero_init, mode, name="bn")(x, train)


def conv_bn(module: Any, name: str) -> tuple[Array, Norm]:
    """Kernel, in the dtype of ``module``, and norm of the ``ConvBN`` that is its child ``name``."""
    params = module.get_variable("params", name)
    return params["c"]["kernel"].astype(module.mode.dtype), (params["bn"]["scale"], params["bn"]["bias"])


def folded_conv(module: Any, name: str) -> tuple[Array, Array]:
    """Kernel and bias, in the dtype of ``module``, of the folded ``ConvBN`` that is its child ``name``."""
    conv = module.get_variable("params", name)["c"]
    return conv["kernel"].astype(module.mode.dtype), conv["bias"].astype(module.mode.dtype)


def record(module: Any, name: str, moments: Moments, x: Array) -> None:
    """Update the running statistics of the ``ConvBN`` called ``name``; ``x`` has the size of one device's batch."""
    axis_name = module.mode.axis_name
    count = x.size // len(moments[0]) * (1 if axis_name is None else jax.lax.axis_size(axis_name))
    old = module.get_variable("batch_stats", name)["bn"]
    module.put_variable("batch_stats", name, {"bn": running_statistics(old, *moments, count)})


class PatchConv(nn.Module):
    """Convolution of (... h w c) with kernel = stride and bias, as one matrix product."""

    features: int
    kernel_size: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        k, (*lead, h, w, c) = self.kernel_size, x.shape
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (k, k, c, self.features)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        x = x.reshape(*lead, h // k, k, w // k, k, c)
        return jnp.einsum("...iajbc,abco->...ijo", x, kernel) + bias


class SqueezeExcite(nn.Module):
    """Channel gate: mean over the image, two 1x1 convolutions with bias and ReLU between them, sigmoid."""

    dtype: Dtype = jnp.float32
    cut: Cut = WHOLE

    @nn.compact
    def __call__(self, x: Array, mean: Array | None = None) -> Array:
        """Gate x (b h w c); ``mean`` (b 1 1 c) over its pixels, if it is known."""
        q = self.cut.strips
        c = x.shape[-1] // q
        hidden = max(8, (c // 4 + 4) // 8 * 8)  # nearest multiple of 8 to c / 4
        gate = ops.gathered(x.mean(axis=(1, 2), keepdims=True), q) / q if mean is None else mean
        gate = bands.photo_mean(gate, self.cut.bands)
        gate = Conv(hidden, use_bias=True, dtype=self.dtype, name="fc1")(gate)
        gate = Conv(c, use_bias=True, dtype=self.dtype, name="fc2")(jax.nn.relu(gate))
        return x * ops.tiled(jax.nn.sigmoid(gate), q)


class LayerNorm(nn.Module):
    """Layer norm over the last axis."""

    epsilon: float = 1e-6
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        return ops.layer_norm(x.astype(self.dtype), scale, bias, self.epsilon)


class MLP(nn.Module):
    """``depth`` dense layers, named layers_0, layers_1, ..., with ReLU between them (SAM's heads)."""

    hidden: int
    out: int
    depth: int = 3
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.depth):
            last = i == self.depth - 1
            x = nn.Dense(self.out if last else self.hidden, dtype=self.dtype, name=f"layers_{i}")(x)
            x = x if last else jax.nn.relu(x)
        return x
