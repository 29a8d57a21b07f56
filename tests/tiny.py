"""Models and batches so small that a test compiles and runs in seconds."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from edgesam_jax.config import Config, ConvEncoderConfig, DecoderConfig, ProposalConfig, RepVitConfig, SamConfig
from edgesam_jax.types import Batch

CONV = SamConfig(
    encoder=ConvEncoderConfig(widths=(8, 8, 8, 8), depths=(0, 0, 0, 0)),
    decoder=DecoderConfig(depth=1, heads=2, mlp_dim=16),
    image_size=32,
    embed_dim=16,
    mask_in_chans=4,
)
REPVIT = dataclasses.replace(CONV, encoder=RepVitConfig(widths=(8, 8, 8, 8), depths=(1, 1, 2, 1), stem_strides=(2, 1)))
SHALLOW = dataclasses.replace(CONV, encoder=dataclasses.replace(REPVIT.encoder, depths=(1, 1, 1, 1)))
PROPOSALS = dataclasses.replace(REPVIT, proposals=ProposalConfig(channels=8, repeats=1, head_convs=1, before_nms=50))
GRID, MASK, CELL = CONV.grid, CONV.mask_size, CONV.image_size / CONV.mask_size


def make_batch(seed: int = 0, images: int = 2, prompts: int = 3, size: int = 32) -> Batch:
    """Photos of different sizes, with different numbers of prompts; the first image has all of them."""
    rng = np.random.default_rng(seed)
    valid_size = rng.integers(size * 5 // 8, size + 1, (images, 2)).astype(np.int32)
    low = rng.uniform(0, size / 3, (images, prompts, 2))
    boxes = np.concatenate([low, low + rng.uniform(size / 6, size / 4, low.shape)], -1).astype(np.float32)
    valid = rng.random((images, prompts)) < 0.6
    valid[:, 0] = valid[0] = True
    image = rng.integers(0, 256, (images, size, size, 3)).astype(np.uint8)
    masks = rng.random((images, prompts, MASK, MASK)) < 0.4
    return Batch(image, valid_size, boxes, boxes.reshape(images, prompts, 2, 2).mean(2), valid, masks)


def configured(*overrides: str, model: SamConfig = CONV) -> Config:
    """The default config with a tiny model and ``a.b=c`` overrides."""
    from edgesam_jax.config import apply_overrides

    return apply_overrides(Config(model=model), overrides)


# XLA's optimisations cost more than these models ever repay.  Fusion emitters make compiling slower, too; versions from
# 0.11 have no other way and no such flag.
FAST_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if jax.__version_info__ < (0, 11):
    FAST_FLAGS += " --xla_cpu_use_fusion_emitters=false"
