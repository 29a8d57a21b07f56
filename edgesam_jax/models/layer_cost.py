"""What the layers of a model cost, counted as papers count: layer by layer, with the published arrangement.

``planning.cost`` counts the products that our program computes.  A counter of layers sees something else: every
convolution and linear layer at its output's full size (taps on padding included, windows of a ViT padded), no product
of two activations (attention, relative positions, masks), and the decoder's projections as the published code
has them.  Both are of use: the one says what runs here, the other can be set beside a paper's table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from edgesam_jax.config import SamConfig, VitConfig
from edgesam_jax.models.sam import Sam

TOKENS = 7  # of the decoder: 1 IoU and 4 mask tokens, and 2 of the prompt (a box, or a point with its padding)


@dataclass(frozen=True)
class LayerCost:
    """Multiply-accumulates of convolutions and linear layers, and the elements that norms (batch, layer) scale."""

    products: float
    normed: float


def encoder_layers(config: SamConfig, variables: Any) -> LayerCost | None:
    """Of the image encoder for one photo, with its batch norms and branches unfolded.

    Args:
      variables: of the model, or their shapes.

    Returns:
      None where part of the encoder's kernels is applied outside of a layer, so that the count would fall short.
    """
    seen: dict[tuple[str, ...], int] = {}
    products = normed = 0

    def count(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        nonlocal products, normed
        out = call(*args, **kwargs)
        own = context.module.variables.get("params", {}) if context.method_name == "__call__" else {}
        kernel = own.get("kernel")
        if kernel is not None:
            # Every output pixel and feature meets the kernel's taps once: (k k i o), (k k 1 o) depthwise, (i o).
            products += out.size * (kernel.size // kernel.shape[-1])
            seen[context.module.path] = kernel.size
        if "scale" in own:
            normed += out.size
        return out

    def encode(variables: Any, x: Any) -> Any:
        return Sam(config).apply(variables, x, method="encode_image")

    image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    with nn.intercept_methods(count):
        jax.eval_shape(encode, variables, image)
    flat = jax.tree_util.tree_leaves_with_path(variables["params"]["image_encoder"])
    kernels = sum(leaf.size for path, leaf in flat if leaf.ndim > 1 and path[-1].key == "kernel")
    return LayerCost(products, normed) if sum(seen.values()) == kernels else None


def decoder_layers(config: SamConfig) -> LayerCost:
    """Of the mask decoder for one prompt, arranged as in SAM's published code.

    There every attention projects the image's tokens, where ours may project the prompt's instead
    (``transformer.Attention``).
    """
    d, c, cells, t = config.decoder, config.embed_dim, config.grid**2, TOKENS
    inner = c // d.attention_downsample
    ours, image = t * c * inner, cells * c * inner  # one projection between the widths c and inner
    layer = 4 * t * c * c + 2 * t * c * d.mlp_dim + 4 * ours + 4 * image
    last = 2 * ours + 2 * image
    upscaling = cells * c * (c // 4) * 4 + 4 * cells * (c // 4) * (c // 8) * 4
    heads = d.num_mask_tokens * (2 * c * c + c * (c // 8)) + 2 * c * c + c * d.num_mask_tokens
    normed = d.depth * (3 * t + cells) * c + t * c + 4 * cells * (c // 4)
    return LayerCost(d.depth * layer + last + upscaling + heads, normed)


def vit_activation_products(config: SamConfig) -> dict[str, float] | None:
    """Multiply-accumulates of two activations in a ViT encoder, one photo; None for other encoders.

    ``global`` and ``windowed`` attention (queries with keys, weights with values), and ``positions``: queries with the
    decomposed relative positions.
    """
    vit = config.encoder
    if not isinstance(vit, VitConfig):
        return None
    whole, size = config.grid, vit.window_size
    windows = (-(-whole // size)) ** 2
    full = sum(1 for block in range(vit.depth) if block in vit.global_blocks)
    cut = vit.depth - full
    return {
        "global": full * 2.0 * whole**4 * vit.width,
        "windowed": cut * 2.0 * windows * size**4 * vit.width,
        "positions": 2.0 * vit.width * (full * whole**3 + cut * windows * size**3),
    }
