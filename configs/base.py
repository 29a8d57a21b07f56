"""EdgeSAM at full size with SAM ViT-H as its teacher: what the published stages share."""

from edgesam_jax.config import Config, DataConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    """RepViT-M1 student (the default ``SamConfig``), 1024 px, AdamW with rates quoted for a batch of 512.

    The photos are 1 % of SA-1B: the ten tars of the published run, read as they are downloaded.  For photos and JSON
    in folders ``--set data.source=images data.root=DIR``.
    """
    return Config(
        name="edgesam",
        teacher="weights/sam_vit_h_4b8939.pth",
        data=DataConfig(source="tars", root="datasets/SA-1B", subset=("sa_000020..sa_000029",), workers=8),
        optim=OptimConfig(b1=0.9, b2=0.999, eps=1e-8, scale_by_batch=True),
        train=TrainConfig(log_every=50, picture_every=1000, checkpoint_every=1000),
    )
