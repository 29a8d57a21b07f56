"""The neck that RepViT, TinyViT and EfficientViT share: the maps of the last two stages to the embedding."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from edgesam_jax.models.layers import Conv, LayerNorm, resize


class Upsample(nn.Module):
    """1x1 convolution (named op_list_0 in the published files), then resize to ``size``."""

    features: int
    method: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, size: tuple[int, int]) -> Array:
        return resize(Conv(self.features, dtype=self.dtype, name="op_list_0")(x), size, self.method)


def embed(fine: Array | None, x: Array, features: int, method: str, dtype: Any) -> Array:
    """Turn the last map of an encoder into the embedding (b h w features), with EdgeSAM's fusion and SAM's neck.

    The modules created here become children of the calling encoder, under the published names.

    Args:
      fine: the map of stride 16, or None for no fusion.
      x: the last map; with fusion it is resized to the size of ``fine`` by ``method``.
    """
    if fine is not None:
        fine = Conv(features, dtype=dtype, name="fuse_stage2")(fine)
        x = fine + Upsample(features, method, dtype, name="fuse_stage3")(x, (fine.shape[1], fine.shape[2]))
    x = Conv(features, dtype=dtype, name="neck_0")(x)
    x = LayerNorm(dtype=dtype, name="neck_1")(x)
    x = Conv(features, 3, dtype=dtype, name="neck_2")(x)
    return LayerNorm(dtype=dtype, name="neck_3")(x)
