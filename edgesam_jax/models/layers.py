"""Building blocks with the published names and numbers.

Everything is NHWC.  GELU is the exact (erf) form: the tanh form is 5e-4 off the published networks.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

Dtype = Any


def gelu(x: Array) -> Array:
    """Exact GELU."""
    return jax.nn.gelu(x, approximate=False)


def resize_matrix(size_in: int, size_out: int, method: str) -> np.ndarray:
    """The (size_out, size_in) matrix of torch's 1-D interpolation, half-pixel centres, no antialias, borders replicated.

    ``bicubic`` is the Keys kernel with a = -0.75, which ``jax.image.resize`` (a = -0.5) does not give.
    """
    scale = size_in / size_out
    centre = (np.arange(size_out) + 0.5) * scale - 0.5
    matrix = np.zeros((size_out, size_in))
    if method == "bilinear":
        centre = np.maximum(centre, 0.0)
        taps = np.array([0, 1])
    elif method == "bicubic":
        taps = np.array([-1, 0, 1, 2])
    else:
        raise ValueError(f"unknown method {method!r}")
    low = np.floor(centre).astype(int)
    fraction = centre - low
    for tap in taps:
        distance = np.abs(fraction - tap)
        if method == "bilinear":
            weight = np.maximum(0.0, 1.0 - distance)
        else:
            a = -0.75
            near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
            far = a * (((distance - 5) * distance + 8) * distance - 4)
            weight = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
        np.add.at(matrix, (np.arange(size_out), np.clip(low + tap, 0, size_in - 1)), weight)
    return matrix.astype(np.float32)


def resize(x: Array, size: tuple[int, int], method: str) -> Array:
    """Resize (... h w c) to (... size c) exactly as torch's ``interpolate(align_corners=False)``."""
    rows = jnp.asarray(resize_matrix(x.shape[-3], size[0], method), x.dtype)
    columns = jnp.asarray(resize_matrix(x.shape[-2], size[1], method), x.dtype)
    x = jnp.einsum("Hh,...hwc->...Hwc", rows, x, precision="highest")
    return jnp.einsum("Ww,...hwc->...hWc", columns, x, precision="highest")


def depthwise_conv(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Depthwise convolution of (b h w c) with an odd (k k 1 c) kernel, padded by k // 2 on every side.

    Written as k*k shifted multiply-adds: XLA's grouped convolution is several times slower on CPU.
    """
    k = kernel.shape[0]
    b, h, w, c = x.shape
    pad = k // 2
    h_out, w_out = (h - 1) // stride + 1, (w - 1) // stride + 1
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    out = jnp.zeros((b, h_out, w_out, c), x.dtype)
    for i in range(k):
        for j in range(k):
            rows = slice(i, i + (h_out - 1) * stride + 1, stride)
            columns = slice(j, j + (w_out - 1) * stride + 1, stride)
            out = out + padded[:, rows, columns] * kernel[i, j, 0]
    return out


class Conv(nn.Module):
    """Convolution with torch's symmetric padding k // 2; 1x1 as a matrix product, depthwise as shifted sums."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    depthwise: bool = False
    use_bias: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        k, c = self.kernel_size, x.shape[-1]
        shape = (k, k, 1 if self.depthwise else c, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape).astype(self.dtype)
        x = x.astype(self.dtype)
        if self.depthwise:
            y = depthwise_conv(x, kernel, self.stride)
        elif k == 1 and self.stride == 1:
            y = x @ kernel[0, 0]
        else:
            padding = ((k // 2, k // 2), (k // 2, k // 2))
            dimensions = ("NHWC", "HWIO", "NHWC")
            y = jax.lax.conv_general_dilated(
                x, kernel, (self.stride, self.stride), padding, dimension_numbers=dimensions
            )
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return y


class ConvBN(nn.Module):
    """Convolution without bias, then batch norm; one biased convolution when ``folded`` (see ``fold.py``)."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    depthwise: bool = False
    folded: bool = False
    zero_init: bool = False  # the batch norm's scale starts at 0
    dtype: Dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        conv = Conv(
            self.features, self.kernel_size, self.stride, self.depthwise, self.folded, dtype=self.dtype, name="c"
        )
        x = conv(x)
        if self.folded:
            return x
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,  # torch's 0.1
            epsilon=1e-5,
            dtype=self.dtype,
            scale_init=nn.initializers.zeros if self.zero_init else nn.initializers.ones,
            axis_name=self.axis_name if train else None,
            name="bn",
        )(x)


class SqueezeExcite(nn.Module):
    """Channel gate: mean over the image, two 1x1 convolutions with bias, ReLU between, sigmoid."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = x.shape[-1]
        hidden = max(8, (c // 4 + 4) // 8 * 8)  # nearest multiple of 8 to c / 4
        gate = x.mean(axis=(1, 2), keepdims=True)
        gate = Conv(hidden, use_bias=True, dtype=self.dtype, name="fc1")(gate)
        gate = Conv(c, use_bias=True, dtype=self.dtype, name="fc2")(jax.nn.relu(gate))
        return x * jax.nn.sigmoid(gate)


class LayerNorm(nn.Module):
    """Layer norm over the last axis, with the two-pass variance: E[x^2] - E[x]^2 costs parity in float32."""

    epsilon: float = 1e-6
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        x = x.astype(jnp.float32)
        centred = x - x.mean(-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + self.epsilon)
        return (normed * scale + bias).astype(self.dtype)


class MLP(nn.Module):
    """``depth`` dense layers named layers_0, layers_1, ... with ReLU between (SAM's heads)."""

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
