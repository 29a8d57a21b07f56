"""EdgeSAM at full size with SAM ViT-H as its teacher: what the published stages share."""

from edgesam_jax.config import Config, DataConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    """RepViT-M1 student (the default ``SamConfig``), 1024 px, AdamW with rates quoted for a batch of 512."""
    return Config(
        name="edgesam",
        teacher="weights/sam_vit_h_4b8939.pth",
        data=DataConfig(source="images", root="datasets/SA-1B/images/train", workers=8),
        optim=OptimConfig(b1=0.9, b2=0.999, eps=1e-8, scale_by_batch=True),
        train=TrainConfig(log_every=50, picture_every=1000, checkpoint_every=1000),
    )
