"""The tiny teacher that the package carries: a small SAM trained from scratch on the procedural scenes' own masks.

Two runs.  ``see`` learns to find objects from one prompt, with the auxiliary grouping loss at first, on the hardest
scenes.  ``refine`` goes on with two rounds of interactive points, drawn inside the errors.  The best of the masks counts
for point starts, and the IoU head learns along.  How the shipped file was made is told in ``docs/results.md``.
"""

from edgesam_jax.config import (
    ArmConfig,
    Config,
    DataConfig,
    DistillConfig,
    EvalConfig,
    LossConfig,
    OptimConfig,
    TrainConfig,
)
from edgesam_jax.models.sam import MODELS


def get_config() -> Config:
    """Ground-truth targets, 128 px scenes, 8 prompts on each of 8 scenes a step."""
    return Config(
        name="tiny_teacher",
        model=MODELS["tiny_teacher"],
        data=DataConfig(source="scenes", batch_size=8, max_prompts=8),
        distill=DistillConfig(
            targets="ground_truth",
            loss=LossConfig(bce=5.0, dice=5.0, iou=1.0),
            rounds=2,
            sampling="interior",
            point_start="interior",
            point_start_masks="best",
            freeze_prompt_encoder=False,
            init_decoder_from_teacher=False,
        ),
        optim=OptimConfig(
            learning_rate=3e-3, min_learning_rate=2.2e-3, warmup_steps=40, b2=0.99, weight_decay=0.02, clip_norm=1.0
        ),
        train=TrainConfig(steps=1712, log_every=50, picture_every=1000, checkpoint_every=250, prompt_chunk=4),
        eval=EvalConfig(images=200, batch_size=8, refine=2),
        study=(
            ArmConfig(
                "see",
                "one prompt",
                overrides=(
                    "distill.rounds=0",
                    "distill.loss.grouping=1.0",
                    "distill.loss.grouping_until=0.58",
                    "data.scene_difficulty=1.0",
                ),
            ),
            ArmConfig(
                "refine",
                "two rounds of points",
                init_from="see",
                overrides=(
                    "data.seed=1",
                    "train.seed=1",
                    "train.steps=2400",
                    "optim.learning_rate=2e-3",
                    "optim.min_learning_rate=1e-5",
                ),
            ),
        ),
    )
