"""SAM's plain ViT image encoder: windowed and global attention with decomposed relative positions.

Source: Segment Anything (ICCV 2023), appendix A; the attention is ViTDet's and the relative positions MViTv2's.
Parameter names are the published ones by the rule of ``checkpoints/published/names.py``.

Attention is computed in blocks, because global attention at 1024x1024 has 4096 x 4096 logits a head, 0.8 GB in float32
for ViT-B.  The two position terms are added inside a block: neither the logits nor the bias ever exists in full,
forward or backward.  Blocks that fit the cache are also faster on a CPU: see docs/performance.md.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from edgesam_jax.config import VitConfig
from edgesam_jax.models.encoders.vit_stack import apply_blocks
from edgesam_jax.models.kernels.platforms import on_accelerator
from edgesam_jax.models.layers import Conv, LayerNorm, PatchConv, gelu

EPSILON = 1e-6  # of every layer norm here; the decoder's transformer uses 1e-5


def default_logits_bytes() -> int:
    """Bytes of float32 logits to hold at once: a CPU's cache, or enough to fill an accelerator."""
    return 32 << 20 if on_accelerator() else 8 << 20


# ------------------------------------------------------------------------------------------------------ windows


def window_partition(x: Array, window: int) -> Array:
    """Cut ``x`` (b h w c), zero padded at bottom and right, into windows (b * rows * columns, window, window, c)."""
    b, h, w, c = x.shape
    rows, columns = -(-h // window), -(-w // window)
    x = jnp.pad(x, ((0, 0), (0, rows * window - h), (0, columns * window - w), (0, 0)))
    x = x.reshape(b, rows, window, columns, window, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b * rows * columns, window, window, c)


def window_merge(windows: Array, size: tuple[int, int]) -> Array:
    """Invert ``window_partition``: (b h w c) for ``size`` = (h, w), without the padding."""
    _, window, _, c = windows.shape
    h, w = size
    rows, columns = -(-h // window), -(-w // window)
    x = windows.reshape(-1, rows, columns, window, window, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, rows * window, columns * window, c)[:, :h, :w]


# ---------------------------------------------------------------------------------------------------- attention


def relative_table(table: Array, size: int) -> Array:
    """Expand relative positions (2 size - 1, d) to (size, size, d), queries by keys: entry q - k + size - 1."""
    index = jnp.arange(size)
    return table[index[:, None] - index[None, :] + size - 1]


def _attend_block(q: Array, k: Array, v: Array, row_bias: Array, column_bias: Array) -> Array:
    """Attention of queries ``q`` (n q d) over all keys, with float32 biases (n q rows) and (n q columns)."""
    n, queries, d = q.shape
    rows, columns = row_bias.shape[-1], column_bias.shape[-1]
    logits = jnp.einsum("nqd,nkd->nqk", q, k, preferred_element_type=jnp.float32) * d**-0.5
    logits = logits.reshape(n, queries, rows, columns) + row_bias[..., :, None] + column_bias[..., None, :]
    logits = logits.reshape(n, queries, rows * columns)
    # Division by the sum after the product with v saves a pass over the logits.
    weights = jnp.exp(logits - lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    mixed = jnp.einsum("nqk,nkd->nqd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (mixed / weights.sum(axis=-1, keepdims=True)).astype(q.dtype)


def _largest_divisor(number: int, limit: int) -> int:
    return next(d for d in range(max(1, min(number, limit)), 0, -1) if number % d == 0)


def attend(q: Array, k: Array, v: Array, row_table: Array, column_table: Array, logits_bytes: int) -> Array:
    """Softmax attention with decomposed relative positions, in blocks of at most ``logits_bytes`` of float32 logits.

    Args:
      q, k, v: (n, rows, columns, d), ``n`` = images x windows x heads.
      row_table, column_table: (2 rows - 1, d) and (2 columns - 1, d), shared by all ``n``.
      logits_bytes: limit of a block; a block holds at least the logits of one query.

    Returns:
      (n, rows, columns, d) in the dtype of ``q``.  The softmax is in float32.  The position terms use the
      unscaled ``q``, as in the published code.  With more than one block, the backward pass recomputes each block.
    """
    n, rows, columns, d = q.shape
    tokens = rows * columns
    to_rows, to_columns = relative_table(row_table, rows), relative_table(column_table, columns)
    row_bias = jnp.einsum("nijd,ikd->nijk", q, to_rows, preferred_element_type=jnp.float32)
    column_bias = jnp.einsum("nijd,jkd->nijk", q, to_columns, preferred_element_type=jnp.float32)
    arrays = [x.reshape(n, tokens, -1) for x in (q, k, v, row_bias, column_bias)]

    instance = 4 * tokens * tokens
    block = jax.checkpoint(_attend_block)
    if n * instance <= logits_bytes:
        mixed = _attend_block(*arrays)
    elif instance <= logits_bytes:
        group = _largest_divisor(n, logits_bytes // instance)
        mixed = lax.map(lambda x: block(*x), [x.reshape(n // group, group, *x.shape[1:]) for x in arrays])
    else:
        queries = _largest_divisor(tokens, logits_bytes // (4 * tokens))

        def one_instance(xs: list[Array]) -> Array:
            q, k, v, row_bias, column_bias = xs
            by_block = [x.reshape(tokens // queries, 1, queries, -1) for x in (q, row_bias, column_bias)]
            return lax.map(lambda x: block(x[0], k[None], v[None], x[1], x[2]), by_block)

        mixed = lax.map(one_instance, arrays)
    return mixed.reshape(n, rows, columns, d)


class Attention(nn.Module):
    """Multi-head self-attention over a grid of tokens; ``qkv`` is packed as q of all heads, then k, then v."""

    heads: int
    size: int  # side of the grid
    width: int
    dtype: Any
    logits_bytes: int

    def setup(self) -> None:
        self.qkv = nn.Dense(3 * self.width, dtype=self.dtype)
        self.proj = nn.Dense(self.width, dtype=self.dtype)
        shape = (2 * self.size - 1, self.width // self.heads)
        self.rel_pos_h = self.param("rel_pos_h", nn.initializers.zeros, shape)
        self.rel_pos_w = self.param("rel_pos_w", nn.initializers.zeros, shape)

    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        qkv = self.qkv(x).reshape(b, h, w, 3, self.heads, c // self.heads).transpose(3, 0, 4, 1, 2, 5)
        q, k, v = qkv.reshape(3, b * self.heads, h, w, c // self.heads)
        tables = (self.rel_pos_h.astype(q.dtype), self.rel_pos_w.astype(q.dtype))
        x = attend(q, k, v, *tables, self.logits_bytes)
        x = x.reshape(b, self.heads, h, w, c // self.heads).transpose(0, 2, 3, 1, 4).reshape(b, h, w, c)
        return self.proj(x)


# ------------------------------------------------------------------------------------------------------ encoder


class Mlp(nn.Module):
    """``lin1``, exact GELU, ``lin2``."""

    hidden: int
    width: int
    dtype: Any

    def setup(self) -> None:
        self.lin1 = nn.Dense(self.hidden, dtype=self.dtype)
        self.lin2 = nn.Dense(self.width, dtype=self.dtype)

    def __call__(self, x: Array) -> Array:
        return self.lin2(gelu(self.lin1(x)))


class Block(nn.Module):
    """Pre-norm transformer block over (b g g c); ``window`` 0 attends over the entire grid."""

    config: VitConfig
    grid: int
    window: int
    dtype: Any
    logits_bytes: int

    def setup(self) -> None:
        c = self.config
        self.norm1 = LayerNorm(EPSILON, self.dtype)
        self.attn = Attention(c.heads, self.window or self.grid, c.width, self.dtype, self.logits_bytes)
        self.norm2 = LayerNorm(EPSILON, self.dtype)
        self.mlp = Mlp(c.mlp_ratio * c.width, c.width, self.dtype)

    def __call__(self, x: Array) -> Array:
        y = self.norm1(x)
        if self.window:
            # Padding follows the norm, and padded tokens are attended to, as in the training of the published weights.
            y = window_merge(self.attn(window_partition(y, self.window)), (self.grid, self.grid))
        else:
            y = self.attn(y)
        x = x + y
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """Square patches to tokens; a separate module because the published names have one."""

    patch: int
    width: int
    dtype: Any

    def setup(self) -> None:
        self.proj = PatchConv(self.width, self.patch, self.dtype)

    def __call__(self, x: Array) -> Array:
        return self.proj(x)


class Vit(nn.Module):
    """SAM's ViT image encoder.

    ``image_size`` is the side of the square input, and sets the shape of the position embeddings; ``embed_dim`` is the
    width of the output.  Parameters are float32, activations ``dtype``.  ``logits_bytes`` bounds the float32 attention
    logits held at once; 0 uses ``default_logits_bytes()``.
    """

    config: VitConfig
    image_size: int = 1024
    embed_dim: int = 256
    dtype: Any = jnp.float32
    logits_bytes: int = 0

    def setup(self) -> None:
        c, grid = self.config, self.image_size // self.config.patch_size
        logits_bytes = self.logits_bytes or default_logits_bytes()
        self.patch_embed = PatchEmbed(c.patch_size, c.width, self.dtype)
        self.pos_embed = self.param("pos_embed", nn.initializers.normal(0.02), (1, grid, grid, c.width))
        block = nn.remat(Block) if c.remat else Block
        self.windows = [0 if i in c.global_blocks else c.window_size for i in range(c.depth)]
        self.blocks = [block(c, grid, window, self.dtype, logits_bytes) for window in self.windows]
        self.neck = [
            Conv(self.embed_dim, 1, dtype=self.dtype),
            LayerNorm(EPSILON, self.dtype),
            Conv(self.embed_dim, 3, dtype=self.dtype),
            LayerNorm(EPSILON, self.dtype),
        ]

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Embed images.

        Args:
          x: (b h w 3) normalised pixels, h = w = ``image_size``.
          train: ignored (no dropout, no batch norm); accepted because all encoders share one call.

        Returns:
          (b g g embed_dim) in ``dtype``, g = ``image_size`` / patch size.

        Raises:
          ValueError: the images are not ``image_size`` pixels square.
        """
        del train
        if x.shape[1:3] != (self.image_size, self.image_size):
            h, w = x.shape[1:3]
            raise ValueError(f"images have {h} x {w} pixels, but the encoder is built for image_size {self.image_size}")
        x = self.patch_embed(x.astype(self.dtype)) + self.pos_embed.astype(self.dtype)
        if not on_accelerator() or self.is_initializing():
            for block in self.blocks:
                x = block(x)
        else:
            c, params = self.config, self.variables["params"]
            own = [params[f"blocks_{i}"] for i in range(c.depth)]
            limit = self.logits_bytes or default_logits_bytes()
            x = apply_blocks(own, x, self.windows, c.heads, EPSILON, limit, c.remat)
        for layer in self.neck:
            x = layer(x)
        return x
