"""EfficientSAM's image encoder: a plain ViT with global attention and absolute positions.

Names are the published ones.

Sources: EfficientSAM (arXiv 2312.00863); docs/published_code.md, "Other models".
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from edgesam_jax.config import PlainVitConfig
from edgesam_jax.models.encoders.vit import EPSILON, PatchEmbed, attend, default_logits_bytes
from edgesam_jax.models.encoders.vit_stack import apply_blocks
from edgesam_jax.models.kernels.platforms import on_accelerator
from edgesam_jax.models.layers import Conv, LayerNorm, gelu, resize


class Attention(nn.Module):
    """Global multi-head self-attention over (b h w c); ``qkv`` is packed as q of all heads, then k, then v."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        d = c // self.heads
        qkv = nn.Dense(3 * c, dtype=self.dtype, name="qkv")(x)
        q, k, v = qkv.reshape(b, h, w, 3, self.heads, d).transpose(3, 0, 4, 1, 2, 5).reshape(3, b * self.heads, h, w, d)
        rows, columns = (jnp.zeros((2 * side - 1, d), q.dtype) for side in (h, w))  # no relative positions
        x = attend(q, k, v, rows, columns, default_logits_bytes())
        x = x.reshape(b, self.heads, h, w, d).transpose(0, 2, 3, 1, 4).reshape(b, h, w, c)
        return nn.Dense(c, dtype=self.dtype, name="proj")(x)


class Mlp(nn.Module):
    """``fc1``, exact GELU, ``fc2``."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = gelu(nn.Dense(self.hidden, dtype=self.dtype, name="fc1")(x))
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="fc2")(y)


class Block(nn.Module):
    """Pre-norm transformer block."""

    config: PlainVitConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        attention = Attention(self.config.heads, self.dtype, name="attn")
        x = x + attention(LayerNorm(EPSILON, self.dtype, name="norm1")(x))
        mlp = Mlp(self.config.mlp_ratio * self.config.width, self.dtype, name="mlp")
        return x + mlp(LayerNorm(EPSILON, self.dtype, name="norm2")(x))


class PlainVit(nn.Module):
    """Image encoder: (b h w 3) normalised float -> (b h/16 w/16 embed_dim).

    The positions, learned on a grid of ``config.trained_grid`` cells a side, are resized (bicubic) to the grid of the
    image.  The first position belongs to a class token, which this encoder does not have.
    """

    config: PlainVitConfig
    embed_dim: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        del train  # no dropout, no batch norm
        cfg, side = self.config, self.config.trained_grid
        x = PatchEmbed(cfg.patch_size, cfg.width, self.dtype, name="patch_embed")(x.astype(self.dtype))
        learned = self.param("pos_embed", nn.initializers.normal(0.02), (1, 1 + side * side, cfg.width))
        positions = resize(learned[:, 1:].reshape(1, side, side, cfg.width), (x.shape[1], x.shape[2]), "bicubic")
        x = x + positions.astype(self.dtype)
        if on_accelerator() and not self.is_initializing():
            own: list[Any] = [self.get_variable("params", f"blocks_{i}") for i in range(cfg.depth)]
            x = apply_blocks(own, x, [0] * cfg.depth, cfg.heads, EPSILON, default_logits_bytes())
        else:
            for i in range(cfg.depth):
                x = Block(cfg, self.dtype, name=f"blocks_{i}")(x)
        x = LayerNorm(EPSILON, self.dtype, name="neck_1")(Conv(self.embed_dim, dtype=self.dtype, name="neck_0")(x))
        x = Conv(self.embed_dim, 3, dtype=self.dtype, name="neck_2")(x)
        return LayerNorm(EPSILON, self.dtype, name="neck_3")(x)
