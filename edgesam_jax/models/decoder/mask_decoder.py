"""SAM's mask decoder: prompt tokens and an image embedding to masks and their predicted IoU (SAM appendix A).

Details of the published code: docs/published_code.md, "Architecture".
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from edgesam_jax.config import DecoderConfig
from edgesam_jax.models.decoder.transformer import TwoWayTransformer
from edgesam_jax.models.kernels import fused, image_columns, ops, platforms
from edgesam_jax.models.kernels.image_columns import Image, Upscaling
from edgesam_jax.models.layers import MLP, gelu
from edgesam_jax.types import MaskPrediction

NORM_EPSILON = 1e-6  # of the norm between the two upscalings


class UpscaleConv(nn.Module):
    """Transposed 2x2 convolution with stride 2 and bias, without placing its pixels: (... c) -> (... 2 2 o).

    The operations that follow are pointwise, and the pixels of a cell stay together until ``place_pixels``.
    ``zero_mean`` subtracts the mean over the features from the weights, and thereby from the result: half of the layer
    norm that follows.
    """

    features: int
    dtype: Any = jnp.float32
    zero_mean: bool = False

    @nn.compact
    def flat(self, c: int) -> tuple[Array, Array]:
        """Kernel (c 4*o) and bias (o) for an input of c channels, in float32."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (2, 2, c, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if self.zero_mean:
            kernel, bias = (v - v.mean(-1, keepdims=True) for v in (kernel, bias))
        return kernel.transpose(2, 0, 1, 3).reshape(c, -1), bias

    def __call__(self, x: Array) -> Array:
        kernel, bias = self.flat(x.shape[-1])
        y = ops.pointwise(x, kernel.astype(self.dtype))
        return y.reshape(*x.shape[:-1], 2, 2, self.features) + bias.astype(self.dtype)


class ScaleGelu(nn.Module):
    """gelu(layer norm) of an input whose features have mean 0 already; holds the parameters of the norm."""

    dtype: Any = jnp.float32
    epsilon: float = NORM_EPSILON

    @nn.compact
    def weights(self, c: int) -> tuple[Array, Array]:
        """Scale and bias (c) of the norm."""
        return self.param("scale", nn.initializers.ones, (c,)), self.param("bias", nn.initializers.zeros, (c,))

    def __call__(self, x: Array) -> Array:
        scale, bias = self.weights(x.shape[-1])
        return fused.scale_gelu(x.astype(self.dtype), scale, bias, self.epsilon)


def place_pixels(x: Array, grid: int) -> Array:
    """Undo the cell-by-cell layout of two upscalings: (... grid*grid 2 2 2 2 c) -> (... 4*grid 4*grid c)."""
    *lead, _, _, _, _, _, c = x.shape
    x = x.reshape(*lead, grid, grid, 2, 2, 2, 2, c)
    n = len(lead)
    order = (*range(n), n, n + 2, n + 4, n + 1, n + 3, n + 5, n + 6)  # i a e j b f c
    return x.transpose(order).reshape(*lead, 4 * grid, 4 * grid, c)


def by_cell(x: Array) -> Array:
    """Pixels of cells (... grid*grid 2 2 2 2 c) as (... 16 grid*grid c), in the order of ``image_columns.place``."""
    return x.reshape(*x.shape[:-5], 16, x.shape[-1]).swapaxes(-3, -2)


class MaskDecoder(nn.Module):
    """Decodes all prompts of a batch of images in one call."""

    config: DecoderConfig
    embed_dim: int
    grid: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        embedding: Array,
        image_pe: Array,
        sparse: Array,
        token_mask: Array,
        dense: Array,
        num_masks: int = 4,
        targets: bool = False,
        placed: bool = True,
    ) -> MaskPrediction:
        """Decode the prompts of each image.

        Args:
          embedding: image embedding (b g g c).
          image_pe: positional encoding of its cells (g g c).
          sparse: prompt tokens (b p n c).
          token_mask: (b p n) bool, True for the tokens that take part in attention.
          dense: dense prompt, (1 1 1 1 c) or (b p g g c).
          num_masks: 1 (token 0), 3 (tokens 1 to 3) or 4 (all, in order).
          targets: also return the named distillation targets.
          placed: False leaves the pixels of the masks by cell, (16 g*g) in place of (4g 4g): see
            ``image_columns.place``.

        Raises:
          ValueError: ``num_masks`` is not 1, 3 or 4.
        """
        if num_masks not in (1, 3, 4):
            raise ValueError(f"num_masks must be 1, 3 or 4, got {num_masks}")
        cfg, c, g = self.config, self.embed_dim, self.grid
        b, p = sparse.shape[:2]
        selected = {1: slice(0, 1), 3: slice(1, 4), 4: slice(0, 4)}[num_masks]

        normal = nn.initializers.normal(1.0)
        iou_token = nn.Embed(1, c, embedding_init=normal, name="iou_token").embedding
        mask_tokens = nn.Embed(cfg.num_mask_tokens, c, embedding_init=normal, name="mask_tokens").embedding
        output_tokens = jnp.concatenate([iou_token, mask_tokens]).astype(self.dtype)
        tokens = jnp.concatenate([jnp.broadcast_to(output_tokens, (b, p, *output_tokens.shape)), sparse], axis=2)
        mask = jnp.concatenate([jnp.ones((b, p, len(output_tokens)), bool), token_mask], axis=2)

        transformer = TwoWayTransformer(cfg, self.dtype, name="transformer")
        first = UpscaleConv(c // 4, self.dtype, zero_mean=True, name="output_upscaling_0")
        norm = ScaleGelu(self.dtype, name="output_upscaling_1")
        second = UpscaleConv(c // 8, self.dtype, name="output_upscaling_3")
        if not platforms.on_accelerator():
            image: Any = (embedding[:, None] + dense).astype(self.dtype)  # (b 1 g g c) unless there are mask prompts
            image = image.reshape(b, image.shape[1], g * g, c)
            image_pe = image_pe.reshape(g * g, c).astype(self.dtype)
            tokens, image, attention_maps = transformer(tokens, image, image_pe, mask)
            upscaled = gelu(second(norm(first(image))))  # (b p s 2 2 2 2 c/8)
        else:
            image = embedding[:, None].astype(jnp.float32) + dense
            image = Image(image.reshape(-1, g * g, c).swapaxes(1, 2))
            image_pe = image_pe.reshape(g * g, c).T.astype(jnp.float32)
            tokens, image, attention_maps = transformer(tokens, image, image_pe, mask)

        indices = range(cfg.num_mask_tokens)
        if not self.is_initializing():
            indices = indices[selected]  # the result does not depend on the other hypernetworks
        query = jnp.stack(
            [
                MLP(c, c // 8, 3, self.dtype, name=f"output_hypernetworks_mlps_{i}")(tokens[:, :, 1 + i])
                for i in indices
            ],
            axis=2,
        )
        iou = MLP(c, cfg.num_mask_tokens, 3, self.dtype, name="iou_prediction_head")(tokens[:, :, 0])

        if not platforms.on_accelerator():
            flat = upscaled.reshape(b, p, -1, c // 8)
            logits = jnp.einsum("bpsc,bpmc->bpms", flat, query)
            logits = logits.reshape(b, p, logits.shape[2], g * g, 2, 2, 2, 2, 1)
            logits = (place_pixels(logits, g) if placed else by_cell(logits))[..., 0]
        else:
            parameters = Upscaling(*first.flat(c), *norm.weights(c // 4), *second.flat(c // 4))
            query_rows = query.reshape(b * p, -1, c // 8)
            logits, upscaled = image_columns.upscaled_masks(image, parameters, query_rows, norm.epsilon)
            logits = image_columns.place(logits, g) if placed else logits
            logits = logits.reshape(b, p, *logits.shape[1:])
            upscaled = jnp.moveaxis(upscaled, -1, 1).reshape(b, p, g * g, 2, 2, 2, 2, c // 8)
        named_targets = None
        if targets:
            feat = place_pixels(upscaled, g) if placed else by_cell(upscaled)
            named_targets = {"query": query, "feat": feat, **attention_maps}
        return MaskPrediction(logits.astype(jnp.float32), iou[..., selected].astype(jnp.float32), named_targets)
