"""EfficientViT-B1 image encoder (MIT HAN lab's, ICCV 2023), with EdgeSAM's two ways of keeping the resolution.

Inverted residuals, and in the last two stages linear attention: softmax(q k^T) becomes relu(q) relu(k)^T, so that the
sum over the keys is taken once for all queries and the cost grows with the pixels, not with their square.

Names are the published ones without their ``backbone.``.  EdgeSAM's code for this row of its Table 5c is not published:
widths of fusion and neck are taken to be RepViT's.

Sources: EfficientViT (arXiv 2205.14756), section 3; more_model_facts, section 1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from edgesam_jax.config import EfficientVitConfig
from edgesam_jax.models.encoders.neck import embed
from edgesam_jax.models.layers import BatchNorm, Conv

EPSILON = 1e-15  # of the attention's division; lost in anything but float32


class ConvLayer(nn.Module):
    """Convolution ``conv`` and batch norm ``norm``; without norm it has a bias where ``use_bias``; then hard-swish."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    depthwise: bool = False
    norm: bool = True
    use_bias: bool = False
    act: bool = True
    folded: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        biased = self.folded if self.norm else self.use_bias
        shape = (self.features, self.kernel_size, self.stride, self.depthwise)
        x = Conv(*shape, biased, dtype=self.dtype, name="conv")(x)
        if self.norm and not self.folded:
            x = BatchNorm(dtype=self.dtype, axis_name=self.axis_name, name="norm")(x, train)
        return jax.nn.hard_swish(x) if self.act else x


class DSConv(nn.Module):
    """Depthwise 3x3, then 1x1 without activation."""

    width: int
    folded: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        common = {"folded": self.folded, "dtype": self.dtype, "axis_name": self.axis_name}
        x = ConvLayer(x.shape[-1], 3, depthwise=True, **common, name="depth_conv")(x, train)
        return ConvLayer(self.width, act=False, **common, name="point_conv")(x, train)


class MBConv(nn.Module):
    """1x1 to ``expansion`` times the input's width, depthwise 3x3, 1x1; only the last has a norm if ``few_norms``."""

    width: int
    stride: int = 1
    expansion: int = 4
    few_norms: bool = False
    folded: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        common = {"folded": self.folded, "dtype": self.dtype, "axis_name": self.axis_name}
        inner = {**common, "norm": not self.few_norms, "use_bias": self.few_norms}
        hidden = self.expansion * x.shape[-1]
        x = ConvLayer(hidden, **inner, name="inverted_conv")(x, train)
        x = ConvLayer(hidden, 3, self.stride, depthwise=True, **inner, name="depth_conv")(x, train)
        return ConvLayer(self.width, act=False, **common, name="point_conv")(x, train)


class GroupedPointwise(nn.Module):
    """1x1 convolution within groups of ``size`` channels; the kernel is (1 1 size c)."""

    size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, size = x.shape[-1], self.size
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (1, 1, size, c)).astype(self.dtype)
        groups = x.reshape(*x.shape[:-1], c // size, size)
        return jnp.einsum("bhwgi,igo->bhwgo", groups, kernel.reshape(size, c // size, size)).reshape(x.shape)


def linear_attention(q: Array, k: Array, v: Array) -> Array:
    """relu(q) (relu(k)^T v), divided by relu(q) times the sum of relu(k); (b n h d) each, computed in float32."""
    q, k, v = (x.astype(jnp.float32) for x in (jax.nn.relu(q), jax.nn.relu(k), v))
    state = jnp.einsum("bnhk,bnhv->bhkv", k, v)
    total = jnp.einsum("bnhk,bhk->bnh", q, k.sum(axis=1))
    return jnp.einsum("bnhk,bhkv->bnhv", q, state) / (total[..., None] + EPSILON)


class LiteMLA(nn.Module):
    """Linear attention at two scales: of q, k, v, and of their sums over 5 x 5 pixels."""

    head_dim: int
    folded: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        b, h, w, c = x.shape
        common = {"act": False, "folded": self.folded, "dtype": self.dtype, "axis_name": self.axis_name}
        qkv = ConvLayer(3 * c, norm=False, **common, name="qkv")(x, train)
        wider = Conv(3 * c, 5, depthwise=True, dtype=self.dtype, name="aggreg_0_0")(qkv)
        wider = GroupedPointwise(self.head_dim, self.dtype, name="aggreg_0_1")(wider)
        both = jnp.concatenate([qkv, wider], axis=-1)
        heads = both.reshape(b, h * w, 2 * c // self.head_dim, 3 * self.head_dim)
        mixed = linear_attention(*jnp.split(heads, 3, axis=-1)).astype(self.dtype)
        return ConvLayer(c, **common, name="proj")(mixed.reshape(b, h, w, 2 * c), train)


class Residual(nn.Module):
    """``main``, added to its input where there is a ``shortcut``."""

    branch: Callable[..., nn.Module]
    shortcut: bool = True

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y: Array = self.branch(name="main")(x, train)
        return x + y if self.shortcut else y


class AttentionBlock(nn.Module):
    """x + linear attention, then x + inverted residual."""

    attention: Callable[..., nn.Module]
    local: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = Residual(self.attention, name="context_module")(x, train)
        return Residual(self.local, name="local_module")(x, train)


class Stem(nn.Module):
    """Strided 3x3 convolution, then residual depthwise-separable ones."""

    width: int
    depth: int
    stride: int
    folded: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        common = {"folded": self.folded, "dtype": self.dtype, "axis_name": self.axis_name}
        x = ConvLayer(self.width, 3, self.stride, **common, name="op_list_0")(x, train)
        for j in range(self.depth):
            x = Residual(functools.partial(DSConv, self.width, **common), name=f"op_list_{j + 1}")(x, train)
        return x


class Stage(nn.Module):
    """A block that halves the grid (or not: ``stride``), then ``depth`` blocks; attention in the last two stages."""

    width: int
    depth: int
    stride: int
    attention: bool
    expansion: int
    head_dim: int
    folded: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        common = {"folded": self.folded, "dtype": self.dtype, "axis_name": self.axis_name}
        mbconv = functools.partial(
            MBConv, self.width, expansion=self.expansion, few_norms=self.attention, **common
        )  # fmt: skip
        x = Residual(functools.partial(mbconv, stride=self.stride), shortcut=False, name="op_list_0")(x, train)
        for j in range(1, self.depth + self.attention):
            name = f"op_list_{j}"
            if self.attention:
                attention = functools.partial(LiteMLA, self.head_dim, **common)
                x = AttentionBlock(attention, mbconv, name=name)(x, train)
            else:
                x = Residual(mbconv, name=name)(x, train)
        return x


class EfficientVit(nn.Module):
    """Image encoder: (b h w 3) normalised float -> (b h/s w/s embed_dim), s = ``config.stride``.

    With ``pyramid`` also the last three stages' maps, each half as large as the one before, if ``config.fuse``.
    ``folded`` expects parameters from ``fold.py`` and has no batch statistics.
    """

    config: EfficientVitConfig
    embed_dim: int = 256
    folded: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False, pyramid: bool = False) -> Array | tuple[Array, list[Array]]:
        cfg, common = self.config, {"folded": self.folded, "dtype": self.dtype, "axis_name": self.axis_name}
        x = Stem(cfg.widths[0], cfg.depths[0], cfg.stem_stride, **common, name="input_stem")(x, train)
        stages, last = [], len(cfg.widths) - 2
        for i, (width, depth) in enumerate(zip(cfg.widths[1:], cfg.depths[1:], strict=True)):
            stride = 1 if i == last and not cfg.fuse else 2
            stage = Stage(
                width, depth, stride, i >= last - 1, cfg.expansion, cfg.head_dim, **common, name=f"stages_{i}"
            )
            x = stage(x, train)
            stages.append(x)
        embedding = embed(stages[-2] if cfg.fuse else None, x, self.embed_dim, cfg.upsample, self.dtype)
        return (embedding, [stages[-3], stages[-2], x]) if pyramid else embedding
