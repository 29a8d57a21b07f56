"""Table 5c of the paper at full size: stage 1 with one of three encoders and one of two ways to keep the resolution.

::

    python -m edgesam_jax.train --config configs/table5c.py:encoder=tinyvit,neck=nodown --workdir runs/tinyvit_nodown

``encoder``: repvit (RepViT-M1), tinyvit (TinyViT-5M) or efficientvit (EfficientViT-B1).  ``neck``: fpn (the fusion FPN)
or nodown (the last down-sampling removed).  The default is EdgeSAM's own row, RepViT-M1 with the fusion FPN.

The published runs start from the encoder's ImageNet weights: ``--set train.init_from=DIR``.  Not run here yet;
``docs/ablations.md`` lists the size of each encoder, and the results of the same table in miniature.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from edgesam_jax.config import Config, EfficientVitConfig, RepVitConfig, TinyVitConfig, load_config

ENCODERS = {"repvit": RepVitConfig, "tinyvit": TinyVitConfig, "efficientvit": EfficientVitConfig}


def get_config(
    encoder: Literal["repvit", "tinyvit", "efficientvit"] = "repvit", neck: Literal["fpn", "nodown"] = "fpn"
) -> Config:
    """Published stage 1 with this student."""
    base = load_config(Path(__file__).with_name("edgesam_stage1.py"))
    student = ENCODERS[encoder](fuse=neck == "fpn")
    return replace(base, name=f"table5c_{encoder}_{neck}", model=replace(base.model, encoder=student))
