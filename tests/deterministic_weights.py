"""Random but reproducible weights: each entry is drawn from its name and shape alone.

Built from the raw words of Philox by exact arithmetic, so they are the same bits with every version of numpy.  Scales
keep activations near 1 through every network of the family; batch norms have statistics that matter.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgesam_jax.checkpoints.published import names
from edgesam_jax.checkpoints.published.guess import published_shapes
from edgesam_jax.config import SamConfig

# Last layers of residual branches are damped, so that deep stacks keep their size.
DAMPED = re.compile(
    r"channel_mixer\.m\.2\.bn\.weight|token_mixer\.0\.conv1?\.bn\.weight|blocks\.\d+\.(attn\.proj|mlp\.lin2)\.weight"
)
SHARPENED = re.compile(r"transformer\..*\.[qk]_proj\.weight|output_hypernetworks_mlps\.\d+\.layers\.2\.weight")


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float64 in [-1, 1), always the same for a name and a size."""
    words = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(max(1, math.prod(shape)))
    return ((words >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0).reshape(shape)


def entry(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value of a published entry."""
    if name.endswith("num_batches_tracked"):
        return np.asarray(100 + zlib.crc32(name.encode()) % 1000, np.int64)
    x = uniform(name, shape)
    unit = x * math.sqrt(3.0)  # standard deviation 1
    if name.endswith("running_mean"):
        value = 0.3 * unit
    elif name.endswith("running_var"):
        value = 1.1 + 0.6 * x
    elif name.endswith((".bias", "rel_pos_h", "rel_pos_w", "lora_B")):
        value = 0.1 * unit
    elif name.endswith("positional_encoding_gaussian_matrix") or names.EMBEDDINGS.search(names.fold_path(name[:-7])):
        value = unit
    elif name.endswith("pos_embed"):
        value = 0.5 * unit
    elif len(shape) == 1:
        value = 1.0 + 0.3 * x
    else:
        transposed = names.TRANSPOSED.search(names.fold_path(name.removesuffix(".weight")))
        fan_in = shape[0] if transposed else math.prod(shape[1:])
        value = unit / math.sqrt(fan_in)
    if DAMPED.search(name):
        value = 0.5 * value
    elif SHARPENED.search(name):
        value = 2.0 * value
    return np.ascontiguousarray(value, dtype=np.float32)


def entries(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Published entries of these names and shapes."""
    return {name: entry(name, shape) for name, shape in shapes.items()}


def published(config: SamConfig) -> dict[str, np.ndarray]:
    """The published entries of a model."""
    return entries(published_shapes(config))


def variables(config: SamConfig) -> dict[str, Any]:
    """The same as this project's variables."""
    return names.to_tree(published(config))[0]


def image(size: int, batch: int = 1) -> np.ndarray:
    """A normalised image (b size size 3) float32 with structure at several scales."""
    y, x = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    waves = np.stack([np.sin(x / p + c) * np.cos(y / (p + 2) + 2 * c) for c, p in enumerate((3.0, 7.0, 17.0))], -1)
    noise = uniform(f"image {size}", (batch, size, size, 3))
    return (waves + 0.5 * noise).astype(np.float32)
