"""The two-way transformer of SAM's mask decoder, over many prompts of each image at once (facts, section 2).

Tokens are (b p t c).  Image tokens are (b q s c), with q = 1 as long as they are the same for every prompt of an image:
in the first layer their projections are computed once per image, not once per prompt.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from edgesam_jax.models.layers import LayerNorm

MASKED = -1e9  # added to the scores of tokens that are not there


class Projection(nn.Module):
    """Dense layer with an optional low-rank update scaled by 1 / rank (LoRA with alpha 1)."""

    features: int
    lora_rank: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, r = x.shape[-1], self.lora_rank
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (c, self.features)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        x = x.astype(self.dtype)
        y = x @ kernel + bias
        if r:
            down = self.param("lora_A", nn.initializers.he_uniform(in_axis=1, out_axis=0), (r, c)).astype(self.dtype)
            up = self.param("lora_B", nn.initializers.zeros, (self.features, r)).astype(self.dtype)
            y = y + (x @ down.T) @ up.T / r
        return y


class Attention(nn.Module):
    """Multi-head attention between tokens (b p tq c) and (b q tk c), p or q possibly 1 and then shared.

    ``key_mask`` (b p tk) bool says which keys are real.  Returns the output (b p tq c) and the probabilities
    (b p heads tq tk).
    """

    heads: int
    inner: int
    lora_rank: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, q: Array, k: Array, v: Array, key_mask: Array | None = None) -> tuple[Array, Array]:
        out_dim = q.shape[-1]
        q = Projection(self.inner, self.lora_rank, self.dtype, name="q_proj")(q)
        k = Projection(self.inner, 0, self.dtype, name="k_proj")(k)
        v = Projection(self.inner, self.lora_rank, self.dtype, name="v_proj")(v)
        q, k, v = (x.reshape(*x.shape[:-1], self.heads, -1) for x in (q, k, v))
        scores = _scores(q * q.shape[-1] ** -0.5, k).astype(jnp.float32)
        if key_mask is not None:
            scores = jnp.where(key_mask[:, :, None, None, :], scores, MASKED)
        probs = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        out = _mix(probs, v)
        out = out.reshape(*out.shape[:-2], self.inner)
        return Projection(out_dim, 0, self.dtype, name="out_proj")(out), probs


def _scores(q: Array, k: Array) -> Array:
    """(b p tq h d), (b q tk h d) -> (b p h tq tk), sharing the side whose prompt axis is 1."""
    if q.shape[1] == k.shape[1]:
        return jnp.einsum("bpqhd,bpkhd->bphqk", q, k)
    if k.shape[1] == 1:
        return jnp.einsum("bpqhd,bkhd->bphqk", q, k[:, 0])
    return jnp.einsum("bqhd,bpkhd->bphqk", q[:, 0], k)


def _mix(probs: Array, v: Array) -> Array:
    """(b p h tq tk), (b q tk h d) -> (b p tq h d)."""
    if probs.shape[1] == v.shape[1]:
        return jnp.einsum("bphqk,bpkhd->bpqhd", probs, v)
    return jnp.einsum("bphqk,bkhd->bpqhd", probs, v[:, 0])


class FeedForward(nn.Module):
    """lin1, ReLU, lin2."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = jax.nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name="lin1")(x))
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="lin2")(hidden)


class TwoWayLayer(nn.Module):
    """Self attention of the tokens, tokens to image, MLP, image to tokens."""

    heads: int
    mlp_dim: int
    downsample: int
    first: bool  # the first layer's self attention has no positions and replaces the tokens
    lora_rank: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Array, image: Array, token_pe: Array, image_pe: Array, token_mask: Array
    ) -> tuple[Array, Array, dict[str, Array]]:
        c = tokens.shape[-1]
        norm = lambda name: LayerNorm(1e-5, self.dtype, name=name)  # noqa: E731
        attend = lambda inner, name: Attention(self.heads, inner, self.lora_rank, self.dtype, name=name)  # noqa: E731
        self_attn = attend(c, "self_attn")
        if self.first:
            tokens, t2t = self_attn(tokens, tokens, tokens, token_mask)
        else:
            placed = tokens + token_pe
            out, t2t = self_attn(placed, placed, tokens, token_mask)
            tokens = tokens + out
        tokens = norm("norm1")(tokens)

        keys = image + image_pe
        inner = c // self.downsample
        out, t2i = attend(inner, "cross_attn_token_to_image")(tokens + token_pe, keys, image)
        tokens = norm("norm2")(tokens + out)
        tokens = norm("norm3")(tokens + FeedForward(self.mlp_dim, self.dtype, name="mlp")(tokens))

        out, i2t = attend(inner, "cross_attn_image_to_token")(keys, tokens + token_pe, tokens, token_mask)
        image = norm("norm4")(image + out)
        return tokens, image, {"t2t": t2t, "t2i": t2i, "i2t": i2t}


class TwoWayTransformer(nn.Module):
    """``depth`` two-way layers and a last token-to-image attention.

    ``tokens`` (b p t c) are also their own positions; ``image`` (b 1|p s c); ``image_pe`` (s c); ``token_mask`` (b p t).
    Returns tokens (b p t c), image tokens (b p s c) and the attention maps by their published names.
    """

    depth: int
    heads: int
    mlp_dim: int
    downsample: int
    lora_rank: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Array, image: Array, image_pe: Array, token_mask: Array
    ) -> tuple[Array, Array, dict[str, Array]]:
        token_pe, maps = tokens, {}
        for i in range(self.depth):
            layer = TwoWayLayer(
                self.heads, self.mlp_dim, self.downsample, i == 0, self.lora_rank, self.dtype, name=f"layers_{i}"
            )
            tokens, image, attention = layer(tokens, image, token_pe, image_pe, token_mask)
            maps |= {f"{name}_{i}": value for name, value in attention.items()}
        final = Attention(
            self.heads,
            tokens.shape[-1] // self.downsample,
            self.lora_rank,
            self.dtype,
            name="final_attn_token_to_image",
        )
        out, maps["t2i_final"] = final(tokens + token_pe, image + image_pe, image)
        return LayerNorm(1e-5, self.dtype, name="norm_final_attn")(tokens + out), image, maps
