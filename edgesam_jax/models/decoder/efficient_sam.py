"""EfficientSAM's prompt encoder and mask decoder, which differ from SAM's in details.

Names are the published ones.  The parts that equal SAM's (attention, positions) are SAM's modules.

Sources: EfficientSAM (arXiv 2312.00863); docs/published_code.md, "Other models".
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from edgesam_jax.config import DecoderConfig
from edgesam_jax.models.decoder.mask_decoder import UpscaleConv, by_cell, place_pixels
from edgesam_jax.models.decoder.prompt_encoder import RandomFourierEncoding
from edgesam_jax.models.decoder.transformer import Attention
from edgesam_jax.models.kernels import image_columns, platforms
from edgesam_jax.models.layers import LayerNorm, gelu
from edgesam_jax.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NEGATIVE, POSITIVE, MaskPrediction, Prompts

POINTS = 6  # tokens per prompt: points and corners, then padding; further points are dropped
NOWHERE = -1.0  # coordinates of the padding


class PromptEncoder(nn.Module):
    """Prompts to exactly ``POINTS`` tokens each; no masks as prompts, and nothing added to the image.

    The token of a negative click is its position alone.  The token of a padding is the position (-1, -1) plus a learned
    vector.
    """

    embed_dim: int
    grid: int
    image_size: int
    position_std: float = 1.0
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.pe_layer = RandomFourierEncoding(self.embed_dim, self.position_std)
        kind = lambda: nn.Embed(1, self.embed_dim, embedding_init=nn.initializers.normal(1.0))  # noqa: E731
        self.invalid_points, self.point_embeddings = kind(), kind()
        self.bbox_top_left_embeddings, self.bbox_bottom_right_embeddings = kind(), kind()

    def dense_positions(self) -> Array:
        """Positional encoding of every embedding cell, (grid grid c)."""
        return self.pe_layer.cells(self.grid)

    def tokens(self, prompts: Prompts) -> tuple[Array, Array]:
        """Tokens (b p 6 c) of the buffer's points and corners, and their mask (b p 6), which is True everywhere."""
        real = prompts.valid & (prompts.labels >= NEGATIVE)  # without SAM's padding tokens
        fill = max(0, POINTS - real.shape[-1])
        coords = jnp.pad(prompts.coords, ((0, 0), (0, 0), (0, fill), (0, 0)))
        labels, real = (jnp.pad(x, ((0, 0), (0, 0), (0, fill))) for x in (prompts.labels, real))
        first = jnp.argsort(~real, axis=-1, stable=True)[..., :POINTS]
        labels, real = (jnp.take_along_axis(x, first, axis=-1) for x in (labels, real))
        coords = jnp.where(real[..., None], jnp.take_along_axis(coords, first[..., None], axis=-2), NOWHERE)
        tokens = self.pe_layer((coords + 0.5) / self.image_size)
        for kind, module in (
            (POSITIVE, self.point_embeddings),
            (BOX_TOP_LEFT, self.bbox_top_left_embeddings),
            (BOX_BOTTOM_RIGHT, self.bbox_bottom_right_embeddings),
        ):
            tokens = tokens + jnp.where((real & (labels == kind))[..., None], module.embedding[0], 0)
        tokens = tokens + jnp.where(real[..., None], 0, self.invalid_points.embedding[0])
        return tokens.astype(self.dtype), jnp.ones(real.shape, bool)

    def dense(self, masks: Array | None, masks_valid: Array | None) -> Array:
        """The dense prompt: always zeros, (1 1 1 1 c).

        Raises:
          ValueError: ``masks`` is not None; this model has no mask prompts.
        """
        del masks_valid
        if masks is not None:
            raise ValueError("EfficientSAM takes no masks as prompts; pass points or boxes only")
        return jnp.zeros((1, 1, 1, 1, self.embed_dim), self.dtype)


class HeadMlp(nn.Module):
    """Dense layers layers_0_0, layers_1_0 ... with GELU, then ``fc``."""

    hidden: int
    out: int
    depth: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.depth):
            x = gelu(nn.Dense(self.hidden, dtype=self.dtype, name=f"layers_{i}_0")(x))
        return nn.Dense(self.out, dtype=self.dtype, name="fc")(x)


class Layer(nn.Module):
    """SAM's two-way layer with another self attention.

    The first layer keeps the residual; the later ones add the positions to the tokens before attention and residual.
    """

    config: DecoderConfig
    first: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, image: Array, token_pe: Array, image_pe: Array) -> tuple[Array, Array]:
        cfg, c = self.config, tokens.shape[-1]
        norm = lambda name: LayerNorm(1e-5, self.dtype, name=name)  # noqa: E731
        attend = lambda inner, name: Attention(cfg.heads, inner, 0, self.dtype, name=name)  # noqa: E731
        tokens = tokens if self.first else tokens + token_pe
        tokens = norm("norm1")(tokens + attend(c, "self_attn")(tokens, tokens, tokens)[0])
        inner, keys = c // cfg.attention_downsample, image + image_pe
        out, _ = attend(inner, "cross_attn_token_to_image")(tokens + token_pe, keys, image)
        tokens = norm("norm2")(tokens + out)
        tokens = norm("norm3")(tokens + HeadMlp(cfg.mlp_dim, c, 1, self.dtype, name="mlp")(tokens))
        out, _ = attend(inner, "cross_attn_image_to_token")(keys, tokens + token_pe, tokens)
        return tokens, norm("norm4")(image + out)


class Transformer(nn.Module):
    """``depth`` layers and a last token-to-image attention."""

    config: DecoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, image: Array, image_pe: Array) -> tuple[Array, Array]:
        cfg, token_pe = self.config, tokens
        for i in range(cfg.depth):
            tokens, image = Layer(cfg, i == 0, self.dtype, name=f"layers_{i}")(tokens, image, token_pe, image_pe)
        inner = tokens.shape[-1] // cfg.attention_downsample
        final = Attention(cfg.heads, inner, 0, self.dtype, name="final_attn_token_to_image")
        out, _ = final(tokens + token_pe, image + image_pe, image)
        return LayerNorm(1e-5, self.dtype, name="norm_final_attn")(tokens + out), image


class SingleGroupNorm(nn.Module):
    """Group norm with a single group: the map of a prompt (b p s 2 2 c) is normalised over pixels and channels."""

    dtype: Any = jnp.float32
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x = x.astype(jnp.float32)
        d = x - x.mean(axis=(2, 3, 4, 5), keepdims=True)
        normed = d * jax.lax.rsqrt((d * d).mean(axis=(2, 3, 4, 5), keepdims=True) + self.epsilon)
        return (normed * scale + bias).astype(self.dtype)


class MaskDecoder(nn.Module):
    """Tokens (b p 6 c) and an embedding (b g g c) to masks, with the call of SAM's ``MaskDecoder``."""

    config: DecoderConfig
    embed_dim: int
    grid: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, embedding: Array, image_pe: Array, sparse: Array, token_mask: Array, dense: Array,
        num_masks: int = 4, targets: bool = False, placed: bool = True,
    ) -> MaskPrediction:  # fmt: skip
        del token_mask  # True everywhere
        if num_masks not in (1, 3, 4):
            raise ValueError(f"num_masks must be 1, 3 or 4, got {num_masks}")
        cfg, c, g = self.config, self.embed_dim, self.grid
        b, p = sparse.shape[:2]
        normal = nn.initializers.normal(1.0)
        iou_token = nn.Embed(1, c, embedding_init=normal, name="iou_token").embedding
        mask_tokens = nn.Embed(cfg.num_mask_tokens, c, embedding_init=normal, name="mask_tokens").embedding
        output_tokens = jnp.concatenate([iou_token, mask_tokens]).astype(self.dtype)
        tokens = jnp.concatenate([jnp.broadcast_to(output_tokens, (b, p, *output_tokens.shape)), sparse], axis=2)
        image = (embedding[:, None] + dense).astype(self.dtype).reshape(b, 1, g * g, c)
        image_pe = image_pe.reshape(g * g, c).astype(self.dtype)
        tokens, image = Transformer(cfg, self.dtype, name="transformer")(tokens, image, image_pe)

        x = UpscaleConv(c // 4, self.dtype, name="final_output_upscaling_layers_0_0")(image)
        x = gelu(SingleGroupNorm(self.dtype, name="final_output_upscaling_layers_0_1")(x))
        upscaled = gelu(UpscaleConv(c // 8, self.dtype, name="final_output_upscaling_layers_1_0")(x))
        query = jnp.stack(
            [
                HeadMlp(c, c // 8, 2, self.dtype, name=f"output_hypernetworks_mlps_{i}")(tokens[:, :, 1 + i])
                for i in range(cfg.num_mask_tokens)
            ],
            axis=2,
        )
        iou = HeadMlp(c, cfg.num_mask_tokens, 2, self.dtype, name="iou_prediction_head")(tokens[:, :, 0])
        logits = jnp.einsum("bpsc,bpmc->bpms", upscaled.reshape(b, p, -1, c // 8), query)
        logits = logits.reshape(b, p, cfg.num_mask_tokens, g * g, 2, 2, 2, 2, 1)
        if placed and platforms.on_accelerator():
            logits = image_columns.place(by_cell(logits)[..., 0], g)
        else:
            logits = (place_pixels(logits, g) if placed else by_cell(logits))[..., 0]
        selected = {1: slice(0, 1), 3: slice(1, 4), 4: slice(0, 4)}[num_masks]
        named_targets = None
        if targets:
            feat = place_pixels(upscaled, g) if placed else by_cell(upscaled)
            named_targets = {"query": query[:, :, selected], "feat": feat}
        logits, iou = logits[:, :, selected].astype(jnp.float32), iou[..., selected].astype(jnp.float32)
        return MaskPrediction(logits, iou, named_targets)
