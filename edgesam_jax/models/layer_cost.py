"""The cost of a model counted as papers do: layer by layer, in the arrangement of the published code.

``planning.jaxpr_cost`` counts the products that this program computes.  A count of layers differs: it includes every
convolution and linear layer at the full size of its output (taps on padding included, windows of a ViT padded), no
product of two activations (attention, relative positions, masks), and the decoder's projections as in the published
code.  The former is the work done here; the latter compares with the tables of papers.
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
    """Multiply-accumulates of convolutions and linear layers, and number of elements scaled by norms (batch, layer)."""

    products: float
    normed: float


def encoder_layers(config: SamConfig, variables: Any) -> LayerCost | None:
    """Cost of the image encoder for one photo, with its batch norms and branches unfolded.

    Args:
      config: the model.
      variables: its variables, or their shapes.

    Returns:
      The cost, or None if the encoder applies some of its kernels outside of a layer: the count would be too low.
    """
    seen: dict[tuple[str, ...], int] = {}
    products = normed = 0

    def count(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        nonlocal products, normed
        out = call(*args, **kwargs)
        params = context.module.variables.get("params", {}) if context.method_name == "__call__" else {}
        kernel = params.get("kernel")
        if kernel is not None:
            # Every output pixel and feature uses each tap of its kernel once: (k k i o), (k k 1 o) depthwise, (i o).
            products += out.size * (kernel.size // kernel.shape[-1])
            seen[context.module.path] = kernel.size
        if "scale" in params:
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
    """Cost of the mask decoder for one prompt, arranged as in SAM's published code.

    There every attention projects the tokens of the image; here ``transformer.Attention`` may project those of the
    prompt instead.
    """
    d, c, cells, t = config.decoder, config.embed_dim, config.grid**2, TOKENS
    inner = c // d.attention_downsample
    prompt, image = t * c * inner, cells * c * inner  # one projection between the widths c and inner
    layer = 4 * t * c * c + 2 * t * c * d.mlp_dim + 4 * prompt + 4 * image
    last = 2 * prompt + 2 * image
    upscaling = cells * c * (c // 4) * 4 + 4 * cells * (c // 4) * (c // 8) * 4
    heads = d.num_mask_tokens * (2 * c * c + c * (c // 8)) + 2 * c * c + c * d.num_mask_tokens
    normed = d.depth * (3 * t + cells) * c + t * c + 4 * cells * (c // 4)
    return LayerCost(d.depth * layer + last + upscaling + heads, normed)


def vit_activation_products(config: SamConfig) -> dict[str, float] | None:
    """Multiply-accumulates between activations in a ViT encoder, for one photo; None for other encoders.

    ``global`` and ``windowed``: attention (queries with keys, weights with values); ``positions``: queries with the
    decomposed relative positions.
    """
    vit = config.encoder
    if not isinstance(vit, VitConfig):
        return None
    grid, size = config.grid, vit.window_size
    windows = (-(-grid // size)) ** 2
    full = sum(1 for block in range(vit.depth) if block in vit.global_blocks)
    cut = vit.depth - full
    return {
        "global": full * 2.0 * grid**4 * vit.width,
        "windowed": cut * 2.0 * windows * size**4 * vit.width,
        "positions": 2.0 * vit.width * (full * grid**3 + cut * windows * size**3),
    }
