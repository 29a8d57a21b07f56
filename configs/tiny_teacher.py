"""The tiny teacher that the package carries: a small SAM trained from scratch on the procedural scenes' own masks.

Interactive points in the loop from a quarter of the run, the previous mask fed back half of the time, the best of the
masks for point starts, the IoU head trained.
"""

from edgesam_jax.config import Config, DataConfig, DistillConfig, EvalConfig, LossConfig, OptimConfig, TrainConfig
from edgesam_jax.models.sam import MODELS


def get_config() -> Config:
    """Ground-truth targets, 128 px scenes."""
    return Config(
        name="tiny_teacher",
        model=MODELS["tiny_teacher"],
        data=DataConfig(source="scenes", batch_size=16, max_prompts=8),
        distill=DistillConfig(
            targets="ground_truth",
            loss=LossConfig(bce=5.0, dice=5.0, iou=1.0, grouping=1.0, grouping_until=0.2),
            rounds=2,
            rounds_from=0.25,
            point_start="interior",
            point_start_masks="best",
            mask_feedback=0.5,
            freeze_prompt_encoder=False,
            init_decoder_from_teacher=False,
        ),
        optim=OptimConfig(
            learning_rate=3e-3, min_learning_rate=1e-5, warmup_steps=40, b2=0.99, weight_decay=0.02, clip_norm=1.0
        ),
        train=TrainConfig(steps=20_000, log_every=50, picture_every=1000, checkpoint_every=500),
        eval=EvalConfig(images=200, batch_size=8, refine=2),
    )
