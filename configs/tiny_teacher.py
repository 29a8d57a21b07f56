"""The tiny teacher that ships with the package: a small SAM trained from scratch on the generated scenes' own masks.

::

    python -m edgesam_jax.train --config configs/tiny_teacher.py --workdir runs/tiny_teacher

Four runs, each from the previous one's weights.  ``see`` learns to find objects from one prompt on the hardest scenes,
with the auxiliary grouping loss at first.  ``refine`` adds two rounds of points drawn inside the errors.  ``more``
draws the points anywhere in the errors, as the evaluation does.  ``finish`` starts three prompts in four from points,
and lets the learning rate fall to 1e-5.  For prompts that start from a point the best of the masks counts, and the IoU
head is trained too.

Expected, in about 90 minutes on one core: 80.9 mIoU with a box and 60.6 with a centre click on held-out scenes
(``docs/results.md``).
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
            point_start="interior",
            point_start_masks="best",
            freeze_prompt_encoder=False,
            init_decoder_from_teacher=False,
        ),
        optim=OptimConfig(
            learning_rate=3e-3, min_learning_rate=2.2e-3, warmup_steps=40, b2=0.99, weight_decay=0.02, clip_norm=1.0
        ),
        train=TrainConfig(steps=1712, log_every=50, picture_every=1000, checkpoint_every=250, prompt_chunk=4),
        eval=EvalConfig(images=200, refine=2),
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
                "points inside the errors",
                init_from="see",
                overrides=(
                    "data.seed=1",
                    "train.seed=1",
                    "train.steps=752",
                    "distill.sampling=interior",
                    "optim.learning_rate=2e-3",
                    "optim.min_learning_rate=1.6e-3",
                ),
            ),
            ArmConfig(
                "more",
                "points anywhere in the errors",
                init_from="refine",
                overrides=(
                    "data.seed=2",
                    "train.seed=2",
                    "train.steps=544",
                    "optim.learning_rate=1.8e-3",
                    "optim.min_learning_rate=1.5e-3",
                ),
            ),
            ArmConfig(
                "finish",
                "mostly points, annealed",
                init_from="more",
                overrides=(
                    "data.seed=3",
                    "train.seed=3",
                    "train.steps=1600",
                    "distill.box_share=0.25",
                    "optim.learning_rate=1.6e-3",
                    "optim.min_learning_rate=1e-5",
                ),
            ),
        ),
    )
