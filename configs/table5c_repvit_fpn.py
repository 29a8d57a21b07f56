"""A row of Table 5c: RepViT-M1 with the fusion FPN, trained by stage 1 of the paper.

ImageNet weights of the encoder, to start from as published: ``--set train.init_from=DIR`` (docs/ablations.md).
"""

from dataclasses import replace
from pathlib import Path

from edgesam_jax.config import Config, RepVitConfig, load_config


def get_config() -> Config:
    """Published stage 1 with this student."""
    base = load_config(Path(__file__).with_name("edgesam_stage1.py"))
    return replace(base, name="table5c_repvit_fpn", model=replace(base.model, encoder=RepVitConfig(fuse=True)))
