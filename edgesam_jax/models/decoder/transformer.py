"""The two-way transformer of SAM's mask decoder, over many prompts of each image at once (SAM appendix A).

Tokens are (b p t c).  Image tokens are (b q s c), with q = 1 as long as they are the same for every prompt of an image:
in the first layer their projections are computed once per image, not once per prompt.  Accelerators compute with
(b q c s) instead, an ``Image`` of ``kernels.image_columns``.

Details of the published code: docs/published_code.md, "Architecture".
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from edgesam_jax.config import DecoderConfig
from edgesam_jax.models.kernels import image_columns, image_tokens
from edgesam_jax.models.kernels.image_columns import Image
from edgesam_jax.models.layers import LayerNorm

MASKED = -1e9  # the score of tokens that are masked


class Projection(nn.Module):
    """Kernel (c features) and bias of a dense layer, with a low-rank update scaled by 1 / rank (LoRA, alpha 1)."""

    features: int
    lora_rank: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, c: int) -> tuple[Array, Array]:
        r = self.lora_rank
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (c, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if r:
            down = self.param("lora_A", nn.initializers.he_uniform(in_axis=1, out_axis=0), (r, c))
            up = self.param("lora_B", nn.initializers.zeros, (self.features, r))
            kernel = kernel + jnp.matmul(down.T, up.T, precision="highest") / r
        return kernel.astype(self.dtype), bias.astype(self.dtype)


class Attention(nn.Module):
    """Multi-head attention between tokens (b p tq c) and (b q tk c); p or q may be 1, for tokens shared by all prompts.

    ``key_mask`` (b p tk) bool is True for the real keys.  Returns the output (b p tq c) and the probabilities
    (b p heads tq tk).

    The image has thousands of tokens and a prompt about seven: projecting the image would be nearly all of the work.
    Where it is cheaper, the projections of the image are applied to the side of the prompt instead, by associativity:
    (X W) q = X (W q).  A product with heads * t columns then replaces one with ``inner`` columns.  ``project_image``
    keeps the projection of the image: if the image is the same for all prompts, a loop over prompts computes it once.

    ``read`` and ``write`` are the two directions between a prompt and an image of ``kernels.image_columns``; there the
    projections are always moved.
    """

    heads: int
    inner: int
    lora_rank: int = 0
    dtype: Any = jnp.float32
    project_image: bool = False

    @nn.compact
    def _weights(self, c: int) -> list[tuple[Array, Array]]:
        """Kernels and biases of the projections of queries, keys, values and outputs."""
        return [
            Projection(self.inner, self.lora_rank, self.dtype, name="q_proj")(c),
            Projection(self.inner, 0, self.dtype, name="k_proj")(c),
            Projection(self.inner, self.lora_rank, self.dtype, name="v_proj")(c),
            Projection(c, 0, self.dtype, name="out_proj")(self.inner),
        ]

    def __call__(self, q: Array, k: Array, v: Array, key_mask: Array | None = None) -> tuple[Array, Array]:
        c = q.shape[-1]
        (wq, bq), (wk, bk), (wv, bv), (wo, bo) = self._weights(c)
        q, k, v = (x.astype(self.dtype) for x in (q, k, v))
        (b, p, tq, _), (_, images, tk, _) = q.shape, k.shape

        if tq <= tk:
            queries = self._split(q @ wq + bq)
            if tq * p * self.heads < images * self.inner and not self.project_image:
                # The bias of the keys adds the same number to all scores of a query, and the softmax cancels it.
                moved = jnp.einsum("bpqhd,chd->bphqc", queries, self._split(wk))
                probs = self._softmax(_image_scores(k, moved), key_mask)
                mixed = image_tokens.image_mix(probs.reshape(b, p, -1, tk), v).reshape(b, p, self.heads, tq, c)
                out = jnp.einsum("bphqc,chd->bpqhd", mixed, self._split(wv)) + self._split(bv)
            else:
                keys, values = self._split(k @ wk + bk), self._split(v @ wv + bv)
                probs = self._softmax(_multiply("bpqhd,bpkhd->bphqk", queries, keys), key_mask)
                out = _multiply("bphqk,bpkhd->bpqhd", probs, values)
            return out.reshape(*out.shape[:3], -1) @ wo + bo, probs

        # The queries are the image.  Their axis stays last: a softmax over seven adjacent numbers does not vectorise.
        keys, values = self._split(k @ wk + bk), self._split(v @ wv + bv)
        if tk * images * self.heads < p * self.inner and not self.project_image:
            moved = jnp.einsum("bpkhd,chd->bphkc", keys, self._split(wq))
            constant = jnp.einsum("bpkhd,hd->bphk", keys, self._split(bq))
            scores = _image_scores(q, moved) + constant[..., None]
        else:
            scores = _multiply("bpkhd,bpqhd->bphkq", keys, self._split(q @ wq + bq))
        probs = self._softmax(scores, key_mask, keys_last=False)
        if tk * self.heads < self.inner:
            moved = jnp.einsum("bpkhd,hdc->bphkc", values, wo.reshape(self.heads, -1, c))
            out = image_tokens.image_spread(probs.reshape(b, images, -1, tq), moved.reshape(b, images, -1, c))
        else:
            out = jnp.einsum("bphkq,bpkhd->bpqhd", probs, values)
            out = out.reshape(*out.shape[:3], -1) @ wo
        return out + bo, probs.swapaxes(-1, -2)

    def read(self, tokens: Array, image: Image, positions: Array) -> tuple[Array, Array]:
        """Attention from tokens (b p t c) to an image with ``positions`` (c s): the output (b p t c), and the
        probabilities (b p heads t s)."""
        b, p, t, c = tokens.shape
        (wq, bq), (wk, _), (wv, bv), (wo, bo) = self._weights(c)
        queries = self._split(tokens.astype(self.dtype).reshape(b * p, t, c) @ wq + bq)
        moved = jnp.einsum("nthd,chd->nthc", queries, self._split(wk)).reshape(b * p, -1, c)
        probs = jax.nn.softmax(image_columns.scores(image, positions, moved) * self._scale).astype(self.dtype)
        mixed = image_columns.mix(probs, image).reshape(b * p, t, self.heads, c)
        out = jnp.einsum("nthc,chd->nthd", mixed, self._split(wv)) + self._split(bv)
        out = out.reshape(b, p, t, -1) @ wo + bo
        return out, probs.reshape(b, p, t, self.heads, -1).swapaxes(2, 3)

    def write(
        self, image: Image, positions: Array, k: Array, v: Array, key_mask: Array | None, norm: tuple[Array, Array]
    ) -> tuple[Image, Array]:
        """The norm (scale and bias, epsilon 1e-5) of an image plus its attention to tokens k and v (b p t c).

        Returns the image, and the probabilities (b p heads s t).
        """
        b, p, t, c = k.shape
        (wq, bq), (wk, bk), (wv, bv), (wo, bo) = self._weights(c)
        k, v = (x.astype(self.dtype).reshape(b * p, t, c) for x in (k, v))
        keys, values = self._split(k @ wk + bk), self._split(v @ wv + bv)
        moved = jnp.einsum("nthd,chd->nthc", keys, self._split(wq)).reshape(b * p, -1, c)
        constant = jnp.einsum("nthd,hd->nth", keys, self._split(bq)).reshape(b * p, -1, 1)
        scores = (image_columns.scores(image, positions, moved) + constant) * self._scale
        scores = scores.reshape(b * p, t, self.heads, -1)
        if key_mask is not None:
            scores = jnp.where(key_mask.reshape(b * p, t, 1, 1), scores, MASKED)
        probs = jax.nn.softmax(scores, axis=1).astype(self.dtype).reshape(b * p, t * self.heads, -1)
        # The probabilities of a head sum to 1: its share of the output's bias can be added to every row.
        moved = jnp.einsum("nthd,hdc->nthc", values, wo.reshape(self.heads, -1, c)) + bo / self.heads
        image = image_columns.spread_norm(probs, moved.reshape(b * p, -1, c), image, *norm, 1e-5)
        return image, probs.reshape(b, p, t, self.heads, -1).transpose(0, 1, 3, 4, 2)

    @property
    def _scale(self) -> float:
        return float((self.inner // self.heads) ** -0.5)

    def _split(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], self.heads, -1)

    def _softmax(self, scores: Array, key_mask: Array | None, keys_last: bool = True) -> Array:
        """Softmax of the scaled scores over the keys, in float32; masked keys get a probability of 0."""
        scores = scores.astype(jnp.float32) * self._scale
        if key_mask is not None:
            keep = key_mask[:, :, None, None, :] if keys_last else key_mask[:, :, None, :, None]
            scores = jnp.where(keep, scores, MASKED)
        return image_tokens.softmax(scores, -1 if keys_last else -2).astype(self.dtype)


def _image_scores(image: Array, tokens: Array) -> Array:
    """(b p s c), (b p h t c) -> (b p h t s)."""
    b, p, h, t, c = tokens.shape
    return image_tokens.image_scores(image, tokens.reshape(b, p, h * t, c)).reshape(b, p, h, t, -1)


def _multiply(spec: str, a: Array, b: Array) -> Array:
    """Einsum of two operands with leading axes (b p), images and prompts; the prompts may share ``b``."""
    if b.shape[1] == 1 and a.shape[1] > 1:
        left, rest = spec.split(",")
        return jnp.einsum(f"{left},b{rest[2:]}", a, b[:, 0])
    return jnp.einsum(spec, a, b)


class NormParameters(nn.Module):
    """Scale and bias of a layer norm over c channels, which the caller applies."""

    @nn.compact
    def __call__(self, c: int) -> tuple[Array, Array]:
        return self.param("scale", nn.initializers.ones, (c,)), self.param("bias", nn.initializers.zeros, (c,))


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

    config: DecoderConfig
    first: bool  # the self attention of the first layer has no positions, and its output replaces the tokens
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Array, image: Any, token_pe: Array, image_pe: Array, token_mask: Array
    ) -> tuple[Array, Array | Image, dict[str, Array]]:
        cfg, c, columns = self.config, tokens.shape[-1], isinstance(image, Image)
        norm = lambda name: LayerNorm(1e-5, self.dtype, name=name)  # noqa: E731
        shared = self.first and not columns and image.shape[1] == 1
        attend = lambda inner, name: Attention(cfg.heads, inner, cfg.lora_rank, self.dtype, shared, name=name)  # noqa: E731
        self_attn = attend(c, "self_attn")
        if self.first:
            tokens, t2t = self_attn(tokens, tokens, tokens, token_mask)
        else:
            placed = tokens + token_pe
            out, t2t = self_attn(placed, placed, tokens, token_mask)
            tokens = tokens + out
        tokens = norm("norm1")(tokens)

        inner = c // cfg.attention_downsample
        reading = attend(inner, "cross_attn_token_to_image")
        if columns:
            out, t2i = reading.read(tokens + token_pe, image, image_pe)
        else:
            keys = image + image_pe
            out, t2i = reading(tokens + token_pe, keys, image)
        tokens = norm("norm2")(tokens + out)
        tokens = norm("norm3")(tokens + FeedForward(cfg.mlp_dim, self.dtype, name="mlp")(tokens))

        writing = attend(inner, "cross_attn_image_to_token")
        if columns:
            parameters = NormParameters(name="norm4")(c)
            image, i2t = writing.write(image, image_pe, tokens + token_pe, tokens, token_mask, parameters)
            return tokens, image, {"t2t": t2t, "t2i": t2i, "i2t": i2t}
        out, i2t = writing(keys, tokens + token_pe, tokens, token_mask)
        if shared:
            image = image_tokens.share(image, out.shape[1])
        image = norm("norm4")(image + out)
        return tokens, image, {"t2t": t2t, "t2i": t2i, "i2t": i2t}


class TwoWayTransformer(nn.Module):
    """``depth`` two-way layers and a last token-to-image attention.

    Takes ``tokens`` (b p t c), which also serve as their own positions, ``image`` (b 1 s c) or (b p s c), ``image_pe``
    (s c) and ``token_mask`` (b p t).  Returns tokens (b p t c), image tokens (b p s c) and the attention maps by their
    published names.  With an image of ``kernels.image_columns``, ``image_pe`` is (c s), and such an image is returned.
    """

    config: DecoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Array, image: Array | Image, image_pe: Array, token_mask: Array
    ) -> tuple[Array, Array | Image, dict[str, Array]]:
        cfg, token_pe = self.config, tokens
        maps: dict[str, Array] = {}
        for i in range(cfg.depth):
            layer = TwoWayLayer(cfg, i == 0, self.dtype, name=f"layers_{i}")
            tokens, image, attention = layer(tokens, image, token_pe, image_pe, token_mask)
            maps |= {f"{name}_{i}": value for name, value in attention.items()}
        inner = tokens.shape[-1] // cfg.attention_downsample
        final = Attention(cfg.heads, inner, cfg.lora_rank, self.dtype, name="final_attn_token_to_image")
        if isinstance(image, Image):
            out, maps["t2i_final"] = final.read(tokens + token_pe, image, image_pe)
        else:
            out, maps["t2i_final"] = final(tokens + token_pe, image + image_pe, image)
        return LayerNorm(1e-5, self.dtype, name="norm_final_attn")(tokens + out), image, maps
