"""The settings that the published stages share: EdgeSAM at full size, with SAM ViT-H as its teacher.

Not trained by itself: ``edgesam_stage1.py`` and ``edgesam_stage2.py`` start from this config.
"""

from typing import Literal

from edgesam_jax.config import Config, DataConfig, OptimConfig, TrainConfig


def get_config(percent: Literal[1, 3, 10] = 1) -> Config:
    """RepViT-M1 student (the default ``SamConfig``) at 1024 px, AdamW with learning rates quoted for a batch of 512.

    The photos are ``percent`` % of SA-1B, read from its tars as downloaded, about 11,000 photos a tar.  1 % is the ten
    tars of the published run; 3 % and 10 % add the tars that follow.  sa_000130 is kept for validation.  For photos and
    JSON files in folders pass ``--set data.source=images data.root=DIR``.
    """
    tars = f"sa_000020..sa_{19 + 10 * percent:06d}"
    return Config(
        name="edgesam",
        teacher="weights/sam_vit_h_4b8939.pth",
        data=DataConfig(source="tars", root="datasets/SA-1B", subset=(tars,), workers=8),
        optim=OptimConfig(b1=0.9, b2=0.999, eps=1e-8, scale_by_batch=True),
        train=TrainConfig(log_every=50, picture_every=1000, checkpoint_every=1000),
    )
