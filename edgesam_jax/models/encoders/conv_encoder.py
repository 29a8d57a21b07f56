"""A small convolutional image encoder: dense 3x3 residual blocks with channel layer norm, one coarse attention.

This encoder is not from the paper; the bundled tiny teacher uses it.  At 128 px a plain ViT stays in a minimum that
ignores the photo for a long time, while this encoder learns object borders within minutes.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from edgesam_jax.config import ConvEncoderConfig
from edgesam_jax.models.layers import Conv, LayerNorm, resize


class ResidualBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), with 3x3 convolutions; then ReLU."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = x.shape[-1]
        y = jax.nn.relu(LayerNorm(dtype=self.dtype, name="norm1")(Conv(c, 3, dtype=self.dtype, name="conv1")(x)))
        y = LayerNorm(dtype=self.dtype, name="norm2")(Conv(c, 3, dtype=self.dtype, name="conv2")(y))
        return jax.nn.relu(x + y)


class GridAttention(nn.Module):
    """Pre-norm multi-head self-attention over all cells, with a learned position per cell."""

    heads: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        x = x + self.param("pos_embed", nn.initializers.zeros, (1, h, w, c)).astype(self.dtype)
        tokens = LayerNorm(dtype=self.dtype, name="norm")(x).reshape(b, h * w, c)
        qkv = nn.Dense(3 * c, dtype=self.dtype, name="qkv")(tokens)
        q, k, v = jnp.split(qkv.reshape(b, h * w, 3 * self.heads, c // self.heads), 3, axis=2)
        out = jax.nn.dot_product_attention(q, k, v).reshape(b, h, w, c)
        return x + nn.Dense(c, dtype=self.dtype, name="proj")(out)


class ConvEncoder(nn.Module):
    """Image encoder: (b h w 3) normalised float -> (b h/8 w/8 embed_dim).

    ``pyramid`` also returns the maps of the last three stages.
    """

    config: ConvEncoderConfig
    embed_dim: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False, pyramid: bool = False) -> Array | tuple[Array, list[Array]]:
        del train  # no batch statistics
        cfg = self.config
        maps = []
        for i, (width, depth) in enumerate(zip(cfg.widths, cfg.depths, strict=True)):
            x = Conv(width, 3, 2, dtype=self.dtype, name=f"downsample_{i}")(x)
            x = jax.nn.relu(LayerNorm(dtype=self.dtype, name=f"norm_{i}")(x))
            for j in range(depth):
                x = ResidualBlock(self.dtype, name=f"stages_{i}_{j}")(x)
            maps.append(x)
        coarse = GridAttention(dtype=self.dtype, name="attention")(maps[-1])
        fine = maps[-2]
        size = (fine.shape[1], fine.shape[2])
        x = Conv(self.embed_dim, dtype=self.dtype, name="fuse_fine")(fine)
        x = x + resize(Conv(self.embed_dim, dtype=self.dtype, name="fuse_coarse")(coarse), size, "bilinear")
        x = LayerNorm(dtype=self.dtype, name="neck_0")(x)
        x = Conv(self.embed_dim, 3, dtype=self.dtype, name="neck_1")(jax.nn.relu(x))
        embedding = LayerNorm(dtype=self.dtype, name="neck_2")(x)
        return (embedding, maps[-3:]) if pyramid else embedding
