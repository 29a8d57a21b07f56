"""TinyViT-5M image encoder: MobileSAM's form, and EdgeSAM's with the fusion neck (EdgeSAM Table 5c).

A convolutional first stage, then windowed attention with a learned bias per head and offset; each stage but the last
ends with down-sampling.  MobileSAM sets the last down-sampling to stride 1, which gives the embedding SAM's 64 x 64
cells.  With ``fuse`` its stride stays 2, and the maps of strides 16 and 32 are fused as in RepViT: the FPN of EdgeSAM's
paper.  EdgeSAM's code for TinyViT is not published; the widths and the neck are assumed to be RepViT's.

Sources: TinyViT (ECCV 2022), section 3 and appendix; MobileSAM (2023); docs/published_code.md, "Other models".
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from edgesam_jax.config import TinyVitConfig
from edgesam_jax.models.encoders.neck import embed
from edgesam_jax.models.encoders.stem import stem
from edgesam_jax.models.encoders.vit import window_merge, window_partition
from edgesam_jax.models.kernels import strips
from edgesam_jax.models.layers import ConvBN, LayerNorm, Mode, gelu

EPSILON = 1e-5  # of the layer norms in the blocks; those of the neck use SAM's 1e-6


def offset_index(window: int) -> np.ndarray:
    """Column of ``attention_biases`` for each query and key, (window^2 window^2): |dy| * window + |dx|."""
    y, x = np.divmod(np.arange(window * window), window)
    return np.abs(y[:, None] - y[None]) * window + np.abs(x[:, None] - x[None])


class MBConv(nn.Module):
    """Inverted residual: 1x1, depthwise 3x3, 1x1, each with batch norm; GELU after the first two and after the sum."""

    expansion: int = 4
    mode: Mode = Mode()

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        c = x.shape[-1] // self.mode.cut.strips
        y = gelu(ConvBN(self.expansion * c, mode=self.mode, name="conv1")(x, train))
        y = gelu(ConvBN(self.expansion * c, 3, depthwise=True, mode=self.mode, name="conv2")(y, train))
        return gelu(x + ConvBN(c, zero_init=True, mode=self.mode, name="conv3")(y, train))


class PatchMerging(nn.Module):
    """Change the width and, with ``stride`` 2, halve the grid."""

    width: int
    stride: int
    mode: Mode = Mode()

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = gelu(ConvBN(self.width, mode=self.mode, name="conv1")(x, train))
        x = gelu(ConvBN(self.width, 3, self.stride, depthwise=True, mode=self.mode, name="conv2")(x, train))
        return ConvBN(self.width, mode=self.mode, name="conv3")(x, train)


class WindowAttention(nn.Module):
    """Pre-norm attention in windows (n w w c) with a bias by offset; qkv is packed head by head."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        n, window, _, c = x.shape
        # The norm follows the padding to complete windows: padded cells equal its bias, and are attended to.
        tokens = LayerNorm(EPSILON, self.dtype, name="norm")(x).reshape(n, window * window, c)
        qkv = nn.Dense(3 * c, dtype=self.dtype, name="qkv")(tokens)
        q, k, v = jnp.split(qkv.reshape(n, window * window, self.heads, -1), 3, axis=-1)
        biases = self.param("attention_biases", nn.initializers.zeros, (self.heads, window * window))
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
        weights = nn.softmax(scores + biases[:, offset_index(window)]).astype(self.dtype)
        mixed = jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(n, window, window, c)
        return nn.Dense(c, dtype=self.dtype, name="proj")(mixed)


class Mlp(nn.Module):
    """Norm, ``fc1``, GELU, ``fc2``."""

    ratio: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = LayerNorm(EPSILON, self.dtype, name="norm")(x)
        y = gelu(nn.Dense(self.ratio * x.shape[-1], dtype=self.dtype, name="fc1")(y))
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="fc2")(y)


class TinyVitBlock(nn.Module):
    """x + attention, a depthwise convolution with batch norm, x + MLP."""

    heads: int
    window: int
    ratio: int
    mode: Mode = Mode()

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        size = (x.shape[1], x.shape[2])
        attention = WindowAttention(self.heads, self.mode.dtype, name="attn")
        x = x + window_merge(attention(window_partition(x, self.window)), size)
        x = ConvBN(x.shape[-1], 3, depthwise=True, mode=self.mode, name="local_conv")(x, train)
        return x + Mlp(self.ratio, self.mode.dtype, name="mlp")(x)


class PatchEmbed(nn.Module):
    """Two strided convolutions with GELU between them.  Returns the map and the strips that it is cut into."""

    width: int
    strides: tuple[int, int] = (2, 2)
    mode: Mode = Mode()

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, int]:
        return stem(self, ("seq_0", "seq_2"), (self.width // 2, self.width), self.strides, x, train)


class Stage(nn.Module):
    """The blocks of a stage and its down-sampling.  Returns the maps before and after the down-sampling.

    The map that the first stage takes may be cut into strips (``mode.cut``).
    """

    config: TinyVitConfig
    index: int
    mode: Mode = Mode()

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        cfg, i = self.config, self.index
        for j in range(cfg.depths[i]):
            if i == 0:
                x = MBConv(cfg.mlp_ratio, mode=self.mode, name=f"blocks_{j}")(x, train)
            else:
                block = TinyVitBlock(cfg.heads[i], cfg.windows[i], cfg.mlp_ratio, mode=self.mode, name=f"blocks_{j}")
                x = block(x, train)
        if i == len(cfg.widths) - 1:
            return x, x
        x, mode = strips.regroup(x, self.mode.cut.strips, 1), replace(self.mode, cut=strips.WHOLE)
        stride = 1 if i == len(cfg.widths) - 2 and not cfg.fuse else 2
        return x, PatchMerging(cfg.widths[i + 1], stride, mode=mode, name="downsample")(x, train)


class TinyVit(nn.Module):
    """Image encoder: (b h w 3) normalised float -> (b h/s w/s embed_dim), s = ``config.stride``.

    ``pyramid`` also returns the maps of the last three stages, each half the size of the one before if
    ``config.fuse``.
    """

    config: TinyVitConfig
    embed_dim: int = 256
    mode: Mode = Mode()

    @nn.compact
    def __call__(self, x: Array, train: bool = False, pyramid: bool = False) -> Array | tuple[Array, list[Array]]:
        cfg = self.config
        x, q = PatchEmbed(cfg.widths[0], cfg.stem_strides, mode=self.mode, name="patch_embed")(x, train)
        before = []
        for i in range(len(cfg.widths)):
            mode = self.mode if i else replace(self.mode, cut=strips.Cut(q))
            kept, x = Stage(cfg, i, mode=mode, name=f"layers_{i}")(x, train)
            before.append(kept)
        embedding = embed(before[-2] if cfg.fuse else None, x, self.embed_dim, cfg.upsample, self.mode.dtype)
        return (embedding, [before[-3], before[-2], x]) if pyramid else embedding
