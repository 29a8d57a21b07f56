"""Starting values of a model.

NumPy draws each leaf from the seed and the leaf's path.  The values are the same bits on every backend and JAX version,
and take milliseconds; XLA needs half a minute on a CPU to compile the initialisers of a small model.
"""

from __future__ import annotations

import functools
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from edgesam_jax.config import SamConfig, UsageError
from edgesam_jax.models.sam import Sam
from edgesam_jax.types import Prompts


def abstract_variables(config: SamConfig) -> dict[str, Any]:
    """Shapes and dtypes of ``{"params", "batch_stats", "constants"}``; ``batch_stats`` is empty without batch norms.

    Raises:
      UsageError: the sizes in the config don't fit each other, such as a width that its heads don't divide.
    """
    leaves, structure = _abstract_leaves(config)
    return jax.tree.unflatten(structure, leaves)


@functools.lru_cache(maxsize=32)  # tracing the initialisers of a full-size model takes a second
def _abstract_leaves(config: SamConfig) -> tuple[tuple[jax.ShapeDtypeStruct, ...], Any]:
    prompts = Prompts(jnp.zeros((1, 1, 2, 2)), jnp.ones((1, 1, 2), jnp.int32), jnp.ones((1, 1, 2), bool))
    images = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    try:
        shapes = jax.eval_shape(lambda x: Sam(config).init(jax.random.key(0), x, prompts), images)
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):  # recent versions of JAX accept empty kernels
            if 0 in leaf.shape:
                raise ValueError(f"{jax.tree_util.keystr(path)} would have the shape {leaf.shape}")
    except (TypeError, ValueError, ArithmeticError, LookupError, AssertionError) as error:  # as any layer raises them
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UsageError(
            f"model: its sizes don't fit each other ({reason}); check the widths, depths, heads and strides of"
            " model.encoder and model.decoder, and model.image_size, which the encoder's stride must divide"
        ) from error
    leaves, structure = jax.tree.flatten({"batch_stats": {}, **shapes})
    return tuple(leaves), structure


def init_variables(config: SamConfig, seed: int = 0) -> dict[str, Any]:
    """Random float32 variables of a model that starts from scratch, as NumPy arrays.

    Kernels are normal with variance 1 / fan-in, embeddings standard normal, norms neutral.  The last norm of every
    residual MLP of RepViT starts at 0 (docs/published_code.md, "Architecture"), as does that of every inverted residual
    of TinyViT.  A proposal network gives every anchor the score ``prior``.  With ``decoder.tie_cross_keys`` the key
    projections of the cross attentions start equal to the query projections: positions then match from the first step.
    """
    flat = traverse_util.flatten_dict(abstract_variables(config), keep_empty_nodes=True)
    values = {
        path: _value(path, leaf.shape, seed, config) if hasattr(leaf, "shape") else leaf for path, leaf in flat.items()
    }
    if config.decoder.tie_cross_keys:
        for path in values:
            if "k_proj" in path and path[-1] == "kernel" and any("cross" in name or "final" in name for name in path):
                values[path] = values[tuple("q_proj" if name == "k_proj" else name for name in path)].copy()
    return traverse_util.unflatten_dict(values)


def _value(path: tuple[str, ...], shape: tuple[int, ...], seed: int, config: SamConfig) -> np.ndarray:
    leaf = path[-1]
    rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32("/".join(path).encode())]))
    if leaf == "fusion_weights":
        return np.ones(shape, np.float32)
    if config.proposals is not None and leaf == "bias" and "class_out" in path:
        return np.full(shape, -math.log(1 / config.proposals.prior - 1), np.float32)
    if leaf == "scale":
        return np.zeros(shape, np.float32) if _ends_a_residual(path) else np.ones(shape, np.float32)
    if leaf == "var":
        return np.ones(shape, np.float32)
    if leaf in ("bias", "mean", "lora_B", "rel_pos_h", "rel_pos_w", "pos_embed", "attention_biases"):
        return np.zeros(shape, np.float32)
    if leaf == "kernel":
        # With stride = kernel, an output pixel of a transposed convolution gets one tap of each input channel.
        fan_in = shape[-2] if "output_upscaling" in path[-2] else int(np.prod(shape[:-1]))
        std = fan_in**-0.5
    elif leaf == "lora_A":
        std = (3 * shape[1]) ** -0.5  # as the published uniform distribution
    elif leaf == "embedding":
        std = 1.0
    elif leaf == "positional_encoding_gaussian_matrix":
        std = config.position_std
    else:
        raise ValueError(f"no starting value is defined for the parameter {'/'.join(path)}")
    return (std * rng.standard_normal(shape)).astype(np.float32)


def _ends_a_residual(path: tuple[str, ...]) -> bool:
    """Whether a norm ends a residual branch: RepViT's MLPs, TinyViT's inverted residuals."""
    *folders, module, norm, _ = path
    return norm == "bn" and (module == "m_2" or (module == "conv3" and folders[-1].startswith("blocks")))
