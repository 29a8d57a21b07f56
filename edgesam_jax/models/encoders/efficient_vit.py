"""EfficientViT-B1 image encoder (MIT HAN lab, ICCV 2023), with EdgeSAM's two ways of keeping the resolution.

Inverted residuals, and in the last two stages linear attention: relu(q) relu(k)^T replaces softmax(q k^T).  The sum
over the keys is then computed once for all queries, and the cost is linear in the number of pixels, not quadratic.

Names are the published ones without the prefix ``backbone.``.  EdgeSAM's code for this row of its Table 5c is not
published; the widths of fusion and neck are assumed to be RepViT's.

Sources: EfficientViT (arXiv 2205.14756), section 3; docs/published_code.md, "Other models".
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
from edgesam_jax.models.layers import BatchNorm, Conv, Mode

EPSILON = 1e-15  # of the attention's division, which only float32 keeps apart from 0


class ConvLayer(nn.Module):
    """Convolution ``conv``, batch norm ``norm``, hard-swish.

    Without ``norm`` the convolution has a bias if ``use_bias``; without ``act`` there is no hard-swish.
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    depthwise: bool = False
    norm: bool = True
    use_bias: bool = False
    act: bool = True
    mode: Mode = Mode()

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        biased = self.mode.folded if self.norm else self.use_bias
        shape = (self.features, self.kernel_size, self.stride, self.depthwise)
        x = Conv(*shape, biased, dtype=self.mode.dtype, name="conv")(x)
        if self.norm and not self.mode.folded:
            x = BatchNorm(mode=self.mode, name="norm")(x, train)
        return jax.nn.hard_swish(x) if self.act else x


class DSConv(nn.Module):
    """Depthwise 3x3, then 1x1 without activation."""

    width: int
    mode: Mode = Mode()

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = ConvLayer(x.shape[-1], 3, depthwise=True, mode=self.mode, name="depth_conv")(x, train)
        return ConvLayer(self.width, act=False, mode=self.mode, name="point_conv")(x, train)


class MBConv(nn.Module):
    """1x1 to ``expansion`` times the input's width, depthwise 3x3, 1x1; only the last has a norm if ``few_norms``."""

    width: int
    stride: int = 1
    expansion: int = 4
    few_norms: bool = False
    mode: Mode = Mode()

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        inner = functools.partial(ConvLayer, norm=not self.few_norms, use_bias=self.few_norms, mode=self.mode)
        hidden = self.expansion * x.shape[-1]
        x = inner(hidden, name="inverted_conv")(x, train)
        x = inner(hidden, 3, self.stride, depthwise=True, name="depth_conv")(x, train)
        return ConvLayer(self.width, act=False, mode=self.mode, name="point_conv")(x, train)


class GroupedPointwise(nn.Module):
    """1x1 convolution within groups of ``size`` channels, with a kernel (1 1 size c)."""

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
    """Linear attention at two scales: q, k, v as they are, and their weighted sums over 5 x 5 pixels."""

    head_dim: int
    mode: Mode = Mode()

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        b, h, w, c = x.shape
        qkv = ConvLayer(3 * c, norm=False, act=False, mode=self.mode, name="qkv")(x, train)
        wider = Conv(3 * c, 5, depthwise=True, dtype=self.mode.dtype, name="aggreg_0_0")(qkv)
        wider = GroupedPointwise(self.head_dim, self.mode.dtype, name="aggreg_0_1")(wider)
        both = jnp.concatenate([qkv, wider], axis=-1)
        heads = both.reshape(b, h * w, 2 * c // self.head_dim, 3 * self.head_dim)
        mixed = linear_attention(*jnp.split(heads, 3, axis=-1)).astype(self.mode.dtype)
        return ConvLayer(c, act=False, mode=self.mode, name="proj")(mixed.reshape(b, h, w, 2 * c), train)


class Residual(nn.Module):
    """``main`` of the input, plus the input if ``shortcut``."""

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
    mode: Mode = Mode()

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = ConvLayer(self.width, 3, self.stride, mode=self.mode, name="op_list_0")(x, train)
        for j in range(self.depth):
            x = Residual(functools.partial(DSConv, self.width, mode=self.mode), name=f"op_list_{j + 1}")(x, train)
        return x


class Stage(nn.Module):
    """A block with ``stride``, then ``depth - 1`` blocks, or ``depth`` with ``attention`` (the last two stages)."""

    width: int
    depth: int
    stride: int
    attention: bool
    expansion: int
    head_dim: int
    mode: Mode = Mode()

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        few_norms = self.attention
        mbconv = functools.partial(MBConv, self.width, expansion=self.expansion, few_norms=few_norms, mode=self.mode)
        x = Residual(functools.partial(mbconv, stride=self.stride), shortcut=False, name="op_list_0")(x, train)
        for j in range(1, self.depth + self.attention):
            name = f"op_list_{j}"
            if self.attention:
                attention = functools.partial(LiteMLA, self.head_dim, mode=self.mode)
                x = AttentionBlock(attention, mbconv, name=name)(x, train)
            else:
                x = Residual(mbconv, name=name)(x, train)
        return x


class EfficientVit(nn.Module):
    """Image encoder: (b h w 3) normalised float -> (b h/s w/s embed_dim), s = ``config.stride``.

    ``pyramid`` also returns the maps of the last three stages, each half the size of the one before if
    ``config.fuse``.
    """

    config: EfficientVitConfig
    embed_dim: int = 256
    mode: Mode = Mode()

    @nn.compact
    def __call__(self, x: Array, train: bool = False, pyramid: bool = False) -> Array | tuple[Array, list[Array]]:
        cfg = self.config
        x = Stem(cfg.widths[0], cfg.depths[0], cfg.stem_stride, mode=self.mode, name="input_stem")(x, train)
        stages, last = [], len(cfg.widths) - 2
        for i, (width, depth) in enumerate(zip(cfg.widths[1:], cfg.depths[1:], strict=True)):
            stride = 1 if i == last and not cfg.fuse else 2
            stage = Stage(
                width, depth, stride, i >= last - 1, cfg.expansion, cfg.head_dim, mode=self.mode, name=f"stages_{i}"
            )
            x = stage(x, train)
            stages.append(x)
        embedding = embed(stages[-2] if cfg.fuse else None, x, self.embed_dim, cfg.upsample, self.mode.dtype)
        return (embedding, [stages[-3], stages[-2], x]) if pyramid else embedding
