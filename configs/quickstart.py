"""The paper's Tables 5a and 5g in miniature: distil the bundled tiny teacher into a tiny RepViT, three ways.

::

    python -m edgesam_jax.train --config configs/quickstart.py --workdir runs/quickstart

All start from the package's tiny student, which 8,000 steps of stage 1 have saturated (``configs/tiny_student.py``).  B
is more of stage 1, C is stage 2 without the prompt loop, D with one loop; B takes about as long as D.

    python -m edgesam_jax.train --config configs/quickstart.py --workdir runs/scratch --set train.init_from=

trains from scratch: arm A is stage 1 of 2,000 steps, and the others start from A.

Expected: a table in which B, C and D are level with their start, near 80 percent box mIoU (``docs/results.md``).
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

STAGE_1 = ("distill.mode=encoder_only",)
STAGE_2 = ("train.steps=110",)
MORE = ("optim.learning_rate=1e-3", "optim.warmup_steps=0")


def get_config() -> Config:
    """Four arms, one table."""
    return Config(
        name="quickstart",
        model=MODELS["tiny_student"],
        teacher="tiny_teacher",
        data=DataConfig(source="scenes", batch_size=8, max_prompts=4),
        distill=DistillConfig(rounds=1, loss=LossConfig(bce=5.0, dice=5.0)),
        optim=OptimConfig(learning_rate=3e-3, warmup_steps=40, b2=0.99, weight_decay=0.02, clip_norm=1.0),
        # One device: XLA spreads a step over the cores by itself, as fast as two pmap devices on two cores.
        train=TrainConfig(
            steps=2000, init_from="tiny_student", log_every=10, picture_every=110, checkpoint_every=110, devices=1
        ),
        eval=EvalConfig(images=100, refine=2),
        study=(
            ArmConfig("A", "A  stage 1", overrides=STAGE_1, start=True),
            ArmConfig("B", "B  more of stage 1", init_from="A", overrides=(*STAGE_1, *MORE, "train.steps=240")),
            ArmConfig("C", "C  stage 2, no loop", init_from="A", overrides=(*STAGE_2, *MORE, "distill.rounds=0")),
            ArmConfig("D", "D  stage 2, one loop", init_from="A", overrides=(*STAGE_2, *MORE), against="B"),
        ),
    )
