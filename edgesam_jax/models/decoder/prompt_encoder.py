"""SAM's prompt encoder over a fixed-size buffer of points and box corners (SAM section 3).

Details of the published code: docs/published_code.md, "Architecture".
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from edgesam_jax.models.layers import Conv, LayerNorm, PatchConv, gelu
from edgesam_jax.types import IGNORED, NOT_A_POINT, Prompts


class RandomFourierEncoding(nn.Module):
    """Positions u in [0, 1]^2 to (sin, cos) of 2 pi (2u - 1) G.  G is a constant, without gradient or weight decay."""

    embed_dim: int
    init_std: float = 1.0

    def setup(self) -> None:
        shape = (2, self.embed_dim // 2)
        self.matrix = self.variable(
            "constants",
            "positional_encoding_gaussian_matrix",
            lambda: self.init_std * jax.random.normal(self.make_rng("params"), shape),
        )

    def __call__(self, positions: Array) -> Array:
        """(... 2) -> (... embed_dim) float32."""
        angle = 2 * jnp.pi * jnp.matmul(2 * positions - 1, self.matrix.value, precision="highest")
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)

    def cells(self, grid: int) -> Array:
        """The centres of all cells of a square grid, (grid grid embed_dim)."""
        centre = (jnp.arange(grid) + 0.5) / grid
        y, x = jnp.meshgrid(centre, centre, indexing="ij")
        return self(jnp.stack([x, y], axis=-1))


class PromptEncoder(nn.Module):
    """Prompts to sparse tokens, a token mask and the dense prompt.

    ``embed_dim`` c, ``grid`` cells per side of the image embedding, ``image_size`` pixels per side of the input frame.
    """

    embed_dim: int
    grid: int
    image_size: int
    mask_in_chans: int = 16
    position_std: float = 1.0
    dtype: Any = jnp.float32

    def setup(self) -> None:
        c = self.embed_dim
        self.pe_layer = RandomFourierEncoding(c, self.position_std)
        self.point_embeddings = [nn.Embed(1, c, embedding_init=nn.initializers.normal(1.0)) for _ in range(4)]
        self.not_a_point_embed = nn.Embed(1, c, embedding_init=nn.initializers.normal(1.0))
        self.no_mask_embed = nn.Embed(1, c, embedding_init=nn.initializers.normal(1.0))
        m = self.mask_in_chans
        self.mask_downscaling_0 = PatchConv(m // 4, 2, self.dtype)
        self.mask_downscaling_1 = LayerNorm(dtype=self.dtype)
        self.mask_downscaling_3 = PatchConv(m, 2, self.dtype)
        self.mask_downscaling_4 = LayerNorm(dtype=self.dtype)
        self.mask_downscaling_6 = Conv(c, use_bias=True, dtype=self.dtype)

    def dense_positions(self) -> Array:
        """Positional encoding of every embedding cell, (grid grid c)."""
        return self.pe_layer.cells(self.grid)

    def tokens(self, prompts: Prompts) -> tuple[Array, Array]:
        """Tokens (b p n c), and their mask (b p n) bool: True for the valid slots."""
        return self.sparse(prompts), prompts.valid

    def sparse(self, prompts: Prompts) -> Array:
        """Tokens (b p n c) of all slots of the buffer, valid or not."""
        tokens = self.pe_layer((prompts.coords + 0.5) / self.image_size)
        kinds = jnp.concatenate([e.embedding for e in self.point_embeddings])  # (4 c)
        tokens = tokens + kinds[jnp.clip(prompts.labels, 0, 3)]
        padding, ignored = (prompts.labels == label for label in (NOT_A_POINT, IGNORED))
        tokens = jnp.where(padding[..., None], self.not_a_point_embed.embedding[0], tokens)
        return jnp.where(ignored[..., None], 0, tokens).astype(self.dtype)

    def dense(self, masks: Array | None, masks_valid: Array | None) -> Array:
        """Dense prompt: (1 1 1 1 c) without masks, else (b p grid grid c) from logits (b p 4*grid 4*grid).

        Prompts with ``masks_valid`` (b p) False get the "no mask" vector.
        """
        none = self.no_mask_embed.embedding[0].astype(self.dtype)
        if masks is None:
            # Initialisation creates the convolutions without masks too: the parameter tree never depends on the prompt.
            if self.is_initializing():
                self._embed_masks(jnp.zeros((1, 1, 4 * self.grid, 4 * self.grid)))
            return none[None, None, None, None]
        x = self._embed_masks(masks)
        return x if masks_valid is None else jnp.where(masks_valid[..., None, None, None], x, none)

    def _embed_masks(self, masks: Array) -> Array:
        x = masks[..., None].astype(self.dtype)
        x = gelu(self.mask_downscaling_1(self.mask_downscaling_0(x)))
        x = gelu(self.mask_downscaling_4(self.mask_downscaling_3(x)))
        return self.mask_downscaling_6(x)
